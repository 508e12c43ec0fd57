"""How a judge's server is reached, how fast, and for how much at most.

Settings come from their defaults or, by `Settings.from_environment`, from variables such as
SAFEERASER_JUDGE_ADDRESS or SAFEERASER_JUDGE_MAX_COST: the field's name in capitals. The key is not
one of them. It stays in the environment, and a setting says only in which variable.
"""

import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from urllib.parse import urlsplit

from lib.evaluation.verdicts import JudgeStopped

PREFIX = "SAFEERASER_JUDGE_"
OPENAI = "https://api.openai.com/v1"
OPENAI_KEY = "OPENAI_API_KEY"
WHOLE = "/chat/completions"  # what comes after the address
MILLION = 1_000_000
GIVE_UP = 10  # items in a row without a verdict, for a reason that is the same for all
LENGTHS = ("max_tokens", "max_completion_tokens")  # what servers call a reply's longest
TOKENS_PER_BYTE = 0.5  # of a prompt, until a server has counted one: English has about 0.25


@dataclass(frozen=True)
class Settings:
    """Of an OpenAI-compatible server. Prices are what you pay, in any currency."""

    address: str = OPENAI  # what comes before /chat/completions
    key_variable: str = OPENAI_KEY  # the environment variable with the key; "" for no key
    concurrency: int = 8  # requests at once
    requests_per_minute: float = 0  # 0: as fast as they are answered
    timeout: float = 60  # seconds for a whole request
    reply_tokens: int = 0  # of a reply, with what a reasoning model thinks; 0: enough for a verdict
    retries: int = 6  # of a request that failed in a way that may pass
    back_off: float = 1  # seconds before the first retry, doubled with each; drawn from half to all
    longest_wait: float = 120  # seconds; a server that asks for more is not waited for
    max_tokens: int = 5_000_000  # spent in all runs of the profile, prompt and reply; 0: no cap
    max_cost: float = 0  # the same in money, by the prices below; 0: no cap
    price_prompt: float = 0  # per million tokens
    price_reply: float = 0
    options: dict = field(default_factory=dict)  # fields of the request to add; None removes one

    def __post_init__(self):
        _check_address(self.address)
        if self.max_cost and not (self.price_prompt or self.price_reply):
            raise ValueError(f"A cap in money needs prices per million tokens: set {PREFIX}"
                             f"PRICE_PROMPT and {PREFIX}PRICE_REPLY to what your provider asks.")
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*|", self.key_variable):
            raise ValueError(f"{PREFIX}KEY_VARIABLE is the name of the environment variable that "
                             "holds the key, in capital letters, and not the key itself.")
        numbers = {each.name: getattr(self, each.name) for each in fields(self)
                   if each.type in (int, float)}
        odd = [name for name, value in numbers.items() if not 0 <= value < math.inf]
        if odd or self.concurrency < 1 or self.timeout == 0:
            name = (odd or ["timeout" if self.concurrency >= 1 else "concurrency"])[0]
            raise ValueError(f"{PREFIX}{name.upper()} cannot be {numbers[name]}: a judge needs "
                             "concurrency of at least 1, a timeout above 0, and no number below 0.")
        if odd := {"messages", "stream"} & set(self.options):
            raise ValueError(f"{PREFIX}OPTIONS cannot set {', '.join(sorted(odd))}: what is asked, "
                             "and that the reply comes in one piece, is ours to say.")
        longest = [self.options[name] for name in LENGTHS if self.options.get(name) is not None]
        if not all(type(value) is int and value > 0 for value in longest):
            raise ValueError(f"{PREFIX}OPTIONS: {' and '.join(LENGTHS)} are whole numbers above 0, "
                             "or null.")

    @property
    def url(self) -> str:
        """Where requests go; an address that was given whole is not made longer."""
        return self.address.rstrip("/").removesuffix(WHOLE) + WHOLE

    @property
    def is_local(self) -> bool:
        """Whether the address is on this machine, so that nothing goes over a network."""
        host = urlsplit(self.address).hostname or ""
        try:
            place = ip_address(host)
        except ValueError:
            return host == "localhost"
        return place.is_loopback or place.is_unspecified

    @classmethod
    def from_environment(cls) -> "Settings":
        """The defaults, changed by SAFEERASER_JUDGE_...; OPENAI_BASE_URL is known as well."""
        values = {"address": (os.environ.get("OPENAI_BASE_URL") or OPENAI).strip()}
        for each in fields(cls):
            text = os.environ.get(PREFIX + each.name.upper())
            if text is not None:
                values[each.name] = _typed(each.name, text.strip(), each.type)
        return cls(**values)

    @classmethod
    def handed_down(cls) -> dict[str, str]:
        """The variables that `from_environment` reads, as they are here; no key is among them."""
        names = ("OPENAI_BASE_URL", *(PREFIX + each.name.upper() for each in fields(cls)))
        return {name: os.environ[name] for name in names if name in os.environ}

    def key(self) -> str:
        """The key, or "" where there is none. Raises ValueError rather than send it in the open."""
        key = os.environ.get(self.key_variable, "").strip() if self.key_variable else ""
        parts = urlsplit(self.address)
        if key and not (key.isascii() and key.isprintable() and " " not in key):
            raise ValueError(f"The key in {self.key_variable} has characters that no key has: set "
                             "it again.")
        if key and key in self.address:
            raise ValueError(f"The address holds the key, and would show it in logs: leave the key "
                             f"in {self.key_variable} alone.")
        if key and parts.scheme == "http" and not self.is_local:
            raise ValueError(f"The key in {self.key_variable} would go over the network "
                             f"unencrypted: use an https:// address, or set {PREFIX}KEY_VARIABLE "
                             "to the empty text if that server needs no key.")
        return key

    def check(self) -> None:
        """Raise ValueError if these cannot work here: the key is missing, or must not be sent."""
        key, chosen = self.key(), self.key_variable not in ("", OPENAI_KEY)
        if self.key_variable and not key and (chosen or self.address.startswith(OPENAI)):
            raise ValueError(f"The judge's server at {self.address} is to be given the key in the "
                             f"environment variable {self.key_variable}, and that is empty: set "
                             f"it, or set {PREFIX}KEY_VARIABLE to the empty text if the server "
                             f"needs no key, or {PREFIX}ADDRESS if it is another one.")


