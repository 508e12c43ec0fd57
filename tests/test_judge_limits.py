"""`lib/scale/judge_limits.py`."""

import asyncio
from types import SimpleNamespace

import pytest

from lib.evaluation.verdicts import JudgeStopped
from lib.scale import ray_engine
from lib.scale.judge_limits import OPENAI, Budget, LocalSettings, Settings
from lib.scale.judge_replies import Reply


def test_settings_come_from_the_environment(monkeypatch):
    values = {"ADDRESS": "http://gpu:8000/v1", "CONCURRENCY": "32", "MAX_COST": "2.5",
              "PRICE_PROMPT": "3", "KEY_VARIABLE": "MY_KEY"}
    for name, value in values.items():
        monkeypatch.setenv(f"SAFEERASER_JUDGE_{name}", value)
    settings = Settings.from_environment()
    assert (settings.address, settings.concurrency, settings.max_cost, settings.price_prompt,
            settings.key_variable) == ("http://gpu:8000/v1", 32, 2.5, 3.0, "MY_KEY")


def test_the_address_that_openai_s_own_client_reads_is_known(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert Settings.from_environment().address == OPENAI
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1")
    assert Settings.from_environment().address == "http://localhost:1/v1"
    monkeypatch.setenv("SAFEERASER_JUDGE_ADDRESS", "http://localhost:2/v1")
    assert Settings.from_environment().address == "http://localhost:2/v1"


def test_fields_of_the_request_come_as_json(monkeypatch):
    monkeypatch.setenv("SAFEERASER_JUDGE_OPTIONS", '{"max_tokens": null, "seed": 1}')
    assert Settings.from_environment().options == {"max_tokens": None, "seed": 1}


@pytest.mark.parametrize(("name", "text", "message"), [
    ("MAX_TOKENS", "a lot", "a valid integer"), ("MAX_TOKENS", "1.5", "a valid integer"),
    ("OPTIONS", "[1]", "dictionary"), ("OPTIONS", "{", "a JSON object"),
    ("ADDRESS", "secret", "begin with http"), ("MAX_COST", "5", "needs prices"),
    ("TIMEOUT", "secret", "a valid number"), ("KEY_VARIABLE", "sk-secret", "not the key itself")])
def test_a_variable_of_another_kind_is_named_and_not_shown(name, text, message, monkeypatch):
    monkeypatch.setenv(f"SAFEERASER_JUDGE_{name}", text)
    with pytest.raises(ValueError, match=f"SAFEERASER_JUDGE_{name} .*{message}") as error:
        Settings.from_environment()
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("fields", "message"), [
    ({"address": "localhost:8000"}, "address"),
    ({"address": "https:///v1"}, "address"),
    ({"address": "https://me:secret@host/v1"}, "address"),
    ({"address": "https://host/v1?key=secret"}, "address"),
    ({"address": "https://host/v1#secret"}, "address"),
    ({"address": "https://secret@host:port/v1"}, "address"),
    ({"address": "http://host:999999/v1"}, "address"),
    ({"address": "http://host:0/v1"}, "address"),
    ({"address": "http://[::1/v1"}, "address"),
    ({"address": "http://my host/v1"}, "address"),
    ({"address": ":8000"}, "address"),
    ({"address": "8000"}, "address"),
    ({"address": "http://:8000/v1"}, "address"),
    ({"address": "ws://host/v1"}, "address"),
    ({"address": ""}, "address"),
    ({"reply_tokens": -1}, "reply_tokens"),
    ({"max_cost": 5}, "max_cost"),
    ({"concurrency": 0}, "concurrency"),
    ({"timeout": 0}, "timeout"),
    ({"max_cost": float("nan"), "price_reply": 1}, "max_cost"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"timeout": float("inf")}, "timeout"),
    ({"key_variable": "sk-secret"}, "key_variable"),
    ({"key_variable": "secret123"}, "key_variable"),
])
def test_settings_that_cannot_work_are_refused_without_showing_a_secret(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        Settings(**fields)
    assert "secret" not in str(error.value)


ADDRESSES = [
    ("https://host/v1", False),
    ("HTTP://LocalHost:8000/v1", True),
    ("http://127.0.0.1:8000/v1", True),
    ("http://127.8.9.1/v1", True),
    ("http://[::1]:8000/v1", True),
    ("http://0.0.0.0:8000/v1", True),
    ("http://127.0.0.1.example/v1", False),
    ("http://localhost.example/v1", False),
    ("http://10.0.0.1/v1", False),
]


@pytest.mark.parametrize(("address", "is_local"), ADDRESSES)
def test_an_address_is_understood_as_people_write_it(address, is_local, monkeypatch):
    monkeypatch.setenv("SAFEERASER_JUDGE_ADDRESS", f" {address}\n")
    monkeypatch.setenv("MY_KEY", "sk-secret")
    monkeypatch.setenv("SAFEERASER_JUDGE_KEY_VARIABLE", "MY_KEY ")
    settings = Settings.from_environment()
    assert settings.address == address
    assert settings.is_local == is_local
    if is_local or address.startswith("https"):
        assert settings.key() == "sk-secret"
    else:
        with pytest.raises(ValueError, match="unencrypted"):
            settings.key()


def test_the_tokens_of_a_reply_are_a_setting_of_local_judges_whatever_a_server_s_are(monkeypatch):
    monkeypatch.setenv("SAFEERASER_JUDGE_ADDRESS", "nowhere")
    assert LocalSettings.from_environment().reply_tokens == 0
    monkeypatch.setenv("SAFEERASER_JUDGE_REPLY_TOKENS", " 2000 ")
    assert LocalSettings.from_environment().reply_tokens == 2000
    for text in ("-1", "many", "1.5"):
        monkeypatch.setenv("SAFEERASER_JUDGE_REPLY_TOKENS", text)
        with pytest.raises(ValueError, match="SAFEERASER_JUDGE_REPLY_TOKENS cannot be used"):
            LocalSettings.from_environment()


def test_what_other_machines_are_told_has_no_key_in_it(monkeypatch):
    for name in ("OPENAI_BASE_URL", "SAFEERASER_JUDGE_ADDRESS", "SAFEERASER_JUDGE_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    told = {"SAFEERASER_JUDGE_ADDRESS": "https://host/v1",
            "SAFEERASER_JUDGE_KEY_VARIABLE": "MY_KEY"}
    names = ("MY_KEY", "OPENAI_API_KEY", "SAFEERASER_JUDGE_KEY")
    keys = dict.fromkeys(names, "sk-secret")
    for name, value in (told | keys).items():
        monkeypatch.setenv(name, value)
    assert Settings.handed_down() == told
    assert ray_engine._runtime_environment()["env_vars"].items() >= told.items()
    assert "sk-secret" not in str(ray_engine._runtime_environment())


def test_the_key_is_read_when_it_is_used_and_is_no_setting(monkeypatch):
    monkeypatch.setenv("MY_KEY", " sk-secret\n")
    settings = Settings(key_variable="MY_KEY")
    assert settings.key() == "sk-secret"
    assert "sk-secret" not in repr(settings)
    assert Settings(key_variable="").key() == ""
    with pytest.raises(ValueError, match=r"key in NOT_SET .*is missing"):
        Settings(key_variable="NOT_SET").key()


@pytest.mark.parametrize(("key", "address"), [
    ("sk-secret", "http://far.example/v1"), ("sk-secret", "https://host/sk-secret/v1"),
    ("sk-se\ncret", OPENAI), ("sk-se cret", OPENAI), ("sk-secrét", OPENAI)])
def test_a_key_that_must_not_be_sent_is_not_shown_either(key, address, monkeypatch):
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(ValueError, match="in MY_KEY") as error:
        Settings(address=address, key_variable="MY_KEY").key()
    assert "sk-se" not in str(error.value)


def budget(spent=(0, 0), **caps):
    return Budget(Settings(**caps), 60, SimpleNamespace(tokens=spent, add=lambda tokens: None))


def reserve(limit, prompt_bytes):
    async def most():
        async with limit.reserved(prompt_bytes) as found:
            return found
    return asyncio.run(most())


def test_a_request_sets_aside_what_it_may_cost_at_most():
    assert reserve(budget(), 1000) == (500, 60)


def test_the_server_s_own_count_replaces_the_guess():
    limit = budget()
    limit.pay(1000, (500, 60), Reply("", tokens=(250, 9)))
    limit.pay(1000, (500, 60), Reply("", tokens=(200, 9)))
    assert reserve(limit, 2000) == (500, 60)


@pytest.mark.parametrize(("caps", "fits"), [
    ({"max_tokens": 1560}, True), ({"max_tokens": 1559}, False), ({"max_tokens": 0}, True),
    ({"max_cost": 2.12, "price_prompt": 1000, "price_reply": 2000}, True),
    ({"max_cost": 2.11, "price_prompt": 1000, "price_reply": 2000}, False),
])
def test_a_request_that_may_pass_a_cap_is_not_sent(caps, fits):
    limit = budget((500, 500), **caps)
    if fits:
        reserve(limit, 1000)
    else:
        with pytest.raises(JudgeStopped, match="Every verdict so far is kept"):
            reserve(limit, 1000)


def test_a_request_waits_for_those_under_way_before_it_is_refused():
    limit, order = budget(max_tokens=600), []

    async def ask(name):
        async with limit.reserved(1000):
            order.append(f"{name} begins")
            await asyncio.sleep(0.02)
            order.append(f"{name} ends")

    async def both():
        await asyncio.gather(ask("first"), ask("second"))

    asyncio.run(both())
    assert order == ["first begins", "first ends", "second begins", "second ends"]
