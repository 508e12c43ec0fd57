"""How a judge's server is reached, how fast, and for how much at most.

Settings come from their defaults or from variables of the environment such as
SAFEERASER_JUDGE_ADDRESS or SAFEERASER_JUDGE_MAX_COST: the field's name in capitals. The key is not
one of them. It stays in the environment, and a setting says only in which variable.
"""

import asyncio
import math
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from lib.evaluation.verdicts import JudgeStopped
from lib.scale.judge_cache import Cache
from lib.scale.judge_replies import Reply

PREFIX = "SAFEERASER_JUDGE_"
OPENAI = "https://api.openai.com/v1"
OTHER_NAME, OPENAI_KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"  # variables of OpenAI's own client
ADDRESS = r"(?i)^https?://([\w.-]+|\[[\da-f:.]+\])(:[1-9]\d{0,4})?(/[^\s?#@]*)?$"
THIS_MACHINE = re.compile(r"localhost|127(\.\d+){3}|0\.0\.0\.0|::1?")
MILLION = 1_000_000
GIVE_UP = 10  # items in a row without a verdict, for a reason that is the same for all
TOKENS_PER_BYTE = 0.5  # of a prompt, until a server has counted one: English has about 0.25
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class LocalSettings(BaseSettings):
    """Of every model that judges."""

    # An error does not repeat what was given: it might be a key in the wrong place.
    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, str_strip_whitespace=True,
                                      hide_input_in_errors=True, populate_by_name=True,
                                      loc_by_alias=False)

    # Tokens of a reply, with what a reasoning model thinks; 0: enough for a verdict.
    reply_tokens: Count = 0

    @classmethod
    def from_environment(cls) -> Self:
        """As the environment says. Raises ValueError, a sentence that names the variable."""
        try:
            return cls()
        except SettingsError:
            raise ValueError(f"{PREFIX}OPTIONS has to be a JSON object.") from None
        except ValidationError as error:
            first = error.errors()[0]
            name = first["loc"][0]
            wanted = cls.model_fields[name].description or first["msg"]
            raise ValueError(f"{PREFIX}{name.upper()} cannot be used: {wanted}.") from None


class Settings(LocalSettings):
    """Of an OpenAI-compatible server. Prices are what you pay, in any currency."""

    # What comes before /chat/completions.
    address: str = Field(OPENAI, pattern=ADDRESS, description=(
        "it has to begin with http:// or https:// and a host, with a number after a colon for its "
        "port, if any, and to hold no user, password, query or space, such as "
        "http://localhost:8000/v1"), validation_alias=AliasChoices(f"{PREFIX}ADDRESS", OTHER_NAME))
    key_variable: str = Field(OPENAI_KEY, pattern=r"^([A-Z_][A-Z0-9_]*)?$", description=(
        "it is the name of the environment variable that holds the key, in capital letters, or the "
        "empty text for no key, and not the key itself"))
    concurrency: int = Field(8, ge=1)  # requests at once
    requests_per_minute: Amount = 0  # 0: as fast as they are answered
    timeout: float = Field(60, gt=0, allow_inf_nan=False)  # seconds for a whole request
    retries: Count = 8  # of a request that failed in a way that may pass: for about a minute
    max_tokens: Count = 5_000_000  # spent in all runs of the profile, prompt and reply; 0: no cap
    price_prompt: Amount = 0  # per million tokens
    price_reply: Amount = 0
    max_cost: Amount = Field(0, description=(  # the same cap in money; 0: no cap
        f"a cap in money is a number, and needs prices per million tokens: set {PREFIX}"
        f"PRICE_PROMPT and {PREFIX}PRICE_REPLY to what your provider asks"))
    options: dict = {}  # fields of the request to add; None removes one

    @field_validator("max_cost")
    @classmethod
    def _has_prices(cls, cost: float, others: ValidationInfo) -> float:
        if cost and not (others.data.get("price_prompt") or others.data.get("price_reply")):
            raise ValueError("without prices")
        return cost

    @property
    def is_local(self) -> bool:
        """Whether the address is on this machine, so that nothing goes over a network."""
        return bool(THIS_MACHINE.fullmatch(urlsplit(self.address).hostname))

    @classmethod
    def handed_down(cls) -> dict[str, str]:
        """The variables that these are read from, as they are here; no key is among them."""
        names = (OTHER_NAME, *(PREFIX + name.upper() for name in cls.model_fields))
        return {name: os.environ[name] for name in names if name in os.environ}

    def key(self) -> str:
        """The key, or "" where none is needed.

        Raises ValueError, without the key in it, if it is missing or must not be sent.
        """
        name = self.key_variable
        key = os.environ.get(name, "").strip() if name else ""
        is_needed = name and (name != OPENAI_KEY or self.address.startswith(OPENAI))
        in_the_open = self.address.lower().startswith("http:") and not self.is_local
        for wrong, why in (
                (is_needed and not key, "is missing: set that variable"),
                (not re.fullmatch(r"[!-~]*", key), "has characters that no key has: set it again"),
                (key and key in self.address, "is in the address, too, where logs would show it"),
                (key and in_the_open, "would go over the network unencrypted: use https://")):
            if wrong:
                raise ValueError(f"The judge's key in {name} {why}; or set {PREFIX}KEY_VARIABLE to "
                                 f"the empty text if that server needs no key, or {PREFIX}ADDRESS "
                                 "if it is another one.")
        return key


def ran_out(thought: bool, cut: bool, tokens: int) -> str:
    """Why a reply holds no verdict, and what to do, if it was cut off or is but a thought."""
    its = f"its {tokens:,} tokens" if tokens else "its tokens"
    why = (f"it thought until {its} were used up" if thought and cut else
           f"{its} were used up before it came to a verdict" if cut else
           "it thought and said nothing after that")
    return (f"{why}. If it is a reasoning model, set {PREFIX}REPLY_TOKENS to what it needs to "
            f"think, such as {max(2000, 2 * tokens)}")


class Budget:
    """What may still be spent: `cache` knows the tokens that all runs so far have used.

    A request starts only if it and all requests under way would stay below the caps even at their
    longest, so one process does not go over. Of several side by side each knows what the others
    have been billed, but not what they have under way.
    """

    def __init__(self, settings: Settings, reply: int, cache: Cache):
        self._settings, self._reply, self._cache = settings, reply, cache
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

    def pay(self, prompt_bytes: int, most: tuple[int, int], reply: Reply | None = None) -> None:
        """Note what a request cost: the tokens that were counted, or an estimate from above."""
        if reply and reply.tokens:
            self._per_byte = max(self._per_byte, reply.tokens[0] / prompt_bytes)
            self._cache.add(reply.tokens)
        else:
            said = reply.text.encode(errors="replace") if reply else b""
            self._cache.add((most[0], max(most[1], math.ceil(len(said) * TOKENS_PER_BYTE))))

    def _most(self, prompt_bytes: int) -> tuple[int, int]:
        return math.ceil(prompt_bytes * (self._per_byte or TOKENS_PER_BYTE)), self._reply

    def _over(self, most: tuple[int, int]) -> str:
        """Which cap a further request could pass, as a sentence; "" if none."""
        caps, used = self._settings, self._cache.tokens
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
