"""`lib/scale/judge_transport.py`, against real servers that drip, stall, lie, redirect and pack."""

import asyncio
import gzip
import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import httpx
import judge_on_http as http
import pytest
from judge_on_http import KEY, fast, items, right, say, send, serving

from lib.evaluation import judges
from lib.evaluation.verdicts import JudgeStopped
from lib.scale.judge_cache import Cache
from lib.scale.judge_limits import Budget, Settings
from lib.scale.judge_server import ServerJudge
from lib.scale.judge_transport import Client

PROXIES = [name for each in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
           for name in (each, each.lower())]


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch):
    for name in (*PROXIES, "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


VERDICT = http.completion('{"label": "normal"}')


def post(settings, text=""):
    """The content of the response to one request, and the tokens that were billed for it."""
    billed = []
    budget = Budget(settings, 60, SimpleNamespace(tokens=(0, 0), add=billed.append))

    async def sent():
        async with Client(settings, budget) as client:
            request = client.build_request("POST", f"{settings.address}/chat/completions",
                                           content=json.dumps({"text": text}))
            return (await client.send(request)).content

    try:
        return asyncio.run(sent()), billed
    except httpx.RequestError as error:
        error.billed = billed
        raise


def drip(handler, content, seconds=10):
    """Bytes one by one, so that no single read waits long."""
    end = time.monotonic() + seconds
    for byte in content:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(http.SHORT / 8)
        if time.monotonic() > end:
            return


def headers_one_by_one(handler):
    drip(handler, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + b"X: " + b"y" * 10_000)


def headers_without_end(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for n in range(1000):
        handler.wfile.write(b"X-%d: y\r\n" % n)
        handler.wfile.flush()
        time.sleep(http.SHORT / 8)


def soon_soon_soon(handler):
    for _ in range(1000):
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        handler.wfile.flush()
        time.sleep(http.SHORT / 8)


def body_one_by_one(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
    drip(handler, b" " * 10_000)


def chunks_without_end(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    drip(handler, b"1\r\nx\r\n" * 2000)


def nothing_after_the_headers(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
    time.sleep(10 * http.SHORT)


ENDLESS = [headers_one_by_one, headers_without_end, soon_soon_soon, body_one_by_one,
           chunks_without_end, nothing_after_the_headers, lambda h: time.sleep(10 * http.SHORT)]


@pytest.mark.parametrize("habit", ENDLESS)
def test_a_request_ends_at_its_time_out_wherever_the_server_stalls(habit):
    with serving(lambda h, body, n: habit(h)) as server:
        began = time.monotonic()
        with pytest.raises(httpx.ReadTimeout, match=r"no whole response within 0\.4 s") as late:
            post(fast(server, timeout=http.SHORT))
        assert time.monotonic() - began < 5 * http.SHORT
    assert late.value.billed == [(6, 60)]


def test_a_server_that_takes_no_connection_is_left_in_half_the_time():
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:  # until the queue is full
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        address = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
        with pytest.raises(httpx.ConnectTimeout) as late:
            post(Settings(address=address, timeout=2 * http.SHORT))
        for each in waiting:
            each.close()
    assert late.value.billed == []


BROKEN = {
    "less than it promised": lambda h: send(h, b"{}", length=1000),
    "a length below 0": lambda h: send(h, b"{}", length=-1),
    "a length in words": lambda h: send(h, b"{}", length="two"),
    "headers of a megabyte": lambda h: send(h, b"{}", X="y" * 1_000_000),
    "no HTTP": lambda h: h.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "a body of megabytes": lambda h: send(h, b" " * 3_000_000),
    "a gzip bomb": lambda h: send(h, gzip.compress(b" " * 50_000_000), Content_Encoding="gzip"),
    "a packing that nobody asked for": lambda h: send(h, b"{}", Content_Encoding="br"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_is_no_whole_small_response_is_none(fault):
    def answer(handler, body, n):
        BROKEN[fault](handler)
        handler.close_connection = True

    with serving(answer) as server, pytest.raises(httpx.RequestError) as failure:
        post(fast(server))
    assert failure.value.billed == [(6, 60)]
    assert len(str(failure.value)) > 10


def test_a_body_that_is_longer_than_promised_is_read_to_its_promised_end():
    content = json.dumps(VERDICT).encode()
    with serving(lambda h, body, n: send(h, content + b" more", length=len(content))) as server:
        assert post(fast(server)) == (content, [http.USED])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_it_is_said_where_it_leads(status, tmp_path, monkeypatch,
                                                                  caplog):
    caplog.set_level(0)
    monkeypatch.setenv("A_KEY", KEY)
    with serving(right) as other:
        place = other.address.replace("http://", "http://me:word@") + f"?token=secret{KEY}"
        with (serving(lambda h, body, n: send(h, b"", status, Location=place)) as server,
              pytest.raises(JudgeStopped) as stopped):
            ServerJudge("tiny", fast(server, key_variable="A_KEY")).ask(
                {"0": items(1)[0]}, Cache(tmp_path / "judge.sqlite"))
        assert other.seen == []
        assert f"It sends to {other.address}, where nothing was sent" in str(stopped.value)
    assert len(server.seen) == 1
    assert not any(word in str(stopped.value) for word in ("word", "token", "secret", KEY))
    assert KEY not in caplog.text


def test_a_redirect_that_spells_the_key_is_shown_without_it(tmp_path, monkeypatch):
    monkeypatch.setenv("A_KEY", KEY)
    with (serving(lambda h, body, n: send(h, b"", 302, Location=f"/v1/{KEY}")) as server,
          pytest.raises(JudgeStopped, match=r"It sends to \*\*\*, where")):
        ServerJudge("tiny", fast(server, key_variable="A_KEY")).ask(
            {"0": items(1)[0]}, Cache(tmp_path / "judge.sqlite"))


# Proxies.


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "0.0.0.0"])
def test_the_key_for_a_server_on_this_machine_passes_no_proxy(host, monkeypatch):
    with serving(lambda h, body, n: say(h, "proxied")) as proxy, \
            serving(lambda h, body, n: say(h, "direct")) as server:
        for variable in PROXIES:
            monkeypatch.setenv(variable, proxy.address.removesuffix("/v1"))
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        assert b"direct" in post(Settings(address=server.address.replace("127.0.0.1", host)))[0]
    assert proxy.seen == []
    assert server.seen[0]["key"] == f"Bearer {KEY}"


def test_a_proxy_is_used_for_another_machine_and_may_be_told_not_to(monkeypatch):
    with serving(lambda h, body, n: say(h, "proxied")) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.address.removesuffix("/v1"))
        far = Settings(address="http://far.example/v1", key_variable="", timeout=5)
        assert b"proxied" in post(far)[0]
        assert proxy.seen[0]["path"] == "http://far.example/v1/chat/completions"
        monkeypatch.setenv("NO_PROXY", "far.example")
        with pytest.raises((httpx.RequestError, JudgeStopped)):
            post(far)
        assert len(proxy.seen) == 1


def test_of_a_request_by_https_a_proxy_sees_the_host_alone(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        proxy.settimeout(10)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)

        def refuse():
            connection, _ = proxy.accept()
            seen.append(connection.recv(10_000))
            connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            connection.close()

        seen = []
        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(JudgeStopped, match=r"proxy .* refuses \(407 .*NO_PROXY"):
            post(Settings(address="https://far.example/v1", timeout=10))
        thread.join()
    assert seen[0].startswith(b"CONNECT far.example:443")
    assert KEY.encode() not in seen[0]


def test_where_a_proxy_is_not_there_it_is_among_what_to_check(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:word@127.0.0.1:{port}")
    settings = Settings(address="https://far.example/v1", key_variable="", retries=0, timeout=5)
    with pytest.raises(JudgeStopped, match="the proxy in HTTP_PROXY, HTTPS_PROXY or") as stopped:
        ServerJudge("tiny", settings).ask(dict(enumerate(items(12))), Cache(tmp_path / "j.sqlite"))
    assert "word" not in str(stopped.value)


@pytest.mark.parametrize(("proxy", "advice"), [
    ("socks5://me:word@127.0.0.1:1080", "pip install 'httpx[socks]'"),
    ("socks5h://me:word@127.0.0.1:1080", "pip install 'httpx[socks]'"),
    ("ftp://me:word@127.0.0.1", "has to begin with http://"),
    ("http://me:word@127.0.0.1:port", "Correct the variable"),
])
@pytest.mark.parametrize("variable", ["ALL_PROXY", "https_proxy"])
def test_a_proxy_that_cannot_be_used_is_said_before_anything_starts(proxy, advice, variable,
                                                                   monkeypatch):
    if proxy.startswith("socks"):
        monkeypatch.setitem(sys.modules, "socksio", None)  # as where it is missing
    monkeypatch.setenv(variable, proxy)
    monkeypatch.setenv("SAFEERASER_JUDGE_ADDRESS", "https://far.example/v1")
    monkeypatch.setenv("SAFEERASER_JUDGE_KEY_VARIABLE", "")
    with pytest.raises(ValueError, match=variable.upper()) as error:
        judges.check("server:tiny")
    assert advice in str(error.value)
    assert "word" not in str(error.value)
    monkeypatch.setenv("SAFEERASER_JUDGE_ADDRESS", "http://localhost:8000/v1")
    judges.check("server:tiny")  # which needs no proxy


@pytest.mark.parametrize("proxy", ["127.0.0.1:99999", "http://me:word@[127.0.0.1"])
def test_a_proxy_that_no_request_can_reach_stops_the_judge_at_once(proxy, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(JudgeStopped, match="proxy") as stopped:
        asks("https://far.example/v1", tmp_path, monkeypatch)
    assert "word" not in str(stopped.value)


# Certificates.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for localhost, and its key, in one file."""
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificate of this test")
    folder = tmp_path_factory.mktemp("certificate")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
                    "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=DNS:localhost"],
                   cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def secure(certificate):
    """A judge's server that speaks TLS, by that certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    with serving(right) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        yield server, f"https://localhost:{server.server_address[1]}/v1"


def asks(address, tmp_path, monkeypatch):
    """One item, with settings that would retry for minutes."""
    monkeypatch.setenv("A_KEY", KEY)
    cache = Cache(tmp_path / "judge.sqlite")
    judge = ServerJudge("tiny", Settings(address=address, key_variable="A_KEY"))
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 20)
    began = time.monotonic()
    try:
        judge.ask({"0": items(1)[0]}, cache)
    finally:
        assert time.monotonic() - began < 8
    return cache.verdicts().get("0").label


def test_a_certificate_that_is_not_trusted_stops_the_judge_at_once_with_its_reason(
        secure, tmp_path, monkeypatch):
    server, address = secure
    with pytest.raises(JudgeStopped, match=r"does not trust: self-signed.*SSL_CERT_FILE"):
        asks(address, tmp_path, monkeypatch)
    assert server.seen == []


def test_a_certificate_for_another_name_is_said(secure, certificate, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    with pytest.raises(JudgeStopped, match=r"does not trust: .*127\.0\.0\.1.*host name"):
        asks(secure[1].replace("localhost", "127.0.0.1"), tmp_path, monkeypatch)


def test_an_authority_of_one_s_own_is_trusted_where_ssl_cert_file_names_it(
        secure, certificate, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    assert asks(secure[1], tmp_path, monkeypatch) == "normal"


def test_certificates_that_are_not_there_are_said(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nowhere.pem"))
    with pytest.raises(ValueError, match="SSL_CERT_FILE"):
        Client(Settings(address="https://far.example/v1", key_variable=""))


def test_https_to_a_server_without_it_is_said_at_once(tmp_path, monkeypatch):
    with serving(right) as server, pytest.raises(JudgeStopped, match="does not speak TLS"):
        asks(server.address.replace("http:", "https:"), tmp_path, monkeypatch)


def test_a_machine_that_does_not_exist_is_said_at_once(tmp_path, monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(JudgeStopped, match="no machine of this name"):
        asks("https://no-such-machine.example/v1", tmp_path, monkeypatch)


def test_a_client_may_be_used_by_many_threads_and_leaves_none_behind(tmp_path):
    before = threading.active_count()
    with serving(right) as server:
        ServerJudge("tiny", fast(server)).ask(
            {str(n): item for n, item in enumerate(items(30))}, Cache(tmp_path / "judge.sqlite"))
        assert len(server.seen) == 30
    time.sleep(0.1)
    assert threading.active_count() <= before + 8  # connections that the server still holds
