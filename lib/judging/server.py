"""Any OpenAI-compatible server as a judge: the paper's GPT-4o, or one's own.

Requests go side by side, and what may pass (429, 5xx, time-outs, broken replies) is tried again
after a growing, random wait, or the one that the server asks for. What cannot pass (a wrong key,
address, model or request, no credit) stops the judge at once with advice; a request that is refused
after others like it were taken is one item's failure. httpx is used directly: it comes with
jupyterlab, and the one request that is needed is a POST.

The key goes from the environment into one header, is never followed to another address, and is cut
out of whatever the server says before that is shown.
"""

import email.utils
import json
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed

import httpx

from lib.discretion import described, letters
from lib.judging import prompts as prompts
from lib.judging.cache import Cache
from lib.judging.limits import LENGTHS, PREFIX, TOKENS_PER_BYTE, Budget, Pace, Settings
from lib.judging.verdicts import ABSTAINED, Item, JudgeStopped, Verdict

REMINDERS = 2  # after a reply that cannot be read
GIVE_UP = 10  # items in a row to which the server had no reply at all
LARGEST = 1_000_000  # bytes of a response; a verdict has a few hundred
UNBILLED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)  # were never received
ITS_OWN = (400, 413, 422)  # statuses that may be due to one item, such as one that is too long
FILTERED = ("content_filter", "content_policy_violation")  # an error's code
STATUSES = {"invalid_api_key": 401, "authentication_error": 401, "model_not_found": 404,
            "insufficient_quota": 429, "rate_limit_exceeded": 429, "invalid_request_error": 400,
            **dict.fromkeys(FILTERED, 400)}  # of an error that was sent as a success
QUOTE = 16  # letters that an error and what was asked have in common
MALFORMED = (ValueError, TypeError, LookupError, AttributeError, RecursionError)  # not as expected


class ServerJudge:
    """Asks a model behind `settings.address`. `judges.AskingJudge` decides what is asked."""

    def __init__(self, model: str, settings: Settings):
        self.name, self.model, self.settings = f"server:{model}", model, settings
        self.options, self.wording = settings.options, prompts
        self.taken = threading.Event()  # whether the server has ever answered such a request

    def ask(self, items: Mapping[str, Item], cache: Cache,
            done: Callable[[int], None] = lambda count: None) -> None:
        """Ask about every item and keep its verdict in `cache` under its key.

        An item without a verdict afterwards has failed. Raises JudgeStopped, with what was under
        way finished and kept.
        """
        asking = _Asking(self.model, self.settings, cache, self.taken)
        with asking.client, ThreadPoolExecutor(self.settings.concurrency) as pool:
            futures = [pool.submit(asking.about, key, item) for key, item in items.items()]
            try:
                for count, future in enumerate(as_completed(futures), start=1):
                    future.result()
                    done(count)
            except BaseException:
                asking.stop.set()
                pool.shutdown(cancel_futures=True)
                raise


class _MayPass(Exception):
    """The request failed in a way that may pass; `rest`: seconds that the server asks for."""

    def __init__(self, reason: str, rest: float = 0):
        super().__init__(reason)
        self.rest = rest


class _Rejected(Exception):
    """The server will not judge this one item."""


