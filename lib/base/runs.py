"""Results on disk, written once, whole or not at all.

A step's result is a folder named after the step and a hash of its config. It is built under the
name `<folder>.partial` and renamed last, so a folder under its final name is always complete:

    store = Store(paths.profile_dir("laptop"))
    folder = store.make("unlearn", {"method": "po", "seed": 0}, build)

`build(partial)` writes its files into `partial` and returns the metrics. A process killed at any
moment leaves the partial folder behind; the next call hands the same folder to `build`, which can
go on from what it saved in `partial/checkpoint/` (removed when the result is complete).

What `origin` says, such as the code that makes a result and what it is made from, goes into the
manifest; a partial folder of another origin is begun again.
"""

import hashlib
import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lib.base import disk, provenance
from lib.base.files import plain, read_json, read_jsonl, write_csv, write_json, write_jsonl

__all__ = ["Store", "claimed", "digest", "is_whole", "manifest", "read_json", "read_jsonl", "stamp",
           "write_csv", "write_json", "write_jsonl"]

OWN_FILES = ("config.json", "metrics.json", "manifest.json")
BEGUN = Path("checkpoint", "origin.json")  # in a partial folder
log = logging.getLogger(__name__)


class Store:
    """The results of one profile, one folder per step and config."""

    def __init__(self, root: Path):
        self.root = Path(root)

    def folder(self, step: str, config: dict) -> Path:
        """Return where the result of this step with this config is, or will be.

        Neither key order nor tuple or list nor `1` or `1.0` changes the name. Raises TypeError or
        ValueError, naming the entry, for a config that JSON cannot hold.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", step):
            raise ValueError(f"Step name {step!r}: use only letters, digits, '-' and '_'.")
        canonical = json.dumps(_canonical(config), sort_keys=True, separators=(",", ":"))
        return self.root / f"{step}-{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"

    def is_done(self, step: str, config: dict) -> bool:
        """Tell whether the result is there with every file as it was written (sizes, sha256)."""
        return is_whole(self.folder(step, config))

    def make(self, step: str, config: dict, build: Callable[[Path], dict | None],
             device: str | None = None, origin: Mapping | None = None,
             facts: Mapping | None = None) -> Path:
        """Return the step's folder, after calling `build` if it is missing or damaged.

        Of several processes that want the same step one builds and the others wait. What `build`
        raises is passed on; its files stay in the partial folder. `device` goes into the manifest
        (default: the GPU that this process has used, else "cpu"), and so do `origin` and `facts`.
        """
        final = self.folder(step, config)
        if _damage(final) is None:
            return final
        with disk.locked(self.root / disk.LOCKS / final.name):
            if _damage(final):  # else another process has made it meanwhile
                _discard_damaged(final)
                partial = final.with_name(final.name + ".partial")
                if _damage(partial):  # else it was killed after the manifest, before the rename
                    said = {**({"facts": dict(facts)} if facts else {}), **(origin or {})}
                    _begin(partial, origin)
                    _fill(partial, step, config, build, device, said)
                _publish(partial, final)
        return final

    def remove(self, step: str, config: dict) -> None:
        """Remove a result, if it is there, and what was begun of it."""
        final = self.folder(step, config)
        with disk.locked(self.root / disk.LOCKS / final.name):
            _remove(final)
            shutil.rmtree(final.with_name(f"{final.name}.partial"), ignore_errors=True)


def is_whole(folder: Path) -> bool:
    """Tell whether a finished result is there with every file as it was written."""
    return _damage(folder) is None


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Claim a result, whoever is going to write it; False if another claim on it lives.

    The store's own lock makes others wait while one process writes. A claim lets a process that
    only gives out work see that another one has given out this piece, and to whom is no matter:
    perhaps to a machine whose store is not this one. It ends with the block or the process.
    """
    with disk.locked(folder.parent / disk.LOCKS / f"{folder.name}.claim", wait=False) as mine:
        yield mine


def manifest(folder: Path) -> dict:
    """What a finished result's manifest says; empty if there is none that can be read."""
    try:
        held = read_json(folder / "manifest.json")
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def digest(folder: Path) -> str:
    """A finished result's files in one hash, as its manifest has them: "" if there is none."""
    files = manifest(folder).get("files", {})
    if not files:
        return ""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]


