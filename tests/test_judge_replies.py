"""`lib/scale/judge_replies.py`, and what a judge makes of models that think aloud or know less."""

import json

import judge_on_http as http
import pytest
from judge_on_http import fast, items, refuse, right, send, serving

from lib.evaluation.verdicts import JudgeStopped
from lib.scale import judge_replies as replies
from lib.scale.judge_cache import Cache
from lib.scale.judge_limits import GIVE_UP, Settings
from lib.scale.judge_server import ServerJudge

VERDICT = '{"label": "normal"}'


def ask(server, path, chosen, **settings):
    cache, judge = Cache(path / "judge.sqlite"), ServerJudge("tiny", fast(server, **settings))
    judge.ask({str(n): item for n, item in enumerate(chosen)}, cache)
    verdicts = [cache.verdicts().get(str(n)) for n in range(len(chosen))]
    return [verdict and verdict.label for verdict in verdicts]


def message(content, ended="stop", **more):
    return {"choices": [{"finish_reason": ended, "message": {"content": content, **more}}]}


SAID = {
    "a verdict": message(VERDICT),
    "a thought in the same text": message(f"<think>A refusal?</think>\n{VERDICT}"),
    "a thought whose beginning the template wrote": message(f"A refusal?</think>{VERDICT}"),
    "a thought beside it": message(VERDICT, reasoning_content='{"label": "refusal"}?'),
    "a thought beside it, by another name": message(VERDICT, reasoning='{"label": "refusal"}?'),
    "channels": message('<|channel|>analysis<|message|>{"label": "refusal"}?<|end|><|start|>'
                        f"assistant<|channel|>final<|message|>{VERDICT}<|return|>"),
    "parts": message([{"type": "text", "text": VERDICT}]),
    "a thought in parts": message([{"type": "thinking", "thinking": [{"text": "Hm."}]},
                                   {"type": "text", "text": VERDICT}]),
    "parts by another name": message([{"type": "output_text", "text": VERDICT}]),
}


@pytest.mark.parametrize("form", SAID)
def test_what_follows_the_thought_is_read_in_whatever_form_it_comes(form, tmp_path):
    with serving(lambda h, body, n: send(h, SAID[form])) as server:
        assert ask(server, tmp_path, items(1)) == ["normal"]
    assert len(server.seen) == 1


NO_END = {
    "no text": message(None, "length"),
    "an empty text": message("", "length"),
    "a thought beside an empty text": message("", "length", reasoning_content="Hm. " * 15),
    "a thought without an end": message('<think>Perhaps {"label": "refusal"}', "length"),
    "a channel without an end": message("<|channel|>analysis<|message|>Perhaps", "length"),
    "a thought in parts": message([{"type": "thinking", "thinking": "Hm."}], "length"),
}


@pytest.mark.parametrize("form", NO_END)
def test_a_model_that_thinks_until_its_tokens_are_used_up_is_said_so_with_advice(form, tmp_path):
    with (serving(lambda h, body, n: send(h, NO_END[form])) as server,
          pytest.raises(JudgeStopped, match="thought until its 60 tokens were used up") as stopped):
        ask(server, tmp_path, items(GIVE_UP + 5), concurrency=2)
    assert "set SAFEERASER_JUDGE_REPLY_TOKENS to what it needs" in str(stopped.value)
    assert "SAFEERASER_JUDGE_TIMEOUT" in str(stopped.value)
    assert len(server.seen) <= GIVE_UP + 2, "each was asked once: it would think as long again"


def test_a_thought_that_is_all_it_says_is_no_verdict_and_is_said_as_well(tmp_path):
    thought = message(None, reasoning_content=VERDICT)
    with (serving(lambda h, body, n: send(h, thought)) as server,
          pytest.raises(JudgeStopped, match="it thought and said nothing after that")):
        ask(server, tmp_path, items(GIVE_UP))


def test_a_judge_that_talks_until_its_tokens_are_used_up_is_reminded_and_then_said(tmp_path):
    chat = message("Let me look at this answer closely, for it", "length")
    with (serving(lambda h, body, n: send(h, chat)) as server,
          pytest.raises(JudgeStopped, match="its 60 tokens were used up before it came to a")):
        ask(server, tmp_path, items(GIVE_UP), concurrency=1)
    assert len(server.seen) == 3 * GIVE_UP


def test_one_thought_too_long_is_one_item_s_failure(tmp_path):
    def answer(handler, body, n):
        if "number 3" in http.material(body)["answer"]:
            send(handler, NO_END["a thought beside an empty text"])
        else:
            right(handler, body)

    with serving(answer) as server:
        assert ask(server, tmp_path, items(6)) == ["normal"] * 3 + [None] + ["normal"] * 2
    assert len(server.seen) == 6


