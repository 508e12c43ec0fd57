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
SAMPLE = 1 << 20  # bytes at the start and end of a weights file: all of it would take minutes


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

    A folder: a hash of its texts and of its weights' or pictures' names and sizes, and of samples
    of the weights. A hub name: the name, and a hash of its texts. Looked at once per process.
    """
    if Path(source).is_dir():
        patterns = PICTURES if kind == "dataset" else WEIGHTS
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
