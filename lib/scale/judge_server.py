"""Any OpenAI-compatible server as a judge: the paper's GPT-4o, or one's own.

Requests go side by side. What may pass (429, 5xx, time-outs, broken replies) is tried again by
openai's client, after the wait that the server asks for or a growing one. What cannot pass (a wrong
key, address, certificate, model or request, no credit) stops the judge at once with advice; a
request that is refused after others like it were taken is one item's failure.

The key goes from the environment into one header, is never followed to another address, and is cut
out of whatever the server says before that is shown.
"""

import json
import re
from collections.abc import Callable, Mapping

import anyio
import httpx
from anyio.from_thread import start_blocking_portal
from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI

from lib.evaluation.verdicts import ABSTAINED, Item, JudgeStopped, Verdict
from lib.scale import judge_prompts as prompts
from lib.scale import judge_replies as replies
from lib.scale.judge_cache import Cache
from lib.scale.judge_limits import (
    GIVE_UP,
    LENGTHS,
    PREFIX,
    Budget,
    Settings,
    more_tokens,
    ran_out,
)
from lib.scale.judge_replies import Reply
from lib.scale.judge_transport import KEPT, Client, proxies

REMINDERS = 2  # after a reply that cannot be read
ITS_OWN = (400, 413, 422)  # statuses that may be due to one item, such as one that is too long


class ServerJudge:
    """Asks a model behind `settings.address`. `judges.AskingJudge` decides what is asked."""

    def __init__(self, model: str, settings: Settings):
        self.name, self.model, self.settings = f"server:{model}", model, settings
        # The length is among the options, so that a reply's new chance has a key of its own.
        length = {"max_tokens": settings.reply_tokens} if settings.reply_tokens else {}
        self.options, self.wording = length | settings.options, prompts
        self.taken = False  # whether the server has ever answered such a request

    def ask(self, items: Mapping[str, Item], cache: Cache,
            done: Callable[[int], None] = lambda count: None) -> None:
        """Ask about every item and keep its verdict in `cache` under its key.

        An item without a verdict afterwards has failed. Raises JudgeStopped, with what was under
        way finished and kept.
        """
        with start_blocking_portal() as portal:  # a notebook's own event loop is taken
            portal.call(_Asking(self, cache, done).about_all, items)

    def body(self, chat: list) -> dict:
        """A request, as JSON; half a surrogate pair, which a dataset may hold, has no bytes."""
        messages = [{**message, "content": message["content"].encode(errors="replace").decode()}
                    for message in chat]
        body = {"model": self.model, "messages": messages, "temperature": 0,
                "max_tokens": prompts.MAX_REPLY_TOKENS, **self.options}
        return {name: value for name, value in body.items() if value is not None}

    def longest(self) -> int:
        """The tokens of a reply at most; 0 where the request does not say."""
        body = self.body([])
        return max(body.get(name, 0) for name in LENGTHS)


class _Unjudged(Exception):
    """There is no verdict on an item, for this reason; the next may have one."""


class _RanOut(_Unjudged):
    """The model used up its tokens before it came to a verdict."""


