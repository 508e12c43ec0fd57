"""A dataset folder -> records, or what is wrong with it, or what is left without that."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path, PurePosixPath

from lib.data.check import Found, Node, compare_pictures, is_null, read_file
from lib.data.discretion import quoted
from lib.data.overlap import compared
from lib.data.problems import DatasetError, Problem
from lib.data.records import (
    CATEGORIES,
    PROMPT,
    SPECIFICITY,
    TRAIN,
    VAL,
    Dataset,
    Pair,
    PictureQuestion,
    Record,
    UnsafePair,
)

TEXT_PAIRS = ("UnharmPair_text1", "UnharmPair_text2")
IMAGE_PAIRS = ("UnharmPair_image1", "UnharmPair_image2")
ANSWER = ("Prediction", "Answer")  # the first that is there, as in the official code
NEAR = "safeNb_pairs"
OF_A_PAIR = re.compile(r"unsafe_pairs\[\d+\]|safeNb_pairs")  # a record can do without
FLOOR = 0.5  # the share of a split's records that has to be left, if some are left out


def check(root: str | Path, pictures: bool = True) -> list[Problem]:
    """Everything that is wrong with a dataset folder; an empty list when it can be used.

    Without `pictures` none is opened: seconds instead of minutes, for what the files alone say.
    """
    return _scan(root, pictures)[0].problems


def read(root: str | Path, pictures: bool = True, leave_out: bool = False,
         known: Sequence[Problem] = (), marks: Sequence[str] = ()) -> Dataset:
    """The dataset in a folder. Raises DatasetError, which knows all problems.

    leave_out: go on without what cannot be used. That is a single pair of `unsafe_pairs` or
    `safeNb_pairs`, a refusal, a question of specificity, or else a whole record; if all_val.json
    cannot be read at all, `val` is empty. Raises DatasetError all the same if less than FLOOR of a
    split's records is left, or nothing of a category, or no refusal.

    Without `pictures` no picture is opened: for a folder that has passed the whole check before.
    `known` are the problems that it had then. `marks`: what no text may hold, since a model reads
    more in it.
    """
    found, records, whole = _scan(root, pictures, known, marks)
    kept = whole
    if found.problems:
        kept = _usable(found, records, whole)
        why = _too_little(kept, found.records)
        if why or not leave_out:
            raise DatasetError(found.root, found.problems, found.records, why if leave_out else "",
                               "" if why else _left(kept, found.records))
    train, val = _named(kept.train), _named(kept.val)
    return replace(kept, train=train, val=compared(train, val))


Numbered = dict[str, dict[int, Record | PictureQuestion]]  # file -> place in it -> what is there


def _scan(root: str | Path, pictures: bool = True, known: Sequence[Problem] = (),
          marks: Sequence[str] = ()) -> tuple[Found, Numbered, Dataset]:
    """Reads what can be read; records with problems have holes, so only `read` hands them out."""
    folder = Path(root).resolve()
    found = Found(folder, pictures, tuple(marks), list(known))
    records: Numbered = {TRAIN: {}, VAL: {}, SPECIFICITY: {}}
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "is not there"
        advice = "give the folder with all_train.json"
        found.problems.append(Problem(str(root), None, "", what, advice))
        return found, records, Dataset(folder, (), (), (), ())
    for name, split in ((TRAIN, "train"), (VAL, "val")):
        nodes = read_file(found, name).items("record")
        records[name] = {n.record: _record(n, split) for n in nodes if n.expect(dict)}
    refusals = _refusals(read_file(found, PROMPT))
    records[SPECIFICITY] = _specificity(found)
    compare_pictures(found)
    train, val, specificity = (tuple(records[name].values()) for name in (TRAIN, VAL, SPECIFICITY))
    return found, records, Dataset(folder, train, val, refusals, specificity)


# What is left out.


def _usable(found: Found, records: Numbered, whole: Dataset) -> Dataset:
    """The dataset without what has problems."""
    bad = {(p.file, p.record) for p in found.problems if not OF_A_PAIR.match(p.field)}
    kept = {name: [item for number, item in items.items() if (name, number) not in bad]
            for name, items in records.items()}
    train, val = (tuple(record for record in map(_without_holes, kept[name]) if record.unsafe_pairs)
                  for name in (TRAIN, VAL))
    return Dataset(found.root, train, val, tuple(filter(None, whole.refusals)),
                   tuple(kept[SPECIFICITY]), tuple(dict.fromkeys(found.problems)), whole)


def _without_holes(record: Record) -> Record:
    full = {name: tuple(p for p in getattr(record, name) if None not in vars(p).values())
            for name in ("unsafe_pairs", "neighbour_pairs")}
    return replace(record, **full)


def _too_little(kept: Dataset, records: dict[str, int]) -> str:
    """Why what is left is too little, if it is."""
    if not kept.train:
        return "no train record can be used"
    if not kept.refusals:
        return "no refusal can be used"
    both = (*kept.had.train, *kept.had.val)
    for name, split, ours, had in ((TRAIN, "train", kept.train, both),
                                   (VAL, "val", kept.val, kept.had.val)):
        if len(ours) < FLOOR * records.get(name, 0):
            return (f"only {len(ours):,} of {records[name]:,} {split} records can be used, and "
                    f"at least {FLOOR:.0%} have to be left")
        lost = {record.category for record in had} - {record.category for record in ours}
        if lost := sorted(lost & set(CATEGORIES)):
            return f"no {split} record of {', '.join(lost)} can be used"
    return ""


def _left(kept: Dataset, records: dict[str, int]) -> str:
    """How many records are left."""
    parts = (("train", kept.train, records.get(TRAIN)), ("val", kept.val, records.get(VAL)))
    return " and ".join(f"{len(ours):,} of {had:,} {split}" if had is not None else f"no {split}"
                        for split, ours, had in parts) + " records"


def _named(records: Sequence[Record]) -> tuple[Record, ...]:
    """The records, with ids of their own: "~2", "~3" after those that are there already."""
    taken, given = {record.id for record in records}, {}
    for record in records:
        name = record.id
        if name in given:
            name = next(f"{name}~{n}" for n in count(2) if f"{record.id}~{n}" not in taken)
        taken.add(name)
        given[name] = replace(record, id=name)
    return tuple(given.values())


def _record(node: Node, split: str) -> Record:
    shown = node.member("image_path", "image_id")
    image = shown.picture("harmful", split)
    advice = "add a safe picture that the same questions can be asked about"
    near = node.value.get(NEAR)
    return Record(
        id=_id(split, image, node.found.root),
        split=split,
        category=_category(node, shown if image else None),
        image=image,
        safe_image=node.member("SDImage_path", advice=advice).picture("safe", split),
        unsafe_pairs=_pairs(node.member("unsafe_pairs").items("pair"), UnsafePair,
                            "question", "model_response", "sd_response"),
        text_pairs=_pairs(map(node.member, TEXT_PAIRS), Pair, "Question", ANSWER),
        image_pairs=_pairs(map(node.member, IMAGE_PAIRS), Pair, "Question", ANSWER),
        # The paper's format does not have them.
        neighbour_pairs=() if near == [] or is_null(near) else _pairs(
            node.member(NEAR).items("pair"), Pair, "question", "model_response"),
        stored=node.value,
    )


def _pairs(nodes: Iterable[Node], kind: type, *fields: str | tuple[str, ...]) -> tuple:
    """What the nodes hold, of a `kind` with so many texts; a text that cannot be used is None.

    A field with several spellings is a tuple of them.
    """
    spelt = [(field,) if isinstance(field, str) else field for field in fields]
    return tuple(kind(*(node.member(*names).text() for names in spelt))
                 for node in nodes if node.expect(dict))


def _id(split: str, image: Path | None, root: Path) -> str:
    return f"{split}/{image.relative_to(root).with_suffix('').as_posix()}" if image else ""


def _category(node: Node, shown: Node | None) -> str | None:
    """The field if it says something, else the name of a folder of the path that is `shown`."""
    given = node.value.get("category")
    if given is None or given == "":
        if shown is None:
            return None  # the path cannot be used, which has been noted
        place, names = shown, PurePosixPath(shown.value.strip()).parent.parts[::-1] or ("",)
        what = "is in no category's folder, and no category is given"
    else:
        place, what = node.member("category"), "is an unknown category"
        names = [place.text()]
    known = [SPELT[_letters(name)] for name in names if name and _letters(name) in SPELT]
    if not known and names[0] is not None:
        place.note(what, f"use one of {', '.join(CATEGORIES)}", repr(quoted(names[0])))
    return known[0] if known else names[0]


def _letters(name: str) -> str:
    """What all spellings of a category have in common.

    >>> _letters("Hate_speech")
    'hatespeech'
    """
    return "".join(letter for letter in name.casefold() if letter.isalpha())


SPELT = {_letters(name): name for name in CATEGORIES}


def _refusals(file: Node) -> tuple[str, ...]:
    if not file.expect(dict):
        return ()
    listed = file.member("idk", advice="list refusals there").items("refusal")
    return tuple(node.text() for node in listed)


def _specificity(found: Found) -> dict[int, PictureQuestion]:
    if not (found.root / SPECIFICITY).exists():
        return {}
    nodes = read_file(found, SPECIFICITY).items("question")
    return {node.record: _picture_question(node) for node in nodes if node.expect(dict)}


def _picture_question(node: Node) -> PictureQuestion:
    image = node.member("image_path", "image_id").picture("question", "val")
    question, answer = (node.member(name).text() for name in ("question", "answer"))
    return PictureQuestion(_id("specificity", image, node.found.root), image, question, answer)