def reply_tokens() -> int:
    """The setting of this name from the environment, for a judge without a server."""
    text = os.environ.get(f"{PREFIX}REPLY_TOKENS", "").strip() or "0"
    if not text.isdecimal():
        raise ValueError(f"{PREFIX}REPLY_TOKENS has to be a whole number, not {text!r}.")
    return int(text)


def ran_out(thought: bool, cut: bool, tokens: int) -> str:
    """Why a reply holds no verdict, as a clause, if it was cut off or is no more than a thought."""
    its = f"its {tokens:,} tokens" if tokens else "its tokens"
    if not cut:
        return "it thought and said nothing after that"
    return (f"it thought until {its} were used up" if thought else
            f"{its} were used up before it came to a verdict")


def more_tokens(tokens: int) -> str:
    """What to do about replies that ran out, as a sentence."""
    return (f"If it is a reasoning model, set {PREFIX}REPLY_TOKENS to what it needs to think, "
            f"such as {max(2000, 2 * tokens)}")


def _check_address(address: str) -> None:
    """Raise ValueError for an address to which nothing can be sent, or that holds a secret."""
    try:
        parts = urlsplit(address)
        begun = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets of IPv6, or a port that is no number
        begun, parts = False, urlsplit("")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("The judge's address must hold no user, password or query, which "
                         "would end up in logs: put the key into an environment variable and "
                         f"name that in {PREFIX}KEY_VARIABLE.")
    if not begun or not address.isprintable() or " " in address:
        raise ValueError("The judge's address has to begin with http:// or https:// and a host, "
                         "with a number after a colon for its port, if any, and no space: set "
                         f"{PREFIX}ADDRESS, such as {OPENAI} or http://localhost:8000/v1.")


