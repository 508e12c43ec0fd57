"""Requests to a judge's server: each whole within its time-out, small, paid for, to nobody else.

openai's client decides what is tried again; this client, of httpx, is what it sends by. httpx
limits single reads, so a server that sends a byte at a time could take for ever: here a deadline
ends a request wherever it is. Nothing follows a redirect, nothing for this machine goes through a
proxy, which would see the key, and of the environment's keys and headers none is sent but the one.
"""

import asyncio
import logging
import re
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import aclosing

import anyio
import httpx

from lib.evaluation.verdicts import JudgeStopped
from lib.scale import judge_replies as replies
from lib.scale.judge_limits import Budget, Settings

LARGEST = 1_000_000  # bytes of a response; a verdict has a few hundred
UNBILLED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)  # were never received
HEADERS = ("retry-after", "location")  # of a response, that count
PROXIES = "HTTP_PROXY, HTTPS_PROXY or ALL_PROXY"
KEPT = "What was judged so far is kept: run this again and it goes on from there."
logging.getLogger("httpcore").setLevel(logging.INFO)  # else it logs headers: one may quote the key


class Client(httpx.AsyncClient):
    """A client for the address in `settings`, that pays from `budget`.

    Raises ValueError, with advice, for proxies and certificates that cannot be used.
    """

    def __init__(self, settings: Settings, budget: Budget | None = None):
        self.settings, self.budget, self.next = settings, budget, 0.0
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if key := settings.key():
            headers["Authorization"] = f"Bearer {key}"
        # A connection that takes half of the time has failed; it was not billed for sure.
        timeout = httpx.Timeout(settings.timeout, connect=settings.timeout / 2)
        try:
            super().__init__(headers=headers, timeout=timeout, follow_redirects=False,
                             trust_env=not settings.is_local,
                             verify=httpx.create_ssl_context())  # with SSL_CERT_FILE, also here
        except OSError as error:
            raise ValueError(f"The certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be "
                             f"read ({type(error).__name__}): correct it, or unset it.") from None
        except (ImportError, ValueError, httpx.InvalidURL):  # which may show a proxy's password
            raise ValueError(
                f"The proxy in {PROXIES} cannot be used: its address has to begin with http://, "
                "https:// or socks5:// (for which type pip install 'httpx[socks]'). Correct the "
                "variable, unset it, or list the judge's host in NO_PROXY.") from None

    async def send(self, request: httpx.Request, **_: object) -> httpx.Response:
        """The response to one try, paid for.

        Raises httpx.RequestError where there is none and another try may have one, and
        JudgeStopped where it would fail the same way or go over a cap.
        """
        await self._turn()
        size = len(request.content)
        async with self.budget.reserved(size) as most:
            try:
                response = await self._whole(request)
            except (*UNBILLED, JudgeStopped):
                raise
            except BaseException:
                self.budget.pay(size, most)  # it may have been answered, and billed
                raise
            if response.is_success:
                reply = replies.read(response.content, size)
                self.budget.pay(size, most, reply)
                if reply is None:
                    raise httpx.DecodingError("a response that is not a chat completion, such as "
                                              "the web page of another server")
        return response

    async def _turn(self) -> None:
        """Wait until a request may start: so many a minute."""
        if self.settings.requests_per_minute:
            now = time.monotonic()
            start = max(now, self.next)
            self.next = start + 60 / self.settings.requests_per_minute
            await asyncio.sleep(start - now)

    async def _whole(self, request: httpx.Request) -> httpx.Response:
        # Of what openai's client adds nothing is sent: it takes headers from the environment.
        ours = self.build_request("POST", request.url, content=request.content)
        content = b""
        try:
            # Shielded: when all is to stop, one that is under way is paid for, and may end.
            with anyio.fail_after(self.settings.timeout, shield=True):
                async with aclosing(await super().send(ours, stream=True)) as response:
                    async for part in response.aiter_raw():
                        content += part
                        if len(content) > LARGEST:
                            raise httpx.ReadError(f"more than {LARGEST:,} bytes")
        except TimeoutError:
            late = f"no whole response within {self.settings.timeout:g} s"
            raise httpx.ReadTimeout(late) from None
        except Exception as error:
            if why := _hopeless(error):
                raise JudgeStopped(f"The judge's server at {self.settings.address} {why} {KEPT}"
                                   ) from None
            raise
        if response.headers.get("content-encoding", "identity") != "identity":
            raise httpx.DecodingError("a packed response, which was asked for unpacked")
        kept = {name: response.headers[name] for name in HEADERS if name in response.headers}
        return httpx.Response(replies.meant(response.status_code, content), headers=kept,
                              content=content, request=request)


def _hopeless(error: Exception) -> str:
    """Why the same request would fail the same way in a minute; "" if it may not."""
    for each in _causes(error):
        if isinstance(each, ssl.SSLCertVerificationError):
            return (f"shows a certificate that this machine does not trust: {each.verify_message}. "
                    "Use the host name in the certificate; if it is signed by an authority of your "
                    "own (or by your proxy's), name that authority's file in SSL_CERT_FILE; if it "
                    "has expired, it has to be renewed there. No key was sent.")
        if isinstance(each, ssl.SSLError) and not isinstance(each, ssl.SSLEOFError):
            return (f"does not speak TLS ({each.reason}): correct the port, or, on this machine, "
                    "begin the address with http://.")
        if isinstance(each, socket.gaierror) and each.errno == socket.EAI_NONAME:
            return ("is not found: there is no machine of this name, or of the name of the proxy "
                    f"before it ({PROXIES}). Check the spelling.")
        if isinstance(each, OverflowError):
            return "cannot be reached: its port, or its proxy's, is above 65535."
    if isinstance(error, httpx.ProxyError) and re.match(r"4\d\d", str(error)):
        return (f"is behind a proxy that refuses ({error}): check the user and password in "
                f"{PROXIES}, or list the server's host in NO_PROXY.")
    return ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from, also where a group holds several."""
    while error is not None:
        yield error
        for each in getattr(error, "exceptions", ()):
            yield from _causes(each)
        error = error.__cause__ or error.__context__
