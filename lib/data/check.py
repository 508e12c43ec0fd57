"""How the JSON files of a dataset folder are checked: problems are noted, none stops the reading.

A `Node` is one value of a JSON file together with the place where it stands. Its methods return the
checked value, or None after noting what is wrong there and what to do about it.
"""

import json
import math
import os
import re
import unicodedata
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path, PureWindowsPath

from lib.data.discretion import quoted
from lib.data.overlap import digest
from lib.data.pictures import LFS, POINTER, PULL, PictureError, open_image, refuse_pointer
from lib.data.places import Places, inside
from lib.data.problems import Problem, shortened

MISSING = object()  # stands for a value that is not there, which has been noted already
TWICE = object()  # stands for a value whose key its object has twice
SPACE = re.compile(r"[ \t\r\n]*")
# What a tokenizer or a chat template may read as more than text, in the models that are met.
MARKS = re.compile(r"<\|[^<>|\s]{1,40}\|>|<(/?s|pad|unk|bos|eos|(start|end)_of_\w+|bo[is]|eo[is]|"
                   r"(image|img|im|video|vision)(_\w+)?)>|\[/?(INST|IMG(_BREAK|_END)?)\]|<</?SYS>>")
UNSEEN = "\u3164\u2800"  # letters by their category, but blank
FIELDS_OF_A_RECORD = {"image_path", "image_id", "unsafe_pairs"}
KINDS = {dict: "an object {...}", list: "a list [...]", str: "text", bool: "true or false",
         int: "a number", float: "a number", type(None): "null"}


@dataclass(frozen=True)
class Use:
    """A place that names a picture: `role` harmful, safe or question, `split` train or val."""

    node: "Node"
    digest: str
    role: str
    split: str


@dataclass
class Found:
    """Everything seen so far in one dataset folder (`root` is resolved).

    `opened`: whether pictures are opened, or only have to be there. `marks`: what a model reads as
    more than text, beside MARKS.
    """

    root: Path
    opened: bool = True
    marks: tuple[str, ...] = ()
    problems: list[Problem] = field(default_factory=list)
    records: dict[str, int] = field(default_factory=dict)  # how many each file has
    uses: list[Use] = field(default_factory=list)
    faults: dict[Path, PictureError | None] = field(default_factory=dict)  # of pictures

    @cached_property
    def places(self) -> Places:
        return Places(self.root)

    def fault(self, path: Path) -> PictureError | None:
        """Why a picture cannot be used, if so; each file is opened once."""
        if path not in self.faults:
            look = open_image if self.opened else refuse_pointer
            try:
                look(path)
                self.faults[path] = None
            except PictureError as error:
                self.faults[path] = error
        return self.faults[path]


@dataclass(frozen=True)
class Node:
    """One value of a JSON file, and where it stands; an empty `field` means the whole record."""

    found: Found
    file: str
    value: object
    record: int | None = None
    field: str = ""

    def note(self, what: str, advice: str, detail: str = "") -> None:
        problem = Problem(self.file, self.record, self.field, what, advice, shortened(detail))
        self.found.problems.append(problem)

    @property
    def place(self) -> str:
        return Problem(self.file, self.record, self.field, "", "").place

    def expect(self, kind: type) -> bool:
        """Whether the value is of this kind (dict, list or str)."""
        if self.value is TWICE:
            self.note("is there twice in one object", "keep one of the two")
        elif self.value is not MISSING and not isinstance(self.value, kind):
            detail = json.dumps(self.value) if isinstance(self.value, int | float) else ""
            self.note(f"is {KINDS[type(self.value)]}", f"make it {KINDS[kind]}", detail)
        return isinstance(self.value, kind)

    def member(self, *names: str, advice: str = "add it") -> "Node":
        """The value under the first of these names that the object has, and that is not null."""
        present = [name for name in names if name in self.value]
        present = [name for name in present if not is_null(self.value[name])] or present
        path = f"{self.field}." if self.field else ""
        if present:
            return replace(self, field=path + present[0], value=self.value[present[0]])
        node = replace(self, field=path + " or ".join(names), value=MISSING)
        there = ", ".join(ascii(quoted(name)) for name in islice(self.value, 9)) or "nothing"
        node.note("is missing", advice, f"there: {there}")
        return node

    def items(self, what: str) -> list["Node"]:
        """The list's values; those of a file's own list are its records."""
        if not self.expect(list):
            return []
        if not self.value:
            self.note("is an empty list", f"add at least one {what}")
        values = enumerate(self.value)
        if not self.field:
            self.found.records[self.file] = len(self.value)
            return [replace(self, value=value, record=i) for i, value in values]
        return [replace(self, value=value, field=f"{self.field}[{i}]") for i, value in values]

    def text(self) -> str | None:
        """Text without the space around it."""
        if not self.expect(str):
            return None
        text = self.value.strip()
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            self.note("holds half a character, a lone surrogate", "write the whole character")
        elif not any(map(_is_seen, text)):
            self.note("is empty", "write it, or remove the entry that it belongs to",
                      f"{len(text)} characters that are not seen" if text else "")
        elif mark := self._mark(text):
            advice = "remove it: the processor and the chat template place such marks"
            self.note("holds a mark that models read as more than text", advice, mark)
        else:
            return text
        return None

    def _mark(self, text: str) -> str | None:
        found = MARKS.search(text)
        return found[0] if found else next((m for m in self.found.marks if m in text), None)

    def path(self) -> Path | None:
        """A path to a file below the folder, which need not be there (see `inside`)."""
        text, root = self.text(), self.found.root
        if text is None:
            return None
        if text.startswith("/") or PureWindowsPath(text).drive:
            advice = "write it relative to the dataset folder"
            self.note("is an absolute path", advice, quoted(text))
        elif "\0" in text:
            self.note("is no file name", "remove the zero character", repr(quoted(text)))
        elif "\\" in text:
            self.note("is written with backslashes", "write forward slashes", quoted(text))
        elif (path := inside(root, self.found.places(text))) is None:
            advice = "copy the picture into the folder and write its path there"
            self.note("leads out of the dataset folder", advice, quoted(text))
        else:
            return path
        return None

    def picture(self, role: str, split: str) -> Path | None:
        """A path below the folder; if its picture can be used, this use is remembered."""
        path = self.path()
        if path is None:
            return None
        if not os.path.isfile(path):
            self._missing(path)
        elif error := self.found.fault(path):
            detail = f"{quoted(self.value)}: {error.detail}" if error.detail else quoted(self.value)
            self.note(f"names a picture that {error.what}", error.advice, detail)
        elif self.found.opened:
            self.found.uses.append(Use(self, digest(path), role, split))
        return path

    def _missing(self, path: Path) -> None:
        if near := self.found.places.near(path):
            self.note("differs from the file's name in capitals", "write it as the file is named",
                      f"{quoted(self.value)}, but there is {quoted(near)}")
        elif os.path.islink(path):
            self.note("names a missing file, behind a link", "copy or download the picture again",
                      quoted(self.value))
        else:
            advice = "put the picture there, or remove the record"
            self.note("names a missing file", advice, quoted(self.value))


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
    if len(values) == 1 and isinstance(values[0], dict):  # perhaps the only line
        return values if FIELDS_OF_A_RECORD & values[0].keys() else values[0]
    return values[0] if len(values) == 1 else values


