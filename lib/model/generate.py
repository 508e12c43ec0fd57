"""Answers in batches: left padding, sorted by length, the image's tower features computed once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from lib.model.finite import NotFinite
from lib.model.llava import llava
from lib.model.packing import Features
from lib.model.prompts import encode, prompt
from lib.model.settings import Evaluation

ON_A_CPU, ON_A_GPU = 16, 128  # answers at once, to begin with, where the number is left open


@dataclass(frozen=True)
class Query:
    """A question to the model; `key` makes a sampled answer's random numbers its own."""

    image: Path | None
    question: str
    key: int = 0


def answer(model, processor, features: Features, queries: Sequence[Query], settings: Evaluation,
           sampled: bool = False, report: Callable[[int], None] = lambda done: None,
           keep: Callable[[dict[int, str]], None] = lambda answers: None) -> list[str]:
    """The model's answers to `queries`, in their order.

    Greedy, or one sample each (temperature and top-p of `settings`) whose randomness depends on the
    query's key alone: not on the batch it happens to be in. After each batch `keep` is given its
    answers, by place in `queries`, and `report` is told how many are done. A batch that is too
    large for the GPU is halved, and so are those that follow.
    """
    tokenizer = processor.tokenizer
    features.add([query.image for query in queries if query.image is not None])
    prompts = [encode(tokenizer, prompt(processor, query.question, query.image is not None))
               for query in queries]
    # Like lengths side by side; pictures and texts apart, since one forward takes either.
    order = sorted(range(len(queries)), key=lambda i: (queries[i].image is None, len(prompts[i])))
    at_once = ON_A_CPU if llava(model).device.type == "cpu" else ON_A_GPU
    size = settings.batch or at_once
    waiting, answers = _parts(order, queries, size), {}
    while waiting:
        part = waiting.pop(0)
        try:
            texts = _texts(model, tokenizer, features, [queries[i] for i in part],
                           [prompts[i] for i in part], settings, sampled)
        except torch.OutOfMemoryError:
            if len(part) == 1:
                raise
            texts = None
        if texts is None:  # out of the except block, whose error keeps what did not fit alive
            torch.cuda.empty_cache()
            waiting = [half for whole in (part, *waiting) for half in _halves(whole) if half]
            continue
        fresh = dict(zip(part, texts, strict=True))
        answers.update(fresh)
        keep(fresh)
        report(len(answers))
    return [answers[i] for i in range(len(queries))]


def _halves(part: list[int]) -> tuple[list[int], list[int]]:
    return part[: (len(part) + 1) // 2], part[(len(part) + 1) // 2 :]


def _texts(model, tokenizer, features: Features, queries: Sequence[Query],
           prompts: Sequence[list[int]], settings: Evaluation, sampled: bool) -> list[str]:
    """The answers of one batch."""
    ids, mask = (tensor.to(llava(model).device) for tensor in
                 _left_padded(prompts, tokenizer.pad_token_id))
    embeds = _embeds(model, ids, [query.image for query in queries], features)
    keys = [query.key for query in queries] if sampled else None
    tokens = _generate(model, tokenizer, embeds, mask, keys, settings)
    ends = _ends(model, tokenizer)
    said = [[token for token in row if token not in ends] for row in tokens.tolist()]
    return [text.strip() for text in tokenizer.batch_decode(said, skip_special_tokens=True)]


def _parts(order: list[int], queries: Sequence[Query], size: int) -> list[list[int]]:
    kinds = [[i for i in order if (queries[i].image is None) == text] for text in (False, True)]
    return [kind[start : start + size] for kind in kinds for start in range(0, len(kind), size)]


def _left_padded(lists: Sequence[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both [rows, length]."""
    length = max(len(ids) for ids in lists)
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in lists])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in lists])
    return ids, mask


@torch.no_grad()
def _embeds(model, ids: Tensor, images: Sequence[Path | None], features: Features) -> Tensor:
    """Input embeddings with the projected features in the image tokens' places."""
    whole = llava(model)
    embeds = whole.get_input_embeddings()(ids)
    if images[0] is None:
        return embeds
    seen = whole.model.multi_modal_projector(
        torch.stack([features(image) for image in images]).to(whole.device))
    at_image = (ids == whole.config.image_token_id)[..., None]
    return embeds.masked_scatter(at_image, seen.to(embeds.dtype))


@torch.no_grad()
def _generate(model, tokenizer, embeds: Tensor, mask: Tensor, keys: Sequence[int] | None,
              settings: Evaluation) -> Tensor:
    """New tokens, [rows, at most max_new_tokens]."""
    watch = Watch()
    chooser = LogitsProcessorList([watch])
    if keys is not None:
        chooser.append(SeededSampling(keys, settings.temperature, settings.top_p))
    tokens = llava(model).generate(
        inputs_embeds=embeds, attention_mask=mask, max_new_tokens=settings.max_new_tokens,
        do_sample=False, num_beams=1, logits_processor=chooser, use_cache=True,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=_ends(model, tokenizer))
    watch.check()
    return tokens


def _ends(model, tokenizer) -> list[int]:
    """The tokens that end an answer: the tokenizer's own, and those of the generation_config."""
    others = llava(model).generation_config.eos_token_id
    others = others if isinstance(others, list) else [others]
    return list(dict.fromkeys(token for token in (tokenizer.eos_token_id, *others)
                              if token is not None))


class Watch(LogitsProcessor):
    """Notices rows whose logits are not finite; `check` says it once, so that no token waits."""

    def __init__(self):
        self.fine = torch.tensor(True)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores: [rows, vocabulary], as they come. NaN is the largest; some may be -inf."""
        self.fine = scores.amax(-1).isfinite() & self.fine
        return scores

    def check(self) -> None:
        """Raise NotFinite if there was such a row."""
        wrong = int((~self.fine).sum())
        if wrong:
            raise NotFinite(f"The model's logits are not finite in {wrong} of {len(self.fine)} "
                            "answers: its weights or its adapter are damaged, or its numbers are "
                            "too large for float16 (dtype in lib/running/profiles.py).")


class SeededSampling(LogitsProcessor):
    """Turns greedy choice into nucleus sampling with a random stream per row.

    One uniform number per row and token picks the token at which the cumulative probability passes
    it. All other tokens are ruled out, so `generate` may stay greedy while each row has its own
    seed.
    """

    def __init__(self, keys: Sequence[int], temperature: float, top_p: float):
        self.streams = [np.random.Generator(np.random.Philox(key)) for key in keys]
        self.temperature, self.nucleus = temperature, TopPLogitsWarper(top_p)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores: [rows, vocabulary] -> 0 for the token that is drawn, -inf for all others."""
        kept = self.nucleus(input_ids, scores.float() / self.temperature)
        upto = kept.double().softmax(-1).cumsum(-1)
        drawn = upto.new_tensor([[stream.random()] for stream in self.streams])
        token = torch.searchsorted(upto, drawn * upto[:, -1:], right=True)
        token = token.clamp(max=scores.shape[-1] - 1)  # of NaN, which `Watch` tells
        return torch.full_like(kept, -torch.inf).scatter(-1, token, 0.0)