class _Asking:
    """One call of `ask`: what its threads share."""

    def __init__(self, model: str, settings: Settings, cache: Cache, taken: threading.Event):
        self.model, self.settings, self.cache, self.taken = model, settings, cache, taken
        self.key, self.stop = settings.key(), threading.Event()
        self.pace = Pace(settings.requests_per_minute, self.stop)
        self.budget = Budget(settings, lambda: cache.tokens)
        self.unanswered, self.lock = 0, threading.Lock()
        self.client = httpx.Client(
            timeout=settings.timeout, limits=httpx.Limits(max_connections=settings.concurrency),
            headers={"Authorization": f"Bearer {self.key}"} if self.key else {})

    def about(self, key: str, item: Item) -> None:
        """Ask until there is a verdict on the item, or no hope of one."""
        chat = prompts.messages(item)
        try:
            for _ in range(1 + REMINDERS):
                text, verdict = self._persist(key, item, chat)
                self.unanswered = 0
                if verdict:
                    return
                chat = prompts.reminded(chat, text)
            if prompts.declined(text):
                self.cache.add((0, 0), key, ABSTAINED)
        except (_MayPass, _Rejected) as last:
            self._count_unanswered(last)
        except JudgeStopped:
            self.stop.set()
            raise

    def _persist(self, key: str, item: Item, chat: list) -> tuple[str, Verdict | None]:
        """The reply and the verdict in it; raises _MayPass when all retries are used up."""
        for attempt in range(self.settings.retries + 1):
            if attempt:
                longest = self.settings.back_off * 2 ** (attempt - 1)
                self.stop.wait(min(random.uniform(0.5, 1) * longest, self.settings.longest_wait))
            self.pace.wait()
            try:
                return self._request(key, item, chat)
            except _MayPass as failure:
                last = failure
                self.pace.rest(failure.rest)
        raise last

    def _request(self, key: str, item: Item, chat: list) -> tuple[str, Verdict | None]:
        body = self._body(chat)
        size = len(json.dumps(chat, ensure_ascii=False).encode(errors="replace"))
        longest = max(body.get(name, 0) for name in LENGTHS)
        with self.budget.reserved(size, longest or prompts.MAX_REPLY_TOKENS) as most:
            if self.stop.is_set():
                raise _MayPass("stopped")
            try:
                status, headers, content = self._post(body)
                status = _meant(status, content)
                if status >= 300:
                    return "", self._refused(status, headers, content, key, item)
                text, withheld, cut, tokens = _read(content)
            except httpx.RequestError as error:
                if not isinstance(error, UNBILLED):
                    self.cache.add(most)  # it may have been answered, and billed
                raise _MayPass(type(error).__name__) from None
            except MALFORMED:
                self.cache.add(most)
                raise _MayPass("a response that is not a chat completion") from None
            self.taken.set()
            if tokens:
                self.budget.learn(size, tokens[0])
            verdict = ABSTAINED if withheld else prompts.parse(item, text, cut)
            guess = math.ceil(len(text.encode(errors="replace")) * TOKENS_PER_BYTE)
            self.cache.add(tokens or (most[0], max(most[1], guess)), key, verdict)
        return text, verdict

    def _body(self, chat: list) -> dict:
        body = {"model": self.model, "messages": chat, "temperature": 0,
                "max_tokens": prompts.MAX_REPLY_TOKENS, **self.settings.options}
        return {name: value for name, value in body.items() if value is not None}

    def _post(self, body: dict) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and content, all within the time-out: httpx limits single reads only."""
        deadline, content = time.monotonic() + self.settings.timeout, b""
        url = self.settings.address.rstrip("/") + "/chat/completions"
        # In ASCII: half a surrogate pair, which a dataset's JSON may hold, has no bytes.
        with self.client.stream("POST", url, content=json.dumps(body),
                                headers={"Content-Type": "application/json"}) as response:
            for part in response.iter_bytes():
                content += part
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("too slow")
                if len(content) > LARGEST:
                    raise httpx.ReadError("too long")
        return response.status_code, response.headers, content

    def _refused(self, status: int, headers: httpx.Headers, content: bytes, key: str,
                 item: Item) -> Verdict:
        """What follows from an error: _MayPass, _Rejected, JudgeStopped, or an abstention."""
        code, said = _error(content, hidden=(self.key, item.answer, item.question, item.reference))
        if code in FILTERED:
            self.cache.add((0, 0), key, ABSTAINED)
            return ABSTAINED
        passing = status in (408, 425, 429) or status >= 500
        rest = _seconds(headers.get("retry-after", ""))
        if passing and code != "insufficient_quota" and rest <= self.settings.longest_wait:
            raise _MayPass(f"HTTP status {status}", rest)
        if status in ITS_OWN and self.taken.is_set():
            raise _Rejected(f"HTTP status {status}{said}")
        wait = f" It asks to be left alone for {rest:.0f} s." if rest else ""
        raise JudgeStopped(f"The judge's server at {self.settings.address} answered with HTTP "
                           f"status {status}{said}.{wait} {self._advice(status)} What was judged "
                           "so far is kept: run this again and it goes on from there.")

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            return (f"Check the key in the environment variable {self.settings.key_variable}."
                    if self.key else "It may want a key: put it into the environment variable "
                    f"that {PREFIX}KEY_VARIABLE names ({self.settings.key_variable!r} now).")
        if status in (402, 429):
            return "Check your credit and limits there, or come back later."
        if status == 404 or status < 400:
            return f"Check the model's name ({self.model}) and {PREFIX}ADDRESS."
        return "Check that it knows this model and every field of the request (`options`)."

    def _count_unanswered(self, last: Exception) -> None:
        with self.lock:
            self.unanswered += 1
            enough = self.unanswered >= GIVE_UP and not self.stop.is_set()
        if enough:
            self.stop.set()
            raise JudgeStopped(
                f"The judge's server at {self.settings.address} has left {GIVE_UP} answers in a "
                f"row unjudged, each after {self.settings.retries} retries; the last failure was: "
                f"{last}. Check that it is up. What was judged so far is kept.")


def _meant(status: int, content: bytes) -> int:
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


def _read(content: bytes) -> tuple[str, bool, bool, tuple[int, int] | None]:
    """A chat completion's text; whether its model or a filter withheld it, and whether it was cut
    off; and its tokens, if they were counted.

    Raises one of MALFORMED for anything else.
    """
    found = json.loads(content)
    choice = found["choices"][0]
    message, ended = choice["message"], choice.get("finish_reason")
    withheld = bool(message.get("refusal")) or ended == "content_filter"
    return _text(message.get("content")), withheld, ended == "length", _tokens(found.get("usage"))


def _text(content: str | list | None) -> str:
    """A message's content, in one piece or in parts, some of which may be no text."""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part["type"] == "text")
    if not isinstance(content, str | None):
        raise TypeError("content is not text")
    return content or ""


