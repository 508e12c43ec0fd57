"""Where a model or a dataset comes from, a folder or a name on the Hugging Face hub, and which.

A result's name in the run store holds `identity(...)`: it follows from what is in the files, so a
folder may be moved, and other files under the same path do not pass for the old ones.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from lib.base import paths
from lib.base.missing import Missing
from lib.data.records import PROMPT, SPECIFICITY, TRAIN, VAL

TEXTS = ("*.json", "*.jinja", "*.model", "*.txt")  # what a model's or dataset's weights need
WEIGHTS = ("*.safetensors",)
PICTURES = ("*.png", "*.jpg", "*.jpeg", "*.webp", "*.bmp", "*.gif", "*.tif", "*.tiff")
LISTS = (TRAIN, VAL, PROMPT, SPECIFICITY)
OPTIONS = {"model": "--model", "dataset": "--data", "judge": "--judge local:"}
# What an error of the hub says of itself -> what is wrong and what to do; the first that fits.
REASONS = (
    (r"No space left|os error 28|Disk quota exceeded",
     "the disk is full. Make room, or set HF_HOME to a folder on another disk, and run this again: "
     "what has come already is kept."),
    (r"PermissionError|Read-only file system",
     "the folder for downloads cannot be written. Set HF_HOME to a folder of your own."),
    (r"OfflineModeIsEnabled",
     "HF_HUB_OFFLINE is set and it was not fetched before. Unset that variable."),
    (r"GatedRepoError|public gated repositor",
     "it is gated. Accept its terms on its page there, then type `hf auth login`, or put a token "
     "that may read it into HF_TOKEN."),
    (r"DisabledRepoError", "the hub has disabled it."),
    (r"RepositoryNotFoundError",
     "there is none of this name, or it is private. Check the spelling; for a private one, put a "
     "token that may read it into HF_TOKEN."),
    (r"\b40[13] (Client Error|Forbidden|Unauthorized)|LocalTokenNotFoundError",
     "the token is refused. Type `hf auth login`, or correct or unset HF_TOKEN."),
    (r"socksio|ProxyError|Unknown scheme for proxy",
     "the proxy cannot be used. Correct or unset HTTPS_PROXY and ALL_PROXY (a SOCKS proxy needs "
     "the package socksio)."),
    (r"CERTIFICATE_VERIFY_FAILED|SSLCertVerificationError",
     "this machine does not trust the certificate that is shown. Name your authority's (or "
     "proxy's) certificate file in SSL_CERT_FILE."),
    (r"Timeout",
     "it took too long to answer. Run this again, and it goes on where it stopped; "
     "HF_HUB_DOWNLOAD_TIMEOUT=60 lets it wait for longer."),
    (r"Incomplete|RemoteProtocolError|ReadError|Consistency check|ChunkedEncodingError",
     "the download was cut off. Run this again, and it goes on where it stopped."),
    (r"ConnectError|ConnectionError|Name or service not known",
     "the hub cannot be reached. Check the network, and HF_ENDPOINT if you have set it."),
    (r"\b429\b",
     "it asks for fewer requests. Wait for some minutes, or put a token into HF_TOKEN."),
    (r"\b5\d\d Server Error|\b50\d ", "it fails for reasons of its own. Run this again later."),
)
LARGE = 1 << 20  # bytes from which a file's digest is kept
DIGESTS = ".digests.jsonl"  # of large files, in the runs folder


def folder(source: str | Path, kind: str = "model") -> Path:
    """The local folder of a source, downloaded first if it is a hub name that is not there yet.

    kind: "model", "dataset", or "judge" for a model that judges. Weights come as
    safetensors only, code not at all. Raises Missing, with the reason, when there is neither a
    folder nor a download.
    """
    return _local(source, kind, TEXTS + (_any_case(PICTURES) if kind == "dataset" else WEIGHTS))


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
        return [*lists, *_files(root, PICTURES, deep=True)]
    return [*_files(root, TEXTS, deep=False), *_files(root, WEIGHTS, deep=False)]


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
                      f"(owner/name) either: check what follows {OPTIONS[kind]}.")
    from huggingface_hub import snapshot_download  # here: the laptop profile needs no network

    repository = "dataset" if kind == "dataset" else "model"
    try:
        return Path(snapshot_download(str(source), repo_type=repository,
                                      allow_patterns=list(patterns)))
    except Exception as error:  # a dozen kinds: offline, gated, unknown, cut off
        raise Missing(f"The {kind} {source} is no folder here and could not be fetched from the "
                      f"hub: {_why(error, str(source))} Or give a local folder with "
                      f"{OPTIONS[kind]}.") from error


def _why(error: BaseException | None, source: str) -> str:
    """Why the hub gave nothing, and what to do, by the names and words of an error's causes."""
    words, last = [], error
    while error is not None:
        kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
        words.append(f"{kinds}: {error}".replace(source, ""))
        error = error.__cause__ or error.__context__
    said = "\n".join(words)
    first = next(iter(str(last).strip().splitlines()), "")[:200]
    return next((advice for signs, advice in REASONS if re.search(signs, said)),
                f"{type(last).__name__}: {first}. Check the name and the network.")


def _files(root: Path, patterns: Iterable[str], deep: bool) -> list[Path]:
    """Files whose names fit, whatever their case, in the folder or also below it."""
    suffixes = tuple(pattern[1:] for pattern in patterns)
    places = os.walk(root) if deep else [next(os.walk(root))]
    return sorted(Path(place, name) for place, _, names in places for name in names
                  if name.lower().endswith(suffixes))


def _hash(root: Path, files: Iterable[Path]) -> str:
    """Of the files' names, from the folder on, and of all that is in them."""
    found = hashlib.sha256()
    for path in files:
        found.update(f"{path.relative_to(root).as_posix()}\0{_digest(path)}\0".encode())
    return found.hexdigest()[:16]


def _digest(path: Path) -> str:
    """A file's sha256; a large one is read once, and known by its place, size and time then."""
    seen = path.stat()
    if seen.st_size < LARGE:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    known, key = paths.runs_root() / DIGESTS, [str(path.resolve()), seen.st_size, seen.st_mtime_ns]
    if (digest := _known(known).get(tuple(key))) is None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        known.parent.mkdir(parents=True, exist_ok=True)
        with known.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, digest]) + "\n")
    return digest


def _known(path: Path) -> dict[tuple, str]:
    """The digests in a file of the runs folder; half a line, of a killed process, is none."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            key, digest = json.loads(line)
            found[tuple(key)] = digest
        except (ValueError, TypeError):
            continue
    return found