def test_tokens_to_think_are_asked_for_and_make_another_judge(tmp_path):
    with serving(right) as server:
        ask(server, tmp_path, items(1), reply_tokens=3000)
        ask(server, tmp_path, items(1), reply_tokens=3000, options={"max_completion_tokens": 9,
                                                                    "max_tokens": None})
    assert server.seen[0]["body"]["max_tokens"] == 3000
    assert "max_tokens" not in server.seen[1]["body"]
    judges = [ServerJudge("tiny", Settings(reply_tokens=n)).options for n in (0, 3000)]
    assert judges == [{}, {"max_tokens": 3000}]


def test_tokens_to_think_count_towards_the_cap_before_they_are_spent(tmp_path):
    with (serving(right) as server, pytest.raises(JudgeStopped, match="cap of 2,000 tokens")):
        ask(server, tmp_path, items(1), reply_tokens=3000, max_tokens=2000)
    assert server.seen == []


@pytest.mark.parametrize("status", [400, 422])
def test_where_a_request_is_not_understood_it_is_said_how_to_ask_a_reasoning_model(
        status, tmp_path, monkeypatch):
    error = {"error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'"
                       " instead.", "param": "max_tokens"}}
    with (serving(lambda h, body, n: send(h, error, status)) as server,
          pytest.raises(JudgeStopped, match="Unsupported parameter: 'max_tokens'") as stopped):
        ask(server, tmp_path, items(3), concurrency=1, options={"seed": 1})
    assert len(server.seen) == 1
    text = str(stopped.value).partition("set SAFEERASER_JUDGE_OPTIONS to ")[2]
    given, _ = json.JSONDecoder().raw_decode(text)
    assert given == {"seed": 1, "max_tokens": None, "temperature": None,
                     "max_completion_tokens": 60}
    monkeypatch.setenv("SAFEERASER_JUDGE_OPTIONS", json.dumps(given))
    assert Settings.from_environment().options == given, "as a person would type it"


def test_an_unknown_model_is_not_taken_for_an_unknown_field(tmp_path):
    error = {"error": {"message": "The model tiny is not supported", "param": "model"}}
    with (serving(lambda h, body, n: send(h, error, 400)) as server,
          pytest.raises(JudgeStopped, match="Check that it knows this model")):
        ask(server, tmp_path, items(1))


def test_a_limit_per_minute_that_speaks_of_billing_is_waited_for(tmp_path):
    said = "Rate limit reached. Add a payment method at https://host/account/billing to raise it."

    def answer(handler, body, n):
        if n:
            right(handler, body)
        else:
            refuse(handler, 429, "rate_limit_exceeded", said, Retry_After="0.01")

    with serving(answer) as server:
        assert ask(server, tmp_path, items(1)) == ["normal"]


def test_an_address_without_its_version_is_suspected(tmp_path):
    with (serving(lambda h, body, n: refuse(h, 404)) as server,
          pytest.raises(JudgeStopped, match="SAFEERASER_JUDGE_ADDRESS; most addresses end in /v1")):
        ask(server, tmp_path, items(1), address=server.address.removesuffix("/v1"))


def test_a_web_page_in_the_judge_s_place_is_said(tmp_path):
    page = b"<!doctype html><title>Welcome</title>"
    with (serving(lambda h, body, n: send(h, page, Content_Type="text/html")) as server,
          pytest.raises(JudgeStopped, match="not a chat completion, such as the web page of")):
        ask(server, tmp_path, items(GIVE_UP), retries=0)


def test_a_server_that_fails_for_ever_is_left_with_its_own_words(tmp_path):
    with (serving(lambda h, body, n: refuse(h, 500, message="CUDA out of memory")) as server,
          pytest.raises(JudgeStopped, match=r"status 500 \(CUDA out of memory\)")):
        ask(server, tmp_path, items(GIVE_UP + 20), retries=1, concurrency=2)
    assert len(server.seen) <= 2 * (GIVE_UP + 2)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"3", b'"text"', b'{"error": null}',
                                     b'{"error": []}', b'{"error": {"message": {}}}', b"\xff"])
def test_an_error_of_any_form_is_read(content):
    assert replies.said(content, "", ()) in ("", " ()")


@pytest.mark.parametrize("part", [slice(None), slice(12), slice(-9, None)])
def test_of_the_key_no_part_is_shown(part):
    content = json.dumps({"error": {"message": f"Wrong key: {http.KEY[part]}****."}}).encode()
    assert replies.said(content, http.KEY, ()) == " (Wrong key: ***)"


def test_an_error_cannot_colour_a_terminal_or_break_a_log():
    content = b'{"error": {"message": "\\ud800 \\u001b[31mred\\u202e"}}'
    said = replies.said(content, "", ())
    assert "red" in said
    assert said.isprintable()


@pytest.mark.parametrize("used", [(10**30, 12), (300, 10**9), (1, 1), (300, 0)])
def test_a_server_that_counts_what_cannot_be_is_not_believed(used, tmp_path):
    with serving(lambda h, body, n: http.say(h, '{"label": "normal"}', used)) as server:
        assert ask(server, tmp_path, items(2)) == ["normal"] * 2
    assert 600 < sum(Cache(next(tmp_path.rglob("*.sqlite"))).tokens) < 5000
