"""SafeEraser's dataset format, read and checked: forget, retain and prompt-decouple sets.

A dataset is a folder with `all_train.json` and `all_val.json` (lists of records, or JSON lines),
`prompt.json` (`{"idk": [refusal, ...]}`), the pictures, and optionally `specificity.json`. Both
spellings in use are read: `image_path` or `image_id`, `Prediction` or `Answer`; paths may begin
with "dataset/", as seen from the folder around. `python -m lib.dataset check PATH` lists every
problem of a folder at once.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pandas as pd

from lib.dataset_check import DatasetError, Found, Node, Problem, compare_pictures, read_file
from lib.dataset_overlap import compared
from lib.discretion import quoted
from lib.pictures import PictureError, open_image

__all__ = ["CATEGORIES", "SETS", "Dataset", "DatasetError", "Pair", "PictureError",
           "PictureQuestion", "Problem", "Record", "UnsafePair", "check", "counts", "open_image",
           "read"]  # fmt: skip

CATEGORIES = ("IllegalActivity", "Violence", "Weapon", "Privacy", "Sex", "HateSpeech")
SPELT = {name.casefold(): name for name in CATEGORIES}
SETS = ("forget", "retain text", "retain image", "prompt decouple")
NEIGHBOURS = "safe neighbours"  # a further set, which not all data have
TEXT_PAIRS = ("UnharmPair_text1", "UnharmPair_text2")
IMAGE_PAIRS = ("UnharmPair_image1", "UnharmPair_image2")


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
    seen: frozenset[str] = frozenset()  # of val: which of `dataset_overlap.SEEN` train has too

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
    """A checked dataset folder; `root` is absolute."""

    root: Path
    train: tuple[Record, ...]
    val: tuple[Record, ...]
    refusals: tuple[str, ...]
    specificity: tuple[PictureQuestion, ...]


def check(root: str | Path, pictures: bool = True) -> list[Problem]:
    """Everything that is wrong with a dataset folder; an empty list when it can be used.

    Without `pictures` none is opened: seconds instead of minutes, for what the files alone say.
    """
    return _scan(root, pictures)[1]


def read(root: str | Path, pictures: bool = True) -> Dataset:
    """The dataset in a folder. Raises DatasetError, which lists all problems at once.

    Without `pictures` no picture is opened: for a folder that has passed the whole check before.
    """
    dataset, problems = _scan(root, pictures)
    if problems:
        raise DatasetError(Path(root), problems)
    return dataset


def counts(dataset: Dataset) -> pd.DataFrame:
    """Tidy: split, category, set, pairs, images (different pictures that the pairs go with)."""
    rows = []
    for split, records in (("train", dataset.train), ("val", dataset.val)):
        for category in CATEGORIES:
            parts = [record.sets() for record in records if record.category == category]
            for name in SETS:
                pairs = sum(len(part[name][1]) for part in parts)
                images = len({part[name][0] for part in parts})
                rows.append((split, category, name, pairs, images))
    return pd.DataFrame(rows, columns=["split", "category", "set", "pairs", "images"])


def _scan(root: str | Path, pictures: bool = True) -> tuple[Dataset | None, list[Problem]]:
    """Reads what can be read; records with problems have holes, so only `read` hands them out."""
    folder = Path(root).resolve()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "is not there"
        return None, [Problem(str(root), None, "", what, "give the folder with all_train.json")]
    found = Found(folder, pictures)
    train = _records(read_file(found, "all_train.json"), "train")
    val = _records(read_file(found, "all_val.json"), "val")
    refusals = _refusals(read_file(found, "prompt.json"))
    specificity = _specificity(found)
    compare_pictures(found)
    if not found.problems:
        val = compared(train, val)
    return Dataset(folder, train, val, refusals, specificity), found.problems


def _records(file: Node, split: str) -> tuple[Record, ...]:
    read = [_record(node, split) for node in file.items("record") if node.expect(dict)]
    ids = _distinct([record.id for record in read])
    return tuple(replace(record, id=name) for record, name in zip(read, ids, strict=True))


def _distinct(ids: Sequence[str]) -> list[str]:
    """The ids with "~2", "~3" after those that are there already.

    >>> _distinct(["a", "a", "b", "a"])
    ['a', 'a~2', 'b', 'a~3']
    """
    names, found = set(ids), []
    uses: Counter[str] = Counter()
    for name in ids:
        uses[name] += 1
        while uses[name] > 1 and f"{name}~{uses[name]}" in names:
            uses[name] += 1
        found.append(name if uses[name] == 1 else f"{name}~{uses[name]}")
    return found


def _record(node: Node, split: str) -> Record:
    shown = node.member("image_path", "image_id")
    image = shown.picture("harmful", split)
    advice = "add a safe picture that the same questions can be asked about"
    unsafe = node.member("unsafe_pairs").items("pair")
    return Record(
        id=_id(split, image, node.found.root),
        split=split,
        category=_category(node, shown if image else None),
        image=image,
        safe_image=node.member("SDImage_path", advice=advice).picture("safe", split),
        unsafe_pairs=tuple(_unsafe_pair(pair) for pair in unsafe if pair.expect(dict)),
        text_pairs=_pairs(node, TEXT_PAIRS),
        image_pairs=_pairs(node, IMAGE_PAIRS),
        neighbour_pairs=_neighbours(node),
    )


def _neighbours(record: Node) -> tuple[Pair, ...]:
    """None is fine: the paper's format does not have them."""
    if not record.value.get("safeNb_pairs"):
        return ()
    nodes = record.member("safeNb_pairs").items("pair")
    return tuple(Pair(node.member("question").text(), node.member("model_response").text())
                 for node in nodes if node.expect(dict))


