import errno
import hashlib
import json
import os
import shutil
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest

from lib.base.missing import Missing
from lib.scale import sources
from tests import tiny_llava


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    return (tiny_llava.write_model(folder / "model", image_size=28),
            tiny_llava.write_dataset(folder / "data"))


@pytest.fixture
def copies(made, tmp_path):
    """Copies of both folders, which a test may change."""
    sources.identity.cache_clear()
    return [shutil.copytree(folder, tmp_path / folder.name) for folder in made]


def test_a_folder_is_itself(made):
    assert sources.folder(made[0]) == made[0]
    assert sources.folder(str(made[1]), "dataset") == made[1]


@pytest.mark.parametrize(("kind", "option"), [("model", "--model"), ("dataset", "--data")])
@pytest.mark.parametrize("source", ["/nowhere/at/all", "../nothing", "a/b/c", "nothing", ""])
def test_what_is_neither_folder_nor_hub_name_is_refused_with_its_option(source, kind, option,
                                                                        tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = source or "a/b/"
    with pytest.raises(Missing, match=f"no {kind} folder.*{option}"):
        sources.folder(source, kind)


def test_a_hub_name_that_cannot_be_fetched_is_explained(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Missing, match=r"nobody/nothing.*HF_HUB_OFFLINE is set.*folder with --data"):
        sources.folder("nobody/nothing-of-this-name", "dataset")


REFUSALS = {  # a repository's name -> status, code, message
    "gated": (403, "GatedRepo", ""), "unknown": (404, "RepoNotFound", ""), "busy": (429, "", ""),
    "broken": (500, "", ""), "disabled": (403, "", "Access to this resource is disabled."),
    "token": (401, "", "Invalid credentials in Authorization header")}


class Hub(BaseHTTPRequestHandler):
    """The hub's answers to requests for a repository, by its name; of "torn" half a file comes."""

    def do_GET(self):
        name = next((each for each in REFUSALS if f"me/{each}" in self.path), "")
        if name:
            status, code, message = REFUSALS[name]
            self.reply(status, b"{}", X_Error_Code=code, X_Error_Message=message)
        elif "/tree/" in self.path:
            entry = {"type": "file", "path": "config.json", "size": 1000, "oid": "0" * 40}
            self.reply(200, json.dumps([entry]).encode())
        elif "/resolve/" in self.path:
            self.reply(200, b"{}", ETag='"1"', X_Repo_Commit="0" * 40, Content_Length="1000")
        else:
            self.reply(200, json.dumps({"id": "me/torn", "sha": "0" * 40, "siblings": []}).encode())

    do_HEAD = do_GET

    def reply(self, status, content, **headers):
        self.send_response(status)
        headers = {"Content_Length": str(len(content)), **headers}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on this machine, with a cache of its own and no patience."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    for name, value in {"ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path / "cache"),
                        "HUGGINGFACE_CO_URL_TEMPLATE":
                            address + "/{repo_id}/resolve/{revision}/{filename}",
                        "HF_HUB_OFFLINE": False}.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    for name in ("HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    huggingface_hub.close_session()
    monkeypatch.setattr(time, "sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.01)))
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("name", "advice"), [
    ("gated", "it is gated. Accept its terms"), ("unknown", "none of this name, or it is private"),
    ("busy", "429.*Run this again"), ("broken", "500.*Run this again"),
    ("disabled", "has disabled it"), ("token", "the token is refused"),
    ("torn", "Run this again, and it goes on where it stopped")])
def test_what_the_hub_refuses_is_said_with_its_own_advice(hub, name, advice):
    for kind, option in (("dataset", "--data"), ("judge", "--judge local:")):
        with pytest.raises(Missing, match=f"{kind} me/{name}.*{advice}.* folder with {option}"):
            sources.folder(f"me/{name}", kind)


def test_a_hub_that_is_not_there_is_said(hub):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(Missing, match=r"the hub cannot be reached.*HF_ENDPOINT"):
        sources.folder("me/model")


FAILURES = [
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "the disk is full.*HF_HOME"),
    (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "the disk is full"),
    (RuntimeError("Data processing error: I/O error: No space left on device (os error 28)"),
     "the disk is full"),
    (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "cannot be written.*HF_HOME"),
    (OSError(errno.EROFS, os.strerror(errno.EROFS)), "cannot be written"),
    (ImportError("Using SOCKS proxy, but the 'socksio' package is not installed."), "socksio"),
    (ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"),
     "SSL_CERT_FILE"),
    (TimeoutError("timed out"), "TimeoutError: timed out. Run this again"),
]


