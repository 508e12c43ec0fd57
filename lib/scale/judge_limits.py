"""How a judge's server is reached, how fast, and for how much at most.

Settings come from their defaults or from variables of the environment such as
SAFEERASER_JUDGE_ADDRESS or SAFEERASER_JUDGE_MAX_COST: the field's name in capitals. The key is not
one of them. It stays in the environment, and a setting says only in which variable.
"""

import asyncio
import math
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Self
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from lib.evaluation.verdicts import JudgeStopped

PREFIX = "SAFEERASER_JUDGE_"
OPENAI = "https://api.openai.com/v1"
OPENAI_ADDRESS, OPENAI_KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"  # variables of OpenAI's own client
ADDRESS = re.compile(r"https?://([\w.-]+|\[[\da-f:.]+\])(:\d{1,5})?(/[^\s?#@]*)?", re.IGNORECASE)
MILLION = 1_000_000
GIVE_UP = 10  # items in a row without a verdict, for a reason that is the same for all
LENGTHS = ("max_tokens", "max_completion_tokens")  # what servers call a reply's longest
TOKENS_PER_BYTE = 0.5  # of a prompt, until a server has counted one: English has about 0.25


class LocalSettings(BaseSettings):
    """Of every model that judges."""

    # An error does not repeat what was given: it might be a key in the wrong place.
    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, str_strip_whitespace=True,
                                      hide_input_in_errors=True, populate_by_name=True)

    # Tokens of a reply, with what a reasoning model thinks; 0: enough for a verdict.
    reply_tokens: int = Field(0, ge=0)

    @classmethod
    def from_environment(cls) -> Self:
        """As the environment says. Raises ValueError, a sentence that names the variable."""
        try:
            return cls()
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else "max_cost"
            why = first["msg"].removeprefix("Value error, ")
            raise ValueError(f"{PREFIX}{name.removeprefix(PREFIX).upper()} cannot be used: {why}."
                             ) from None
        except SettingsError:
            raise ValueError(f"{PREFIX}OPTIONS has to be a JSON object.") from None


class Settings(LocalSettings):
    """Of an OpenAI-compatible server. Prices are what you pay, in any currency."""

    # What comes before /chat/completions.
    address: str = Field(OPENAI, validation_alias=AliasChoices(f"{PREFIX}ADDRESS", OPENAI_ADDRESS))
    key_variable: str = OPENAI_KEY  # the environment variable with the key; "" for no key
    concurrency: int = Field(8, ge=1)  # requests at once
    requests_per_minute: float = Field(0, ge=0, allow_inf_nan=False)  # 0: as fast as they come
    timeout: float = Field(60, gt=0, allow_inf_nan=False)  # seconds for a whole request
    retries: int = Field(8, ge=0)  # of a request that failed in a way that may pass: for a minute
    max_tokens: int = Field(5_000_000, ge=0)  # spent in all runs of the profile; 0: no cap
    max_cost: float = Field(0, ge=0, allow_inf_nan=False)  # the same in money; 0: no cap
    price_prompt: float = Field(0, ge=0, allow_inf_nan=False)  # per million tokens
    price_reply: float = Field(0, ge=0, allow_inf_nan=False)
    options: dict = {}  # fields of the request to add; None removes one

    @field_validator("address")
    @classmethod
    def _can_be_sent_to(cls, address: str) -> str:
        if not ADDRESS.fullmatch(address) or urlsplit(address).port == 0:
            raise ValueError("it has to begin with http:// or https:// and a host, with a number "
                             "after a colon for its port, if any, and to hold no user, password, "
                             f"query or space, such as {OPENAI} or http://localhost:8000/v1")
        return address.rstrip("/").removesuffix("/chat/completions")

    @field_validator("key_variable")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*|", name):
            raise ValueError("it is the name of the environment variable that holds the key, in "
                             "capital letters, and not the key itself")
        return name

    @field_validator("options")
    @classmethod
    def _can_be_added(cls, options: dict) -> dict:
        if odd := {"messages", "stream"} & set(options):
            raise ValueError(f"they cannot set {', '.join(sorted(odd))}")
        lengths = [options[name] for name in LENGTHS if options.get(name) is not None]
        if not all(type(value) is int and value > 0 for value in lengths):
            raise ValueError(f"{' and '.join(LENGTHS)} are whole numbers above 0, or null")
        return options

    @model_validator(mode="after")
    def _has_prices(self) -> Self:
        if self.max_cost and not (self.price_prompt or self.price_reply):
            raise ValueError(f"a cap in money needs prices per million tokens: set {PREFIX}"
                             f"PRICE_PROMPT and {PREFIX}PRICE_REPLY to what your provider asks")
        return self

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
    def handed_down(cls) -> dict[str, str]:
        """The variables that these are read from, as they are here; no key is among them."""
        names = (OPENAI_ADDRESS, *(PREFIX + name.upper() for name in cls.model_fields))
        return {name: os.environ[name] for name in names if name in os.environ}

    def key(self) -> str:
        """The key, or "" where there is none. Raises ValueError rather than send it in the open."""
        key = os.environ.get(self.key_variable, "").strip() if self.key_variable else ""
        where = f"The key in {self.key_variable}"
        if key and not re.fullmatch(r"[!-~]+", key):
            raise ValueError(f"{where} has characters that no key has: set it again.")
        if key and key in self.address:
            raise ValueError(f"{where} is in the address as well, and would be shown in logs: "
                             "take it out there.")
        if key and not self.is_local and urlsplit(self.address).scheme == "http":
            raise ValueError(f"{where} would go over the network unencrypted: use an https:// "
                             f"address, or set {PREFIX}KEY_VARIABLE to the empty text if that "
                             "server needs no key.")
        return key

    def check(self) -> None:
        """Raise ValueError if these cannot work here: the key is missing, or must not be sent."""
        key, chosen = self.key(), self.key_variable not in ("", OPENAI_KEY)
        if self.key_variable and not key and (chosen or self.address.startswith(OPENAI)):
            raise ValueError(f"The judge's server at {self.address} is to be given the key in the "
                             f"environment variable {self.key_variable}, and that is empty: set "
                             f"it, or set {PREFIX}KEY_VARIABLE to the empty text if the server "
                             f"needs no key, or {PREFIX}ADDRESS if it is another one.")


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


