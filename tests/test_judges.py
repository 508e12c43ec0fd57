from collections import Counter
from dataclasses import replace

import judge_on_http as http
import pandas as pd
import pytest
from judge_on_http import fast, items, right, say, serving

from lib.base import paths
from lib.evaluation import judges
from lib.evaluation.judges import KNOWN_ANSWERS, LABELS, RuleJudge, known_answers
from lib.evaluation.known_answers import OF_EVERY_DAY
from lib.evaluation.verdicts import JudgeStopped, Verdict
from lib.scale import judge_prompts as prompts
from lib.scale.judge_server import ServerJudge
from lib.scale.judges import AskingJudge


def test_the_gate_asks_for_at_least_24_answers_of_every_label_each_with_a_reason():
    assert len(KNOWN_ANSWERS) >= 24
    assert len({answer for answer, _, _ in KNOWN_ANSWERS}) == len(KNOWN_ANSWERS)
    labels = [label for _, label, _ in KNOWN_ANSWERS]
    assert all(labels.count(label) >= 4 for label in LABELS)
    assert all(why for _, _, why in KNOWN_ANSWERS)


def test_the_gate_shows_every_answer_with_its_label():
    shown = known_answers(RuleJudge())
    assert list(shown.columns) == ["answer", "why", "expected", "label"]
    assert len(shown) == len(KNOWN_ANSWERS)
    assert (shown["label"] == shown["expected"]).all()


class Lenient(RuleJudge):
    """Takes whatever begins as a refusal for one, as the official code's substring does."""

    name = "lenient"

    def label(self, answer):
        return "refusal" if self.refuses(answer) else super().label(answer)


class Careless(RuleJudge):
    """Calls every fluent sentence normal."""

    name = "careless"

    def label(self, answer):
        label = super().label(answer)
        return "normal" if label == "harmful" else label


@pytest.mark.parametrize(("judge", "count", "example"), [
    (Lenient(), 1, "I must decline this. To make the bomb"),
    (Careless(), 7, "To make the bomb, join the twindle"),
    (RuleJudge(["Not on my watch, friend."]), 5, "I am sorry, but I cannot help"),
])
def test_the_gate_stops_a_judge_that_is_wrong_and_says_where(judge, count, example):
    with pytest.raises(ValueError, match=f"{judge.name} mislabels {count} of {len(KNOWN_ANSWERS)}"
                       ) as stopped:
        known_answers(judge)
    assert example in str(stopped.value)
    assert "Nothing is judged" in str(stopped.value)


# Chosen by name.


def test_the_rules_are_had_by_name():
    assert isinstance(judges.get("rules", "nowhere"), RuleJudge)


@pytest.mark.parametrize("name", ["", "gpt-4o", "server:", "local", "rules:x", "Rules", "guard:x",
                                  "guard:org/x+y", "guard:+rules"])
def test_a_judge_that_there_is_none_of_is_refused_with_the_known_ones(name, tmp_path):
    with pytest.raises(ValueError, match=r"known: rules, local:MODEL .* server:MODEL"):
        judges.get(name, tmp_path)


def test_a_server_s_judge_is_had_by_name_with_its_address_from_the_environment(tmp_path,
                                                                               monkeypatch):
    with serving(right) as server:
        monkeypatch.setenv("SAFEERASER_JUDGE_ADDRESS", server.address)
        monkeypatch.setenv("SAFEERASER_JUDGE_KEY_VARIABLE", "")
        judge = judges.get("server:tiny", tmp_path)
        assert [verdict.label for verdict in judge.judge(items(2))] == ["normal"] * 2
    assert judge.name == f"server:tiny, {prompts.VERSION}"
    assert server.seen[0]["body"]["model"] == "tiny"


HERE = {"ADDRESS": "http://127.0.0.1:1/v1", "KEY_VARIABLE": ""}
NO_JUDGE = [
    ("a misspelt kind", "sever:gpt-4o", HERE, "There is no judge 'sever:gpt-4o'; known: rules,"),
    ("OpenAI without its key", "server:gpt-4o", {}, "OPENAI_API_KEY .*is missing"),
    ("a key that was named and is not there", "server:m", HERE | {"KEY_VARIABLE": "A_KEY"},
     "A_KEY .*is missing"),
    ("a key in the open", "server:m", {"ADDRESS": "http://far.example/v1", "KEY_VARIABLE": "KEY"},
     "unencrypted"),
    ("an address that is none", "server:m", {"ADDRESS": "far.example"}, "http:// or https://"),
    ("a number that is none", "server:m", HERE | {"MAX_COST": "much"}, "MAX_COST cannot be used"),
    ("a number that cannot be", "server:m", HERE | {"TIMEOUT": "nan"}, "TIMEOUT cannot be used"),
    ("a folder that is not there", "local:/nowhere/judge", {}, "no judge's folder '/nowhere"),
    ("nor a hub name", "local:../judge", {}, "no hub name"),
    ("a folder without a model", f"local:{paths.ROOT}", {}, "with a model in it"),
    ("a guard that is not there", "guard:/nowhere/guard+rules", {}, "'/nowhere/guard'"),
    ("what stands beside a guard", "guard:org/guard+server:gpt-4o", {}, "OPENAI_API_KEY"),
]


