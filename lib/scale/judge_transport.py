"""Requests to a judge's server: each whole within its time-out, small, paid for, to nobody else.

openai's client decides what is tried again; this client, of httpx, is what it sends by. httpx limits
single reads, so a server that sends a byte at a time could take for ever: here a deadline ends a
request wherever it is. Nothing follows a redirect, nothing for this machine goes through a proxy,
which would see the key, and of the environment's keys and headers none is sent but the one.
"""

import asyncio
import logging
import math
import os
import re
import socket
import ssl
import time
import zlib
from collections.abc import Iterator
from contextlib import aclosing
from urllib.parse import urlsplit
from urllib.request import getproxies

import anyio
import httpx

from lib.evaluation.verdicts import JudgeStopped
from lib.scale import judge_replies as replies
from lib.scale.judge_cache import Cache
from lib.scale.judge_limits import TOKENS_PER_BYTE, Budget, Settings

LARGEST = 1_000_000  # bytes of a response, packed or unpacked; a verdict has a few hundred
UNBILLED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)  # were never received
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
logging.getLogger("httpcore").setLevel(logging.INFO)  # else it logs headers: one may quote the key
KEPT_HEADERS = ("retry-after", "location")
KEPT = "What was judged so far is kept: run this again and it goes on from there."
NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE")


class Client(httpx.AsyncClient):
    """A client for the address in `settings`, that pays from `budget` and notes it in `cache`.

    Raises ValueError, with advice, for proxies and certificates that cannot be used.
    """

    def __init__(self, settings: Settings, key: str, budget: Budget, cache: Cache):
        self.settings, self.budget, self.cache = settings, budget, cache
        self._gap = 60 / settings.requests_per_minute if settings.requests_per_minute else 0
        self._next = 0.0  # when the next request may start
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        # A connection that takes half of the time has failed; it was not billed for sure.
        super().__init__(timeout=httpx.Timeout(settings.timeout, connect=settings.timeout / 2),
                         headers=headers, **way(settings))

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
                self.cache.add(most)  # it may have been answered, and billed
                raise
            if response.is_success:
                self._pay(replies.read(response.content, size), size, most)
        return response

    async def _turn(self) -> None:
        """Wait until a request may start: so many a minute."""
        now = time.monotonic()
        start = max(now, self._next)
        self._next = start + self._gap
        await asyncio.sleep(start - now)

    def _pay(self, reply: replies.Reply | None, size: int, most: tuple[int, int]) -> None:
        tokens = reply and reply.tokens
        if tokens:
            self.budget.learn(size, tokens[0])
        else:  # estimated from above
            said = reply.text.encode(errors="replace") if reply else b""
            tokens = most[0], max(most[1], math.ceil(len(said) * TOKENS_PER_BYTE))
        self.cache.add(tokens)
        if reply is None:
            raise httpx.DecodingError("a response that is not a chat completion, such as "
                                      "the web page of another server")

    async def _whole(self, request: httpx.Request) -> httpx.Response:
        # Of what openai's client adds nothing is sent: it takes headers from the environment.
        ours = self.build_request("POST", request.url, content=request.content)
        packed = b""
        try:
            # Shielded: when all is to stop, one that is under way is paid for, and may end.
            with anyio.fail_after(self.settings.timeout, shield=True):
                async with aclosing(await super().send(ours, stream=True)) as response:
                    async for part in response.aiter_raw():
                        packed += part
                        if len(packed) > LARGEST:
                            raise httpx.ReadError(f"more than {LARGEST:,} bytes")
        except TimeoutError:
            raise httpx.ReadTimeout("") from None
        except httpx.RequestError as error:
            _raise_if_hopeless(error, self.settings)
            raise
        content = _unpacked(packed, response.headers.get("content-encoding", ""))
        kept = {name: response.headers[name] for name in KEPT_HEADERS if name in response.headers}
        return httpx.Response(replies.meant(response.status_code, content), headers=kept,
                              content=content, request=request)


