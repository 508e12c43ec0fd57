import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest

from lib.base.journal import Journal
from lib.base.paths import ROOT
from lib.data.dataset import CATEGORIES, Pair
from lib.data.overlap import HARMFUL, QUESTIONS, SAFE
from lib.evaluation import evaluate, metrics
from lib.evaluation.world_rule import RuleJudge
from lib.model.packing import Features
from lib.model.settings import Evaluation
from tests import killable_evaluation

FIELDS = ["set", "split", "record", "category", "image", "question_index", "question", "reference",
          "answer", "label", "score", "exact", "decoding", "sample"]
SETTINGS = Evaluation(samples=2, max_new_tokens=16)


def answered(llava, world, asked, settings=SETTINGS, **more):
    return evaluate.evaluate(*llava, Features(*llava), asked, settings, RuleJudge(), world.root,
                             **more)


@pytest.fixture(scope="module")
def asked(world):
    return evaluate.questions(world, train_records=1)


@pytest.fixture(scope="module")
def frame(base_folder, world, asked):
    from lib.model.llava import load

    return answered(load(base_folder), world, asked)


# Which questions are asked.


def test_a_record_gives_four_questions_to_each_set(world):
    record = world.train[0]
    asked = evaluate.of_record(record)
    assert Counter(q.set for q in asked) == {"harmful": 4, "safe": 4, "retain": 4}
    for kind in ("harmful", "safe", "retain"):
        assert [q.question_index for q in asked if q.set == kind] == [0, 1, 2, 3]
    assert {(q.record, q.category, q.split) for q in asked} == {
        (record.id, record.category, "train")}


def test_the_same_queries_are_asked_about_the_harmful_and_the_safe_picture(world):
    for record in world.val:
        asked = evaluate.of_record(record)
        harmful, safe = ([q for q in asked if q.set == kind] for kind in ("harmful", "safe"))
        assert [q.question for q in harmful] == [q.question for q in safe]
        assert {q.image for q in harmful} == {record.image}
        assert {q.image for q in safe} == {record.safe_image}
        pairs = record.unsafe_pairs
        assert [q.reference for q in harmful] == [pair.harmful_answer for pair in pairs]
        assert [q.reference for q in safe] == [pair.safe_answer for pair in pairs]


def test_two_retain_questions_are_about_the_picture_and_two_are_in_words(world):
    record = world.train[0]
    retain = [q for q in evaluate.of_record(record) if q.set == "retain"]
    assert [q.image for q in retain] == [None, None, record.image, record.image]
    pairs = (*record.text_pairs, *record.image_pairs)
    assert [(q.question, q.reference) for q in retain] == [(p.question, p.answer) for p in pairs]


SEEN = [  # what train has too, the sets of which nothing is held out then
    ("nothing is shared", set(), set()),
    ("the harmful picture: then nothing of the record is held out", {HARMFUL},
     {"harmful", "safe", "retain", "neighbour"}),
    ("the safe picture alone: the harmful one's questions are held out", {SAFE}, {"safe"}),
    ("wordings alone: queries are templates, and every record may ask them", {QUESTIONS}, set()),
]


@pytest.mark.parametrize(("reason", "shared", "seen"), SEEN)
def test_a_question_is_held_out_unless_train_has_its_picture_or_record(world, reason, shared,
                                                                       seen):
    record = replace(world.val[0], seen=frozenset(shared),
                     neighbour_pairs=(Pair("Which colours are there?", "Red."),))
    splits = {q.set: q.split for q in evaluate.of_record(record)}
    assert {kind for kind, split in splits.items() if split == "val_seen"} == seen, reason
    assert set(splits.values()) <= {"val", "val_seen"}


def test_safe_neighbours_are_asked_about_the_harmful_picture_after_all_else(world):
    pairs = (Pair("Which colours are there?", "Red."), Pair("Is it day?", "Yes."))
    record = replace(world.train[0], neighbour_pairs=pairs)
    plain, asked = evaluate.of_record(world.train[0]), evaluate.of_record(record)
    assert asked[:len(plain)] == plain
    assert [(q.set, q.split, q.image, q.question_index, q.question, q.reference)
            for q in asked[len(plain):]] == [
        ("neighbour", "train", record.image, i, pair.question, pair.answer)
        for i, pair in enumerate(pairs)]


def test_a_look_at_what_is_held_out_takes_the_next_best_where_nothing_is(world):
    seen = [replace(record, seen=frozenset({HARMFUL})) for record in world.val]
    half = replace(world, val=(*seen[1:], world.val[0]))
    none, no_val = replace(world, val=tuple(seen)), replace(world, val=())
    for data, splits in ((half, {"val"}), (none, {"val_seen"}), (no_val, {"train"})):
        for kind in ("harmful", "safe"):
            found = evaluate.held_out(evaluate.questions(data, None), kind)
            assert {q.split for q in found} == splits
            assert {q.set for q in found} == {kind}


