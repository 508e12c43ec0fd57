"""What a dataset of SafeEraser's format is: records with their pictures and sets of pairs."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from lib.data.problems import Problem

CATEGORIES = ("IllegalActivity", "Violence", "Weapon", "Privacy", "Sex", "HateSpeech")
SETS = ("forget", "retain text", "retain image", "prompt decouple")
TRAIN, VAL, PROMPT, SPECIFICITY = (
    "all_train.json", "all_val.json", "prompt.json", "specificity.json")
NEIGHBOURS = "safe neighbours"  # a further set, which not all data have


@dataclass(frozen=True)
class Pair:
    question: str
    answer: str


@dataclass(frozen=True)
class UnsafePair:
    """A query that only its picture makes harmful, answered for the harmful and the safe one."""

    question: str
    harmful_answer: str
    safe_answer: str


@dataclass(frozen=True)
class Record:
    """One harmful picture with its safe partner and all their questions.

    `id` is "<split>/<picture path below the folder, without suffix>", with "~2" after it where that
    is taken already; the two paths are absolute.
    """

    id: str
    split: str
    category: str
    image: Path
    safe_image: Path
    unsafe_pairs: tuple[UnsafePair, ...]
    text_pairs: tuple[Pair, ...]
    image_pairs: tuple[Pair, ...]
    neighbour_pairs: tuple[Pair, ...] = ()  # harmless questions about the harmful picture
    seen: frozenset[str] = frozenset()  # of val: which of `overlap.SEEN` train has too
    stored: dict = field(default_factory=dict, compare=False, repr=False)  # as its file has it

    def sets(self) -> dict[str, tuple[Path, tuple[Pair, ...]]]:
        """Each of SETS, and NEIGHBOURS if it has any: the picture and the record's pairs of it."""
        forget = tuple(Pair(p.question, p.harmful_answer) for p in self.unsafe_pairs)
        decouple = tuple(Pair(p.question, p.safe_answer) for p in self.unsafe_pairs)
        pictures = (self.image, self.image, self.image, self.safe_image)
        pairs = (forget, self.text_pairs, self.image_pairs, decouple)
        near = {NEIGHBOURS: (self.image, self.neighbour_pairs)} if self.neighbour_pairs else {}
        return dict(zip(SETS, zip(pictures, pairs, strict=True), strict=True)) | near


@dataclass(frozen=True)
class PictureQuestion:
    """A question outside of all sets; `id` names the picture, so its questions share it."""

    id: str
    image: Path
    question: str
    answer: str


@dataclass(frozen=True)
class Dataset:
    """A checked dataset folder; `root` is absolute.

    `left_out` is what is wrong with the records and pairs that were left out on request, and `had`
    what was there before: the same with holes, for counting alone. Then `val` may be empty.
    """

    root: Path
    train: tuple[Record, ...]
    val: tuple[Record, ...]
    refusals: tuple[str, ...]
    specificity: tuple[PictureQuestion, ...]
    left_out: tuple[Problem, ...] = ()
    had: "Dataset | None" = field(default=None, compare=False, repr=False)


def counts(dataset: Dataset) -> pd.DataFrame:
    """Tidy: split, category, set, pairs, images (different pictures that the pairs go with).

    The sets are SETS, and NEIGHBOURS if any record has them.
    """
    rows = []
    near = any(record.neighbour_pairs for record in (*dataset.train, *dataset.val))
    for split, records in (("train", dataset.train), ("val", dataset.val)):
        for category in CATEGORIES:
            parts = [record.sets() for record in records if record.category == category]
            for name in (*SETS, NEIGHBOURS) if near else SETS:
                held = [part[name] for part in parts if name in part]
                pairs = sum(len(pairs) for _, pairs in held)
                images = len({image for image, _ in held})
                rows.append((split, category, name, pairs, images))
    return pd.DataFrame(rows, columns=["split", "category", "set", "pairs", "images"])