def _typed(name: str, text: str, kind: type) -> object:
    """A variable's text as a setting; `options` is JSON, such as {"max_tokens": null}."""
    try:
        value = json.loads(text) if kind is dict else kind(text)
    except ValueError:
        value = None
    if isinstance(value, kind):
        return value
    wanted = "a JSON object" if kind is dict else f"a number, not {text!r}"
    raise ValueError(f"{PREFIX}{name.upper()} has to be {wanted}.")


class Pace:
    """Lets requests start no faster than so many a minute, and none while the server wants rest."""

    def __init__(self, requests_per_minute: float, stop: threading.Event):
        self._gap = 60 / requests_per_minute if requests_per_minute else 0
        self._next = self._resting = 0.0
        self._lock, self._stop = threading.Lock(), stop

    def wait(self) -> None:
        """Return when a request may start, or when all is to stop."""
        with self._lock:
            start = max(time.monotonic(), self._next)
            self._next = start + self._gap
        while (left := max(start, self._resting) - time.monotonic()) > 0:
            if self._stop.wait(left):
                return

    def rest(self, seconds: float) -> None:
        """Let nobody start a request for this long."""
        with self._lock:
            self._resting = max(self._resting, time.monotonic() + seconds)


class Budget:
    """What may still be spent. `spent` tells the tokens (prompt, reply) used so far, in all runs.

    A request starts only if it and all requests under way would stay below the caps even at their
    longest, so one process does not go over. Of several side by side each knows what the others
    have been billed, but not what they have under way.
    """

    def __init__(self, settings: Settings, spent: Callable[[], tuple[int, int]]):
        self._settings, self._spent = settings, spent
        self._reserved, self._changed = [0, 0], threading.Condition()
        self._seen = 0.0  # the most prompt tokens per byte that the server has counted

    @contextmanager
    def reserved(self, prompt_bytes: int, reply: int) -> Iterator[tuple[int, int]]:
        """Set tokens aside for a request until it is billed; raises JudgeStopped at a cap.

        Yields how many: of the prompt, what it may be at most, and `reply`.
        """
        with self._changed:
            while reason := self._over(*self._most(prompt_bytes, reply)):
                if not any(self._reserved):
                    raise JudgeStopped(reason)
                self._changed.wait()  # what is under way may turn out shorter than it could be
            most = self._most(prompt_bytes, reply)
            self._add(*most)
        try:
            yield most
        finally:
            with self._changed:
                self._add(-most[0], -most[1])
                self._changed.notify_all()

    def learn(self, prompt_bytes: int, prompt: int) -> None:
        """Take note of how many tokens the server counted for a prompt."""
        with self._changed:
            self._seen = max(self._seen, prompt / prompt_bytes)

    def _most(self, prompt_bytes: int, reply: int) -> tuple[int, int]:
        return math.ceil(prompt_bytes * (self._seen or TOKENS_PER_BYTE)), reply

    def _add(self, prompt: int, reply: int) -> None:
        self._reserved = [self._reserved[0] + prompt, self._reserved[1] + reply]

    def _over(self, prompt: int, reply: int) -> str:
        """Which cap a further request could pass, as a sentence; "" if none."""
        caps, used = self._settings, self._spent()
        planned = (used[0] + self._reserved[0] + prompt, used[1] + self._reserved[1] + reply)
        if caps.max_tokens and sum(planned) > caps.max_tokens:
            said, name = f"{caps.max_tokens:,} tokens ({sum(used):,} are used)", "MAX_TOKENS"
        elif caps.max_cost and self._cost(planned) > caps.max_cost:
            said, name = f"{caps.max_cost:g} ({self._cost(used):.4g} is spent)", "MAX_COST"
        else:
            return ""
        return (f"The judge's cap of {said} leaves no room for another request. Every verdict so "
                f"far is kept: raise {PREFIX}{name} and run this again, and it goes on from here.")

    def _cost(self, tokens: tuple[int, int]) -> float:
        caps = self._settings
        return (tokens[0] * caps.price_prompt + tokens[1] * caps.price_reply) / MILLION