def way(settings: Settings) -> dict:
    """How an address is reached, as arguments of an httpx client."""
    try:
        for name, proxy in getproxies().items():  # httpx finds a port above 65535 too late
            if name in ("http", "https", "all") and not settings.is_local:
                urlsplit(proxy if "://" in proxy else f"http://{proxy}").port  # noqa: B018
        found = {"trust_env": not settings.is_local, "follow_redirects": False,
                 "verify": httpx.create_ssl_context()}  # with SSL_CERT_FILE, also on this machine
        httpx.AsyncClient(**found)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise ValueError(_proxy_advice(error)) from None
    except OSError as error:
        raise ValueError(f"The certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be "
                         f"read ({type(error).__name__}): correct it, or unset it.") from None
    return found


def proxies() -> str:
    """The environment variables in which a proxy is named; "" if there are none."""
    known = (*PROXIES, *map(str.lower, PROXIES))
    return ", ".join(name for name in known if os.environ.get(name))


def _proxy_advice(error: Exception) -> str:
    """What to do about a proxy; its address is not shown, as it may hold a password."""
    advice = ("httpx needs a package for SOCKS: type pip install 'httpx[socks]', or name an "
              "http:// proxy" if isinstance(error, ImportError) else
              "its address has to begin with http://, https:// or socks5://, and a port is a "
              "number up to 65535. Correct the variable")
    return (f"The proxy in {proxies() or 'NO_PROXY or this machine’s settings'} cannot be used: "
            f"{advice}, unset it, or list the judge's host in NO_PROXY.")


def _raise_if_hopeless(error: httpx.RequestError, settings: Settings) -> None:
    """Raise JudgeStopped where the same request would fail the same way in a minute."""
    causes = list(_causes(error))
    tls = next((each for each in causes if isinstance(each, ssl.SSLError)), None)
    why = ""
    if isinstance(tls, ssl.SSLCertVerificationError):
        why = (f"shows a certificate that this machine does not trust: {tls.verify_message}. "
               "Use the host name in the certificate; if it is signed by an authority of your own "
               "(or by your proxy's), name that authority's file in SSL_CERT_FILE; if it has "
               "expired, it has to be renewed there. No key was sent.")
    elif tls is not None and tls.reason in NOT_TLS:
        why = (f"does not speak TLS ({tls.reason}): correct the port, or, on this machine, begin "
               "the address with http://.")
    elif any(isinstance(each, socket.gaierror) and each.errno == socket.EAI_NONAME
             for each in causes):
        why = ("is not found: there is no machine of this name, or of the name of the proxy "
               f"before it ({' or '.join(PROXIES)}). Check the spelling.")
    elif isinstance(error, httpx.ProxyError) and re.match(r"4\d\d", str(error)):
        why = (f"is behind a proxy that refuses ({error}): check the user and password in "
               f"{' or '.join(PROXIES)}, or list the server's host in NO_PROXY.")
    elif isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        why = f"cannot be asked: {error}"
    if why:
        raise JudgeStopped(f"The judge's server at {settings.address} {why} {KEPT}") from None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from, also where a group holds several."""
    while error is not None:
        yield error
        for each in getattr(error, "exceptions", ()):
            yield from _causes(each)
        error = error.__cause__ or error.__context__


def _unpacked(packed: bytes, how: str) -> bytes:
    """A response's content, which was asked for unpacked; raises RequestError if it is huge.

    Once only: of several packings on top of each other a few bytes could become terabytes.
    """
    if how in ("", "identity"):
        return packed
    try:
        content = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(packed, LARGEST + 1)
    except zlib.error as error:
        raise httpx.DecodingError(f"content that cannot be unpacked: {error}") from None
    if len(content) > LARGEST:
        raise httpx.ReadError(f"more than {LARGEST:,} bytes, unpacked")
    return content
