"""A model -> answers.jsonl: every question of the evaluation, answered and judged."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from lib.base.journal import Journal
from lib.data.dataset import CATEGORIES, NEIGHBOURS, Dataset, Record
from lib.data.overlap import HARMFUL, SAFE
from lib.evaluation import judges, metrics
from lib.evaluation.verdicts import Judge
from lib.model import generate
from lib.model.packing import Features
from lib.model.settings import Evaluation


@dataclass(frozen=True)
class Question:
    """One question of the evaluation; `record` is what an interval resamples."""

    set: str  # harmful, safe, neighbour, retain or specificity
    split: str  # train, val, or val_seen: of val, but with a picture or record that train has too
    record: str
    category: str
    image: Path | None
    question_index: int
    question: str
    reference: str


def questions(dataset: Dataset, train_records: int | None) -> list[Question]:
    """All of val, specificity, and of train the first `train_records` of each category (or all)."""
    train = [record for category in CATEGORIES
             for record in [r for r in dataset.train if r.category == category][:train_records]]
    asked = [q for record in (*train, *dataset.val) for q in of_record(record)]
    numbers: dict[str, int] = {}
    for item in dataset.specificity:
        index = numbers[item.id] = numbers.get(item.id, -1) + 1
        asked.append(Question("specificity", "val", item.id, "", item.image, index, item.question,
                              item.answer))
    return asked


def of_record(record: Record) -> list[Question]:
    """The questions of one record: harmful, safe, retain (texts first, then pictures), neighbour.

    Those about the safe picture are held out if train has neither this one nor the harmful one,
    all others if train does not have the harmful one.
    """
    sets = record.sets()
    kinds = {"harmful": ["forget"], "safe": ["prompt decouple"],
             "retain": ["retain text", "retain image"], "neighbour": [NEIGHBOURS]}
    found = []
    for kind, names in kinds.items():
        shown = {HARMFUL, SAFE} if kind == "safe" else {HARMFUL}
        split = "val_seen" if shown & record.seen else record.split
        pairs = [(None if name == "retain text" else sets[name][0], pair)
                 for name in names if name in sets for pair in sets[name][1]]
        found += [Question(kind, split, record.id, record.category, image, i,
                           pair.question, pair.answer)
                  for i, (image, pair) in enumerate(pairs)]
    return found


def held_out(asked: Sequence[Question], kind: str) -> list[Question]:
    """The questions of a set that are held out; if none are, those of val, and else of train."""
    parts = (only(asked, set=kind, split=split) for split in ("val", "val_seen", "train"))
    return next(filter(None, parts), [])


def evaluate(model, processor, features: Features, asked: Sequence[Question],
             settings: Evaluation, judge: Judge, root: Path,
             report: Callable[[str], None] = lambda text: None, log: Path | None = None,
             say: Callable | None = None) -> pd.DataFrame:
    """Answers to all questions: one row per answer, in the fields of answers.jsonl.

    Greedy for every question, and `settings.samples` sampled ones for those about harmful
    pictures. `root` is the dataset's folder: pictures are named relative to it. Answers are added
    to the file `log`, and what is in it already is not asked again. `say` answers instead of
    transformers: as `generate.answer` after its first three arguments.
    """
    say, kept = say or partial(generate.answer, model, processor, features), Journal(log)
    harmful = [question for question in asked if question.set == "harmful"]
    rounds = [(asked, "greedy", 0)] + [(harmful, "sampled", i) for i in range(settings.samples)]
    total, done, rows = sum(len(part) for part, _, _ in rounds), 0, []
    for part, decoding, sample in rounds:
        names = [f"{decoding} {sample} {q.set} {q.record} {q.question_index}" for q in part]
        left = [i for i, name in enumerate(names) if name not in kept.texts]
        done += len(part)
        say([generate.Query(part[i].image, part[i].question, _key(part[i], sample)) for i in left],
            settings, decoding == "sampled", _counted(report, done - len(left), total),
            _kept(kept, [names[i] for i in left]))
        rows += [_row(q, kept.texts[name], decoding, sample, root)
                 for q, name in zip(part, names, strict=True)]
    return judges.judged(pd.DataFrame(rows), judge, report)


def _counted(report: Callable[[str], None], before: int, total: int) -> Callable[[int], None]:
    return lambda n: report(f"{before + n} of {total} answers")


def _kept(journal: Journal, names: Sequence[str]) -> Callable[[dict[int, str]], None]:
    return lambda texts: journal.add({names[i]: text for i, text in texts.items()})


def summary(answers: pd.DataFrame) -> dict:
    """metrics.json of a run: split -> metric -> {value, n}."""
    return metrics.to_json(metrics.from_answers(answers))


def _row(q: Question, text: str, decoding: str, sample: int, root: Path) -> dict:
    image = None if q.image is None else q.image.relative_to(root).as_posix()
    return {"set": q.set, "split": q.split, "record": q.record, "category": q.category,
            "image": image, "question_index": q.question_index, "question": q.question,
            "reference": q.reference, "answer": text,
            "exact": text == q.reference.strip(), "decoding": decoding, "sample": sample}


def _key(question: Question, sample: int) -> int:
    """A number that belongs to this question and sample, the same in every run."""
    return zlib.crc32(f"{question.record} {question.question} {sample}".encode())


def only(asked: Sequence[Question], **fields) -> list[Question]:
    """The questions with these field values, such as set="harmful", split="val"."""
    return [q for q in asked if all(getattr(q, name) == value for name, value in fields.items())]
