"""Answers by vLLM instead of transformers, for those who have it: the same prompts and order.

vLLM keeps many answers in flight and reuses what prompts share (prefix caching), so the questions
on one picture pay for its image tokens once. Its arithmetic is its own: greedy answers agree with
transformers' but for near ties, sampled ones come from the same distribution by another generator.
"""

import gc
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from lib.data.pictures import open_image
from lib.model.generate import Query
from lib.model.llava import llava
from lib.model.merged import DTYPE, save_merged
from lib.model.prompts import prompt_for_one_image
from lib.model.settings import Evaluation

LOT = 512  # answers between two additions to the journal; enough to keep a GPU busy
MEMORY = 0.85  # share of the GPU that vLLM may take; this process keeps its CUDA context beside it


@contextmanager
def answerer(model, processor, scratch: Path) -> Iterator[Callable]:
    """Start vLLM on the model with its adapter merged; yields a function like `generate.answer`.

    That is `(queries, settings, sampled, report, keep) -> answers`. The merged model lies in
    `scratch` meanwhile, and the model itself off the GPU. It answers in float32 (`merged`): a
    7B model takes 28 GB of the GPU. Raises ModuleNotFoundError, which says
    what to install, and ValueError for a model in 4 bits.
    """
    vllm = _vllm()
    whole, scratch = llava(model), Path(scratch)
    device = whole.device
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="merged-", dir=scratch) as folder:
        save_merged(model, processor, Path(folder) / "model")
        whole.to("cpu")
        _free()
        try:
            engine = vllm.LLM(
                model=str(Path(folder) / "model"), dtype=DTYPE, load_format="safetensors",
                trust_remote_code=False, enable_prefix_caching=True, seed=0,
                limit_mm_per_prompt={"image": 1}, gpu_memory_utilization=MEMORY)
            yield partial(_answer, vllm, engine, processor)
        finally:
            engine = None
            _free()
            whole.to(device)


def _vllm():
    # In this process: our workers may have no children, and the schedule is then always the same.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    try:
        import vllm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The generator vllm needs the package vllm, which is not installed: "
            'pip install -e ".[vllm]" on a machine with a GPU, or choose the generator '
            f"transformers. ({error})") from None
    return vllm


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _answer(vllm, engine, processor, queries: Sequence[Query], settings: Evaluation,
            sampled: bool = False, report: Callable[[int], None] = lambda done: None,
            keep: Callable[[dict[int, str]], None] = lambda texts: None) -> list[str]:
    """As `generate.answer`: answers in the order of the queries, each sample by its own seed."""
    answers: list[str] = []
    for start in range(0, len(queries), LOT):
        part = queries[start : start + LOT]
        pictures = {query.image: open_image(query.image) for query in part if query.image}
        prompts = [_prompt(processor, query, pictures) for query in part]
        chosen = [_sampling(vllm, query, settings, sampled) for query in part]
        outputs = engine.generate(prompts, chosen, use_tqdm=False)  # in the order of the prompts
        texts = [output.outputs[0].text.strip() for output in outputs]
        keep(dict(enumerate(texts, start)))
        answers += texts
        report(len(answers))
    return answers


def _prompt(processor, query: Query, pictures: dict[Path, Image.Image]) -> dict:
    """A prompt as vLLM takes it: one image token, which it replaces by as many as there are."""
    text = prompt_for_one_image(processor, query.question, query.image is not None)
    text = text.removeprefix(processor.tokenizer.bos_token or "")  # vLLM's tokenizer adds it
    if query.image is None:
        return {"prompt": text}
    return {"prompt": text, "multi_modal_data": {"image": pictures[query.image]}}


def _sampling(vllm, query: Query, settings: Evaluation, sampled: bool):
    if not sampled:
        return vllm.SamplingParams(temperature=0.0, max_tokens=settings.max_new_tokens)
    return vllm.SamplingParams(temperature=settings.temperature, top_p=settings.top_p,
                               seed=query.key, max_tokens=settings.max_new_tokens)