def read_file(found: Found, name: str) -> Node:
    """The JSON file of this name in the folder."""
    node = Node(found, name, MISSING)
    path = found.root / name
    try:
        content = path.read_bytes()
        if content.startswith(LFS):
            node.note(POINTER, PULL)
            return node
        text = content.decode("utf-8-sig")
        if text.strip():
            return replace(node, value=_parsed(text))
        node.note("is empty", "write the file again")
    except FileNotFoundError:
        node.note("is missing", f"add it to {found.root}, or give the folder that holds it")
    except OSError as error:
        node.note("cannot be read", "make it a readable file", error.strerror)
    except UnicodeDecodeError as error:
        node.note("is not UTF-8 text", "save it as UTF-8", f"byte {error.start}")
    except json.JSONDecodeError as error:
        at_end = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        cut = ", the file seems to be cut off" if at_end else ""
        comma = "," in (text[error.pos:error.pos + 1], text[:error.pos].rstrip()[-1:]) and not cut
        advice = "remove the comma there" if comma else "correct it or write the file again"
        node.note(f"is not valid JSON{cut}", advice, str(error))
    except (ValueError, RecursionError) as error:
        node.note("is not usable JSON", "write the file again", str(error))
    return node


def compare_pictures(found: Found) -> None:
    """Notes pictures that are harmful in one place and safe in another, where they are safe.

    And test pictures that train has. Records may share pictures otherwise, also train and val
    (`overlap`): SafeEraser has fewer safe ones than records.
    """
    first: dict[tuple[str, str, str], Use] = {}
    for use in found.uses:
        first.setdefault((use.digest, use.role, use.split), use)
    for use in found.uses:
        same = [first.get((use.digest, *other)) for other in CLASHES.get((use.role, use.split), ())]
        if clash := next(filter(None, same), None):
            detail = f"{quoted(use.node.value)}, as {clash.node.place}"
            use.node.note(f"is a {use.role} picture here but a {clash.role} one of {clash.split}",
                          "use another picture, or remove one of the two records", detail)


CLASHES = {  # a use: the uses of the same picture that contradict it
    ("safe", "train"): (("harmful", "train"), ("harmful", "val")),
    ("safe", "val"): (("harmful", "val"), ("harmful", "train")),
    ("question", "val"): (("harmful", "train"), ("safe", "train")),
}


def _object(pairs: list[tuple[str, object]]) -> dict:
    keys = [key for key, _ in pairs]
    if len(set(keys)) == len(keys):
        return dict(pairs)
    return {key: TWICE if keys.count(key) > 1 else value for key, value in pairs}


def is_null(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_seen(letter: str) -> bool:
    """Whether a character is more than space or a mark of control."""
    return unicodedata.category(letter)[0] not in "CZ" and letter not in UNSEEN