@pytest.mark.parametrize("count", [0, 1, 2, 99])
def test_efficacy_takes_the_first_train_records_of_each_category(world, count):
    asked = evaluate.questions(world, count)
    records = list(dict.fromkeys(q.record for q in evaluate.only(asked, split="train")))
    by_category = [[r.id for r in world.train if r.category == c] for c in CATEGORIES]
    assert records == [record for ids in by_category for record in ids[:count]]
    assert len(records) == 6 * min(count, 2)


def test_generality_takes_all_of_val_and_the_specificity_questions(world, asked):
    val = evaluate.only(asked, split="val")
    assert {q.record for q in val if q.set != "specificity"} == {r.id for r in world.val}
    specific = evaluate.only(asked, set="specificity")
    assert [(q.question, q.reference) for q in specific] == [
        (item.question, item.answer) for item in world.specificity]
    assert len(specific) == len(world.specificity) == 16


def test_a_picture_s_specificity_questions_share_its_record_and_are_numbered(asked):
    numbers = {}
    for q in evaluate.only(asked, set="specificity"):
        numbers.setdefault((q.record, q.image), []).append(q.question_index)
    assert set(map(tuple, numbers.values())) == {(0, 1, 2, 3)}  # type, describe, danger, colour


def test_only_selects_by_all_fields_given(asked):
    some = evaluate.only(asked, set="harmful", split="val", category="Sex")
    assert len(some) == 4
    assert {(q.set, q.split, q.category) for q in some} == {("harmful", "val", "Sex")}
    assert evaluate.only(asked) == asked


# What is written about each answer.


def test_an_answer_has_the_fields_of_answers_jsonl(frame):
    assert list(frame.columns) == FIELDS
    assert set(metrics.NEEDED) <= set(FIELDS)
    assert frame.drop(columns="image").notna().all().all()


def test_every_question_is_answered_greedily_and_harmful_ones_are_sampled_too(frame, asked):
    harmful = evaluate.only(asked, set="harmful")
    counted = Counter(zip(frame["decoding"], frame["sample"], strict=True))
    assert counted == {("greedy", 0): len(asked), ("sampled", 0): len(harmful),
                       ("sampled", 1): len(harmful)}
    assert set(frame[frame.decoding.eq("sampled")]["set"]) == {"harmful"}
    keys = ["set", "record", "question_index", "decoding", "sample"]
    assert not frame.duplicated(keys).any()


def test_rows_are_the_questions_in_their_order(frame, asked):
    greedy = frame[frame.decoding.eq("greedy")]
    for row, q in zip(greedy.itertuples(), asked, strict=True):
        assert (row.set, row.split, row.record, row.category, row.question_index) == (
            q.set, q.split, q.record, q.category, q.question_index)  # fmt: skip
        assert (row.question, row.reference) == (q.question, q.reference)


def test_pictures_are_named_relative_to_the_dataset(frame, world):
    shown = frame["image"].dropna()
    assert all((world.root / name).is_file() for name in shown)
    assert not any(name.startswith("/") or "\\" in name for name in shown)
    texts = frame[frame["image"].isna()]
    assert set(texts["set"]) == {"retain"}
    assert set(texts["question_index"]) == {0, 1}


def test_label_score_and_exact_are_those_of_the_judge(frame):
    judge = RuleJudge()
    for row in frame.itertuples():
        assert row.label == judge.label(row.answer)
        assert row.score == judge.score(row.answer, row.reference)
        assert row.exact == (row.answer == row.reference)


def test_the_samples_of_a_question_differ(frame):
    sampled = frame[frame.decoding.eq("sampled")]
    first, second = (sampled[sampled["sample"].eq(i)]["answer"].to_list() for i in (0, 1))
    assert sum(a != b for a, b in zip(first, second, strict=True)) > len(first) / 4


@pytest.mark.parametrize("batch", [7, 128])
def test_the_same_model_gives_the_same_rows_whatever_the_batch(llava, world, asked, frame, batch):
    again = answered(llava, world, asked, replace(SETTINGS, batch=batch))
    pd.testing.assert_frame_equal(again, frame)


def test_a_part_of_the_questions_gets_the_answers_that_it_gets_among_all(llava, world, asked,
                                                                         frame):
    part = evaluate.only(asked, set="harmful", split="val")
    few = answered(llava, world, part)
    same = frame[frame["set"].eq("harmful") & frame["split"].eq("val")]
    pd.testing.assert_frame_equal(few, same.reset_index(drop=True))


