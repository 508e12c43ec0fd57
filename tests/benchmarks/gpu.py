"""Speed and memory at LLaVA-1.5's size on this machine's GPU, beside what the cost model predicts.

Random weights, random features and made-up words: nothing is downloaded, and a forward costs the
same whatever the numbers are. In one run on one GPU, one table and one JSON file:

    matrix rate   bf16 matrix products, the measure of what the GPU can do
    training      a step of `unlearn` (shared prefix, cached features, lm_head at labels only)
    official      batch 1, three forwards, all logits, the tower every time, accumulated
    KL            the same step with KL to the original model, without a second model
    small GPU     the profile's own settings: do they fit a 40 GB (7B) or an 80 GB GPU (13B)?
    evaluation    answers in batches, and one by one

    python tests/benchmarks/gpu.py [--model 7b|13b] [--tiny] [--json FILE]

Utilisation counts needed FLOPs only: no padding, nothing computed twice.
"""

import argparse
import gc
import importlib.util
import json
import math
import random
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
if importlib.util.find_spec("pandas") is None:  # lib's tables need it, and nothing here makes one
    sys.modules["pandas"] = SimpleNamespace(DataFrame=object, Series=object)

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from lib.model import generate
from lib.model.llava import (
    add_lora,
    checkpoint_layers,
    llava,
    word_tokenizer,
)
from lib.model.merged import merge_if_exact
from lib.model.packing import Example, Group, Packer, answer_logits
from lib.model.prompts import CHAT_TEMPLATE, IMAGE_TOKEN, prompt
from lib.model.settings import Evaluation
from lib.running.profiles import LLAVA_7B, LLAVA_13B
from lib.scale import arithmetic, attention, estimate, gpus, shapes
from lib.scale.arithmetic import GIB, Row, Training
from lib.scale.workload import Assumed, rows_of
from lib.unlearning import methods
from lib.unlearning import train as unlearn

TINY = shapes.Shape("tiny", 64, 2, 4, 4, 128, 1024, 32, 2, 64, 56, 14, True)
WORDS = [f"w{number}" for number in range(400)]
METHOD = "gd"  # the longest rows: harmful answers, retain answers and PD
CUDA = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float32)


@dataclass(frozen=True)
class Result:
    """One line of the table. NaN: not predicted, or no goal."""

    part: str
    what: str
    measured: float
    predicted: float = math.nan
    goal: str = ""


@dataclass(frozen=True)
class Bench:
    """What all parts share."""

    shape: shapes.Shape
    gpu: gpus.Gpu
    model: object  # with adapter
    packer: Packer
    groups: list[Group]
    assumed: Assumed
    seconds: float  # to measure for, each time
    rate: float  # matrix FLOP/s of this GPU, measured
    small: float  # GiB of the GPU that the profile's settings should fit
    settings: Evaluation


# The model and what it is asked.


def build(shape: shapes.Shape) -> tuple:
    """(LLaVA of this shape, made on the device itself, and a processor of made-up words)."""
    tokenizer = word_tokenizer(WORDS)
    vision = CLIPVisionConfig(
        hidden_size=shape.tower_hidden, num_hidden_layers=shape.tower_layers,
        intermediate_size=shape.tower_intermediate,
        num_attention_heads=shape.tower_hidden // 64 or 1, image_size=shape.image_size,
        patch_size=shape.patch_size)
    text = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=4096, intermediate_size=shape.intermediate,
        pad_token_id=tokenizer.pad_token_id)
    config = LlavaConfig(
        vision_config=vision, text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN), tie_word_embeddings=False,
        vision_feature_layer=-2, vision_feature_select_strategy="default",
        image_seq_length=shape.image_tokens)
    size = {"height": shape.image_size, "width": shape.image_size}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size=size, do_center_crop=False), tokenizer,
        patch_size=shape.patch_size, vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE, num_additional_image_tokens=1)
    torch.set_default_dtype(DTYPE)
    with torch.device(DEVICE):
        model = LlavaForConditionalGeneration(config).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    return model, processor


class RandomFeatures:
    """Stands where `packing.Features` would: the tower's features of any picture, from memory."""

    def __init__(self, shape: shapes.Shape):
        self.one = torch.randn(shape.image_tokens, shape.tower_hidden).to(DTYPE)

    def add(self, images: Sequence[Path]) -> None:
        """They are all there."""

    def __call__(self, image: Path) -> Tensor:
        return self.one


