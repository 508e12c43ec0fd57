"""How the JSON files of a dataset folder are checked: problems are noted, none stops the reading.

A `Node` is one value of a JSON file together with the place where it stands. Its methods return the
checked value, or None after noting what is wrong there and what to do about it.
"""

import json
import math
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from lib.dataset_overlap import digest
from lib.discretion import quoted
from lib.pictures import PictureError, open_image

MISSING = object()  # stands for a value that is not there, which has been noted already
TWICE = object()  # stands for a value whose key its object has twice
SPACE = re.compile(r"[ \t\r\n]*")
KINDS = {dict: "an object {...}", list: "a list [...]", str: "text"}


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a dataset folder; `record` counts from 0, None where there is none."""

    file: str
    record: int | None
    field: str
    what: str
    advice: str

    @property
    def place(self) -> str:
        record = "" if self.record is None else f"record {self.record}"
        return ", ".join(part for part in (self.file, record, self.field) if part)

    def __str__(self) -> str:
        return f"{self.place}: {self.what}; {self.advice}."


class DatasetError(ValueError):
    """A dataset folder that cannot be used; `problems` holds everything that is wrong with it."""

    def __init__(self, root: Path, problems: list[Problem]):
        self.problems = problems
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(
            f"{root} cannot be used, {len(problems)} problem(s) (records count from 0):\n{lines}"
        )


@dataclass(frozen=True)
class Use:
    """A place that names a picture: `role` harmful, safe or question, `split` train or val."""

    node: "Node"
    path: Path
    digest: str
    role: str
    split: str


@dataclass
class Found:
    """Everything seen so far in one dataset folder (`root` is resolved).

    `opened`: whether pictures are opened, or only have to be there.
    """

    root: Path
    opened: bool = True
    problems: list[Problem] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    pictures: dict[Path, str | PictureError] = field(default_factory=dict)

    def digest(self, path: Path) -> str:
        """SHA-256 of a usable picture's file; raises PictureError. Each file is opened once."""
        if path not in self.pictures:
            try:
                open_image(path)
                self.pictures[path] = digest(path)
            except PictureError as error:
                self.pictures[path] = error
        if isinstance(self.pictures[path], PictureError):
            raise self.pictures[path]
        return self.pictures[path]


@dataclass(frozen=True)
class Node:
    """One value of a JSON file, and where it stands; an empty `field` means the whole record."""

    found: Found
    file: str
    value: object
    record: int | None = None
    field: str = ""

    def note(self, what: str, advice: str) -> None:
        problem = Problem(self.file, self.record, self.field, what, advice)
        self.found.problems.append(problem)

    @property
    def place(self) -> str:
        return Problem(self.file, self.record, self.field, "", "").place

    def expect(self, kind: type) -> bool:
        """Whether the value is of this kind (dict, list or str)."""
        if self.value is TWICE:
            self.note("is there twice in one object", "keep one of the two")
        elif self.value is not MISSING and not isinstance(self.value, kind):
            self.note(f"is {_kind(self.value)}", f"make it {KINDS[kind]}")
        return isinstance(self.value, kind)

    def member(self, *names: str, advice: str = "add it") -> "Node":
        """The value under the first of these names that the object has."""
        present = [name for name in names if name in self.value]
        path = f"{self.field}." if self.field else ""
        if present:
            return replace(self, field=path + present[0], value=self.value[present[0]])
        node = replace(self, field=path + " or ".join(names), value=MISSING)
        there = ", ".join(ascii(quoted(name)) for name in self.value) or "nothing"
        node.note(f"is missing (there: {there})", advice)
        return node

    def items(self, what: str) -> list["Node"]:
        """The list's values; those of a file's own list are its records."""
        if not self.expect(list):
            return []
        if not self.value:
            self.note("is an empty list", f"add at least one {what}")
        values = enumerate(self.value)
        if not self.field:
            return [replace(self, value=value, record=i) for i, value in values]
        return [replace(self, value=value, field=f"{self.field}[{i}]") for i, value in values]

    def text(self) -> str | None:
        """Text without the space around it."""
        if not self.expect(str):
            return None
        text = self.value.strip()
        if not text:
            self.note("is empty", "write it, or remove the entry that it belongs to")
        elif "<image>" in text:
            self.note("holds the marker <image>", "remove it: the chat template places the picture")
        elif any("\ud800" <= letter <= "\udfff" for letter in text):
            self.note("holds half a character (a lone surrogate)", "write the whole character")
        else:
            return text
        return None

    def path(self) -> Path | None:
        """A path below the folder, resolved; the file need not be there."""
        text, root = self.text(), self.found.root
        if text is None:
            return None
        if text.startswith("/") or PureWindowsPath(text).drive:
            advice = "write it relative to the dataset folder"
            self.note(f"is an absolute path ({quoted(text)})", advice)
        elif "\0" in text:
            self.note(f"is no file name ({quoted(text)!r})", "remove the zero character")
        elif "\\" in text:
            self.note(f"is written with backslashes ({quoted(text)})", "write forward slashes")
        elif root not in (path := Path(os.path.realpath(place(root, text)))).parents:
            advice = "copy the picture into the folder and write its path there"
            self.note(f"leads out of the dataset folder ({quoted(text)})", advice)
        else:
            return path
        return None

    def picture(self, role: str, split: str) -> Path | None:
        """A path below the folder; if its picture can be used, this use is remembered."""
        path = self.path()
        if path is None:
            return None
        if not os.path.isfile(path):
            advice = "put the picture there, or remove the record"
            self.note(f"names a missing file ({quoted(self.value)})", advice)
            return path
        if not self.found.opened:
            return path
        try:
            self.found.uses.append(Use(self, path, self.found.digest(path), role, split))
        except PictureError as error:
            self.note(f"{quoted(self.value)} {error.what}", error.advice)
        return path