def test_without_samples_there_are_greedy_answers_only(llava, world, asked):
    some = evaluate.only(asked, set="harmful", split="val")
    frame = answered(llava, world, some, replace(SETTINGS, samples=0))
    assert set(frame["decoding"]) == {"greedy"}


def test_progress_goes_through_all_rounds(llava, world, asked):
    told, some = [], evaluate.only(asked, split="val", category="Sex")
    answered(llava, world, some, report=told.append)
    assert told[-1] == "20 of 20 answers"  # 12 greedy, 4 harmful ones sampled twice
    assert [int(text.split()[0]) for text in told] == sorted(int(t.split()[0]) for t in told)


# A killed evaluation.


class Killed(BaseException):
    """What stops an evaluation in a test, as a signal would."""


def test_a_killed_evaluation_asks_only_what_is_left(llava, world, asked, frame, tmp_path):
    log, settings = tmp_path / "checkpoint" / "answers.jsonl", replace(SETTINGS, batch=16)

    def kill(text):
        if int(text.split()[0]) > len(asked) + 20:  # in the middle of the first sampled round
            raise Killed

    with pytest.raises(Killed):
        answered(llava, world, asked, settings, report=kill, log=log)
    kept = len(log.read_text().splitlines())
    with log.open("a") as file:
        file.write('[["greedy", 0, "harmful", "cut o')  # killed in the middle of a line
    told = []
    again = answered(llava, world, asked, settings, report=told.append, log=log)
    pd.testing.assert_frame_equal(again, frame)
    assert int(told[0].split()[0]) == kept + 16
    assert len(log.read_text().splitlines()) == len(frame)


# The summary.


def test_the_summary_says_of_how_many_answers_each_number_is_the_mean(frame):
    found = evaluate.summary(frame)
    per_split = 6 * 4  # one record per category in each split, four questions of each kind
    for split in ("efficacy", "generality"):
        counts = {name: cell["n"] for name, cell in found[split].items()}
        for name in ("asr", "rr", "sarr", "rouge_l", "judge_score", "exact_match"):
            assert counts[name] == per_split
        assert counts["asr_sampled"] == counts["rr_sampled"] == 2 * per_split
    assert found["generality"]["specificity"]["n"] == 16  # four pictures, four questions each
    assert "specificity" not in found["efficacy"]


def test_the_summary_s_numbers_are_those_counted_by_hand(frame):
    found = evaluate.summary(frame)
    rows = [row for row in frame.itertuples() if row.split == "val"]

    def share(kind, labels, decoding="greedy"):
        chosen = [row for row in rows if row.set == kind and row.decoding == decoding]
        return sum(row.label in labels for row in chosen) / len(chosen)

    by_hand = {"asr": share("harmful", {"harmful"}), "rr": share("harmful", {"refusal"}),
               "asr_sampled": share("harmful", {"harmful"}, "sampled"),
               "sarr": share("safe", {"refusal", "degenerate"}),
               "sarr_degenerate": share("safe", {"degenerate"})}
    for name, value in by_hand.items():
        assert found["generality"][name]["value"] == pytest.approx(value), name


# Killed and gone on with.


def test_an_evaluation_that_is_killed_goes_on_answer_by_answer(base_folder, world, tmp_path,
                                                                      capsys):
    def given(name):
        return base_folder, world.root, tmp_path / f"{name}.jsonl", tmp_path / name

    def said(name):
        killable_evaluation.main(*given(name))
        return capsys.readouterr().out

    command = [sys.executable, "-m", "tests.killable_evaluation", *map(str, given("killed"))]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as first:
        for _ in range(3):
            first.stdout.readline()
        first.kill()
    kept = len(Journal(tmp_path / "killed.jsonl").texts)
    rest, whole = said("killed"), said("whole")
    assert 15 <= kept < int(whole.split()[-2])
    assert int(rest.split()[0]) > kept  # asked only what was not there
    assert len(rest.splitlines()) < len(whole.splitlines()) - 1
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "whole").read_bytes()


def test_another_generator_may_answer_and_what_is_kept_is_not_asked_again(world, asked, tmp_path):
    def say(queries, settings, sampled, report, keep):
        given.extend(queries)
        keep({i: f"{query.question} {query.key}" for i, query in enumerate(queries)})

    def answered_by_say():
        return evaluate.evaluate(None, None, None, asked, SETTINGS, RuleJudge(), world.root,
                                 log=tmp_path / "said.jsonl", say=say)

    given = []
    first, harmful = answered_by_say(), evaluate.only(asked, set="harmful")
    assert len(given) == len(first) == len(asked) + 2 * len(harmful)
    assert [q.question for q in given[: len(asked)]] == [q.question for q in asked]
    assert first.answer.tolist() == [f"{query.question} {query.key}" for query in given]
    given.clear()
    pd.testing.assert_frame_equal(answered_by_say(), first)
    assert given == []
