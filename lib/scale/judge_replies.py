"""What a server's response says: a chat completion, an error, how long to wait."""

import email.utils
import json
import math
import re
import time
from dataclasses import dataclass

from lib.data.discretion import described, letters, plain
from lib.scale.judge_prompts import after_thought

FILTERED = ("content_filter", "content_policy_violation")  # an error's code
NO_MONEY = ("insufficient_quota", "exceeded_current_quota_error", "billing_hard_limit_reached",
            "billing_not_active", "insufficient_balance", "insufficient_credits")
NO_MONEY_SAID = re.compile(r"insufficient (quota|balance|credit|funds)|credit balance is too low",
                           re.IGNORECASE)
STATUSES = {"invalid_api_key": 401, "authentication_error": 401, "model_not_found": 404,
            "rate_limit_exceeded": 429, "invalid_request_error": 400,
            **dict.fromkeys(NO_MONEY, 402), **dict.fromkeys(FILTERED, 400)}  # sent as a success
UNKNOWN = re.compile(r"support|unknown|unrecogni|permitted|extra|unexpected|not allowed",
                     re.IGNORECASE)  # how servers speak of a field that they do not know
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


@dataclass(frozen=True)
class Refusal:
    """An error: its code and type, its words as they may be shown, and fields that it names."""

    names: frozenset[str] = frozenset()
    said: str = ""
    fields: tuple[str, ...] = ()  # of the request, that the server does not know
    no_money: bool = False


def meant(status: int, content: bytes) -> int:
    """A response's status, or the one that it should have: some send errors as successes."""
    try:
        found = json.loads(content)
        error = None if found.get("choices") else found.get("error")
    except MALFORMED:
        return status
    if status >= 300 or not error:
        return status
    names = (error.get("code"), error.get("type")) if isinstance(error, dict) else ()
    given = [int(name) for name in map(str, names) if name.isdecimal() and 400 <= int(name) < 600]
    return (given + [STATUSES[name] for name in map(str, names) if name in STATUSES] + [500])[0]


def read(content: bytes, asked: int = 0) -> Reply:
    """A chat completion; `asked`: bytes of its prompt. Raises one of MALFORMED otherwise."""
    found = json.loads(content)
    choice = found["choices"][0]
    message, ended = choice["message"], choice.get("finish_reason")
    withheld = bool(message.get("refusal")) or ended == "content_filter"
    thought = any(message.get(name) for name in THOUGHTS)
    text = _text(message.get("content")) or _called(message)
    used = _tokens(found.get("usage"), asked, text)
    return Reply(text, withheld, ended == "length", thought, used)


def only_thought(reply: Reply) -> bool:
    """Whether a reply ends within the model's thought, or is none but a thought."""
    silent = not (after_thought(reply.text) or "").strip() and (
        reply.thought or reply.cut or reply.text.strip())
    return bool(silent)


def _text(content: str | list | None) -> str:
    """A message's content, in one piece or in parts, some of which may be no text."""
    if isinstance(content, list):
        content = "".join(part if isinstance(part, str) else part["text"] for part in content
                          if isinstance(part, str) or part["type"] in ("text", "output_text"))
    if not isinstance(content, str | None):
        raise TypeError("content is not text")
    return content or ""


def _called(message: dict) -> str:
    """What a model that calls a tool, though it was given none, hands over to it."""
    calls = [each["function"] for each in message.get("tool_calls") or ()]
    given = [call.get("arguments") or "" for call in (*calls, message.get("function_call") or {})]
    return "\n".join(each if isinstance(each, str) else json.dumps(each) for each in given).strip()


def _tokens(usage: object, asked: int, text: str) -> tuple[int, int] | None:
    """The tokens of prompt and reply; None where a server has not counted, or cannot have."""
    if not isinstance(usage, dict):
        return None
    prompt, reply = usage.get("prompt_tokens"), usage.get("completion_tokens")
    counted = type(prompt) is int and type(reply) is int and (
        0 < prompt <= MOST >= reply >= 0 and prompt * BYTES >= asked
        and reply * BYTES >= len(text.encode(errors="replace")))
    return (prompt, reply) if counted else None


def error(content: bytes, key: str, asked: tuple[str, ...], sent: tuple[str, ...] = ()) -> Refusal:
    """What an error says: short, without key and what was `asked`. `sent`: the request's fields."""
    try:
        found = json.loads(content)
        found = found.get("error") or found
        given = found if isinstance(found, dict) else {"message": found}
    except MALFORMED:
        return Refusal()
    names = frozenset(str(given[name]) for name in ("code", "type") if given.get(name))
    text = str(given.get("message") or given.get("detail") or "")
    unknown = UNKNOWN.search(text) or given.get("param")
    fields = [name for name in sent if unknown and re.search(
        rf"\b{re.escape(name)}\b", f"{text} {given.get('param')}")]
    no_money = bool(names.intersection(NO_MONEY) or NO_MONEY_SAID.search(text))
    for secret in filter(None, asked):
        text = text.replace(secret, "***")
    text = without(key, plain(text))
    if _shares(text, asked):
        text = f"its words quote what was asked, so they are not shown: {described(text)}"
    said = f" ({text[:200]})" if text else ""
    return Refusal(names, said, tuple(fields), no_money)


def without(key: str, text: str) -> str:
    """A text with *** in the place of each word that has a part of the key in it."""
    parts = {key[at:at + KEY_PART] for at in range(max(1, len(key) - KEY_PART + 1))} - {""}
    return " ".join("***" if any(part in word for part in parts) else word
                    for word in text.split())


def _shares(text: str, hidden: tuple[str, ...]) -> bool:
    """Whether a text has QUOTE letters in a row in common with one that is hidden."""
    said, known = letters(text)[:2000], [letters(secret) for secret in hidden]
    parts = {said[at:at + QUOTE] for at in range(len(said) - QUOTE + 1)}
    return any(part in secret for part in parts for secret in known)


def seconds(retry_after: str) -> float:
    """A Retry-After header, in seconds or as a date; 0 where there is none that can be read."""
    try:
        asked = float(retry_after)
        return max(0.0, asked) if math.isfinite(asked) else 0.0
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
