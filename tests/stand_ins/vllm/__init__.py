"""A stand-in with vLLM's documented interface: loads the model folder with transformers, for tests.

vLLM itself needs a GPU. What is used of it: LLM(model=..., ...), SamplingParams(...), and
LLM.generate(prompts, sampling_params, use_tqdm=...) -> [RequestOutput with .outputs[0].text], in
the order of the prompts. Unknown arguments are refused, as vLLM refuses them.
"""

import os
from dataclasses import dataclass

import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor

ENGINES = []


@dataclass(frozen=True)
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16


@dataclass(frozen=True)
class CompletionOutput:
    index: int
    text: str


@dataclass(frozen=True)
class RequestOutput:
    request_id: str
    prompt: str
    outputs: list[CompletionOutput]


class LLM:
    def __init__(self, model: str, *, dtype: str = "auto", load_format: str = "auto",
                 trust_remote_code: bool = False, enable_prefix_caching: bool | None = None,
                 seed: int | None = None, limit_mm_per_prompt: dict | None = None,
                 gpu_memory_utilization: float = 0.9):
        self.settings = {"dtype": dtype, "load_format": load_format, "seed": seed,
                         "trust_remote_code": trust_remote_code,
                         "enable_prefix_caching": enable_prefix_caching,
                         "limit_mm_per_prompt": limit_mm_per_prompt,
                         "gpu_memory_utilization": gpu_memory_utilization,
                         "multiprocessing": os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING")}
        self.files = sorted(os.listdir(model))
        with safe_open(os.path.join(model, "model.safetensors"), "pt") as file:
            self.names = set(file.keys())
        self.processor = AutoProcessor.from_pretrained(model, backend="pil")
        self.model = AutoModelForImageTextToText.from_pretrained(
            model, dtype=getattr(torch, dtype)).eval()
        self.asked = []
        ENGINES.append(self)

    def generate(self, prompts, sampling_params, *, use_tqdm: bool = True):
        assert len(prompts) == len(sampling_params)
        self.asked.append(list(zip(prompts, sampling_params, strict=True)))
        return [RequestOutput(str(n), prompt["prompt"],
                              [CompletionOutput(0, self._text(prompt, sampling))])
                for n, (prompt, sampling) in enumerate(self.asked[-1])]

    @torch.no_grad()
    def _text(self, prompt: dict, sampling: SamplingParams) -> str:
        assert set(prompt) <= {"prompt", "multi_modal_data"}
        image = prompt.get("multi_modal_data", {}).get("image")
        assert prompt["prompt"].count(self.processor.image_token) == (image is not None)
        inputs = self.processor(text=prompt["prompt"], images=image, return_tensors="pt")
        warm = sampling.temperature > 0
        if warm:
            torch.manual_seed(sampling.seed)
        look = {"temperature": sampling.temperature, "top_p": sampling.top_p} if warm else {}
        tokens = self.model.generate(**inputs, max_new_tokens=sampling.max_tokens, do_sample=warm,
                                     **look)
        return self.processor.decode(tokens[0, inputs.input_ids.shape[1]:],
                                     skip_special_tokens=True)