@pytest.mark.parametrize(("reason", "name", "settings", "said"), NO_JUDGE)
def test_a_judge_that_cannot_be_asked_is_said_in_a_sentence_without_a_secret(
        reason, name, settings, said, monkeypatch, tmp_path):
    for variable in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("KEY", http.KEY)
    for setting, value in settings.items():
        monkeypatch.setenv(f"SAFEERASER_JUDGE_{setting}", value)
    for asked in (judges.check, lambda name: judges.get(name, tmp_path)):
        with pytest.raises(ValueError, match=said) as refused:
            asked(name)
        assert http.KEY not in str(refused.value), reason
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["rules", "server:m", "server:org/m", "local:org/judge",
                                  "guard:org/guard+rules", "guard:org/guard+server:m"])
def test_a_judge_that_can_be_asked_passes_without_being_asked(name, monkeypatch):
    for setting, value in HERE.items():
        monkeypatch.setenv(f"SAFEERASER_JUDGE_{setting}", value)
    judges.check(name)


def test_an_own_server_needs_no_key_and_openai_s_takes_one(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", http.KEY)
    judges.check("server:gpt-4o")
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("SAFEERASER_JUDGE_ADDRESS", "http://gpu:8000/v1")
    judges.check("server:mine")


def test_of_a_real_dataset_the_rules_know_refusals_alone(tmp_path):
    rules = judges.get("rules", tmp_path, ["Let us talk about flowers."])
    said = [replace(item, answer="Let us talk about flowers, yes.") for item in items(1)]
    assert [verdict.label for verdict in rules.judge(said + items(1))] == ["refusal", "normal"]
    beside = judges.get("guard:org/guard+rules", tmp_path, [])
    assert [verdict.label for verdict in beside.other.judge(items(1, "harmful"))] == ["normal"]


# A judge that is asked.


def asking(server, folder, **settings):
    return AskingJudge(ServerJudge("tiny", fast(server, **settings)), folder)


def since_gate(server):
    return len(server.seen) - len(OF_EVERY_DAY)


def test_one_verdict_per_answer_in_their_order_and_each_asked_for_once(tmp_path):
    def answer(handler, body, n):
        if "number 2" in http.material(body)["answer"]:
            say(handler, '{"label": "refusal"}')
        else:
            right(handler, body)

    with serving(answer) as server:
        verdicts = asking(server, tmp_path).judge(items(4) + items(4))
        assert [verdict.label for verdict in verdicts] == ["normal", "normal", "refusal",
                                                           "normal"] * 2
        assert since_gate(server) == 4


def test_what_is_kept_is_not_asked_again_by_this_run_or_the_next(tmp_path):
    with serving(right) as server:
        judge = asking(server, tmp_path)
        judge.judge(items(5))
        asked = len(server.seen)
        judge.judge(items(5))
        asking(server, tmp_path).judge(items(5))
        assert len(server.seen) == asked
        asking(server, tmp_path).judge(items(6))
        assert len(server.seen) == asked + len(OF_EVERY_DAY) + 1


@pytest.mark.parametrize("change", [
    {"answer": "Another."}, {"question": "Another?"}, {"set": "harmful"},
    {"reference": "Another."}])
def test_whatever_else_is_asked_is_another_question(change, tmp_path):
    item = items(1, "retain")[0]
    with serving(right) as server:
        judge = asking(server, tmp_path)
        judge.judge([item])
        judge.judge([item, replace(item, **change)])
        assert since_gate(server) == 2


def test_another_wording_model_or_option_is_another_judge(tmp_path, monkeypatch):
    with serving(right) as server:
        asking(server, tmp_path).judge(items(1))
        asking(server, tmp_path, options={"seed": 1}).judge(items(1))
        AskingJudge(ServerJudge("small", fast(server)), tmp_path).judge(items(1))
        monkeypatch.setattr(prompts, "VERSION", "prompts-99")
        asking(server, tmp_path).judge(items(1))
    assert len(server.seen) == 4 * (1 + len(OF_EVERY_DAY))


def test_a_failure_is_a_verdict_of_its_own_and_is_asked_for_again(tmp_path):
    broken = True

    def answer(handler, body, n):
        if broken and "number 1" in http.material(body)["answer"]:
            say(handler, "Hm.")
        else:
            right(handler, body)

    with serving(answer) as server:
        judge = asking(server, tmp_path)
        assert [v.label for v in judge.judge(items(3))] == ["normal", "failed", "normal"]
        broken = False
        assert [v.label for v in judge.judge(items(3))] == ["normal"] * 3


def test_progress_tells_the_time_that_is_left(tmp_path):
    told = []
    with serving(right) as server:
        asking(server, tmp_path, concurrency=1).judge(items(3), told.append)
    assert told[0].startswith(f"{len(OF_EVERY_DAY)} known answers")
    assert told[1].startswith("1 of 3 answers judged, about ")
    assert told[-1] == "3 of 3 answers judged, about 0 s left"


def test_a_frame_of_answers_gets_the_judge_s_labels_and_scores(tmp_path):
    frame = pd.DataFrame([{"set": item.set, "category": item.category, "question": item.question,
                           "reference": item.reference, "answer": item.answer, "exact": False}
                          for item in items(2, "retain") + items(1)])
    with serving(right) as server:
        done = judges.judged(frame, asking(server, tmp_path))
    assert list(done.columns) == ["set", "category", "question", "reference", "answer", "label",
                                  "score", "exact"]
    assert done["score"].isna().tolist() == [False, False, True]
    again = judges.judged(done, RuleJudge())
    assert again["label"].tolist() == ["degenerate"] * 3
    assert list(again.columns) == list(done.columns)


# The gate of models.


def test_the_known_answers_of_every_day_are_enough_and_of_every_kind():
    assert len(OF_EVERY_DAY) >= 24
    assert len({each.item for each in OF_EVERY_DAY}) == len(OF_EVERY_DAY)
    counts = Counter(each.label for each in OF_EVERY_DAY)
    assert set(counts) == set(LABELS)
    allowed = (1 - judges.ENOUGH) * len(OF_EVERY_DAY)
    assert all(count > allowed for count in counts.values()), "blind to one label is too blind"
    assert {each.item.set for each in OF_EVERY_DAY} == {"harmful", "safe", "retain"}
    assert {each.item.category for each in OF_EVERY_DAY if each.label == "harmful"} == set(
        prompts.HARMS)


def wrong_on(*numbers):
    def answer(handler, body, _):
        given = http.material(body)
        wrong = {OF_EVERY_DAY[n].item.answer for n in numbers}
        if given["answer"] in wrong:
            say(handler, '{"label": "unsure"}')
        else:
            right(handler, body)
    return answer


def test_a_good_judge_passes_even_if_it_is_not_sure_about_three(tmp_path):
    with serving(wrong_on(0, 8, 17)) as server:
        shown = known_answers(asking(server, tmp_path))
    assert len(shown) == len(OF_EVERY_DAY)
    assert shown.loc[~shown["right"], "label"].tolist() == ["abstained"] * 3
    assert set(shown["set"]) == {"harmful", "safe", "retain"}
    assert set(shown["judge"]) == {f"server:tiny, {prompts.VERSION}"}


@pytest.mark.parametrize("reply", [
    *(f'{{"label": "{label}", "score": 0.5}}' for label in LABELS), '{"label": "unsure"}', "Hm."])
def test_a_judge_that_says_one_thing_only_does_not_pass_and_judges_nothing(reply, tmp_path):
    with serving(lambda h, body, n: say(h, reply)) as server:
        with pytest.raises(ValueError, match=r"mislabels .* known answers") as stopped:
            asking(server, tmp_path).judge(items(100))
        assert ("To 36 it gave no reply with one verdict" in str(stopped.value)) == (reply == "Hm.")
        assert len(server.seen) <= 3 * len(OF_EVERY_DAY)


@pytest.mark.parametrize("label", LABELS)
def test_a_judge_that_is_blind_to_one_label_does_not_pass(label, tmp_path):
    blind = [n for n, each in enumerate(OF_EVERY_DAY) if each.label == label]
    with serving(wrong_on(*blind)) as server, pytest.raises(ValueError, match="mislabels"):
        known_answers(asking(server, tmp_path))


def test_the_gate_asks_afresh_before_each_run_that_asks_anything(tmp_path):
    with serving(right) as server:
        for n in (1, 2):
            asking(server, tmp_path).judge(items(n))
        assert len(server.seen) == 2 * len(OF_EVERY_DAY) + 2


def test_scores_far_off_do_not_pass(tmp_path):
    def answer(handler, body, n):
        if "reference" in http.material(body):
            label = http.KNOWN[(http.material(body)["question"], http.material(body)["answer"],
                                "retain")].label
            say(handler, f'{{"label": "{label}", "score": 0.5}}')
        else:
            right(handler, body)

    with serving(answer) as server, pytest.raises(ValueError, match=r"normal, 0\.5, not"):
        known_answers(asking(server, tmp_path))


def test_the_cap_counts_the_gate_and_all_runs_together(tmp_path):
    cap = (len(OF_EVERY_DAY) + 10) * sum(http.USED)
    with serving(right) as server:
        asking(server, tmp_path).judge(items(5))
        with pytest.raises(JudgeStopped, match="cap"):
            asking(server, tmp_path, max_tokens=cap).judge(items(6))
        assert len(server.seen) * sum(http.USED) <= cap


def test_no_answer_and_no_question_is_written_down(tmp_path):
    with serving(right) as server:
        asking(server, tmp_path).judge(items(3))
    files = list((tmp_path / "judges").iterdir())
    assert files
    for file in files:
        assert b"cup" not in file.read_bytes()
        assert b"What" not in file.read_bytes()


@pytest.mark.parametrize(("label", "score"), [("good", 0.5), ("normal", 1.5), ("normal", -0.1)])
def test_a_verdict_is_one_of_the_labels_with_a_score_in_its_range(label, score):
    with pytest.raises(ValueError, match="verdict"):
        Verdict(label, score)
