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
from openai import APIConnectionError, APIStatusError, AsyncOpenAI

from lib.evaluation.verdicts import ABSTAINED, Item, JudgeStopped, Verdict
from lib.scale import judge_prompts as prompts
from lib.scale import judge_replies as replies
from lib.scale.judge_cache import Cache
from lib.scale.judge_limits import GIVE_UP, PREFIX, Budget, Settings, ran_out
from lib.scale.judge_replies import Reply
from lib.scale.judge_transport import KEPT, PROXIES, Client

REMINDERS = 2  # after a reply that cannot be read
ITS_OWN = (400, 413, 422)  # statuses that may be due to one item, such as one that is too long
WHOLE = "/chat/completions"  # what comes after the address


class _Unjudged(Exception):
    """There is no verdict on an item, for this reason; the next may have one."""


class ServerJudge:
    """Asks a model behind `settings.address`. `judges.AskingJudge` decides what is asked."""

    def __init__(self, model: str, settings: Settings):
        self.name, self.model, self.settings = f"server:{model}", model, settings
        # The length is among the options, so that a reply's new chance has a key of its own.
        length = {"max_tokens": settings.reply_tokens} if settings.reply_tokens else {}
        self.options, self.wording = length | settings.options, prompts
        self._taken = False  # whether the server has ever answered such a request

    def ask(self, items: Mapping[str, Item], cache: Cache,
            done: Callable[[int], None] = lambda count: None) -> None:
        """Ask about every item and keep its verdict in `cache` under its key.

        An item without a verdict afterwards has failed. Raises JudgeStopped, with what was under
        way finished and kept.
        """
        self._done = self._unanswered = 0
        self._stopped: JudgeStopped | None = None
        with start_blocking_portal() as portal:  # a notebook's own event loop is taken
            portal.call(self._ask_all, items, cache, done)
        if self._stopped:
            raise self._stopped

    async def _ask_all(self, items: Mapping[str, Item], cache: Cache,
                       done: Callable[[int], None]) -> None:
        budget = Budget(self.settings, self._longest() or prompts.MAX_REPLY_TOKENS, cache)
        places = anyio.CapacityLimiter(self.settings.concurrency)
        self._client = AsyncOpenAI(
            api_key="put in by our client", base_url=self.settings.address.removesuffix(WHOLE),
            http_client=Client(self.settings, budget), max_retries=self.settings.retries)

        def stop(reason: JudgeStopped) -> None:
            self._stopped = self._stopped or reason
            group.cancel_scope.cancel()

        async def about(key: str, item: Item) -> None:
            async with places:
                try:
                    if verdict := await self._verdict(item):
                        cache.add((0, 0), key, verdict)
                    self._unanswered = 0
                except _Unjudged as last:
                    self._unanswered += 1
                    if self._unanswered == GIVE_UP:
                        stop(self._given_up(last))
                except JudgeStopped as stopped:
                    stop(stopped)
                self._done += 1
                done(self._done)

        async with self._client, anyio.create_task_group() as group:
            for key, item in items.items():
                group.start_soon(about, key, item)

    def _given_up(self, last: _Unjudged) -> JudgeStopped:
        return JudgeStopped(
            f"The judge's server at {self.settings.address} has left {GIVE_UP} answers in a row "
            f"unjudged; of the last one: {last}. Check that it is up, and so is the proxy in "
            f"{PROXIES}, if any; {PREFIX}TIMEOUT sets the seconds that it may take. {KEPT}")

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
            raise _Unjudged(ran_out(thought, reply.cut, self._longest()))
        return None

    async def _reply(self, chat: list, item: Item) -> Reply:
        try:
            response = await self._client.post(WHOLE, body=self._body(chat),
                                               cast_to=httpx.Response)
        except APIStatusError as error:
            return self._refused(error.response, item)
        except APIConnectionError as error:
            why = error.__cause__
            raise _Unjudged(f"{type(why).__name__} {why}") from None
        self._taken = True
        return replies.read(response.content)

    def _body(self, chat: list) -> dict:
        """A request, as JSON; half a surrogate pair, which a dataset may hold, has no bytes."""
        messages = [{**message, "content": message["content"].encode(errors="replace").decode()}
                    for message in chat]
        body = {"temperature": 0, "max_tokens": prompts.MAX_REPLY_TOKENS, **self.options,
                "model": self.model, "messages": messages}
        return {name: value for name, value in body.items() if value is not None}

    def _longest(self) -> int:
        """The tokens of a reply at most; 0 where the request does not say."""
        body = self._body([])
        return int(body.get("max_completion_tokens") or body.get("max_tokens") or 0)

    def _refused(self, response: httpx.Response, item: Item) -> Reply:
        """What follows from an error: _Unjudged, JudgeStopped, or an abstention."""
        status, tries = response.status_code, response.request.headers["x-stainless-retry-count"]
        if status == replies.WITHHELD:
            return Reply("", withheld=True)
        said = f"HTTP status {status}" + replies.said(response.content, self.settings.key(), (
            item.answer, item.question, item.reference))
        passing = status in (408, 409, 429) or status >= 500
        # openai's client gives up before its last try where the server asks for minutes of rest.
        is_used_up = passing and int(tries) == self.settings.retries
        if is_used_up or (status in ITS_OWN and self._taken):
            raise _Unjudged(said)
        raise JudgeStopped(f"The judge's server at {self.settings.address} answered with {said}. "
                           f"{self._advice(response)} {KEPT}")

    def _advice(self, response: httpx.Response) -> str:
        status, headers = response.status_code, response.headers
        if status in (401, 403):
            return (f"Check the key in the environment variable {self.settings.key_variable!r}, "
                    f"which {PREFIX}KEY_VARIABLE names.")
        if status in (402, 429) or "retry-after" in headers:
            rest = headers.get("retry-after", "some")[:30]
            return f"Check your credit and limits there, or come back in {rest} seconds."
        if status < 400:
            place = re.sub(r"(?<=//)[^/]*@|[?#].*", "", headers.get("location", ""))  # no secrets
            place = replies.without(self.settings.key(), place)[:100]
            return (f"It sends to {place}, where nothing was sent: if that is your server, set "
                    f"{PREFIX}ADDRESS to it.")
        if status in (404, 405):
            return (f"Check the model's name ({self.model}) and {PREFIX}ADDRESS; most "
                    "addresses end in /v1.")
        options = {**self.options, "max_tokens": None, "temperature": None,
                   "max_completion_tokens": self._longest() or None}
        return ("Check that it knows this model and every field of the request; for a reasoning "
                f"model, set {PREFIX}OPTIONS to {json.dumps(options)}, say.")
