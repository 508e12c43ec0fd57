"""A model -> answers.jsonl: every question of the evaluation, answered and not yet judged."""

import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from lib.base.journal import Journal
from lib.evaluation.questions import Question
from lib.model import generate
from lib.model.packing import Features
from lib.model.settings import Evaluation


def answered(model, processor, features: Features, asked: Sequence[Question],
             settings: Evaluation, root: Path,
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
        rows += [row(q, kept.texts[name], decoding, sample, root)
                 for q, name in zip(part, names, strict=True)]
    return pd.DataFrame(rows)


def _counted(report: Callable[[str], None], before: int, total: int) -> Callable[[int], None]:
    return lambda n: report(f"{before + n} of {total} answers")


def _kept(journal: Journal, names: Sequence[str]) -> Callable[[dict[int, str]], None]:
    return lambda texts: journal.add({names[i]: text for i, text in texts.items()})


def row(q: Question, text: str, decoding: str, sample: int, root: Path) -> dict:
    """One line of answers.jsonl."""
    image = None if q.image is None else q.image.relative_to(root).as_posix()
    return {"set": q.set, "split": q.split, "record": q.record, "category": q.category,
            "image": image, "question_index": q.question_index, "question": q.question,
            "reference": q.reference, "answer": text,
            "exact": text == q.reference.strip(), "decoding": decoding, "sample": sample}


def _key(question: Question, sample: int) -> int:
    """A number that belongs to this question and sample, the same in every run."""
    return zlib.crc32(f"{question.record} {question.question} {sample}".encode())