def step_groups(images: int, queries: int, assumed: Assumed) -> list[Group]:
    """One training step's rows, answers half to one and a half times as long as assumed."""
    draw = random.Random(0)

    def some(term: str, tokens: int, count: int) -> tuple[Example, ...]:
        return tuple(Example(term, said(draw, assumed.question - 4),
                             said(draw, round(tokens * draw.uniform(0.5, 1.5))))
                     for _ in range(count))

    found, texts = [], []
    for image in range(images):
        kept = some("retain", assumed.retain, queries)
        texts += kept[queries // 2:]
        harmful = (*some("forget", assumed.answer, queries), *kept[: queries // 2])
        found += [Group(Path(f"harmful {image}"), harmful),
                  Group(Path(f"safe {image}"), some("prompt_decouple", assumed.answer, queries))]
    return found + [Group(None, tuple(texts[i : i + 6])) for i in range(0, len(texts), 6)]


def said(draw: random.Random, words: int) -> str:
    """So many words; each is a token."""
    return " ".join(draw.choice(WORDS) for _ in range(max(2, words)))


# Measuring.


def matrix_rate(size: int, seconds: float) -> float:
    """FLOP/s of square matrix products in the model's numbers."""
    one, other = (torch.randn(size, size, device=DEVICE, dtype=DTYPE) for _ in range(2))
    return 2 * size**3 / timed(lambda: one @ other, seconds)


def timed(work: Callable[[], object], seconds: float) -> float:
    """Mean seconds of a call, after one that warms up; called for about so long."""
    work()
    wait()
    start, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - start < seconds:
        work()
        wait()
        calls += 1
    return (time.perf_counter() - start) / calls


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def peak(work: Callable[[], object]) -> float:
    """GiB at most allocated during the call; NaN on a CPU."""
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() / GIB if CUDA else math.nan


# Training.


class Step:
    """What `unlearn` does in a step: lots of rows, float32 copies of what is trained."""

    def __init__(self, bench: Bench, method: str, lot: int, checkpointing: bool):
        self.model, self.packer, self.lot = bench.model, bench.packer, lot
        self.row, self.groups = methods.weights(method, True), bench.groups
        self.trained = [p for p in bench.model.parameters() if p.requires_grad]
        self.copies = [p.detach().float().clone() for p in self.trained]
        self.optimizer = torch.optim.AdamW(self.copies, lr=0.0)
        self.model.train()
        keep_all(llava(self.model))
        if checkpointing:
            checkpoint_layers(llava(self.model))

    def __call__(self) -> None:
        for start in range(0, len(self.groups), self.lot):
            found = unlearn.said_of(self.model, self.packer, self.groups[start : start + self.lot],
                                    self.row)
            sum(self.row[name] * value for name, value in found.items()
                if name in self.row).backward()
        self.update()

    def update(self) -> None:
        for parameter, copy in zip(self.trained, self.copies, strict=True):
            copy.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self.copies, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self.trained, self.copies)


def keep_all(model) -> None:
    """No gradient checkpointing."""
    disable = getattr(model, "activation_checkpointing_disable", None)  # in newer transformers
    (disable or model.gradient_checkpointing_disable)()


def official_step(bench: Bench, count: int) -> Callable[[], None]:
    """So many micro-steps: three samples in three forwards, with pictures and all logits."""
    of_term = {term: [(group, e) for group in bench.groups for e in group.examples
                      if e.term == term] for term in ("forget", "retain", "prompt_decouple")}
    samples = [official_inputs(bench, *of_term[term][i % len(of_term[term])])
               for i in range(count) for term in of_term]
    update = Step(bench, METHOD, 1, checkpointing=False).update

    def work() -> None:
        for sample in samples:
            pixels = sample.get("pixel_values")
            with_pixels = {} if pixels is None else {"pixel_values": pixels.to(DEVICE, DTYPE)}
            rest = {k: v.to(DEVICE) for k, v in sample.items() if k != "pixel_values"}
            bench.model(**rest, **with_pixels).loss.backward()
        update()

    return work


def official_inputs(bench: Bench, group: Group, example: Example) -> dict[str, Tensor]:
    segment = bench.packer.segment(example, group.image is not None)
    ids = torch.tensor([segment.prompt + segment.answer])
    labels = ids.clone()
    labels[:, : len(segment.prompt)] = -100
    side = bench.shape.image_size
    return {"input_ids": ids, "labels": labels,
            **({} if group.image is None else {"pixel_values": torch.randn(1, 3, side, side)})}


def rows_by_lot(bench: Bench, lot: int) -> list[list[Row]]:
    image = bench.packer.image_token
    return [rows_of(bench.packer.pack(bench.groups[i : i + lot]), image)
            for i in range(0, len(bench.groups), lot)]


def way(bench: Bench) -> tuple[int, bool]:
    """(rows per forward, checkpointing): the fastest that fits, says the cost model."""
    room = bench.gpu.memory * GIB * bench.assumed.usable
    for checkpointing in (False, True):
        for lot in range(len(bench.groups), 3, -1):
            if all(predicted_bytes(bench, rows, checkpointing) < room
                   for rows in rows_by_lot(bench, lot)):
                return lot, checkpointing
    return 1, True


def predicted_bytes(bench: Bench, rows: list[Row], checkpointing: bool) -> int:
    settings = LLAVA_7B.unlearning
    how = Training(settings.lora_rank, settings.lora_dropout > 0, DTYPE.itemsize, checkpointing)
    return arithmetic.training_bytes(bench.shape, rows, how)


def use_blocks(bench: Bench) -> str:
    """Turn FlexAttention on if it works here; why not, if it does not."""
    if not CUDA:
        return "a CPU takes no gradients through FlexAttention"
    try:
        differ = max(blocks_against_dense(bench, rows) for rows in (2, 3, 5))  # other lengths
    except Exception as error:
        llava(bench.model).set_attn_implementation({"text_config": "sdpa"})
        return f"FlexAttention failed, dense mask used: {type(error).__name__}: {error}"[:500]
    finally:
        bench.model.zero_grad(set_to_none=True)
    attention.skip_blocks(bench.model)
    print(f"FlexAttention: log-probabilities differ from the dense mask's by at most {differ:.3f} "
          "(bf16)")
    return ""


def blocks_against_dense(bench: Bench, rows: int) -> float:
    """The largest difference of a log-probability; gradients through the blocks are taken, too."""
    batch = bench.packer.pack(bench.groups[:rows])
    llava(bench.model).set_attn_implementation({"text_config": "sdpa"})
    with torch.no_grad():
        dense = answer_logits(bench.model, batch).float().log_softmax(-1)
    attention.skip_blocks(bench.model)
    blocks = answer_logits(bench.model, batch).float().log_softmax(-1)
    blocks.mean().backward()
    return (blocks - dense).abs().max().item()


def training(bench: Bench) -> list[Result]:
    bench.model.eval()  # no dropout: the two masks are compared
    refusal = use_blocks(bench)
    print(refusal or "Packed rows go through FlexAttention.", flush=True)
    lot, checkpointing = way(bench)
    step, lots = Step(bench, METHOD, lot, checkpointing), rows_by_lot(bench, lot)
    rows, rank = [row for of in lots for row in of], LLAVA_7B.unlearning.lora_rank
    needed = (arithmetic.forward_flops(bench.shape, rows, rank)
              + arithmetic.backward_flops(bench.shape, rows, rank))
    again = arithmetic.recomputed_flops(bench.shape, rows, rank) * checkpointing
    print(f"{len(rows)} rows in lots of {lot}, checkpointing {'on' if checkpointing else 'off'}",
          flush=True)
    used = peak(step)
    took = timed(step, bench.seconds)
    expected = (needed + again) / (bench.gpu.tflops * 1e12 * bench.assumed.training_rate)
    tokens, answers = sum(r.tokens for r in rows), sum(len(r.questions) for r in rows)
    official_count = 4
    official = timed(official_step(bench, official_count), bench.seconds) / official_count
    return [
        Result("training", "tokens per second", tokens / took, tokens / expected),
        Result("training", "needed FLOPs, share of matrix rate", needed / took / bench.rate,
               needed / expected / bench.rate, ">= 0.45"),
        Result("training", "answers per second", answers / took, answers / expected),
        Result("training", "peak memory, GiB", used,
               max(predicted_bytes(bench, of, checkpointing) for of in lots) / GIB),
        Result("official", "answers per second", 3 / official),
        Result("training", "times official", answers / took / (3 / official), goal=">= 3")]


def kl(bench: Bench) -> list[Result]:
    lot, checkpointing = way(bench)
    lot = max(1, lot // 2)  # the original's logits are there as well
    step = Step(bench, "kl", lot, checkpointing)
    used, rows = peak(step), rows_by_lot(bench, lot)
    answers = sum(len(group.examples) for group in bench.groups)
    second = arithmetic.weight_bytes(bench.shape, DTYPE.itemsize) / GIB
    return [Result("KL", "answers per second", answers / timed(step, bench.seconds)),
            Result("KL", "peak memory, GiB", used, max(
                predicted_bytes(bench, of, checkpointing) for of in rows) / GIB),
            Result("KL", "GiB that a second model would add", math.nan, second)]


def small_gpu(bench: Bench) -> list[Result]:
    lot = LLAVA_7B.runtime.micro_batch
    used = peak(Step(bench, METHOD, lot, checkpointing=True))
    expected = max(predicted_bytes(bench, of, True) for of in rows_by_lot(bench, lot)) / GIB
    return [Result("small GPU", "peak memory, GiB", used, expected, f"<= {bench.small}")]


# Evaluation.


def evaluation(bench: Bench) -> list[Result]:
    model = llava(bench.model)
    keep_all(model)
    bench.model.eval()
    merge_if_exact(bench.model)
    draw, new = random.Random(1), bench.settings.max_new_tokens
    question = said(draw, bench.assumed.question - 4)
    text = prompt(bench.packer.processor, question, True)
    ids = bench.packer.processor.tokenizer(text, return_tensors="pt").input_ids
    batch = bench.settings.batch or generate.at_once(bench.model, ids.shape[1], bench.settings)
    queries = [generate.Query(Path("harmful 0"), question, key) for key in range(batch)]
    model.generation_config.eos_token_id = None

    def in_batches(sampled: bool = False) -> None:
        generate.answer(bench.model, bench.packer.processor, bench.packer.features, queries,
                        bench.settings, sampled)

    def one_by_one() -> None:
        pixels = torch.randn(1, 3, bench.shape.image_size, bench.shape.image_size)
        model.generate(input_ids=ids.to(DEVICE), pixel_values=pixels.to(DEVICE, DTYPE),
                       attention_mask=torch.ones_like(ids).to(DEVICE), max_new_tokens=new,
                       do_sample=False)

    used = peak(in_batches)
    together, alone = timed(in_batches, bench.seconds), timed(one_by_one, bench.seconds)
    sampled = timed(partial(in_batches, True), bench.seconds)
    length = ids.shape[1]
    every = replace(bench.assumed, longest=1.0)  # random weights never end an answer
    expected = [estimate.batch_seconds(bench.shape, n, length, new, bench.gpu, every)
                for n in (batch, 1)]
    memory = arithmetic.generation_bytes(bench.shape, batch, length, new, DTYPE.itemsize)
    return [Result("evaluation", f"answers per second, {batch} at once", batch / together,
                   batch / expected[0]),
            Result("evaluation", f"the same, sampled, {batch} at once", batch / sampled,
                   batch / expected[0]),
            Result("evaluation", "answers per second, one by one", 1 / alone, 1 / expected[1]),
            Result("evaluation", "times one by one", batch * alone / together,
                   batch * expected[1] / expected[0], ">= 10"),
            Result("evaluation", "peak memory, GiB", used, memory / GIB)]


# All of it.


def bench_of(name: str, tiny: bool) -> Bench:
    profile = {"7b": LLAVA_7B, "13b": LLAVA_13B}[name]
    shape = TINY if tiny else shapes.of(profile.model)
    small = gpus.KNOWN["a100-40" if name == "7b" else "a100-80"].memory
    gpu = gpus.found() or gpus.Gpu("CPU", "", 8, math.nan, math.nan)
    assumed = replace(Assumed(), question=8, answer=12, retain=6, refusal=4) if tiny else Assumed()
    rate = matrix_rate(256 if tiny else 8192, 0.1 if tiny else 5)
    model, processor = build(shape)
    model = add_lora(model, profile.unlearning)
    packer = Packer(model, processor, RandomFeatures(shape))
    groups = step_groups(2 if tiny else profile.unlearning.images, 4, assumed)
    new = 3 if tiny else 128
    settings = replace(profile.evaluation, max_new_tokens=new, batch=4 if tiny else None)
    return Bench(shape, gpu, model, packer, groups, assumed, 0.1 if tiny else 15, rate, small,
                 settings)


def attempted(part: Callable[[Bench], list[Result]], bench: Bench) -> list[Result]:
    """The part's results; one that fails is told of, and the others go on."""
    start = time.perf_counter()
    try:
        found = part(bench)
    except Exception:
        traceback.print_exc()
        found = [Result(part.__name__, "FAILED, see above", math.nan)]
    print(f"{part.__name__}: {time.perf_counter() - start:.0f} s", flush=True)
    return found


def table(results: Sequence[Result]) -> str:
    lines = [f"{'part':12}{'what':40}{'measured':>12}{'predicted':>12}  goal"]
    lines += [f"{r.part:12}{r.what:40}{_number(r.measured):>12}{_number(r.predicted):>12}  {r.goal}"
              for r in results]
    return "\n".join(lines)


def _number(value: float) -> str:
    return "." if math.isnan(value) else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def main(arguments: list[str] | None = None) -> list[Result]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=("7b", "13b"), default="7b")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape, for tests")
    parser.add_argument("--json", type=Path, help="write the results there, too")
    chosen = parser.parse_args(arguments)
    if not (CUDA or chosen.tiny):
        raise SystemExit("torch finds no GPU here; --tiny walks the same path on a CPU.")
    torch.manual_seed(0)
    bench = bench_of(chosen.model, chosen.tiny)
    results = [Result("matrix rate", "TFLOP/s", bench.rate / 1e12, bench.gpu.tflops)]
    for part in (training, kl, small_gpu, evaluation):
        results += attempted(part, bench)
    print(f"\n{bench.shape.name} on {bench.gpu.name}, torch {torch.__version__}")
    print(table(results))
    if chosen.json:
        rows = [{k: None if v != v else v for k, v in vars(r).items()} for r in results]  # no NaN
        chosen.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