def _id(split: str, image: Path | None, root: Path) -> str:
    return f"{split}/{image.relative_to(root).with_suffix('').as_posix()}" if image else ""


def _category(node: Node, shown: Node | None) -> str | None:
    """The field if it says something, else the name of the folder of the path that is `shown`."""
    given = node.value.get("category")
    if given is None or given == "":
        if shown is None:
            return None  # the path cannot be used, which has been noted
        place, category = shown, PurePosixPath(shown.value.strip()).parent.name
        category = SPELT.get(category.casefold(), category)
        what = f"is in no category's folder (but in {quoted(category)!r}), and no category is given"
    else:
        place = node.member("category")
        category = place.text()
        category = SPELT.get((category or "").casefold(), category)
        what = f"is the unknown category {quoted(category or '')!r}"
    if category is not None and category not in CATEGORIES:
        place.note(what, f"use one of {', '.join(CATEGORIES)}")
    return category


def _unsafe_pair(node: Node) -> UnsafePair:
    return UnsafePair(
        node.member("question").text(),
        node.member("model_response").text(),
        node.member("sd_response").text(),
    )


def _pairs(record: Node, names: tuple[str, ...]) -> tuple[Pair, ...]:
    nodes = [record.member(name) for name in names]
    return tuple(
        Pair(node.member("Question").text(), node.member("Prediction", "Answer").text())
        for node in nodes
        if node.expect(dict)
    )


def _refusals(file: Node) -> tuple[str, ...]:
    if not file.expect(dict):
        return ()
    return tuple(
        node.text() for node in file.member("idk", advice="list refusals there").items("refusal")
    )


def _specificity(found: Found) -> tuple[PictureQuestion, ...]:
    if not (found.root / "specificity.json").exists():
        return ()
    nodes = read_file(found, "specificity.json").items("question")
    return tuple(_picture_question(node) for node in nodes if node.expect(dict))


def _picture_question(node: Node) -> PictureQuestion:
    image = node.member("image_path", "image_id").picture("question", "val")
    return PictureQuestion(
        id=_id("specificity", image, node.found.root),
        image=image,
        question=node.member("question").text(),
        answer=node.member("answer").text(),
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0 if the folder can be used, 1 if it has problems (2: wrong usage)."""
    parser = argparse.ArgumentParser("python -m lib.dataset", "python -m lib.dataset check PATH")
    parser.add_argument("check", choices=["check"], help="list all problems, or the counts")
    parser.add_argument("PATH", help="the folder with all_train.json")
    path = parser.parse_args(arguments).PATH
    try:
        dataset = read(path)
    except DatasetError as error:
        print(error)
        return 1
    table = counts(dataset).pivot_table("pairs", ["split", "category"], "set", sort=False)
    records = f"{len(dataset.train)} train and {len(dataset.val)} val records"
    others = f"{len(dataset.refusals)} refusals, {len(dataset.specificity)} specificity questions"
    print(f"{path} can be used: {records}, {others}. Pairs:\n")
    print(table.astype(int).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