def _tokens(usage: object) -> tuple[int, int] | None:
    """The tokens of prompt and reply; None where a server has not counted: no prompt has 0."""
    if not isinstance(usage, dict):
        return None
    prompt, reply = usage.get("prompt_tokens"), usage.get("completion_tokens")
    counted = type(prompt) is int and type(reply) is int and prompt > 0 and reply >= 0
    return (prompt, reply) if counted else None


def _error(content: bytes, hidden: tuple[str, ...]) -> tuple[str, str]:
    """An error's code, and what the server says about it, short and without what is hidden."""
    try:
        error = json.loads(content)["error"]
        code, message = (error.get("code"), error.get("message")) if isinstance(error, dict) else (
            "", error)
    except MALFORMED:
        return "", ""
    text = str(message or "")
    for secret in filter(None, hidden):
        text = text.replace(secret, "***")
    if _shares(text, hidden):
        text = f"its words quote what was asked, so they are not shown: {described(text)}"
    return str(code or ""), f" ({' '.join(text.split())[:200]})" if text else ""


def _shares(text: str, hidden: tuple[str, ...]) -> bool:
    """Whether a text has QUOTE letters in a row in common with one that is hidden."""
    said, known = letters(text)[:2000], [letters(secret) for secret in hidden]
    parts = {said[at:at + QUOTE] for at in range(len(said) - QUOTE + 1)}
    return any(part in secret for part in parts for secret in known)


def _seconds(retry_after: str) -> float:
    """A Retry-After header, in seconds or as a date; 0 where there is none that can be read."""
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
