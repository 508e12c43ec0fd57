"""Questions -> answers -> labels in one go, for a look at a model; and metrics of labelled answers.

A run's answers and labels are results of their own (`lib/running/recipes.py`), made by
`answers.answered` and `judges.judged`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from lib.evaluation import judges, metrics
from lib.evaluation.answers import answered
from lib.evaluation.questions import Question, held_out, of_record, only, questions
from lib.evaluation.verdicts import Judge
from lib.model.packing import Features
from lib.model.settings import Evaluation

__all__ = ["Question", "evaluate", "held_out", "of_record", "only", "questions", "summary"]


def evaluate(model, processor, features: Features, asked: Sequence[Question],
             settings: Evaluation, judge: Judge, root: Path,
             report: Callable[[str], None] = lambda text: None, log: Path | None = None,
             say: Callable | None = None) -> pd.DataFrame:
    """`answers.answered`, each answer with its label and score."""
    frame = answered(model, processor, features, asked, settings, root, report, log, say)
    return judges.judged(frame, judge, report)


def summary(answers: pd.DataFrame) -> dict:
    """metrics.json of a run: split -> metric -> {value, n}."""
    return metrics.to_json(metrics.from_answers(answers))
