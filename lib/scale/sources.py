"""Where a model or a dataset comes from, a folder or a name on the Hugging Face hub, and which.

A result's name in the run store holds `identity(...)`: it follows from what is in the files, so a
folder may be moved, and other files under the same path do not pass for the old ones.
"""

import hashlib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from lib.base import files, paths
from lib.base.missing import Missing
from lib.data.records import PROMPT, SPECIFICITY, TRAIN, VAL

TEXTS = (".json", ".jinja", ".model", ".txt")  # what a model's or dataset's weights need
WEIGHTS = (".safetensors",)
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LISTS = (TRAIN, VAL, PROMPT, SPECIFICITY)
OPTIONS = {"model": "--model", "dataset": "--data", "judge": "--judge local:"}
REASONS = {  # what an error of the hub says of itself: what is wrong, and what to do; the first
    r"No space left|os error 28|Disk quota": "the disk is full. Make room, or set HF_HOME.",
    r"PermissionError|Read-only file system":
        "the folder for downloads cannot be written. Set HF_HOME to a folder of your own.",
    r"OfflineModeIsEnabled": "HF_HUB_OFFLINE is set, and it was not fetched before.",
    r"GatedRepo|gated repositor":
        "it is gated. Accept its terms on its page there, then type `hf auth login`.",
    r"DisabledRepo": "the hub has disabled it.",
    r"RepositoryNotFound": "there is none of this name, or it is private (`hf auth login`).",
    r"\b40[13] (Client Error|Forbidden|Unauthorized)|LocalTokenNotFound":
        "the token is refused. Type `hf auth login`, or correct or unset HF_TOKEN.",
    r"socksio|ProxyError|Unknown scheme for proxy":
        "the proxy cannot be used. Correct or unset HTTPS_PROXY and ALL_PROXY (SOCKS: socksio).",
    r"CERTIFICATE_VERIFY_FAILED|SSLCertVerification":
        "the certificate is not trusted here. Name your authority's file in SSL_CERT_FILE.",
    r"ConnectError|ConnectionError|Name or service not known":
        "the hub cannot be reached. Check the network, and HF_ENDPOINT if you have set it.",
}
LARGE = 1 << 20  # bytes from which a file's digest is kept
DIGESTS = ".digests"  # of large files, in the runs folder


def folder(source: str | Path, kind: str = "model") -> Path:
    """The local folder of a source, downloaded first if it is a hub name that is not there yet.

    kind: "model", "dataset", or "judge" for a model that judges. Weights come as
    safetensors only, code not at all. Raises Missing, with the reason, when there is neither a
    folder nor a download.
    """
    return _local(source, kind, TEXTS + (PICTURES if kind == "dataset" else WEIGHTS))


@cache
def identity(source: str | Path, kind: str = "model") -> dict:
    """What determines the results about a source, for a config. Only its small files are fetched.

    A model's folder: a hash of its texts and weights. A dataset's: of its lists and pictures, file
    by file; what else lies there does not count. A hub name: the name, and the revision that is
    here. Looked at once per process.
    """
    if Path(source).is_dir():
        return {kind: _hash(Path(source), _that_count(Path(source), kind))}
    here = _local(source, kind, TEXTS)
    revision = here.name if re.fullmatch("[0-9a-f]{40}", here.name) else ""
    return {kind: revision or _hash(here, _that_count(here, kind)), "name": str(source)}


def _that_count(root: Path, kind: str) -> list[Path]:
    """The files of a folder that determine what is read from it."""
    if kind == "dataset":
        lists = [root / name for name in LISTS if (root / name).is_file()]
        return [*lists, *_ending(root.rglob("*"), PICTURES)]
    return [*_ending(root.iterdir(), TEXTS), *_ending(root.iterdir(), WEIGHTS)]


def _ending(found: Iterable[Path], endings: Iterable[str]) -> list[Path]:
    return sorted(file for file in found if file.suffix.lower() in endings)


def _local(source: str | Path, kind: str, endings: tuple[str, ...]) -> Path:
    if Path(source).is_dir():
        return Path(source)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) or str(source).startswith("."):
        raise Missing(f"There is no {kind} folder {str(source)!r}, and it is no hub name "
                      f"(owner/name) either: check what follows {OPTIONS[kind]}.")
    from huggingface_hub import snapshot_download  # here: the laptop profile needs no network

    wanted = [f"*{form(ending)}" for ending in endings for form in (str.lower, str.upper)]
    try:  # the hub compares names letter by letter
        return Path(snapshot_download(str(source), allow_patterns=wanted,
                                      repo_type="dataset" if kind == "dataset" else "model"))
    except Exception as error:  # a dozen kinds: offline, gated, unknown, cut off
        raise Missing(f"The {kind} {source} is no folder here and could not be fetched from the "
                      f"hub: {_why(error, str(source))} Or give a local folder with "
                      f"{OPTIONS[kind]}.") from error


def _why(error: BaseException | None, source: str) -> str:
    """Why the hub gave nothing, and what to do, by the names and words of an error's causes."""
    words = []
    while error is not None:
        last = error
        kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
        words.append(f"{kinds}: {error}".replace(source, ""))
        error = error.__cause__ or error.__context__
    said = "\n".join(words)
    first = str(last).strip().partition("\n")[0][:200]
    return next((advice for signs, advice in REASONS.items() if re.search(signs, said)),
                f"{type(last).__name__}: {first}. Run this again, and it goes on where it stopped.")


def _hash(root: Path, counted: Iterable[Path]) -> str:
    """Of the files' names, from the folder on, and of all that is in them."""
    found = hashlib.sha256()
    for path in counted:
        found.update(f"{path.relative_to(root).as_posix()}\0{_digest(path)}\0".encode())
    return found.hexdigest()[:16]


def _digest(path: Path) -> str:
    """A file's sha256; a large one is read once, and known by its place, size and time then."""
    seen = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {seen.st_size} {seen.st_mtime_ns}".encode())
    known = paths.runs_root() / DIGESTS / key.hexdigest()
    if seen.st_size >= LARGE and known.exists():
        return files.read_json(known)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if seen.st_size >= LARGE:
        files.write_json(known, digest)
    return digest