@pytest.mark.parametrize(("failure", "advice"), FAILURES)
def test_a_download_that_fails_here_is_said_with_its_own_advice(failure, advice, monkeypatch):
    def fails(*_, **__):
        try:
            raise failure
        except Exception as error:
            raise OSError("An error happened while trying to locate the file") from error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(Missing, match=advice):
        sources.folder("me/model")


def test_a_name_does_not_pass_for_a_reason(monkeypatch):
    def fails(name, **_):
        raise ValueError(f"no {name} here\nin two lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(Missing, match=r"ValueError: no me/socksio here\. Run this"):
        sources.folder("me/socksio")


def test_a_moved_folder_is_the_same_source(made, copies):
    for one, other, kind in zip(made, copies, ("model", "dataset"), strict=True):
        assert sources.identity(str(one), kind) == sources.identity(str(other), kind)


def change_a_weight(model, data):
    file = model / "model-00002-of-00002.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def change_a_pixel(model, data):
    """A picture of the same size with another pixel in it."""
    path = next(data.rglob("*.png"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def of_small(file, name, digest=hashlib.file_digest):
    assert os.fstat(file.fileno()).st_size < sources.LARGE
    return digest(file, name)


def test_a_change_in_the_middle_of_a_large_weights_file_is_another_model_and_read_once(
        copies, tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEERASER_RUNS", str(tmp_path / "runs"))
    weights, names = copies[0] / "model.safetensors", []
    for middle in (b"a", b"b", None):
        if middle:
            weights.write_bytes(bytes(2 << 20) + middle + bytes(2 << 20))
        else:  # moved back in time to the one before: it is looked up, and not read
            monkeypatch.setattr(sources.hashlib, "file_digest", of_small)
        sources.identity.cache_clear()
        names.append(sources.identity(str(copies[0])))
    assert names[0] != names[1]
    assert names[1] == names[2]


def test_another_revision_on_the_hub_is_another_model(made, tmp_path, monkeypatch):
    found = []
    for revision in ("1" * 40, "2" * 40):
        here = shutil.copytree(made[0], tmp_path / revision)
        monkeypatch.setattr(sources, "_local", lambda *_, here=here: here)
        sources.identity.cache_clear()
        found.append(sources.identity("owner/name"))
    assert found == [{"model": "1" * 40, "name": "owner/name"},
                     {"model": "2" * 40, "name": "owner/name"}]


CHANGES = [
    ("a weight", "model", change_a_weight),
    ("the chat template", "model", lambda model, data: (model / "chat_template.jinja").write_text(
        "another")),
    ("a picture less", "dataset", lambda model, data: next(data.rglob("*.png")).unlink()),
    ("another picture", "dataset", lambda model, data: next(data.rglob("*.png")).write_bytes(
        b"of another size")),
    ("other pixels in as many bytes", "dataset", change_a_pixel),
    ("another refusal", "dataset", lambda model, data: (data / "prompt.json").write_text("{}")),
]


@pytest.mark.parametrize(("reason", "kind", "change"), CHANGES)
def test_other_files_under_the_same_path_are_another_source(copies, reason, kind, change):
    folder = str(copies[kind == "dataset"])
    before = sources.identity(folder, kind)
    change(*copies)
    sources.identity.cache_clear()
    assert sources.identity(folder, kind) != before, reason


def test_what_lies_beside_the_data_does_not_matter(copies):
    before = sources.identity(str(copies[1]), "dataset")
    (copies[1] / "notes.md").write_text("a note")
    (copies[1] / "notes.txt").write_text("another")
    (copies[1] / "draft.json").write_text("[]")
    sources.identity.cache_clear()
    assert sources.identity(str(copies[1]), "dataset") == before
