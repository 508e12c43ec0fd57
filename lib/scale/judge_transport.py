"""One POST to a judge's server: whole within its time-out, small, to nobody else.

httpx limits single reads, so a server that sends a byte at a time could take for ever. Requests
therefore run in an event loop of their own thread, where a deadline ends them wherever they are.
Nothing follows a redirect, and nothing for this machine goes through a proxy, which would see the
key. httpx is used directly: it comes with jupyterlab, and one POST is all that is needed.
"""

import asyncio
import json
import logging
import os
import re
import socket
import ssl
import threading
import zlib
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

import httpx

from lib.scale.judge_limits import PREFIX, Settings

LARGEST = 1_000_000  # bytes of a response, packed or unpacked; a verdict has a few hundred
UNBILLED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)  # were never received
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
logging.getLogger("httpcore").setLevel(logging.INFO)  # else it logs headers: one may quote the key
NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE")


class Response(NamedTuple):
    """What a server answered."""

    status: int
    headers: httpx.Headers
    content: bytes


class NoResponse(Exception):
    """There is no whole response, for the reason that this says; a later try may have one.

    `billed`: whether the server may have received the request, and counted it.
    """

    def __init__(self, reason: str, billed: bool):
        super().__init__(reason)
        self.billed = billed


class Unreachable(Exception):
    """The server cannot be reached as it is set; the message is a sentence with advice."""


