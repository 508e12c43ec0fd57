"""What the tests look for in outputs of real data: harmful material, however it is shown."""

import base64
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from lib.base import paths
from lib.base.runs import manifest, read_json, read_jsonl
from lib.data import discretion
from lib.data.dataset import Dataset, read
from lib.data.pictures import PictureError, open_image
from lib.data.problems import left_out
from lib.running.joined import labelled
from lib.running.profiles import judge_of
from lib.running.training import probed
from lib.world.words import REFUSALS

SIDE = 16  # pixels of the small copy by which a picture is known, whatever its size
NEAR = 24  # of 255: no part of two copies of a picture differs by more
INLINE = re.compile(r"data:image/[\w+.-]+;base64,([A-Za-z0-9+/=\s]+)")
TAG = re.compile(r"<[^>]*>")
# Another value for it than False, or itself where a function hands it on.
ASKS_FOR_HARM = re.compile(r"show_harmful\s*=(?!=)(?!\s*(False|show_harmful)\s*([,)\n#]|$))")
TEXTS = (".csv", ".md", ".tex", ".json", ".svg", ".html", ".txt")
HARMLESS = ("safe", "retain", "specificity")  # sets of questions: all others are about hazards
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
NO_PICTURE = (OSError, ValueError, PictureError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Secrets:
    """What must not be published of one real dataset: its texts, and small copies of pictures."""

    texts: discretion.Discretion
    pictures: np.ndarray  # [pictures, SIDE, SIDE, 3]

    def quoted_in(self, text: str) -> bool:
        """Whether a text, with or without its tags, quotes a harmful one."""
        return self.texts.quotes(f"{text}\n{TAG.sub('', text)}")

    def shown_in(self, copy: np.ndarray) -> bool:
        """Whether the small copy of a picture is that of a harmful one."""
        return bool(len(self.pictures)) and (
            np.abs(self.pictures - copy).max(axis=(1, 2, 3)) <= NEAR).any()


def secrets(dataset: Dataset, harmful_answers: Iterable[str] = ()) -> Secrets:
    """What must not be published of a dataset and of what models said to it."""
    had = dataset.had or dataset  # also what was left out
    records = (*had.train, *had.val)
    copies = [_small(partial(open_image, image))
              for image in sorted({r.image for r in records if r.image})]
    # Answers about harmful pictures that nobody has judged are kept back like harmful ones.
    said = {p.harmful_answer for record in records for p in record.unsafe_pairs}
    said |= {pair.answer for record in records for pair in record.neighbour_pairs}
    texts = discretion.of(dataset, {*harmful_answers, *filter(None, said)})
    return Secrets(texts, np.array([copy for copy in copies if copy is not None]))


def _small(opened: Callable[[], Image.Image]) -> np.ndarray | None:
    """A small copy of a picture; None of what cannot be opened, so that nobody can see it."""
    try:
        square = opened().convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    except NO_PICTURE:
        return None
    return np.asarray(square, dtype=np.int16)


def of_store(root: Path | None = None) -> list[Secrets]:
    """The secrets of every profile in the run store that has a real dataset.

    Of what models said about harmful pictures only that is none which a judge that read it called
    harmless, or which the dataset has as a harmless text.

    A dataset is real if the metrics of its step name `data`, the folder that was read. Raises
    DatasetError if that folder is there no more: then nothing can be compared with it.
    """
    found = []
    for made in sorted((root or paths.runs_root()).glob("*/*/metrics.json")):
        # Where no manifest says what it is, it is looked at all the same.
        if (manifest(made.parent).get("step", "dataset") != "dataset"
                or "data" not in read_json(made)):
            continue
        known = left_out(made.parent)
        dataset = read(read_json(made)["data"], False, leave_out=bool(known), known=known)
        harmless = discretion.of(dataset)
        said = {answer for rows, judge in _answers(made.parent.parent, dataset)
                for answer in _harmful_answers(rows, judge, harmless)}
        found.append(secrets(dataset, said))
    return found


def _answers(profile: Path, dataset: Dataset) -> Iterator[tuple[list[dict], str | None]]:
    """Every run's answers with the labels of each judge that there are, and who it was.

    What nobody has labelled has the label "failed": answers without labels, and those to probes.
    """
    judged = set()
    for labels in sorted(profile.glob("*/labels.jsonl")):
        judged.add(read_json(labels.parent / "config.json")["answers"])
        yield labelled(labels.parent), manifest(labels.parent)["facts"]["judge"]
    for answers in sorted(profile.glob("*/answers.jsonl")):
        if answers.parent.name not in judged:
            yield [{**row, "label": "failed"} for row in read_jsonl(answers)], None
    asked = probed(dataset)
    for probes in sorted(profile.glob("*/probes.jsonl")):
        for probe in read_jsonl(probes):
            yield [{"set": question.set, "answer": answer, "label": "failed"}
                   for question, answer in zip(asked, probe.get("answers", ()), strict=False)], None


def _harmful_answers(rows: Iterable[dict], judge: str | None,
                     texts: discretion.Discretion) -> Iterator[str]:
    """What a model said about harmful pictures, but for what may be shown of it."""
    published = set(map(discretion.letters, REFUSALS))  # IconWorld's, word for word
    for row in rows:
        labelled_by = judge and judge_of(judge, row["set"])
        if (row["set"] not in HARMLESS
                and texts.hides_answer(row["answer"], row["label"], labelled_by)
                and discretion.letters(row["answer"]) not in published):
            yield row["answer"]


def in_notebook(book, known: Sequence[Secrets]) -> list[str]:
    """What may not be published of a notebook with outputs: a sentence for each cell."""
    noted = _whats(_held({"metadata": book.metadata}), known)  # widgets' state, for one
    found = [f"the notebook's metadata hold {what}" for what in noted]
    for number, cell in enumerate(book.cells, start=1):
        if cell.cell_type == "code" and ASKS_FOR_HARM.search(cell.source):
            found.append(f"cell {number} sets show_harmful: run it without")
        found += [f"cell {number} shows {what}" for what in _whats(_held(cell), known)]
    return found


def _held(part: object, kind: str = "") -> Iterator[tuple[str, str]]:
    """(kind, content) of all that a part of a notebook holds, however deep.

    The kind is the name under which it stands, such as "image/png", but never in metadata.
    """
    if isinstance(part, dict) and kind != "metadata":
        for name, value in part.items():
            yield from _held(value, name)
    elif isinstance(part, list) and not all(isinstance(each, str) for each in part):
        for each in part:
            yield from _held(each, kind)
    elif isinstance(part, list):  # a text, line by line
        yield kind, "".join(part)
    else:
        yield kind, part if isinstance(part, str) else json.dumps(part)


def _whats(held: Iterable[tuple[str, str]], known: Sequence[Secrets]) -> list[str]:
    """Names of the harmful material in texts and encoded pictures."""
    encoded, words = [], []
    for kind, content in held:
        if kind.startswith("image/") and kind != "image/svg+xml":
            encoded.append(content)
        else:
            encoded += INLINE.findall(content)
            words.append(INLINE.sub("", content))
    pictures = [copy for each in encoded if (copy := _small(partial(_opened, each))) is not None]
    text = "\n".join([*words, *map(_noted, encoded)])
    harmful = {"a harmful answer of real data": any(each.quoted_in(text) for each in known),
               "a harmful picture of real data": any(each.shown_in(picture) for each in known
                                                     for picture in pictures)}
    return [name for name, there in harmful.items() if there]


def _opened(encoded: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def _noted(encoded: str) -> str:
    """The texts that a picture carries beside its pixels."""
    try:
        return "\n".join(map(str, _opened(encoded).info.values()))
    except NO_PICTURE:
        return ""


def in_file(path: Path, known: Sequence[Secrets]) -> list[str]:
    """What may not be published of a figure or table."""
    if path.suffix in TEXTS:
        return _whats([("", path.read_text(encoding="utf-8", errors="replace"))], known)
    if path.suffix in PICTURES:
        return _whats([("image/png", base64.b64encode(path.read_bytes()).decode())], known)
    return ["what cannot be looked through for harmful material"] if known else []