def stamp(folder: Path, **said: object) -> None:
    """Add to what a finished result's manifest says; when it was made stays as it was."""
    path, held = folder / "manifest.json", manifest(folder)
    with disk.locked(folder.parent / disk.LOCKS / folder.name):
        made = path.stat()
        write_json(path, {**held, **said})
        os.utime(path, ns=(made.st_atime_ns, made.st_mtime_ns))


def _begin(partial: Path, origin: Mapping | None) -> None:
    """Empty a partial folder that was begun by other code or from other results."""
    if origin is None:
        return
    begun = plain(dict(origin), "origin", _exact)
    if partial.is_dir():
        try:
            before = read_json(partial / BEGUN)
        except (OSError, ValueError):
            before = None
        if before == begun:
            return
        if any(partial.iterdir()):
            log.warning("%s was begun by other code: it is begun again.", partial)
        shutil.rmtree(partial)
    write_json(partial / BEGUN, begun)


def _fill(partial: Path, step: str, config: dict, build: Callable, device: str | None,
          said: Mapping) -> None:
    """Build into the partial folder and complete it with config, metrics and manifest."""
    resumed, start = _has_more(partial), time.perf_counter()
    partial.mkdir(parents=True, exist_ok=True)
    for name in OWN_FILES:
        (partial / name).unlink(missing_ok=True)
    metrics = build(partial)
    for name in OWN_FILES:
        if (partial / name).exists():  # as save_pretrained does with config.json
            raise ValueError(f"Step {step} wrote {partial / name}, a name that belongs to the run "
                             "store: let it write such files into a subfolder.")
    write_json(partial / "config.json", _canonical(config))
    write_json(partial / "metrics.json", metrics or {})
    seconds = round(time.perf_counter() - start, 3)  # of this attempt, if `resumed`
    about = {"step": step, "seed": config.get("seed"), "seconds": seconds, "resumed": resumed}
    files = _flushed_files(partial)
    write_json(partial / "manifest.json",
               {**about, **provenance.describe(device), **said, "files": files})
    disk.flush(partial)


def _has_more(partial: Path) -> bool:
    """Whether anything but the mark of its beginning is in a partial folder."""
    return partial.is_dir() and not (
        {path.relative_to(partial) for path in partial.rglob("*")} <= {BEGUN, BEGUN.parent})


def _flushed_files(partial: Path) -> dict[str, dict]:
    """Return size and sha256 by relative name, with everything safely on the disk."""
    for leftover in partial.rglob(".*.tmp"):  # of a write_json that was killed
        leftover.unlink()
    kept = [path for path in sorted(partial.rglob("*"))
            if path.relative_to(partial).parts[0] != "checkpoint" and path.exists()]
    for path in kept:
        disk.flush(path)
    return {path.relative_to(partial).as_posix(): _fingerprint(path)
            for path in kept if path.is_file()}


def _publish(partial: Path, final: Path) -> None:
    """Give a complete partial folder its final name."""
    # The checkpoint goes only now: killed before the manifest, the build can go on from it.
    if (partial / "checkpoint").exists():
        shutil.rmtree(partial / "checkpoint")
    os.rename(partial, final)
    disk.flush(final.parent)


def _discard_damaged(final: Path) -> None:
    if final.exists():
        log.warning("%s is damaged (%s): it is made again.", final, _damage(final))
    _remove(final)


def _remove(final: Path) -> None:
    """Remove a folder, first from its name: half of it is never seen there."""
    doomed = final.with_name(final.name + ".damaged")
    if doomed.exists():  # the process that removed it was killed
        shutil.rmtree(doomed)
    if final.exists():
        os.rename(final, doomed)
        shutil.rmtree(doomed)


def _damage(folder: Path) -> str | None:
    """Say in a few words what is wrong with a finished folder; None when nothing is."""
    try:
        files = read_json(folder / "manifest.json")["files"]
        wrong = [name for name, listed in files.items() if _fingerprint(folder / name) != listed]
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "manifest.json was cut off or edited"
    if not {"config.json", "metrics.json"} <= files.keys():
        return "manifest.json was edited"
    return f"{wrong[0]} was changed" if wrong else None


def _fingerprint(path: Path) -> dict:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": file.tell()}


def _canonical(config: dict) -> dict:
    if not isinstance(config, dict):
        raise TypeError(f"A config is a dict, not a {type(config).__name__}.")
    return plain(config, "config", _exact)


def _exact(number: float, where: str) -> float:
    if not math.isfinite(number):
        raise ValueError(f"{where} is {number}: a config needs finite numbers, or None.")
    return int(number) if number.is_integer() else number
