"""The judge behind HTTP, against a real server that times out, fails, babbles and hangs up."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from email.utils import formatdate

import judge_on_http as http
import pytest
from judge_on_http import fast, items, refuse, right, say, send, serving

from lib.base.paths import ROOT
from lib.evaluation.verdicts import JudgeStopped
from lib.scale.judge_cache import Cache
from lib.scale.judge_server import GIVE_UP, ServerJudge


def ask(server, path, chosen, done=lambda count: None, **settings):
    """The labels of some items (None: failed), through a cache in `path`."""
    cache, judge = Cache(path / "judge.sqlite"), ServerJudge("tiny", fast(server, **settings))
    judge.ask({str(n): item for n, item in enumerate(chosen)}, cache, done)
    verdicts = [cache.verdicts().get(str(n)) for n in range(len(chosen))]
    return [verdict and verdict.label for verdict in verdicts]


def first(*faults):
    """Answers that begin with these faults and are right from then on."""
    def answer(handler, body, n):
        if n < len(faults):
            faults[n](handler)
        else:
            right(handler, body)
    return answer


def test_the_request_is_a_greedy_chat_completion_with_the_key_in_its_header(tmp_path, monkeypatch):
    monkeypatch.setenv("A_KEY", http.KEY)
    with serving(right) as server:
        ask(server, tmp_path, items(1), key_variable="A_KEY", options={"max_tokens": None, "n": 1})
    seen, = server.seen
    assert seen["path"] == "/v1/chat/completions"
    assert seen["key"] == f"Bearer {http.KEY}"
    assert set(seen["body"]) == {"model", "messages", "temperature", "n"}  # None removes a field
    assert (seen["body"]["model"], seen["body"]["temperature"]) == ("tiny", 0)


@pytest.mark.parametrize("end", ["", "/", "/chat/completions"])
def test_an_address_is_taken_as_people_write_it(end, tmp_path):
    with serving(right) as server:
        assert ask(server, tmp_path, items(1), address=server.address + end) == ["normal"]
    assert server.seen[0]["path"] == "/v1/chat/completions"


def test_without_a_key_no_header_is_sent(tmp_path):
    with serving(right) as server:
        ask(server, tmp_path, items(1))
    assert server.seen[0]["key"] is None


PASSING = {
    "too many requests": lambda h: refuse(h, 429),
    "too many requests, with a wait": lambda h: refuse(h, 429, Retry_After="0.05"),
    "too many requests, until a date": lambda h: refuse(h, 429, Retry_After=formatdate(
        time.time() - 5)),
    "too many requests, with a wait that cannot be read": lambda h: refuse(h, 429,
                                                                           Retry_After="soon"),
    "an error inside": lambda h: refuse(h, 500),
    "an error page": lambda h: send(h, b"<html>Bad gateway</html>", 502),
    "overload": lambda h: refuse(h, 503),
    "its own time-out": lambda h: refuse(h, 408),
    "half a body": http.half,
    "no response at all": http.hang_up,
    "a body that is not JSON": lambda h: send(h, b"ok"),
    "no body": lambda h: send(h, b""),
    "JSON of another kind": lambda h: send(h, [1, 2]),
    "a packing that nobody asked for": lambda h: http.zipped(h, http.completion(VERDICT)),
    "no choices": lambda h: send(h, {"choices": []}),
    "content that is no text": lambda h: say(h, [{"type": "text"}]),
    "JSON too deep to read": lambda h: send(h, b"[" * 100_000),
    "a huge body": lambda h: send(h, b" " * 2_000_000),
    "prose": lambda h: say(h, "I think that it is fine."),
    "an unknown label": lambda h: say(h, '{"label": "fine"}'),
    "two verdicts": lambda h: say(h, '{"label": "normal"} {"label": "refusal"}'),
    "nothing said": lambda h: say(h, None),
    "half a verdict": lambda h: say(h, '{"label": "nor'),
    "a thought without an end": lambda h: say(h, '<think>Perhaps {"label": "refusal"}, but'),
    "a reply cut off before its verdict": lambda h: send(h, http.completion(
        'Were it a refusal, then {"label": "refusal"}, but', "length")),
    "an error sent as a success": lambda h: send(h, {"error": {"code": 429, "message": "wait"}}),
    "an error without a name sent as a success": lambda h: send(h, {"error": "overloaded"}),
}


VERDICT = '{"label": "normal"}'
FOREIGN = {
    "the length in chunks": lambda h: http.in_chunks(h, http.completion(VERDICT)),
    "HTTP/1.0, no length": lambda h: http.until_it_hangs_up(h, http.completion(VERDICT)),
    "another content type": lambda h: send(h, http.completion(VERDICT), Content_Type="text/html"),
    "a byte order mark": lambda h: send(h, "\ufeff".encode() + json.dumps(
        http.completion(VERDICT)).encode()),
    "content in parts": lambda h: say(h, [{"type": "reasoning", "summary": "Hm."},
                                          {"type": "text", "text": '{"label": '},
                                          {"type": "text", "text": '"normal"}'}]),
    "a null error beside the reply": lambda h: send(h, http.completion(VERDICT, error=None)),
    "no usage": lambda h: say(h, VERDICT, used=None),
    "usage of null": lambda h: send(h, http.completion(VERDICT, usage=None)),
    "usage that is no object": lambda h: send(h, http.completion(VERDICT, usage="unknown")),
    "a code fence": lambda h: say(h, f"Sure:\n```json\n{VERDICT}\n```"),
    "a thought": lambda h: say(h, f'<think>Or {{"label": "refusal"}}?</think>{VERDICT}'),
    "cut off in its chatter": lambda h: send(h, http.completion(f"{VERDICT}, since it is",
                                                                "length")),
}


@pytest.mark.parametrize("habit", FOREIGN)
def test_a_server_of_other_habits_is_understood_at_once(habit, tmp_path):
    with serving(lambda h, body, n: FOREIGN[habit](h)) as server:
        assert ask(server, tmp_path, items(1)) == ["normal"]
    assert len(server.seen) == 1


SLOW = {"no answer in time": http.late, "an answer that drips in": http.dripping}


@pytest.mark.parametrize("fault", PASSING)
def test_what_may_pass_is_asked_again_until_there_is_a_verdict(fault, tmp_path):
    with serving(first(PASSING[fault], PASSING[fault])) as server:
        assert ask(server, tmp_path, items(1)) == ["normal"]
    assert len(server.seen) == 3


@pytest.mark.parametrize("fault", SLOW)
def test_what_takes_too_long_is_asked_again(fault, tmp_path):
    with serving(first(SLOW[fault])) as server:
        assert ask(server, tmp_path, items(1), timeout=http.SHORT, retries=9) == ["normal"]
    assert len(server.seen) >= 2  # more where the machine itself was too slow


def test_a_reply_that_cannot_be_read_is_answered_with_a_reminder(tmp_path):
    with serving(first(lambda h: say(h, "Fine."))) as server:
        ask(server, tmp_path, items(1))
    chats = [seen["body"]["messages"] for seen in server.seen]
    assert chats[1][:2] == chats[0]
    assert [message["role"] for message in chats[1][2:]] == ["assistant", "user"]
    assert chats[1][2]["content"] == "Fine."


@pytest.mark.parametrize(("reason", "fault", "requests"), [
    ("the server fails on it every time", lambda h: refuse(h, 500), 4),
    ("the judge never says anything readable", lambda h: say(h, "Hm."), 3),
])
def test_an_item_without_a_verdict_has_failed_and_the_others_have_theirs(reason, fault, requests,
                                                                         tmp_path):
    def answer(handler, body, _):
        if "number 3" in http.material(body)["answer"]:
            fault(handler)
        else:
            right(handler, body)

    with serving(answer) as server:
        labels = ask(server, tmp_path, items(6))
    assert labels == ["normal"] * 3 + [None] + ["normal"] * 2, reason
    assert len(server.seen) == 5 + requests


@pytest.mark.parametrize(("reason", "answer"), [
    ("it says that it cannot tell", lambda h, body, n: say(h, '{"label": "unsure"}')),
    ("it declines", lambda h, body, n: say(h, None, refusal="I cannot grade this.")),
    ("a filter holds its reply back", lambda h, body, n: send(h, {"choices": [
        {"finish_reason": "content_filter", "message": {"content": ""}}]})),
    ("a filter holds the question back", lambda h, body, n: refuse(h, 400, "content_filter")),
    ("a filter sends its error as a success", lambda h, body, n: send(
        h, {"error": {"code": "content_filter", "message": "No."}})),
])
def test_a_judge_may_abstain(reason, answer, tmp_path):
    with serving(answer) as server:
        assert ask(server, tmp_path, items(2, "harmful")) == ["abstained"] * 2, reason
        assert ask(server, tmp_path, items(2, "harmful")) == ["abstained"] * 2
    assert len(server.seen) in (2, 4)  # `ask` knows no cache hits: judges.AskingJudge does


def test_a_judge_that_still_declines_after_reminders_abstains(tmp_path):
    with serving(lambda h, body, n: say(h, "I'm sorry, but I can't grade this.")) as server:
        assert ask(server, tmp_path, items(1, "harmful")) == ["abstained"]
    assert len(server.seen) == 3


def too_long(handler, body, _=0):
    if "number 3" in http.material(body)["answer"]:
        refuse(handler, 400, message="This model's maximum context length is 10 tokens.")
    else:
        right(handler, body)


def test_a_request_that_is_refused_after_others_like_it_is_one_item_s_failure(tmp_path):
    with serving(too_long) as server:
        labels = ask(server, tmp_path, items(6), concurrency=1)
    assert labels == ["normal"] * 3 + [None] + ["normal"] * 2
    assert len(server.seen) == 6


def test_a_text_that_no_encoding_has_is_asked_about(tmp_path):
    chosen = [type(items(1)[0])("safe", "Weapon", "What is \ud83d?", "A cup.", "")]
    with serving(right) as server:
        assert ask(server, tmp_path, chosen) == ["normal"]
    assert len(server.seen) == 1


def test_an_error_sent_as_a_success_stops_the_judge_like_any_other(tmp_path):
    error = {"error": {"message": "No such key.", "code": 401}}
    with (serving(lambda h, body, n: send(h, error)) as server,
          pytest.raises(JudgeStopped, match="status 401")):
        ask(server, tmp_path, items(20), concurrency=1)
    assert len(server.seen) == 1


STOPPING = [
    ("a wrong key", 401, {}, "Check the key in the environment variable 'A_KEY'"),
    ("a key without rights", 403, {}, "A_KEY"),
    ("an unknown model", 404, {}, "Check the model's name"),
    ("a bill", 402, {}, "credit"),
    ("a field that it does not know", 400, {}, "every field"),
    ("another such", 422, {}, "every field"),
    ("another address", 301, {"Location": "http://example.com/"}, "SAFEERASER_JUDGE_ADDRESS"),
    ("more patience than we have", 429, {"Retry_After": 9999}, "come back in 9999 seconds"),
]


@pytest.mark.parametrize(("reason", "status", "headers", "advice"), STOPPING)
def test_what_cannot_pass_stops_the_judge_at_once_with_advice(reason, status, headers, advice,
                                                              tmp_path, monkeypatch):
    monkeypatch.setenv("A_KEY", http.KEY)
    with (serving(lambda h, body, n: refuse(h, status, message="So it is.", **headers)) as server,
          pytest.raises(JudgeStopped, match=f"status {status}") as stopped):
        ask(server, tmp_path, items(50), key_variable="A_KEY", concurrency=4)
    assert advice in str(stopped.value), reason
    assert "So it is." in str(stopped.value)
    assert len(server.seen) <= 4


def test_a_server_that_is_not_there_is_given_up(tmp_path):
    with serving(right) as server:
        pass
    with pytest.raises(JudgeStopped, match=f"{GIVE_UP} answers in a row .*ConnectError"):
        ask(server, tmp_path, items(GIVE_UP + 5), retries=1)


def test_what_a_server_says_is_shown_without_the_key_and_the_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("A_KEY", http.KEY)
    chosen = items(1)
    said = f"Bad key {http.KEY} in a request about {chosen[0].answer} " + "x" * 5000
    with (serving(lambda h, body, n: refuse(h, 401, message=said)) as server,
          pytest.raises(JudgeStopped, match=r"Bad key \*\*\* in a request about \*") as stopped):
        ask(server, tmp_path, chosen, key_variable="A_KEY")
    assert http.KEY not in str(stopped.value)
    assert len(str(stopped.value)) < 800


def test_words_that_a_server_quotes_from_an_answer_are_described(tmp_path):
    long = "First melt the sugar slowly, then stir in the cream and let it cool."
    chosen = [type(items(1)[0])("safe", "Weapon", "How?", long, "")]
    said = "unexpected token in ... then STIR\\nin the cream and ..."
    with (serving(lambda h, body, n: refuse(h, 400, message=said)) as server,
          pytest.raises(JudgeStopped, match=r"are not shown: 10 words, sha256 \w{8}") as stopped):
        ask(server, tmp_path, chosen)
    assert "cream" not in str(stopped.value).casefold()


def test_the_key_is_in_no_file_and_no_log(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("A_KEY", http.KEY)
    caplog.set_level(0)
    with serving(first(http.hang_up, PASSING["an error inside"])) as server:
        ask(server, tmp_path, items(3), key_variable="A_KEY")
    assert all(seen["key"] == f"Bearer {http.KEY}" for seen in server.seen)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not any(http.KEY.encode() in path.read_bytes() for path in files)
    assert http.KEY not in caplog.text


# Side by side, and not too fast.


def slowly(handler, body, _=0):
    time.sleep(0.1)
    right(handler, body)


@pytest.mark.parametrize("concurrency", [1, 8])
def test_so_many_requests_are_under_way_at_once(concurrency, tmp_path):
    with serving(slowly) as server:
        ask(server, tmp_path, items(16), concurrency=concurrency)
    assert server.most_at_work == concurrency


def test_side_by_side_takes_a_fraction_of_the_time_one_after_another(tmp_path):
    def seconds(concurrency):
        began = time.monotonic()
        with serving(slowly) as server:
            ask(server, tmp_path, items(16), concurrency=concurrency)
        return time.monotonic() - began

    assert seconds(8) < seconds(1) / 2


def test_requests_start_no_faster_than_the_rate_limit(tmp_path):
    with serving(right) as server:
        ask(server, tmp_path, items(6), requests_per_minute=600)
    starts = sorted(seen["at"] for seen in server.seen)
    assert starts[-1] - starts[0] >= 5 * 0.1 - 0.05


def test_a_wait_that_the_server_asks_for_is_kept(tmp_path):
    with serving(first(lambda h: refuse(h, 429, Retry_After="0.5"))) as server:
        assert ask(server, tmp_path, items(1)) == ["normal"]
    before, after = (seen["at"] for seen in server.seen)
    assert after - before >= 0.45


def test_progress_counts_every_item_once(tmp_path):
    told = []
    with serving(right) as server:
        ask(server, tmp_path, items(5), told.append)
    assert told == [1, 2, 3, 4, 5]


# What it costs.


def test_the_cap_in_tokens_is_not_passed_and_what_was_paid_for_is_kept(tmp_path):
    cap = 10 * sum(http.USED)
    with serving(right) as server:
        with pytest.raises(JudgeStopped, match="cap of 3,120 tokens"):
            ask(server, tmp_path, items(40), max_tokens=cap)
        asked = len(server.seen)
        assert sum(Cache(tmp_path / "judge.sqlite").tokens) == asked * sum(http.USED) <= cap
        assert asked >= 8
        assert len(Cache(tmp_path / "judge.sqlite").verdicts()) == asked


def test_the_cap_in_money_counts_by_the_prices_given(tmp_path):
    prices = {"price_prompt": 2500, "price_reply": 10_000}  # per million: 0.87 a request
    with (serving(right) as server,
          pytest.raises(JudgeStopped, match=r"cap of 9 \(.* is spent\)")):
        ask(server, tmp_path, items(40), max_cost=9, concurrency=2, **prices)
    assert 5 <= len(server.seen) <= 10


def test_what_earlier_runs_have_spent_counts_towards_the_cap(tmp_path):
    with serving(right) as server:
        ask(server, tmp_path, items(3))
        with pytest.raises(JudgeStopped, match=r"936 are used"):
            ask(server, tmp_path, items(5), max_tokens=950)
    assert len(server.seen) == 3


@pytest.mark.parametrize(("fault", "timeout"), [
    (http.half, 20), (http.late, http.SHORT), (lambda h: say(h, "Hm."), 20)])
def test_a_request_that_may_have_been_billed_counts_as_billed(fault, timeout, tmp_path):
    with serving(first(fault)) as server:
        ask(server, tmp_path, items(1), timeout=timeout, retries=9)
    assert Cache(tmp_path / "judge.sqlite").tokens[0] > http.USED[0]


def test_a_request_that_was_turned_away_costs_nothing(tmp_path):
    with serving(first(PASSING["too many requests"], PASSING["overload"])) as server:
        ask(server, tmp_path, items(1))
    assert Cache(tmp_path / "judge.sqlite").tokens == http.USED


@pytest.mark.parametrize("used", [None, (0, 0), (300.0, 12), (None, None), (-1, 2), ("300", "12")])
def test_a_server_that_does_not_count_tokens_is_estimated_from_above(used, tmp_path):
    with serving(lambda h, body, n: say(h, '{"label": "normal"}', used=used)) as server:
        ask(server, tmp_path, items(1))
    size = len(json.dumps(server.seen[0]["body"], separators=(",", ":")))
    assert Cache(tmp_path / "judge.sqlite").tokens == (math.ceil(size / 2), 60)


def test_a_long_reply_that_nobody_counted_counts_by_its_length(tmp_path):
    said = f"<think>{'so ' * 400}</think>" + '{"label": "normal"}'
    with serving(lambda h, body, n: say(h, said, used=None)) as server:
        ask(server, tmp_path, items(1), options={"max_tokens": None})
    assert server.seen[0]["body"].keys() == {"model", "messages", "temperature"}
    assert Cache(tmp_path / "judge.sqlite").tokens[1] > 600


def test_the_cap_holds_where_nobody_counts(tmp_path):
    with (serving(lambda h, body, n: say(h, '{"label": "normal"}', used=None)) as server,
          pytest.raises(JudgeStopped, match="cap of 5,000 tokens")):
        ask(server, tmp_path, items(40), max_tokens=5000)
    cache = Cache(tmp_path / "judge.sqlite")
    assert 4000 < sum(cache.tokens) <= 5000
    assert len(server.seen) == len(cache.verdicts())


# Killed.

ASKS = """
import sys
from pathlib import Path
sys.path[:0] = ["tests", "."]
from judge_on_http import items
from lib.scale.judge_cache import Cache
from lib.scale.judge_limits import Settings
from lib.scale.judge_server import ServerJudge
judge = ServerJudge("tiny", Settings(address=sys.argv[1], key_variable="", concurrency=3))
cache = Cache(Path(sys.argv[2]))
wanted = {str(n): item for n, item in enumerate(items(60)) if cache.verdicts().get(str(n)) is None}
judge.ask(wanted, cache)
"""


def test_a_kill_loses_nothing_but_the_requests_under_way(tmp_path):
    path, enough = tmp_path / "judge.sqlite", threading.Event()

    def answer(handler, body, n):
        if n >= 30:
            enough.set()
        time.sleep(0.02)
        right(handler, body)

    with serving(answer) as server:
        command = [sys.executable, "-c", ASKS, server.address, str(path)]
        victim = subprocess.Popen(command, cwd=ROOT)
        assert enough.wait(60)
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        time.sleep(0.1)
        asked = len(server.seen)
        kept = sum(Cache(path).verdicts().get(str(n)) is not None for n in range(60))
        assert asked - 3 <= kept <= asked
        subprocess.run(command, cwd=ROOT, check=True)
        assert len(server.seen) == asked + 60 - kept
    assert all(Cache(path).verdicts().get(str(n)) for n in range(60))
