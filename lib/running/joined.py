"""Answers with their labels: two results, read as one."""

from pathlib import Path

from lib.base.runs import read_json, read_jsonl


def labelled(labels: Path) -> list[dict]:
    """The answers that a folder of labels is about, each with its label and score."""
    answers = labels.parent / read_json(labels / "config.json")["answers"]
    return [_with_label(row, given) for row, given in
            zip(read_jsonl(answers / "answers.jsonl"),
                read_jsonl(labels / "labels.jsonl"), strict=True)]


def _with_label(row: dict, given: dict) -> dict:
    """One answer with its label and score beside it."""
    before = list(row)[: list(row).index("answer") + 1]
    return {**{name: row[name] for name in before}, **given, **row}
