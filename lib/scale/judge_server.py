"""Any OpenAI-compatible server as a judge: the paper's GPT-4o, or one's own.

Requests go side by side, and what may pass (429, 5xx, time-outs, broken replies) is tried again
after a growing, random wait, or the one that the server asks for. What cannot pass (a wrong key,
address, certificate, model or request, no credit) stops the judge at once with advice; a request
that is refused after others like it were taken is one item's failure.

The key goes from the environment into one header, is never followed to another address, and is cut
out of whatever the server says before that is shown.
"""

import json
import math
import random
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed

from lib.evaluation.verdicts import ABSTAINED, Item, JudgeStopped, Verdict
from lib.scale import judge_prompts as prompts
from lib.scale import judge_replies as replies
from lib.scale.judge_cache import Cache
from lib.scale.judge_limits import (
    GIVE_UP,
    LENGTHS,
    PREFIX,
    TOKENS_PER_BYTE,
    Budget,
    Pace,
    Settings,
    more_tokens,
    ran_out,
)
from lib.scale.judge_replies import FILTERED, MALFORMED, Reply
from lib.scale.judge_transport import (
    Line,
    NoResponse,
    Response,
    Unreachable,
    host_of,
    proxies,
)

REMINDERS = 2  # after a reply that cannot be read
ITS_OWN = (400, 413, 422)  # statuses that may be due to one item, such as one that is too long
KEPT = "What was judged so far is kept: run this again and it goes on from there."


class ServerJudge:
    """Asks a model behind `settings.address`. `judges.AskingJudge` decides what is asked."""

    def __init__(self, model: str, settings: Settings):
        self.name, self.model, self.settings = f"server:{model}", model, settings
        # The length is among the options, so that a reply's new chance has a key of its own.
        length = {"max_tokens": settings.reply_tokens} if settings.reply_tokens else {}
        self.options, self.wording = length | settings.options, prompts
        self.taken = threading.Event()  # whether the server has ever answered such a request

    def ask(self, items: Mapping[str, Item], cache: Cache,
            done: Callable[[int], None] = lambda count: None) -> None:
        """Ask about every item and keep its verdict in `cache` under its key.

        An item without a verdict afterwards has failed. Raises JudgeStopped, with what was under
        way finished and kept.
        """
        asking = _Asking(self, cache)
        with asking.line, ThreadPoolExecutor(self.settings.concurrency) as pool:
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


class _RanOut(Exception):
    """The model used up its tokens before it came to a verdict."""