def place(root: Path, name: str) -> Path:
    """Where a picture is that a record names: below the folder, or named from the folder around it.

    The official code is started there, so that its paths begin with "dataset/".
    """
    first, *rest = PurePosixPath(name).parts or ("",)
    if first in ("dataset", root.name) and not os.path.exists(root / name):
        return root.joinpath(*rest)
    return root / name


def load(path: Path) -> object:
    """The value of a JSON file, or a list of its lines' values: the official code reads both."""
    return _parsed(path.read_bytes().decode("utf-8-sig"))


def _parsed(text: str) -> object:
    decoder, values = json.JSONDecoder(object_pairs_hook=_object), []
    start = SPACE.match(text).end()
    while start < len(text):
        value, end = decoder.raw_decode(text, start)
        values.append(value)
        start = SPACE.match(text, end).end()
    return values[0] if len(values) == 1 else values


def read_file(found: Found, name: str) -> Node:
    """The JSON file of this name in the folder."""
    node = Node(found, name, MISSING)
    path = found.root / name
    try:
        text = path.read_bytes().decode("utf-8-sig")
        if text.strip():
            return replace(node, value=_parsed(text))
        node.note("is empty", "write the file again")
    except FileNotFoundError:
        node.note("is missing", f"add it to {found.root}, or give the folder that holds it")
    except OSError as error:
        node.note(f"cannot be read ({error.strerror})", "make it a readable file")
    except UnicodeDecodeError as error:
        node.note(f"is not UTF-8 text (byte {error.start})", "save it as UTF-8")
    except json.JSONDecodeError as error:
        at_end = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        cut = ", the file seems to be cut off" if at_end else ""
        node.note(f"is not valid JSON ({error}){cut}", "correct it or write the file again")
    except (ValueError, RecursionError) as error:
        node.note(f"is not usable JSON ({error})", "write the file again")
    return node


def compare_pictures(found: Found) -> None:
    """Notes pictures that are harmful here and safe there, and test pictures that train has.

    Records may share a picture otherwise, also train and val (`dataset_overlap`).
    """
    seen: dict[str, dict[tuple[str, str], Use]] = {}
    for use in found.uses:
        earlier_uses = seen.setdefault(use.digest, {})
        clashes = [(earlier, _clash(earlier, use)) for earlier in earlier_uses.values()]
        for earlier, words in [clash for clash in clashes if clash[1]][:1]:
            advice = "use another picture, or remove one of the two records"
            use.node.note(f"{quoted(use.node.value)} {words} of {earlier.node.place}", advice)
        earlier_uses.setdefault((use.role, use.split), use)


def _clash(earlier: Use, use: Use) -> str | None:
    """How `use` contradicts an earlier use of the same picture, if it does."""
    if {earlier.role, use.role} == {"harmful", "safe"}:
        return f"is {use.role} here but is the {earlier.role} picture"
    if "question" in (earlier.role, use.role) and earlier.split != use.split:
        return f"is in {use.split} here but is in {earlier.split} too, the picture"
    return None


def _object(pairs: list[tuple[str, object]]) -> dict:
    keys = [key for key, _ in pairs]
    if len(set(keys)) == len(keys):
        return dict(pairs)
    return {key: TWICE if keys.count(key) > 1 else value for key, value in pairs}


def _kind(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{json.dumps(value)} (no number, and not JSON)"
    return KINDS.get(type(value)) or json.dumps(value)
