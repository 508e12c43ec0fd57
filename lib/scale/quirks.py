"""What the official code does and the paper does not say, behind one switch, off by default.

`--official-quirks` turns all of them on, to see how far they move the numbers. Each is one small
function here, named where it acts (places in the official code at commit 9e96612):

- letters: `str.capitalize()` lower-cases all but a text's first letter (data_module.py:157-167);
- partner: the PD item, and the retain item, are of another record (data_module.py:153);
- weights: PD's weight differs by method, and it halves GD's retain (forget.py:363-500);
- end: no answer has an end-of-sequence token, so none is learned (`Packer(end=False)`);
- KL: over the question's and the image's positions too (`kl_everywhere`, forget.py);
- headline: three sampled answers, and ROUGE-L's precision (eval_all.py:197, ckpt_infer.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lib.data.dataset import Dataset, Record
from lib.model.packing import Batch, Group, answer_logits
from lib.unlearning import methods, terms


def capitalized(groups: Sequence[Group]) -> list[Group]:
    """The same rows, every question and answer as `str.capitalize` leaves it.

    >>> "An HIV test. What is it?".capitalize()
    'An hiv test. what is it?'
    """
    return [replace(group, examples=tuple(
        replace(e, question=e.question.capitalize(), answer=e.answer.capitalize())
        for e in group.examples)) for group in groups]


def partners(records: Sequence[Record], everything: Sequence[Record], rng) -> list[Record]:
    """For each record one that is drawn from all: whose retain and PD items are taken."""
    return [everything[i] for i in rng.integers(len(everything), size=len(records))]


def sides(row: Mapping[str, float]) -> tuple[set[str], set[str]]:
    """What a row reads of the record itself, and what its partner gives."""
    kinds = terms.reads(row)
    return kinds & {"forget", "refusal"}, kinds & {"retain", "prompt_decouple"}


def kl_everywhere(model, retain: Batch) -> Tensor:
    """KL(original || current) over every position of the retain rows, nats.

    The prefix that packed questions share counts once for each of them, as in separate rows.
    """
    whole, weights = everywhere(retain)
    with torch.no_grad(), model.disable_adapter():
        original = answer_logits(model, whole)
    values = terms.token_kl(original, answer_logits(model, whole))
    return (values * weights).sum() / weights.sum()


def everywhere(batch: Batch) -> tuple[Batch, Tensor]:
    """The batch with a logit at each position but padding; and how many questions share each."""
    places = (batch.segments.flatten() >= 0).nonzero().flatten()
    questions = batch.segments.max(1, keepdim=True).values
    weights = torch.where(batch.segments == 0, questions, 1).flatten()[places].float()
    return replace(batch, places=places), weights


def shown(dataset: Dataset, seed: int = 0) -> pd.DataFrame:
    """What each quirk does to the first record: quirk, by default, with official_quirks.

    Only retain answers are shown, so nothing in it is harmful.
    """
    record = dataset.train[0]
    pair = record.image_pairs[0]
    other = partners([record], dataset.train, np.random.default_rng(seed))[0]
    added, official = (methods.weights("gd", True, rows=name) for name in ("added", "official"))
    return pd.DataFrame([
        ("letters", pair.answer, pair.answer.capitalize()),
        ("partner of the query in PD", _place(record), _place(other)),
        ("weights of GD + PD", _signed(added), _signed(official)),
        ("end of an answer", f"{pair.answer}</s>", pair.answer),
        ("positions of the KL", f"the {len(pair.answer.split())} words of the answer",
         f"the image, the question's {len(pair.question.split())} words and the answer's"),
        ("answers per harmful query", "1, greedy", "3, sampled"),
        ("ROUGE-L of the first word alone", *_rouge(pair.answer)),
    ], columns=["quirk", "by default", "with official_quirks"])


def _place(record: Record) -> str:
    return "/".join(record.image.parts[-2:])


def _signed(row: Mapping[str, float]) -> str:
    """`_signed({"forget": -1.0, "retain": 0.5})` is "-1 forget, +0.5 retain"."""
    return ", ".join(f"{weight:+g} {term}" for term, weight in row.items())


def _rouge(reference: str) -> tuple[str, str]:
    """F and precision of an answer that says the reference's first word and stops."""
    words = len(reference.split())
    return f"F {2 / (words + 1):.2f}", "precision 1.00"