class _Asking:
    """One call of `ask`."""

    def __init__(self, judge: ServerJudge, cache: Cache, done: Callable[[int], None]):
        self.judge, self.settings, self.cache, self.done = judge, judge.settings, cache, done
        self.key, self.count, self.unanswered = self.settings.key(), 0, 0
        self.stopped: JudgeStopped | None = None

    async def about_all(self, items: Mapping[str, Item]) -> None:
        """Ask about every item, so many at once, until all are done or one stops it."""
        budget = Budget(self.settings, self.judge.longest() or prompts.MAX_REPLY_TOKENS,
                        lambda: self.cache.tokens)
        places = anyio.CapacityLimiter(self.settings.concurrency)
        client = Client(self.settings, self.key, budget, self.cache)
        async with (AsyncOpenAI(api_key="sent by the client", base_url=self.settings.address,
                                http_client=client, max_retries=self.settings.retries)
                    as self.openai, anyio.create_task_group() as group):
            for key, item in items.items():
                group.start_soon(self._about, key, item, places, group)
        if self.stopped:
            raise self.stopped

    async def _about(self, key: str, item: Item, places, group) -> None:
        try:
            async with places:
                await self._judge(key, item)
            self.count += 1
            self.done(self.count)
        except JudgeStopped as stopped:
            self.stopped = self.stopped or stopped
            group.cancel_scope.cancel()

    async def _judge(self, key: str, item: Item) -> None:
        """Ask until there is a verdict on the item, or no hope of one."""
        try:
            if verdict := await self._verdict(item):
                self.cache.add((0, 0), key, verdict)
            self.unanswered = 0
        except _Unjudged as last:
            self.unanswered += 1
            if self.unanswered >= GIVE_UP:
                raise JudgeStopped(self._gives_up(last)) from None

    async def _verdict(self, item: Item) -> Verdict | None:
        chat = prompts.messages(item)
        for _ in range(1 + REMINDERS):
            reply = await self._reply(chat, item)
            if reply.withheld:
                return ABSTAINED
            if verdict := prompts.parse(item, reply.text, reply.cut):
                return verdict
            thought = replies.only_thought(reply)
            if thought and reply.cut:
                break  # it would think as long again
            chat = prompts.reminded(chat, reply.text)
        if prompts.declined(reply.text):
            return ABSTAINED
        if thought or reply.cut:
            raise _RanOut(ran_out(thought, reply.cut, self.judge.longest()))
        return None

    async def _reply(self, chat: list, item: Item) -> Reply:
        try:
            response = await self.openai.post("/chat/completions", cast_to=httpx.Response,
                                              body=self.judge.body(chat))
        except APIStatusError as error:
            return self._refused(error.response, item)
        except APITimeoutError:
            raise _Unjudged(f"no whole response within {self.settings.timeout:g} s, which "
                            f"{PREFIX}TIMEOUT sets") from None
        except APIConnectionError as error:
            why = error.__cause__
            raise _Unjudged(f"{type(why).__name__} {why}") from None
        self.judge.taken = True
        return replies.read(response.content)

    def _refused(self, response: httpx.Response, item: Item) -> Reply:
        """What follows from an error: _Unjudged, JudgeStopped, or an abstention."""
        if replies.is_filtered(response.content):
            return Reply("", withheld=True)
        status, tries = response.status_code, response.request.headers["x-stainless-retry-count"]
        said = f"HTTP status {status}" + replies.said(response.content, self.key, (
            item.answer, item.question, item.reference))
        passing = status in (408, 409, 429) or status >= 500
        # openai's client gives up before its last try where the server asks for minutes of rest.
        if (passing and int(tries) == self.settings.retries
                or status in ITS_OWN and self.judge.taken):
            raise _Unjudged(said)
        raise JudgeStopped(f"The judge's server at {self.settings.address} answered with {said}. "
                           f"{self._advice(response)} {KEPT}")

    def _advice(self, response: httpx.Response) -> str:
        status, headers = response.status_code, response.headers
        if status < 400 and "location" in headers:
            place = re.sub(r"(?<=//)[^/]*@|[?#].*", "", headers["location"])[:100]  # no secrets
            place = replies.without(self.key, place)
            return (f"It sends to {place}, where nothing was sent: if that is your server, set "
                    f"{PREFIX}ADDRESS to it.")
        if status in (401, 403):
            return (f"Check the key in the environment variable {self.settings.key_variable}."
                    if self.key else "It may want a key: put it into the environment variable "
                    f"that {PREFIX}KEY_VARIABLE names ({self.settings.key_variable!r} now).")
        if "retry-after" in headers:
            return f"It asks to be left alone for {headers['retry-after'][:30]} s."
        if status in (402, 429):
            return "Check your credit and limits there, or come back later."
        if status in (404, 405) or status < 400:
            return (f"Check the model's name ({self.judge.model}) and {PREFIX}ADDRESS; most "
                    "addresses end in /v1.")
        options = {**self.judge.options, "max_tokens": None, "temperature": None,
                   "max_completion_tokens": self.judge.longest() or None}
        return ("Check that it knows this model and every field of the request; for a reasoning "
                f"model, set {PREFIX}OPTIONS to {json.dumps(options)}, say.")

    def _gives_up(self, last: _Unjudged) -> str:
        begun = (f"The judge's server at {self.settings.address} has left {GIVE_UP} answers in a "
                 "row unjudged")
        if isinstance(last, _RanOut):
            return (f"{begun}; of the last reply by {self.judge.model}: {last}. "
                    f"{more_tokens(self.judge.longest())} (and {PREFIX}TIMEOUT to the seconds that "
                    f"it takes), or let it think less by {PREFIX}OPTIONS. {KEPT}")
        way = "" if self.settings.is_local else proxies()
        return (f"{begun}, each after {self.settings.retries} retries; the last failure was: "
                f"{last}. Check that it is up{way and f', and the proxy in {way}'}. {KEPT}")
