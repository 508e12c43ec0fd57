"""What the tests look for in outputs of real data: harmful material, however it is shown."""

import ast
import base64
import binascii
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lib.base import paths
from lib.base.runs import manifest, read_json, read_jsonl
from lib.data import discretion
from lib.data.dataset import Dataset, read
from lib.data.pictures import PictureError, open_image
from lib.data.problems import left_out
from lib.running.chapters import without_magics
from lib.running.joined import labelled
from lib.running.profiles import judge_of
from lib.world.words import REFUSALS

SIDE = 16  # pixels of the small copy by which a picture is known, whatever its size
NEAR = 24  # of 255: no part of two copies of a picture differs by more
INLINE = re.compile(r"data:image/[\w+.-]+;base64,([A-Za-z0-9+/=\s]+)")
TAG = re.compile(r"<[^>]*>")
TEXTS = (".csv", ".md", ".tex", ".json", ".svg", ".html", ".txt")
HARMLESS = ("safe", "retain", "specificity")  # sets of questions: all others are about hazards
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Secrets:
    """What must not be published of one real dataset: its texts, and small copies of pictures."""

    texts: discretion.Discretion
    pictures: np.ndarray  # [pictures, SIDE, SIDE, 3]

    def quoted_in(self, text: str) -> bool:
        """Whether a text, with or without its tags, quotes a harmful one."""
        return self.texts.quotes(f"{text}\n{TAG.sub('', text)}")

    def shown_in(self, image: bytes) -> bool:
        """Whether an encoded picture is a harmful one, at whatever size."""
        try:
            with Image.open(io.BytesIO(image)) as picture:
                copy = _small(picture)
        except (OSError, ValueError, Image.DecompressionBombError):
            return False  # no picture, so none that anybody could see
        return bool(len(self.pictures)) and (
            np.abs(self.pictures - copy).max(axis=(1, 2, 3)) <= NEAR).any()


def secrets(dataset: Dataset, harmful_answers: Iterable[str] = ()) -> Secrets:
    """What must not be published of a dataset and of what models said to it."""
    had = dataset.had or dataset  # also what was left out
    records = (*had.train, *had.val)
    copies = [_copy(image) for image in sorted({r.image for r in records if r.image})]
    # Answers about harmful pictures that nobody has judged are kept back like harmful ones.
    said = {p.harmful_answer for record in records for p in record.unsafe_pairs}
    said |= {pair.answer for record in records for pair in record.neighbour_pairs}
    texts = discretion.of(dataset, {*harmful_answers, *filter(None, said)})
    return Secrets(texts, np.array([copy for copy in copies if copy is not None]))


def _copy(image: Path) -> np.ndarray | None:
    """None for what cannot be opened, so that nobody can have shown it."""
    try:
        return _small(open_image(image))
    except PictureError:
        return None


def _small(image: Image.Image) -> np.ndarray:
    square = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
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
        said = {answer for rows, judge in _answers(made.parent.parent)
                for answer in _harmful_answers(rows, judge, harmless)}
        found.append(secrets(dataset, said))
    return found


def _answers(profile: Path) -> Iterator[tuple[list[dict], str | None]]:
    """Every run's answers with the labels of each judge that there are, and who it was.

    What is not labelled has the label "failed"; results of before had labels with the answers.
    """
    made = [path.parent for path in sorted(profile.glob("*/config.json"))]
    configs = {folder: read_json(folder / "config.json") for folder in made}
    judged = set()
    for folder in made:
        if (folder / "labels.jsonl").exists():
            judged.add(configs[folder]["answers"])
            yield labelled(folder), manifest(folder)["facts"]["judge"]
    for folder in made:
        if (folder / "answers.jsonl").exists() and folder.name not in judged:
            rows = [{"label": "failed", **row} for row in read_jsonl(folder / "answers.jsonl")]
            yield rows, configs[folder].get("evaluation", {}).get("judge")


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
    noted = _whats([("text/plain", json.dumps(book.metadata))], known)  # widgets' state, for one
    found = [f"the notebook's metadata hold {what}" for what in noted]
    for number, cell in enumerate(book.cells, start=1):
        if cell.cell_type == "code" and _asks_for_harm(cell.source):
            found.append(f"cell {number} sets show_harmful: run it without")
        data = [part for output in cell.get("outputs", []) for part in _data(output)]
        data += [part for kinds in cell.get("attachments", {}).values()
                 for part in kinds.items()]
        data += [("text/plain", cell.source), ("text/plain", json.dumps(cell.metadata))]
        found += [f"cell {number} shows {what}" for what in _whats(data, known)]
    return found


def _asks_for_harm(source: str) -> bool:
    """Whether a cell gives `show_harmful` another value than False (or itself)."""
    try:
        tree = ast.parse(without_magics(source))
    except SyntaxError:
        return "show_harmful" in source
    given = [node.value for node in ast.walk(tree) if isinstance(node, ast.Assign)
             and any(ast.unparse(target) == "show_harmful" for target in node.targets)]
    given += [node.value for node in ast.walk(tree)
              if isinstance(node, ast.keyword) and node.arg == "show_harmful"]
    return any(ast.unparse(value) not in ("False", "show_harmful") for value in given)


def _data(output) -> list[tuple[str, str]]:
    """(kind, content) of all that an output holds; an error's text is text, too."""
    held = [(kind, "".join(value) if isinstance(value, list) else value)
            for kind, value in output.get("data", {}).items()]
    texts = [output.get("text", ""), output.get("evalue", ""), *output.get("traceback", []),
             json.dumps(output.get("metadata", {}))]  # which may have an alt text
    held.append(("text/plain", "\n".join("".join(text) for text in texts)))
    return [(kind, value if isinstance(value, str) else json.dumps(value)) for kind, value in held]


def _whats(data: Sequence[tuple[str, str]], known: Sequence[Secrets]) -> list[str]:
    pictures = [_decoded(value) for kind, value in data
                if kind.startswith("image/") and kind != "image/svg+xml"]
    texts = [value for kind, value in data
             if not kind.startswith("image/") or kind == "image/svg+xml"]
    pictures += [_decoded(part) for text in texts for part in INLINE.findall(text)]
    words = "\n".join([*(INLINE.sub("", text) for text in texts), *map(_noted, pictures)])
    harmful = [any(each.quoted_in(words) for each in known),
               any(each.shown_in(picture) for each in known for picture in pictures)]
    names = ("a harmful answer of real data", "a harmful picture of real data")
    return [name for name, there in zip(names, harmful, strict=True) if there]


def _noted(image: bytes) -> str:
    """The texts that an encoded picture carries beside its pixels."""
    try:
        with Image.open(io.BytesIO(image)) as picture:
            return "\n".join(str(value) for value in picture.info.values())
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text)
    except (binascii.Error, ValueError):
        return b""


def in_file(path: Path, known: Sequence[Secrets]) -> list[str]:
    """What may not be published of a figure or table."""
    if path.suffix in TEXTS:
        return _whats([("text/plain", path.read_text(encoding="utf-8", errors="replace"))], known)
    if path.suffix in PICTURES:
        content = base64.b64encode(path.read_bytes()).decode()
        return _whats([("image/png", content)], known)
    return ["what cannot be looked through for harmful material"] if known else []

