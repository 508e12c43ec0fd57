"""Where a picture is that a record names: below the dataset folder, however the name is written."""

import os
import re
import unicodedata
from functools import cached_property
from pathlib import Path, PurePosixPath

CACHE = re.compile(r"(datasets|models)--.+")  # a repository's folder in a hub's cache


class Places:
    """Where a folder's pictures are; its files are listed only once a name is not there."""

    def __init__(self, root: Path):
        self.root = root

    @cached_property
    def names(self) -> dict[str, str]:
        """The names of all files below the folder, by themselves in composed Unicode."""
        files = [Path(place, name).relative_to(self.root).as_posix()
                 for place, _, names in os.walk(self.root) for name in names]
        return {_composed(name): name for name in files}

    @cached_property
    def folded(self) -> dict[str, str]:
        return {name.casefold(): file for name, file in self.names.items()}

    def __call__(self, name: str) -> Path:
        """Below the folder, or named from the folder around it; the file need not be there.

        The official code is started there, so that its paths begin with "dataset/". Letters with
        marks are found in whichever of Unicode's forms the disk has them.
        """
        path, (first, *rest) = self.root / name, PurePosixPath(name).parts or ("",)
        if first in ("dataset", self.root.name) and not os.path.exists(path):
            path = self.root.joinpath(*rest)
        if os.path.lexists(path):
            return path
        return self.root / self.names.get(_composed(self._below(path)), path)

    def near(self, path: Path) -> str | None:
        """The name of a file whose name differs from this one in capitals alone."""
        name = self._below(path)
        found = self.folded.get(_composed(name).casefold())
        return None if found == name else found

    def _below(self, path: Path) -> str:
        return os.path.relpath(path, self.root)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def inside(root: Path, path: Path) -> Path | None:
    """The file that a path leads to, if that is in the folder `root`, which is resolved.

    A hub's cache has links to ../../blobs in place of files: such a link stays as it is, if it
    leads to the blobs of its own repository. None for a path that leads anywhere else, or leaves
    the folder on its way: a copy of the folder (`export.excerpt`) would be left, too.
    """
    if not path.is_relative_to(root):
        return None
    target, name = Path(os.path.realpath(path)), Path(os.path.normpath(path.relative_to(root)))
    link = root / name
    if name.parts[:1] == ("..",):
        return None
    if root in target.parents:
        return target
    kept = target.parent == _blobs(root) and os.path.realpath(link) == str(target)
    return link if kept else None


def _blobs(root: Path) -> Path | None:
    """The blobs of the repository in a hub's cache of which the folder is a snapshot."""
    for around in root.parents:
        if CACHE.fullmatch(around.name) and root.relative_to(around).parts[0] == "snapshots":
            return around / "blobs"
    return None
