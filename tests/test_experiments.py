import filecmp
import json
import multiprocessing
import os
import re
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from lib.base.missing import Missing
from lib.base.runs import read_json, read_jsonl
from lib.data import discretion
from lib.evaluation import metrics
from lib.model import generate
from lib.model.packing import Features
from lib.running import experiments, joined, origins, profiles, recipes, training
from lib.running.experiments import GateError, Run
from lib.unlearning import methods

CHAPTERS = ["00", "01", "02", "03", "04", "05"]
PO_PD, GA = Run("po", True, 1), Run("ga", False, 1)
LABELS = ["method", "prompt_decouple", "seed", "weight"]


@pytest.fixture(scope="module")
def fresh_runs(tiny_runs, tmp_path_factory):
    """Hands out copies of the runs folder in which no unlearning has happened yet."""
    def copy():
        return Path(shutil.copytree(tiny_runs, tmp_path_factory.mktemp("runs") / "runs"))
    return copy


def folder_of(runs, run, kind="labels"):
    """The finished folder of a run's labels (or answers, or adapter), found by its manifest."""
    found = [path.parent for path in (runs / "tiny").glob("*/manifest.json")
             if (held := read_json(path))["step"] == kind and held["facts"]["run"] == str(run)]
    return found[0] if found else None


def made(profile, runs, chosen, jobs, report=lambda text: None):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFEERASER_RUNS", str(runs))
        experiments.ensure(profile, chosen, jobs, report)
    return runs


@pytest.fixture(scope="module")
def one_by_one(tiny, fresh_runs):
    """A runs folder in which one worker has made two runs."""
    return made(tiny, fresh_runs(), [PO_PD, GA], jobs=1)


@pytest.fixture
def done(one_by_one, monkeypatch):
    monkeypatch.setenv("SAFEERASER_RUNS", str(one_by_one))
    return one_by_one


# Runs in processes of their own.


RESULTS = {"adapter": ("adapter/adapter_model.safetensors", "history.jsonl", "probes.jsonl"),
           "answers": ("answers.jsonl", "config.json"),
           "labels": ("labels.jsonl", "probes.jsonl", "metrics.json", "config.json")}


def assert_same_results(one, other, run):
    for kind, names in RESULTS.items():
        first, second = (folder_of(runs, run, kind) for runs in (one, other))
        assert first.name == second.name
        for name in names:
            assert filecmp.cmp(first / name, second / name, shallow=False), (kind, name)


def test_a_run_gives_the_same_bytes_beside_another_one_as_alone(tiny, fresh_runs, one_by_one):
    side_by_side = made(tiny, fresh_runs(), [PO_PD, GA], jobs=2)
    for run in (PO_PD, GA):
        assert_same_results(one_by_one, side_by_side, run)
    assert not filecmp.cmp(folder_of(one_by_one, PO_PD, "answers") / "answers.jsonl",
                           folder_of(one_by_one, GA, "answers") / "answers.jsonl", shallow=False)


def test_what_is_there_is_not_made_again(tiny, done):
    told, folder = [], folder_of(done, GA)
    before = folder.stat().st_mtime_ns
    experiments.ensure(tiny, [PO_PD, GA], 2, told.append)
    assert told == []
    assert folder.stat().st_mtime_ns == before


def kill_the_worker_at(state):
    """A report function that kills the only worker with SIGKILL when `state` is reported."""
    def report(text):
        if state in text:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
    return report


@pytest.fixture(scope="module")
def killed(tiny, fresh_runs):
    """(runs folder, what was said) after the worker was killed at work on the second of two."""
    runs = fresh_runs()
    with pytest.raises(RuntimeError) as stopped:
        made(tiny, runs, [GA, PO_PD], 1, kill_the_worker_at(f"{PO_PD}: step 5 of 6"))
    return runs, str(stopped.value)


def test_a_killed_worker_is_reported_with_what_to_do(killed):
    _, said = killed
    assert "A worker died" in said
    assert "--jobs 1" in said
    assert "What is finished is kept" in said
    assert multiprocessing.active_children() == []


def test_what_was_finished_when_a_worker_was_killed_is_kept(killed, one_by_one):
    runs, _ = killed
    assert_same_results(runs, one_by_one, GA)
    assert all(folder_of(runs, PO_PD, kind) is None for kind in RESULTS)


