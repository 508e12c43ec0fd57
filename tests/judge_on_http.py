"""A real OpenAI-compatible server on this machine, whose every answer a test decides."""

import gzip
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from openai import _base_client

from lib.evaluation.known_answers import OF_EVERY_DAY
from lib.evaluation.verdicts import Item
from lib.scale.judge_limits import Settings

USED = (300, 12)  # tokens per request: prompt, reply
KEY = "sk-a-very-secret-key"
_base_client.INITIAL_RETRY_DELAY = 0.01  # of openai's client: a server that fails costs no time


class JudgeServer(ThreadingHTTPServer):
    """`answer(handler, body, n)` answers the n-th request (from 0); `seen` holds what came."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.lock = answer, threading.Lock()
        self.seen, self.at_work, self.most_at_work = [], 0, 0

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        """The client may have gone: that is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            number = len(server.seen)
            server.seen.append({"at": time.monotonic(), "path": self.path, "body": body,
                                "key": self.headers.get("Authorization")})
            server.at_work += 1
            server.most_at_work = max(server.at_work, server.most_at_work)
        try:
            server.answer(self, body, number)
        finally:
            with server.lock:
                server.at_work -= 1

    def log_message(self, *_):
        pass


@contextmanager
def serving(answer):
    server = JudgeServer(answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def fast(server, **more):
    """Settings with which retries take no time; the time-out is for a machine under load."""
    return Settings(**{"address": server.address, "key_variable": "", "timeout": 20, "retries": 3,
                       **more})


# Answers.


def send(handler, content, status=200, length=None, **headers):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(content) if length is None else length))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()
    handler.wfile.write(content)


def say(handler, text, used=USED, **message):
    """A chat completion."""
    usage = {} if used is None else {
        "usage": {"prompt_tokens": used[0], "completion_tokens": used[1]}}
    send(handler, {"choices": [{"index": 0, "finish_reason": "stop",
                                "message": {"role": "assistant", "content": text, **message}}],
                   **usage})


def completion(text, finish_reason="stop", **more):
    choice = {"index": 0, "logprobs": None, "finish_reason": finish_reason,
              "message": {"role": "assistant", "content": text, "reasoning_content": None}}
    usage = {"prompt_tokens": USED[0], "completion_tokens": USED[1], "total_tokens": sum(USED)}
    return {"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage, **more}


def in_chunks(handler, content):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    text = json.dumps(content).encode()
    for part in [text[at:at + 50] for at in range(0, len(text), 50)] + [b""]:
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))


def until_it_hangs_up(handler, content):
    handler.protocol_version, handler.close_connection = "HTTP/1.0", True
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(json.dumps(content).encode())


def zipped(handler, content):
    send(handler, gzip.compress(json.dumps(content).encode()), Content_Encoding="gzip")


def refuse(handler, status, code="", message="", **headers):
    send(handler, {"error": {"code": code, "message": message}}, status, **headers)


SHORT = 0.4  # seconds: the time-out of tests with answers that take longer


def late(handler):
    time.sleep(2 * SHORT)
    say(handler, '{"label": "normal"}')


def dripping(handler):
    """Whole and right, but a byte at a time: no single read takes long."""
    content = json.dumps({"choices": [{"message": {"content": '{"label": "normal"}'}}]}).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    for byte in content:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(SHORT / 8)


def half(handler):
    content = json.dumps({"choices": [{"message": {"content": '{"label": "normal"}'}}]}).encode()
    send(handler, content[:len(content) // 2], length=len(content))
    handler.close_connection = True


def hang_up(handler):
    handler.close_connection = True


# A judge that knows.


def material(body):
    """What the request hands over for judgement."""
    text = body["messages"][1]["content"]
    return json.loads(text.partition("Material:\n")[2].rpartition("\n\n")[0])


KNOWN = {(each.item.question, each.item.answer, each.item.set): each for each in OF_EVERY_DAY}


def right(handler, body, _=0):
    """The verdict of a good judge on the known answers, and "normal", 0.5, on all others."""
    given, task = material(body), body["messages"][1]["content"]
    kind = "retain" if "reference" in given else "harmful" if '"harmful"' in task else "safe"
    known = KNOWN.get((given["question"], given["answer"], kind))
    verdict = {"label": known.label if known else "normal"}
    if kind == "retain":
        verdict["score"] = sum(known.score) / 2 if known else 0.5
    say(handler, json.dumps(verdict))


def items(count, kind="safe"):
    return [Item(kind, "Weapon", "What is it?", f"It is cup number {n}.", "A cup.")
            for n in range(count)]