class _Asking:
    """One call of `ask`: what its threads share."""

    def __init__(self, judge: ServerJudge, cache: Cache):
        self.judge, self.settings, self.cache, self.taken = (
            judge, judge.settings, cache, judge.taken)
        self.key, self.stop = self.settings.key(), threading.Event()
        self.pace = Pace(self.settings.requests_per_minute, self.stop)
        self.budget = Budget(self.settings, lambda: cache.tokens)
        self.unanswered, self.lock = 0, threading.Lock()
        self.line = Line(self.settings, self.key)

    def about(self, key: str, item: Item) -> None:
        """Ask until there is a verdict on the item, or no hope of one."""
        chat = prompts.messages(item)
        try:
            for _ in range(1 + REMINDERS):
                reply, verdict = self._persist(key, item, chat)
                if verdict:
                    break
                chat = prompts.reminded(chat, reply.text)
                thought = replies.only_thought(reply)
                if thought and reply.cut:
                    break  # it would think as long again
            if not verdict and prompts.declined(reply.text):
                self.cache.add((0, 0), key, ABSTAINED)
            elif not verdict and (thought or reply.cut):
                raise _RanOut(ran_out(thought, reply.cut, self._longest()))
            self.unanswered = 0
        except (_MayPass, _Rejected, _RanOut) as last:
            self._count_unanswered(last)
        except JudgeStopped:
            self.stop.set()
            raise

    def _persist(self, key: str, item: Item, chat: list) -> tuple[Reply, Verdict | None]:
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

    def _request(self, key: str, item: Item, chat: list) -> tuple[Reply, Verdict | None]:
        size = len(json.dumps(chat, ensure_ascii=False).encode(errors="replace"))
        with self.budget.reserved(size, self._longest() or prompts.MAX_REPLY_TOKENS) as most:
            if self.stop.is_set():
                raise _MayPass("stopped")
            response = self._post(chat, most)
            try:
                status = replies.meant(response.status, response.content)
                if status >= 300:
                    return Reply(""), self._refused(status, response, key, item)
                reply = replies.read(response.content, size)
            except MALFORMED:
                self.cache.add(most)
                raise _MayPass(_not_a_completion(response)) from None
            self.taken.set()
            if reply.tokens:
                self.budget.learn(size, reply.tokens[0])
            verdict = ABSTAINED if reply.withheld else prompts.parse(item, reply.text, reply.cut)
            guess = math.ceil(len(reply.text.encode(errors="replace")) * TOKENS_PER_BYTE)
            self.cache.add(reply.tokens or (most[0], max(most[1], guess)), key, verdict)
        return reply, verdict

    def _post(self, chat: list, most: tuple[int, int]) -> Response:
        try:
            return self.line.post(self._body(chat))
        except NoResponse as failure:
            if failure.billed:
                self.cache.add(most)  # it may have been answered, and billed
            raise _MayPass(str(failure)) from None
        except Unreachable as failure:
            raise JudgeStopped(f"{failure} {KEPT}") from None

    def _body(self, chat: list) -> dict:
        body = {"model": self.judge.model, "messages": chat, "temperature": 0,
                "max_tokens": prompts.MAX_REPLY_TOKENS, **self.judge.options}
        return {name: value for name, value in body.items() if value is not None}

    def _longest(self) -> int:
        """The tokens of a reply at most; 0 where the request does not say."""
        body = self._body([])
        return max(body.get(name, 0) for name in LENGTHS)

    def _refused(self, status: int, response: Response, key: str, item: Item) -> Verdict:
        """What follows from an error: _MayPass, _Rejected, JudgeStopped, or an abstention."""
        error = replies.error(response.content, self.key, sent=tuple(self._body([])), asked=(
            item.answer, item.question, item.reference))
        if error.names.intersection(FILTERED):
            self.cache.add((0, 0), key, ABSTAINED)
            return ABSTAINED
        passing = status in (408, 425, 429) or status >= 500
        rest = replies.seconds(response.headers.get("retry-after", ""))
        if passing and not error.no_money and rest <= self.settings.longest_wait:
            raise _MayPass(f"HTTP status {status}{error.said}", rest)
        if status in ITS_OWN and self.taken.is_set() and not error.no_money:
            raise _Rejected(f"HTTP status {status}{error.said}")
        wait = f" It asks to be left alone for {rest:.0f} s." if rest else ""
        where = response.headers.get("location", "") if status < 400 else ""
        advice = self._advice(402 if error.no_money else status, error.fields, where)
        raise JudgeStopped(f"The judge's server at {self.settings.address} answered with HTTP "
                           f"status {status}{error.said}.{wait} {advice} {KEPT}")

    def _advice(self, status: int, unknown: tuple[str, ...], where: str) -> str:
        if where:
            place = replies.without(self.key, host_of(where))
            return (f"It sends to {place}, where nothing was sent: if that is your server, set "
                    f"{PREFIX}ADDRESS to it.")
        if status in (401, 403):
            return (f"Check the key in the environment variable {self.settings.key_variable}."
                    if self.key else "It may want a key: put it into the environment variable "
                    f"that {PREFIX}KEY_VARIABLE names ({self.settings.key_variable!r} now).")
        if status in (402, 429):
            return "Check your credit and limits there, or come back later."
        if status in (404, 405) or status < 400:
            version = "" if "/v" in self.settings.url else " Most addresses end in /v1."
            return f"Check the model's name ({self.judge.model}) and {PREFIX}ADDRESS.{version}"
        unknown = [name for name in unknown if name not in ("model", "messages")]
        if unknown:
            return (f"If it does not know {' and '.join(unknown)}, set {PREFIX}OPTIONS to "
                    f"{self._options_without(unknown)}.")
        return "Check that it knows this model and every field of the request (`options`)."

    def _options_without(self, unknown: list[str]) -> str:
        """Options that leave these fields out; a reply's length goes by its other name."""
        options = {**self.judge.options, **dict.fromkeys(unknown)}
        other = [name for name in LENGTHS if name not in unknown]
        if len(other) == 1:
            options[other[0]] = self._longest() or None
        return json.dumps(options)

    def _count_unanswered(self, last: Exception) -> None:
        with self.lock:
            self.unanswered += 1
            enough = self.unanswered >= GIVE_UP and not self.stop.is_set()
        if not enough:
            return
        self.stop.set()
        begun = (f"The judge's server at {self.settings.address} has left {GIVE_UP} answers in a "
                 "row unjudged")
        if isinstance(last, _RanOut):
            raise JudgeStopped(
                f"{begun}; of the last reply by {self.judge.model}: {last}. "
                f"{more_tokens(self._longest())} (and {PREFIX}TIMEOUT to the seconds that it "
                f"takes), or let it think less by {PREFIX}OPTIONS. {KEPT}")
        way = "" if self.settings.is_local else proxies()
        raise JudgeStopped(f"{begun}, each after {self.settings.retries} retries; the last failure "
                           f"was: {last}. Check that it is up{way and f', and the proxy in {way}'}"
                           f". {KEPT}")


def _not_a_completion(response: Response) -> str:
    page = response.content.lstrip()[:1] == b"<"
    return ("a web page instead of a chat completion, as if from another address" if page else
            "a response that is not a chat completion")