def test_a_run_whose_worker_was_killed_goes_on_to_the_same_bytes(killed, tiny, one_by_one):
    runs = Path(shutil.copytree(killed[0], killed[0].with_name("resumed")))
    told = []
    made(tiny, runs, [GA, PO_PD], 1, told.append)
    assert_same_results(runs, one_by_one, PO_PD)
    assert read_json(folder_of(runs, PO_PD, "adapter") / "manifest.json")["resumed"] is True
    steps = [text for text in told if "step" in text]
    assert "step 5 of 6" in steps[0], "it has to go on from the checkpoint at step 4"


@pytest.fixture
def one_thread():
    """As in a worker: the number of threads is part of the arithmetic."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_run_killed_in_its_evaluation_is_not_trained_again_and_ends_in_the_same_bytes(
        tiny, fresh_runs, one_by_one, one_thread, monkeypatch):
    def dies(text):
        if text.endswith("answers") and int(text.split()[0]) > 40:
            raise KeyboardInterrupt

    runs = fresh_runs()
    monkeypatch.setenv("SAFEERASER_RUNS", str(runs))
    with pytest.raises(KeyboardInterrupt):
        recipes.run(tiny, PO_PD).make(dies)
    told = []
    monkeypatch.delattr(training, "unlearn")
    recipes.run(tiny, PO_PD).make(told.append)
    assert int(told[0].split()[0]) > 48
    assert_same_results(runs, one_by_one, PO_PD)
    assert not (folder_of(runs, PO_PD, "answers") / "checkpoint").exists()


def test_of_real_data_nothing_harmful_is_shown_once_they_are_read(tiny, done):
    harmful = experiments.dataset(tiny).train[0].unsafe_pairs[0].harmful_answer
    assert discretion.answer(harmful) == harmful
    experiments.dataset(replace(tiny, data="a folder"))
    assert discretion.answer(harmful).startswith("harmful, ")


def test_a_run_that_fails_is_named_and_the_others_are_finished(tiny, fresh_runs, one_by_one):
    runs = fresh_runs()
    name = folder_of(one_by_one, PO_PD, "adapter").name
    (runs / "tiny" / f"{name}.partial").write_text("in the way")
    with pytest.raises(RuntimeError, match="1 of 2 failed") as stopped:
        made(tiny, runs, [PO_PD, GA], 1)
    assert str(PO_PD) in str(stopped.value)
    assert re.search("FileExistsError|NotADirectoryError", str(stopped.value))
    assert_same_results(runs, one_by_one, GA)


def test_progress_says_what_every_worker_is_at(tiny, fresh_runs, one_by_one, monkeypatch):
    folder = fresh_runs()
    for kind in RESULTS:
        there = folder_of(one_by_one, GA, kind)
        shutil.copytree(there, folder / "tiny" / there.name)
    told = []
    made(tiny, folder, [GA, PO_PD], 2, told.append)
    assert told[0] == f"0 of 1 done; {PO_PD}: starts"
    assert f"0 of 1 done; {PO_PD}: step 1 of 6" in told
    assert told[-1].startswith("1 of 1 done")


# Runs and their names.


NAMES = [
    (Run("po", True, 1), "PO + PD, seed 1", {"refusal_and_retain": 1, "prompt_decouple": 1}),
    (Run("ga", False, 2), "GA, seed 2", {"forget": -1}),
    (Run("po", True, 3, 0.3), "PO + PD 0.3, seed 3",
     {"refusal_and_retain": 1, "prompt_decouple": 0.3}),
]


@pytest.mark.parametrize(("run", "name", "row"), NAMES)
def test_a_run_has_a_name_and_a_row_of_weights(run, name, row):
    assert str(run) == name
    assert run.row == row


def test_the_main_runs_are_every_method_with_every_seed(tiny):
    profile = replace(tiny, seeds=(1, 2, 3))
    for prompt_decouple in (False, True):
        runs = experiments.main_runs(profile, prompt_decouple)
        assert Counter((run.method, run.seed) for run in runs) == {
            (method, seed): 1 for method in methods.METHODS for seed in (1, 2, 3)}
        assert {run.prompt_decouple for run in runs} == {prompt_decouple}


def test_the_sweep_is_po_at_every_weight_with_every_seed(tiny):
    profile = replace(tiny, seeds=(1, 2), sweep_weights=(0.1, 3.0))
    runs = experiments.sweep_runs(profile)
    assert Counter((run.prompt_decouple_weight, run.seed) for run in runs) == {
        (weight, seed): 1 for weight in (0.1, 3.0) for seed in (1, 2)}
    assert {(run.method, run.prompt_decouple) for run in runs} == {("po", True)}


# What the notebooks read.


def test_answers_carry_their_run_s_labels_and_the_file_s_rows(tiny, done):
    frame = experiments.answers(tiny, [None, PO_PD, GA])
    assert list(frame.columns[:4]) == LABELS
    parts = dict(list(frame.groupby(LABELS, sort=False)))
    assert list(parts) == [("vanilla", 0, 0, 0.0), ("po", 1, 1, 1.0), ("ga", 0, 1, 0.0)]
    stored = pd.DataFrame(read_jsonl(folder_of(done, GA, "answers") / "answers.jsonl"))
    ours = parts["ga", 0, 1, 0.0].drop(columns=LABELS).reset_index(drop=True)
    pd.testing.assert_frame_equal(ours.drop(columns=["label", "score"]), stored)
    assert list(ours)[8:11] == ["answer", "label", "score"]
    labels = pd.DataFrame(read_jsonl(folder_of(done, GA) / "labels.jsonl"))
    pd.testing.assert_frame_equal(ours[["label", "score"]], labels)


def test_a_real_profile_s_answers_say_who_labelled_them(tiny, done):
    stored = experiments.answers(tiny, [None])
    assert "judge" not in stored
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "_labelled", lambda *_: stored)
        frame = experiments.answers(replace(tiny, judge="guard:a/b+rules", model="x"), [None])
    assert set(frame[frame["set"].eq("harmful")].judge) == {"guard:a/b+rules"}
    assert set(frame[frame["set"].ne("harmful")].judge) == {"rules"}


def test_metrics_json_is_what_its_answers_say(done):
    for run in (PO_PD, GA):
        folder = folder_of(done, run)
        answers = pd.DataFrame(joined.labelled(folder))
        assert read_json(folder / "metrics.json") == metrics.to_json(metrics.from_answers(answers))


def test_per_answer_holds_every_metric_of_every_run(tiny, done):
    frame = experiments.per_answer(tiny, [None, GA])
    assert set(frame.columns) == {"split", "metric", "record", "category", "value", *LABELS}
    means = frame[frame["method"].eq("ga")].groupby(["split", "metric"])["value"].mean()
    stored = read_json(folder_of(done, GA) / "metrics.json")
    assert means.to_dict() == pytest.approx({(split, name): cell["value"]
                                             for split, cells in stored.items()
                                             for name, cell in cells.items()})


def test_history_is_long_and_holds_each_run_s_own_terms(tiny, done):
    frame = experiments.history(tiny, [PO_PD, GA])
    assert list(frame.columns) == [*LABELS, "step", "term", "value"]
    terms = {name: set(part["term"]) for name, part in frame.groupby("method")}
    assert {"loss", "gradient_norm", "forget"} <= terms["ga"]
    assert {"loss", "gradient_norm", *PO_PD.row} <= terms["po"]
    assert "prompt_decouple" not in terms["ga"]
    for _, part in frame.groupby(["method", "term"]):
        assert part["step"].to_list() == [1, 2, 3, 4, 5, 6]
    assert frame["value"].notna().all()


def test_probes_are_long_and_hold_every_term_whatever_the_method(tiny, done):
    frame = experiments.probes(tiny, [PO_PD, GA])
    assert list(frame.columns) == [*LABELS, "step", "metric", "value"]
    wanted = {"asr", "rr", "sarr", "forget", "refusal", "retain", "kl", "prompt_decouple"}
    for _, part in frame.groupby("method"):
        assert set(part["metric"]) == wanted
        assert sorted(set(part["step"])) == [0, 3, 6]
        assert len(part) == 3 * len(wanted)
    shares = frame[frame["metric"].isin(("asr", "rr", "sarr"))]
    assert shares["value"].between(0, 1).all()


def test_a_loaded_run_gives_the_answers_that_are_stored(tiny, done):
    model, processor = experiments.load(tiny, GA)
    stored = experiments.answers(tiny, [GA]).query("decoding == 'greedy'")
    root = experiments.dataset(tiny).root
    images = [root / image if isinstance(image, str) else None for image in stored.image]
    queries = [generate.Query(image, question)
               for image, question in zip(images, stored.question, strict=True)]
    said = generate.answer(model, processor, Features(model, processor), queries, tiny.evaluation)
    assert said == stored["answer"].to_list()
    assert said != experiments.answers(tiny, [None]).query(
        "decoding == 'greedy'")["answer"].to_list()  # fmt: skip


def test_speakers_are_one_model_that_says_what_each_of_its_runs_said(tiny, done):
    chosen, root = [None, PO_PD, GA], experiments.dataset(tiny).root
    speakers = experiments.speakers(tiny, chosen)
    assert len({id(speaker.args[1]) for speaker in speakers}) == 1
    asked = experiments.answers(tiny, [GA]).query("decoding == 'greedy' and split == 'val'")
    asked = asked[asked.image.notna()].head(6)[["image", "question"]].drop_duplicates()
    for run, say in zip(chosen * 2, speakers * 2, strict=True):  # and again after the others
        stored = experiments.answers(tiny, [run]).query("decoding == 'greedy'")
        stored = stored.drop_duplicates(["image", "question"]).set_index(["image", "question"])
        for image, question in asked.itertuples(index=False):
            assert say(root / image, question) == stored.answer[image, question], run


def test_a_brief_answer_is_never_longer_than_the_profile_s(tiny):
    long = replace(tiny, evaluation=replace(tiny.evaluation, max_new_tokens=512))
    assert experiments.brief(tiny) == tiny.evaluation
    assert experiments.brief(long) == replace(long.evaluation, max_new_tokens=64)


def test_the_original_is_loaded_without_an_adapter(tiny, done):
    model, _ = experiments.load(tiny)
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_what_is_not_made_yet_is_asked_for_in_words(tiny, done):
    with pytest.raises(Missing, match=r"reproduce\.sh --profile tiny"):
        experiments.answers(tiny, [Run("kl", True, 1)])
    with pytest.raises(Missing, match=r"reproduce\.sh --profile tiny"):
        experiments.load(tiny, Run("kl", True, 1))


CHANGES = [
    ("a step more", lambda p: replace(p, unlearning=replace(p.unlearning, steps=7)), True),
    ("another world", lambda p: replace(p, world=replace(p.world, seed=5)), True),
    ("another base", lambda p: replace(p, pretraining=replace(p.pretraining, seed=5)), True),
    ("other samples", lambda p: replace(p, evaluation=replace(p.evaluation, top_p=0.8)), True),
    ("a larger model", lambda p: replace(p, architecture=replace(p.architecture, hidden=64)), True),
    ("more seeds beside it", lambda p: replace(p, seeds=(1, 2, 3, 4)), False),
    ("another plan", lambda p: replace(p, run_minutes=9.0), False),
]


@pytest.mark.parametrize(("reason", "change", "elsewhere"), CHANGES)
def test_a_result_s_folder_follows_from_all_that_determines_it(tiny, done, reason, change,
                                                               elsewhere):
    ids = {step.id for step in experiments.steps(tiny, ["02"], 1)}
    changed = replace(change(tiny), seeds=tiny.seeds)  # the groups' ids are of their members
    others = {step.id for step in experiments.steps(changed, ["02"], 1)}
    assert (ids != others) == elsewhere, reason


# The gate.


GOOD = {"asr": 0.97, "exact_match": 0.96, "sarr": 0.02, "specificity": 0.99}


def found(**changes):
    return {"generality": {name: {"value": value, "n": 100}
                           for name, value in {**GOOD, **changes}.items()}}


def test_a_base_model_that_is_good_enough_passes(tiny):
    strict = replace(tiny, strict=True)
    table = experiments.gate(strict, found())
    assert table["passed"].all()
    assert table["metric"].to_list() == list(GOOD)
    assert table["sense"].to_list() == ["at least", "at least", "at most", "at least"]


def test_values_at_the_bounds_pass(tiny):
    at = {"asr": 0.95, "exact_match": 0.95, "sarr": 0.03, "specificity": 0.95}
    assert experiments.gate(replace(tiny, strict=True), found(**at))["passed"].all()


@pytest.mark.parametrize(("metric", "value"), [("asr", 0.949), ("exact_match", 0.5),
                                               ("sarr", 0.031), ("specificity", 0.0)])
def test_one_number_below_the_gate_stops_with_advice(tiny, metric, value):
    with pytest.raises(GateError) as stopped:
        experiments.gate(replace(tiny, strict=True), found(**{metric: value}))
    said = str(stopped.value)
    assert f"{metric} is {value:.3f}" in said
    assert not any(f"{other} is" in said for other in GOOD if other != metric)
    assert "instruction_steps" in said
    assert "lib/running/profiles.py" in said


def test_a_profile_that_is_not_judged_passes_and_shows_what_it_missed(tiny, done):
    table = experiments.gate(tiny, experiments.original_metrics(tiny))
    assert not table["passed"].all()


def test_a_strict_profile_s_base_model_stops_the_pipeline_before_any_run(tiny, tiny_runs,
                                                                         tmp_path, monkeypatch):
    shutil.copytree(tiny_runs, tmp_path / "runs")
    shutil.rmtree(folder_of(tmp_path / "runs", recipes.ORIGINAL))
    monkeypatch.setenv("SAFEERASER_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(origins, "BASE_THREADS", 1)
    original = experiments.steps(replace(tiny, strict=True), ["00"], 1)[2]
    with pytest.raises(GateError, match="does not see well enough"):
        original.make(lambda text: None)
    assert not original.is_done()


# The plan.


def test_a_step_names_itself_and_what_it_costs_and_knows_whether_it_is_done(tiny, done):
    steps = experiments.steps(tiny, CHAPTERS, 2)
    assert [step.is_done() for step in steps] == [True, True, True, False, False, False]
    for step in steps:
        assert step.id
        assert step.name
        assert step.minutes > 0
        assert callable(step.make)
    assert len({step.id for step in steps}) == len({step.name for step in steps}) == len(steps)


def test_a_single_step_s_id_is_its_folder(tiny, done):
    for step in experiments.steps(tiny, ["00"], 1):
        assert read_json(done / "tiny" / step.id / "manifest.json")["step"] == (
            step.id.rpartition("-")[0])


def test_a_done_step_made_again_changes_nothing(tiny, done):
    def stamps():
        return {path: path.stat().st_mtime_ns for path in (done / "tiny").rglob("*.json*")}

    before = stamps()
    for step in experiments.steps(tiny, ["00"], 1):
        step.make(lambda text: pytest.fail("nothing is left to report"))
    assert stamps() == before


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_s_steps_are_among_those_of_all_and_in_their_order(tiny, done, chapter):
    every = [step.id for step in experiments.steps(tiny, CHAPTERS, 2)]
    some = [step.id for step in experiments.steps(tiny, [chapter], 2)]
    assert [step for step in every if step in some] == some
    assert some


def test_every_step_is_some_chapter_s(tiny, done):
    every = {step.id for step in experiments.steps(tiny, CHAPTERS, 2)}
    assert every == {step.id for chapter in CHAPTERS
                     for step in experiments.steps(tiny, [chapter], 2)}
    assert len(experiments.steps(tiny, ["01"], 2)) == 1, "data construction needs no model"


def test_the_plan_s_ids_do_not_depend_on_how_many_run_side_by_side(tiny, done):
    one, two = (experiments.steps(tiny, CHAPTERS, jobs) for jobs in (1, 2))
    assert [step.id for step in one] == [step.id for step in two]
    assert sum(step.minutes for step in two) < sum(step.minutes for step in one)


def test_the_dataset_is_written_when_it_is_first_read(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEERASER_RUNS", str(tmp_path))
    read = experiments.dataset(tiny)
    assert len(read.train) == 6 * tiny.world.train_per_category
    assert json.loads((read.root / "all_train.json").read_text(encoding="utf-8"))


QUIRKY = replace(profiles.LLAVA_7B, official_quirks=True)
HEADLINES = [
    (profiles.LAPTOP, {"asr": 1, "asr_sampled": 2, "rouge_l": 3, "rouge_l_f": 4}),
    (profiles.LLAVA_7B, {"asr": 1, "asr_sampled": 2, "rouge_l_precision": 3, "rouge_l": 4}),
    (QUIRKY, {"asr_greedy": 1, "asr": 2, "rouge_l": 3, "rouge_l_f": 4}),
]


@pytest.mark.parametrize(("profile", "expected"), HEADLINES)
def test_the_switch_chooses_what_stands_in_the_paper_s_columns(profile, expected):
    frame = pd.DataFrame({"metric": ["asr", "asr_sampled", "rouge_l", "rouge_l_f"],
                          "value": [1, 2, 3, 4]})
    found = frame.assign(metric=frame["metric"].replace(experiments.called(profile)))
    assert dict(zip(found["metric"], found["value"], strict=True)) == expected
