"""Answers in batches: left padding, sorted by length, the image's tower features computed once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from lib.batching import Features, encode, prompt
from lib.model import llava
from lib.profiles import Evaluation


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
    answers, by place in `queries`, and `report` is told how many are done.
    """
    tokenizer = processor.tokenizer
    features.add([query.image for query in queries if query.image is not None])
    prompts = [encode(tokenizer, prompt(processor, query.question, query.image is not None))
               for query in queries]
    # Like lengths side by side; pictures and texts apart, since one forward takes either.
    order = sorted(range(len(queries)), key=lambda i: (queries[i].image is None, len(prompts[i])))
    answers: dict[int, str] = {}
    for part in _parts(order, queries, settings.batch):
        ids, mask = (tensor.to(llava(model).device) for tensor in
                     _left_padded([prompts[i] for i in part], tokenizer.pad_token_id))
        embeds = _embeds(model, ids, [queries[i].image for i in part], features)
        keys = [queries[i].key for i in part] if sampled else None
        tokens = _generate(model, tokenizer, embeds, mask, keys, settings)
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        fresh = dict(zip(part, (text.strip() for text in texts), strict=True))
        answers.update(fresh)
        keep(fresh)
        report(len(answers))
    return [answers[i] for i in range(len(queries))]


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
    chooser = LogitsProcessorList()
    if keys is not None:
        chooser.append(SeededSampling(keys, settings.temperature, settings.top_p))
    return llava(model).generate(
        inputs_embeds=embeds, attention_mask=mask, max_new_tokens=settings.max_new_tokens,
        do_sample=False, num_beams=1, logits_processor=chooser, use_cache=True,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)


class SeededSampling(LogitsProcessor):
    """Turns greedy choice into nucleus sampling with a random stream per row.

    The largest of logits plus independent Gumbel noise is a sample of their softmax (the Gumbel-max
    trick), so `generate` may stay greedy while each row has its own seed.
    """

    def __init__(self, keys: Sequence[int], temperature: float, top_p: float):
        self.streams = [np.random.Generator(np.random.Philox(key)) for key in keys]
        self.temperature, self.nucleus = temperature, TopPLogitsWarper(top_p)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores: [rows, vocabulary] -> the same, noisy, -inf outside of the nucleus."""
        kept = self.nucleus(input_ids, scores.float() / self.temperature)
        noise = np.stack([stream.gumbel(size=scores.shape[1]) for stream in self.streams])
        return kept + torch.from_numpy(noise).to(kept)
