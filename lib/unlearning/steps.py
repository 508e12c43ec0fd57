"""What one step of unlearning sees: which records, which of their pairs, in how many forwards."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from lib.data.dataset import Record
from lib.model.packing import Example, Group, Packer
from lib.unlearning.terms import TERMS, reads

TEXTS = 8  # in a row, which makes it about as long as the pictures' rows: little is padding


def chosen(records: Sequence[Record], count: int, seed: int, step: int) -> list[Record]:
    """The records of one step: each once per epoch, in an order that follows from the seed."""
    places = range(step * count, (step + 1) * count)
    orders = {epoch: np.random.default_rng([seed, 0, epoch]).permutation(len(records))
              for epoch in {place // len(records) for place in places}}
    return [records[orders[place // len(records)][place % len(records)]] for place in places]


def groups(records: Sequence[Record], refusals: Sequence[str], names: Iterable[str],
           rng, queries: int | None = None) -> list[Group]:
    """The rows of one step: per record its harmful and its safe picture, and all texts together.

    Only what the terms of these `names` read. Of a record's four queries and of its four retain
    pairs so many are drawn, the same queries for both pictures (None: all). The official code draws
    a retain item and a PD item of other records (data_module.py:153); here all are of the same.
    """
    kinds, found, texts = reads(names), [], []
    # All draws before any refusal: so the methods see the same pairs.
    drawn = [(_some(record.unsafe_pairs, queries, rng),
              _some([*record.text_pairs, *record.image_pairs], queries, rng)) for record in records]
    for record, (asked, kept) in zip(records, drawn, strict=True):
        sets, harmful = record.sets(), []
        for pair in (sets["forget"][1][i] for i in asked):
            if "forget" in kinds:
                harmful.append(Example("forget", pair.question, pair.answer))
            if "refusal" in kinds:
                refusal = refusals[rng.integers(len(refusals))]
                harmful.append(Example("refusal", pair.question, refusal))
        if "retain" in kinds:
            pairs = [*sets["retain text"][1], *sets["retain image"][1]]
            count = len(sets["retain text"][1])
            texts += _examples("retain", [pairs[i] for i in kept if i < count])
            harmful += _examples("retain", [pairs[i] for i in kept if i >= count])
        if harmful:
            found.append(Group(record.image, tuple(harmful)))
        if "prompt_decouple" in kinds:
            safe = [sets["prompt decouple"][1][i] for i in asked]
            found.append(Group(record.safe_image, tuple(_examples("prompt_decouple", safe))))
    return found + [Group(None, tuple(texts[i : i + TEXTS])) for i in range(0, len(texts), TEXTS)]


def _some(items: Sequence, count: int | None, rng) -> list[int]:
    """Places of `count` of the items, in order."""
    return sorted(rng.permutation(len(items))[:count])


def _examples(kind: str, pairs: Sequence) -> list[Example]:
    return [Example(kind, pair.question, pair.answer) for pair in pairs]


def lots(rows: Sequence[Group], size: int | None) -> list[Sequence[Group]]:
    """The rows that go through the model together."""
    size = size or len(rows)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def shares(packer: Packer, parts: Sequence[Sequence[Group]],
           official_quirks: bool = False) -> list[dict[str, float]]:
    """For each lot, which share of all a term's answers it has (tokens, where a term pools them).

    A term is a mean over its answers, so these are the weights with which the lots' means add up
    to the mean of all.
    """
    counts = [Counter() for _ in parts]
    for lot, count in zip(parts, counts, strict=True):
        for group in lot:
            for example in group.examples:
                segment = packer.segment(example, group.image is not None)
                for term in TERMS.values():
                    if example.term in term.reads:
                        count[term.name] += len(segment.answer) if term.pools_tokens else 1
                if official_quirks and example.term == "retain":  # that KL is over positions
                    count["kl"] += len(segment.prompt) + len(segment.answer) - 2
    total = sum(counts, Counter())
    return [{term: count[term] / total[term] for term in total} for count in counts]