class Budget:
    """What may still be spent. `spent` tells the tokens (prompt, reply) used so far, in all runs.

    A request starts only if it and all requests under way would stay below the caps even at their
    longest, so one process does not go over. Of several side by side each knows what the others
    have been billed, but not what they have under way.
    """

    def __init__(self, settings: Settings, reply: int, spent: Callable[[], tuple[int, int]]):
        self._settings, self._reply, self._spent = settings, reply, spent
        self._under_way: list[tuple[int, int]] = []
        self._changed = asyncio.Condition()
        self._per_byte = 0.0  # the most prompt tokens per byte that the server has counted

    @asynccontextmanager
    async def reserved(self, prompt_bytes: int) -> AsyncIterator[tuple[int, int]]:
        """Set tokens aside for a request until it is billed; raises JudgeStopped at a cap.

        Yields how many: of the prompt, what it may be at most, and of the longest reply.
        """
        most = self._most(prompt_bytes)
        async with self._changed:
            while reason := self._over(most):
                if not self._under_way:
                    raise JudgeStopped(reason)
                await self._changed.wait()  # what is under way may turn out shorter
                most = self._most(prompt_bytes)
            self._under_way.append(most)
        try:
            yield most
        finally:
            self._under_way.remove(most)
            async with self._changed:
                self._changed.notify_all()

    def learn(self, prompt_bytes: int, prompt: int) -> None:
        """Take note of how many tokens the server counted for a prompt."""
        self._per_byte = max(self._per_byte, prompt / prompt_bytes)

    def _most(self, prompt_bytes: int) -> tuple[int, int]:
        return math.ceil(prompt_bytes * (self._per_byte or TOKENS_PER_BYTE)), self._reply

    def _over(self, most: tuple[int, int]) -> str:
        """Which cap a further request could pass, as a sentence; "" if none."""
        caps, used = self._settings, self._spent()
        planned = [sum(column) for column in zip(used, most, *self._under_way, strict=True)]
        if caps.max_tokens and sum(planned) > caps.max_tokens:
            said, name = f"{caps.max_tokens:,} tokens ({sum(used):,} are used)", "MAX_TOKENS"
        elif caps.max_cost and self._cost(*planned) > caps.max_cost:
            said, name = f"{caps.max_cost:g} ({self._cost(*used):.4g} is spent)", "MAX_COST"
        else:
            return ""
        return (f"The judge's cap of {said} leaves no room for another request. Every verdict so "
                f"far is kept: raise {PREFIX}{name} and run this again, and it goes on from here.")

    def _cost(self, prompt: int, reply: int) -> float:
        caps = self._settings
        return (prompt * caps.price_prompt + reply * caps.price_reply) / MILLION
