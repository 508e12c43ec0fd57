"""Where a model or a dataset comes from, a folder or a name on the Hugging Face hub, and which.

A result's name in the run store holds `identity(...)`: it follows from what is in the files, so a
folder may be moved, and other files under the same path do not pass for the old ones.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from lib.missing import Missing

TEXTS = ("*.json", "*.jinja", "*.model", "*.txt")  # what a model's or dataset's weights need
WEIGHTS = ("*.safetensors",)
PICTURES = ("*.png", "*.jpg", "*.jpeg", "*.webp", "*.bmp", "*.gif", "*.tif", "*.tiff")
SAMPLE = 1 << 20  # bytes at the start and end of a weights file: all of it would take minutes


def folder(source: str | Path, kind: str = "model") -> Path:
    """The local folder of a source, downloaded first if it is a hub name that is not there yet.

    kind: "model" or "dataset". Weights come as safetensors only, code not at all. Raises
    Missing when there is neither a folder nor such a name.
    """
    return _local(source, kind, TEXTS + (WEIGHTS if kind == "model" else _any_case(PICTURES)))


@cache
def identity(source: str | Path, kind: str = "model") -> dict:
    """What determines the results about a source, for a config. Only its small files are fetched.

    A folder: a hash of its texts and of its weights' or pictures' names and sizes, and of samples
    of the weights. A hub name: the name, and a hash of its texts. Looked at once per process.
    """
    if Path(source).is_dir():
        patterns = WEIGHTS if kind == "model" else PICTURES
        return {kind: _hash(Path(source), _files(Path(source), patterns, deep=kind == "dataset"))}
    return {kind: _hash(_local(source, kind, TEXTS), ()), "name": str(source)}


def _any_case(patterns: Iterable[str]) -> tuple[str, ...]:
    """The patterns for names in capitals too: the hub's are compared letter by letter.

    >>> _any_case(["*.bmp"])
    ('*.[bB][mM][pP]',)
    """
    return tuple("".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in pattern)
                 for pattern in patterns)


def _local(source: str | Path, kind: str, patterns: tuple[str, ...]) -> Path:
    if Path(source).is_dir():
        return Path(source)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) or str(source).startswith("."):
        raise Missing(f"There is no {kind} folder {str(source)!r}, and it is no hub name "
                      f"(owner/name) either: check what follows --{_option(kind)}.")
    from huggingface_hub import snapshot_download  # here: the laptop profile needs no network

    try:
        return Path(snapshot_download(str(source), repo_type=kind, allow_patterns=list(patterns)))
    except Exception as error:  # a dozen kinds: offline, gated, unknown, cut off
        raise Missing(
            f"The {kind} {source} is neither a folder here nor could it be fetched from the hub "
            f"({type(error).__name__}): check the name and the network, or give a local folder "
            f"with --{_option(kind)}.") from error


def _option(kind: str) -> str:
    return {"model": "model", "dataset": "data"}[kind]


def _files(root: Path, patterns: Iterable[str], deep: bool) -> list[Path]:
    """Files whose names fit, whatever their case, in the folder or also below it."""
    suffixes = tuple(pattern[1:] for pattern in patterns)
    places = os.walk(root) if deep else [next(os.walk(root))]
    return sorted(Path(place, name) for place, _, names in places for name in names
                  if name.lower().endswith(suffixes))


def _hash(root: Path, large: Iterable[Path]) -> str:
    """Of the small files whole, of the large ones their names, sizes and, of weights, samples."""
    found = hashlib.sha256()
    for path in _files(root, TEXTS, deep=False):
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    for path in large:
        size = path.stat().st_size
        found.update(f"{path.relative_to(root).as_posix()}\0{size}".encode())
        if path.suffix == ".safetensors":
            found.update(_ends(path, size))
    return found.hexdigest()[:16]


def _ends(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        first = file.read(SAMPLE)
        file.seek(max(0, size - SAMPLE))
        return first + file.read(SAMPLE)