class Line:
    """A connection to `settings.address`, to be used in a `with`, by any number of threads."""

    def __init__(self, settings: Settings, key: str):
        self.settings = settings
        self._client = client(settings, key)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "Line":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wait(self._client.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def post(self, body: dict) -> Response:
        """Send JSON. Raises NoResponse, or Unreachable where trying again is of no use."""
        try:
            return self._wait(self._within_the_deadline(body))
        except TimeoutError:
            raise NoResponse(_late(self.settings.timeout), billed=True) from None
        except httpx.RequestError as error:
            _raise_if_hopeless(error, self.settings)
            late = isinstance(error, httpx.TimeoutException)
            reason = _late(self.settings.timeout) if late else " ".join(
                f"{type(error).__name__} {error}".split())
            raise NoResponse(reason, not isinstance(error, UNBILLED)) from None

    def _wait(self, task):
        return asyncio.run_coroutine_threadsafe(task, self._loop).result()

    async def _within_the_deadline(self, body: dict) -> Response:
        async with asyncio.timeout(self.settings.timeout):
            # In ASCII: half a surrogate pair, which a dataset's JSON may hold, has no bytes.
            async with self._client.stream("POST", self.settings.url, content=json.dumps(body),
                                           headers={"Content-Type": "application/json"}) as reply:
                packed = b""
                async for part in reply.aiter_raw():
                    packed += part
                    if len(packed) > LARGEST:
                        raise httpx.ReadError(f"more than {LARGEST:,} bytes")
        return Response(reply.status_code, reply.headers, _unpacked(packed, reply.headers))


def client(settings: Settings, key: str) -> httpx.AsyncClient:
    """A client for this address alone. Raises ValueError, with advice, for an unusable proxy."""
    headers = {"Accept-Encoding": "identity"}  # what is small anyway need not be packed
    if key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        for name, proxy in getproxies().items():  # httpx finds a port above 65535 too late
            if name in ("http", "https", "all") and not settings.is_local:
                urlsplit(proxy if "://" in proxy else f"http://{proxy}").port  # noqa: B018
        return httpx.AsyncClient(
            # A connection that takes half of the time has failed; it was not billed for sure.
            timeout=httpx.Timeout(settings.timeout, connect=settings.timeout / 2),
            limits=httpx.Limits(max_connections=settings.concurrency), headers=headers,
            follow_redirects=False, trust_env=not settings.is_local,
            verify=httpx.create_ssl_context())  # with SSL_CERT_FILE, also on this machine
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise ValueError(_proxy_advice(error)) from None
    except OSError as error:
        raise ValueError(f"The certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be "
                         f"read ({type(error).__name__}): correct it, or unset it.") from None


def proxies() -> str:
    """The environment variables in which a proxy is named; "" if there are none."""
    known = (*PROXIES, *map(str.lower, PROXIES))
    return ", ".join(name for name in known if os.environ.get(name))


def _proxy_advice(error: Exception) -> str:
    """What to do about a proxy; its address is not shown, as it may hold a password."""
    given = proxies() or "NO_PROXY or this machine’s settings"
    said = f"The proxy in {given} cannot be used: "
    if isinstance(error, ImportError):
        return (f"{said}httpx needs a package for SOCKS. Type: pip install 'httpx[socks]', name an "
                "http:// proxy, unset the variable, or list the judge's host in NO_PROXY.")
    return (f"{said}its address has to begin with http://, https:// or socks5://, and a port "
            "is a number up to 65535. Correct the variable, unset it, or list the judge's host in "
            "NO_PROXY.")


def _raise_if_hopeless(error: httpx.RequestError, settings: Settings) -> None:
    """Raise Unreachable where the same request would fail the same way in a minute."""
    causes = list(_causes(error))
    tls = next((each for each in causes if isinstance(each, ssl.SSLError)), None)
    where = f"The judge's server at {settings.address}"
    if isinstance(tls, ssl.SSLCertVerificationError):
        raise Unreachable(
            f"{where} shows a certificate that this machine does not trust: {tls.verify_message}. "
            "Use the host name in the certificate; if it is signed by an authority of your own "
            "(or by your proxy's), name that authority's file in SSL_CERT_FILE; if it has "
            "expired, it has to be renewed there. No key was sent.")
    if tls is not None and tls.reason in NOT_TLS:
        raise Unreachable(f"{where} does not speak TLS ({tls.reason}): correct the port, or, on "
                          "this machine, begin the address with http://.")
    if any(isinstance(each, socket.gaierror) and each.errno == socket.EAI_NONAME
           for each in causes):
        raise Unreachable(f"{where}: there is no machine of this name, or of the name of the proxy "
                          f"before it ({' or '.join(PROXIES)}). Check the spelling.")
    if isinstance(error, httpx.ProxyError) and re.match(r"4\d\d", str(error)):
        raise Unreachable(f"The proxy before the judge's server refuses ({error}): check the user "
                          f"and password in {' or '.join(PROXIES)}, or list the server's host in "
                          "NO_PROXY.")
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        raise Unreachable(f"{where} cannot be asked: {error}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from, also where a group holds several."""
    while error is not None:
        yield error
        for each in getattr(error, "exceptions", ()):
            yield from _causes(each)
        error = error.__cause__ or error.__context__


def _late(seconds: float) -> str:
    return f"no whole response within {seconds:g} s, which {PREFIX}TIMEOUT sets"


def _unpacked(packed: bytes, headers: httpx.Headers) -> bytes:
    """The content of a response, though it was asked for unpacked; raises ReadError if it is huge.

    A single packing only: of several on top of each other a few bytes could become terabytes.
    """
    how = headers.get("content-encoding", "identity").strip().lower()
    if how in ("", "identity"):
        return packed
    if how not in ("gzip", "x-gzip", "deflate"):
        raise httpx.DecodingError(f"content packed as {how[:20]!r}, which nobody asked for")
    try:
        content = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(packed, LARGEST + 1)
    except zlib.error as error:
        raise httpx.DecodingError(f"content that cannot be unpacked: {error}") from None
    if len(content) > LARGEST:
        raise httpx.ReadError(f"more than {LARGEST:,} bytes, unpacked")
    return content


def host_of(location: str) -> str:
    """Where a redirect leads, without what may be secret in it.

    >>> host_of("https://me:word@elsewhere.example/v1?token=1")
    'https://elsewhere.example/v1'
    """
    try:
        parts = urlsplit(location)
        place = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "an address that cannot be read"
    return f"{parts.scheme}://{place}{parts.path}"[:100] if place else parts.path[:100]
