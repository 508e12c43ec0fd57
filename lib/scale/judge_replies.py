"""What a server's response says: a chat completion, or an error and what of it may be shown."""

import json
import re
from dataclasses import dataclass

from lib.data.discretion import described, letters, plain
from lib.scale.judge_prompts import after_thought

WITHHELD = 451  # the status of what is not said for legal reasons
FILTERED = {"content_filter", "content_policy_violation"}  # an error's code
PARTS = ("code", "type", "message", "detail")  # of an error
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # fields beside a message's content
QUOTE = 16  # letters that an error and what was asked have in common
KEY_PART = 8  # signs of the key in a row; servers quote its ends
MOST = 1_000_000  # tokens that a request can have used; a server that counts more is mistaken,
BYTES = 40  # and so is one that counts fewer than one for so many bytes
MALFORMED = (ValueError, TypeError, LookupError, AttributeError, RecursionError)  # not as expected


@dataclass(frozen=True)
class Reply:
    """What a model said. `tokens`: of prompt and reply, where the server counted them."""

    text: str
    withheld: bool = False  # by the model or by a filter
    cut: bool = False  # for its length
    thought: bool = False  # whether it also thought, in a field of its own
    tokens: tuple[int, int] | None = None


def meant(status: int, content: bytes) -> int:
    """The status that a response should have: WITHHELD for what a filter holds back, and that of
    an error that is sent as a success."""
    error = _error(content)
    names = [str(error.get(name)) for name in ("code", "type")]
    if FILTERED.intersection(names):
        return WITHHELD
    if status >= 300 or not error:
        return status
    return next((int(name) for name in names if re.fullmatch(r"[45]\d\d", name)), 500)


def _error(content: bytes) -> dict:
    """The error in a response, whatever its form; empty if there is none."""
    try:
        found = json.loads(content)
        bare = {name: found[name] for name in PARTS if found.get(name)}
        error = {} if found.get("choices") else found.get("error") or bare
    except MALFORMED:
        return {}
    return error if isinstance(error, dict) else {"message": error}


def read(content: bytes, asked: int = 0) -> Reply | None:
    """A chat completion, None if it is none; `asked`: bytes of its request."""
    try:
        found = json.loads(content)
        choice = found["choices"][0]
        message, ended = choice["message"], choice.get("finish_reason")
        text = _text(message.get("content"))
        return Reply(text, withheld=bool(message.get("refusal")) or ended == "content_filter",
                     cut=ended == "length", thought=any(map(message.get, THOUGHTS)),
                     tokens=_tokens(found.get("usage"), asked, text))
    except MALFORMED:
        return None


def only_thought(reply: Reply) -> bool:
    """Whether a reply ends within the model's thought, or is none but a thought."""
    silent = not (after_thought(reply.text) or "").strip()
    return silent and bool(reply.thought or reply.cut or reply.text.strip())


def _text(content: str | list | None) -> str:
    """A message's content, in one piece or in parts, some of which may be no text."""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content
                          if part["type"] in ("text", "output_text"))
    if not isinstance(content, str | None):
        raise TypeError("content is not text")
    return content or ""


def _tokens(usage: object, asked: int, text: str) -> tuple[int, int] | None:
    """The tokens of prompt and reply; None where a server has not counted, or cannot have."""
    if not isinstance(usage, dict):
        return None
    counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
    sizes = asked, len(text.encode(errors="replace"))
    can_be = (type(count) is int and size / BYTES <= count <= MOST
              for count, size in zip(counts, sizes, strict=True))
    return counts if all(can_be) else None


def said(content: bytes, key: str, asked: tuple[str, ...]) -> str:
    """An error's words in brackets: short, without the key and what was `asked`; "" if none."""
    error = _error(content)
    text = str(error.get("message") or error.get("detail") or "")
    for secret in filter(None, asked):
        text = text.replace(secret, "***")
    text = without(key, plain(text))
    if _shares(text, asked):
        text = f"its words quote what was asked, so they are not shown: {described(text)}"
    return f" ({text[:200]})" if text else ""


def without(key: str, text: str) -> str:
    """A text with *** in the place of each word that has a part of the key in it."""
    parts = {key[at:at + KEY_PART] for at in range(max(1, len(key) - KEY_PART + 1))} - {""}
    return " ".join("***" if any(part in word for part in parts) else word
                    for word in text.split())


def _shares(text: str, hidden: tuple[str, ...]) -> bool:
    """Whether a text has QUOTE letters in a row in common with one that is hidden."""
    shown, known = letters(text)[:2000], [letters(secret) for secret in hidden]
    parts = {shown[at:at + QUOTE] for at in range(len(shown) - QUOTE + 1)}
    return any(part in secret for part in parts for secret in known)
