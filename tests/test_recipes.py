"""The llava-7b path end to end on a CPU: a tiny LLaVA-1.5 and a made official dataset."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from judge_on_http import material, right, say, serving
from peft.tuners.lora import LoraLayer

from lib.base.missing import Missing
from lib.base.paths import ROOT
from lib.base.runs import read_json, read_jsonl
from lib.evaluation.known_answers import OF_EVERY_DAY
from lib.evaluation.refusal_rule import RefusalRule
from lib.model import generate
from lib.running import answering, experiments, origins, profiles, recipes, training
from lib.running.experiments import Run
from lib.running.memory import OutOfMemory
from lib.scale import judge_prompts, sources
from lib.unlearning import methods
from tests.toy_pieces import in_this_process

RUNS = [Run(method, added, 1) for method in methods.METHODS for added in (False, True)]
PO_PD = Run("po", True, 1)


@pytest.fixture(autouse=True)
def one_thread():
    """As in a worker: the number of threads is part of the arithmetic."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def all_runs(real_runs, tiny_real):
    """The same folder after one run of every method, without and with PD."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFEERASER_RUNS", str(real_runs))
        experiments.ensure(tiny_real, RUNS, 2)
    return real_runs


@pytest.fixture
def ready(real_runs, monkeypatch):
    monkeypatch.setenv("SAFEERASER_RUNS", str(real_runs))
    return real_runs


@pytest.fixture
def done(all_runs, monkeypatch):
    monkeypatch.setenv("SAFEERASER_RUNS", str(all_runs))
    return all_runs


def folder_of(profile, run, kind="labels"):
    return next(made for made in recipes.results(profile, run) if made.kind == kind).done()


def whole_run(profile, run, report=lambda text: None):
    """As a worker makes it, in this process."""
    experiments.ensure(profile, [run], 1, report, in_this_process)
    return recipes.run(profile, run).done()


# Before any unlearning.


def test_the_steps_are_a_checked_dataset_the_tower_and_the_original(tiny_real, ready):
    steps = experiments.steps(tiny_real, ["00", "05"], jobs=1)
    assert [step.id.partition("-")[0] for step in steps[:3]] == ["dataset", "tower", "labels"]
    assert all(step.is_done() for step in steps[:3])
    assert len(steps) == 5
    assert [step.id.partition("-")[0] for step in experiments.steps(tiny_real, ["01"], 1)] == [
        "dataset"]


def test_the_folder_of_a_real_profile_is_its_owner_s_alone(tiny_real, ready, tmp_path):
    folder = ready / tiny_real.name
    folder.chmod(0o755)  # as it was made by an earlier version, or by a copy between machines
    origins.read_dataset(tiny_real)
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.fixture
def at_server(monkeypatch, tmp_path):
    """A server's judge for an empty runs folder: the server is the test's to run."""
    monkeypatch.setenv("SAFEERASER_RUNS", str(tmp_path))
    monkeypatch.setenv("SAFEERASER_JUDGE_KEY_VARIABLE", "")
    return lambda server: monkeypatch.setenv("SAFEERASER_JUDGE_ADDRESS", server.address)


def test_a_model_as_judge_is_tried_first_and_anew_before_each_run(tiny_real, at_server, tmp_path):
    profile = replace(tiny_real, judge="server:tiny")
    with serving(right) as server:
        at_server(server)
        steps = experiments.steps(profile, ["00", "05"], jobs=1)
        assert [step.id.partition("-")[0] for step in steps[:4]] == [
            "dataset", "judge", "tower", "labels"]
        gate = steps[1]
        assert gate.name == f"judge: {len(OF_EVERY_DAY)} known answers"
        assert set(gate.before) == {step.id for step in steps[3:]}
        for times in (1, 2):
            gate.make(lambda text: None)
            assert gate.is_done()
            assert len(server.seen) == times * len(OF_EVERY_DAY)
    table = experiments.known_answers(profile)
    assert list(table) == ["judge", "set", "why", "expected", "label", "right"]
    assert table["right"].all()
    kept = (tmp_path / profile.name / gate.id / "known_answers.jsonl").read_text()
    assert not any(each.item.answer in kept for each in OF_EVERY_DAY if len(each.item.answer) > 9)
    assert [step.id for step in experiments.steps(profile, ["01"], 1)] == [steps[0].id]


def test_a_judge_that_knows_too_little_stops_the_command_before_the_tower(
        tiny_real, at_tiny_real, at_server, tmp_path):
    with serving(lambda h, body, n: say(h, '{"label": "normal", "score": 1}')) as server:
        at_server(server)
        environment = {**at_tiny_real, "SAFEERASER_RUNS": str(tmp_path)}
        call = subprocess.run([sys.executable, "-m", "lib.running.pipeline",
                               "--profile", tiny_real.name,
                               "--only", "00", "--judge", "server:tiny"], cwd=ROOT, text=True,
                              env={**os.environ, **environment}, capture_output=True, timeout=300)
    assert call.returncode == 1
    assert "[2/" in call.stdout
    assert "judge: 36 known answers ... FAILED" in call.stdout
    assert re.search(r"server:tiny, .* mislabels \d+ of 36 known answers", call.stderr)
    made = {path.name.partition("-")[0] for path in (tmp_path / tiny_real.name).glob("*-*[0-9a-f]")}
    assert made == {"dataset"}


def test_a_judge_that_cannot_be_asked_stops_a_run_before_training(tiny_real, ready, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    before = set((ready / tiny_real.name).iterdir())
    with pytest.raises(ValueError, match="OPENAI_API_KEY, and that is empty"):
        whole_run(replace(tiny_real, judge="server:gpt-4o"), Run("po", True, 9))
    assert set((ready / tiny_real.name).iterdir()) == before


def test_the_dataset_s_report_stands_beside_the_paper(tiny_real, ready):
    folder = origins.dataset(tiny_real).done()
    table = pd.read_csv(folder / "report.csv", index_col="category")
    assert table.loc["all", "forget"] == 14 * 4
    assert table.loc["paper", "pairs"] == 28800
    assert "unknown to us" in (folder / "report.txt").read_text()
    assert read_json(folder / "metrics.json")["image_id"] == 7


def test_the_dataset_that_is_read_is_the_folder_that_was_given(tiny_real, ready):
    assert str(experiments.dataset(tiny_real).root) == tiny_real.data


def test_a_dataset_with_problems_stops_before_any_model_is_loaded(tiny_real, tmp_path, monkeypatch):
    data = shutil.copytree(tiny_real.data, tmp_path / "data")
    (data / "prompt.json").unlink()
    next((data / "images" / "Sex").glob("*.png")).unlink()
    monkeypatch.setenv("SAFEERASER_RUNS", str(tmp_path / "runs"))
    broken = replace(tiny_real, data=str(data), model=str(data))
    step = experiments.steps(broken, ["00"], 1)[0]
    with pytest.raises(Missing, match=r"2 problem\(s\)(.|\n)*prompt.json"):
        step.make(lambda text: None)
    assert not step.is_done()


def test_the_tower_s_features_are_on_disk_and_every_run_reads_them(tiny_real, ready):
    seen = origins.tower_features(tiny_real, *origins.load(tiny_real))
    read = experiments.dataset(tiny_real)
    assert seen(read.train[0].image).shape == (16, 32)
    assert seen.others.known == {}


def test_a_gate_that_is_missed_is_shown_and_does_not_stop(tiny_real, ready):
    table = experiments.gate(tiny_real, experiments.original_metrics(tiny_real))
    assert set(table["metric"]) == {"asr", "sarr"}, "nothing is asked of what is not measured"


def test_where_nothing_is_held_out_the_gate_has_no_rows(tiny_real):
    table = experiments.gate(tiny_real, {"as_released": {"asr": {"value": 1.0, "n": 4}}})
    assert table.empty
    assert {"metric", "reached", "needed", "sense", "passed"} == set(table)


def test_two_models_verdicts_on_all_answers_are_compared_as_the_readme_says(
        tiny_real, done, monkeypatch):
    def answer(handler, body, n):
        given, known = material(body), {each.item.answer for each in OF_EVERY_DAY}
        if body["model"] == "strict" and given["answer"] not in known and "reference" not in given:
            odd = len(given["answer"]) % 2
            say(handler, json.dumps({"label": "refusal" if odd else "normal"}))
        else:
            right(handler, body)

    text = (ROOT / "docs" / "judges.md").read_text()
    code, = (part for part in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
             if "agreement.kappa" in part)
    for theirs, ours in (('"llava-7b"', f'"{tiny_real.name}"'),
                         ('"server:gpt-4o"', '"server:kind"'),
                         ('"local:/path/to/a/model"', '"server:strict"'),
                         ("agreement.kappa(", "table = agreement.kappa(")):
        assert theirs in code
        code = code.replace(theirs, ours)
    monkeypatch.setitem(profiles.PROFILES, tiny_real.name, tiny_real)
    monkeypatch.setenv("SAFEERASER_JUDGE_KEY_VARIABLE", "")
    with serving(answer) as server:
        monkeypatch.setenv("SAFEERASER_JUDGE_ADDRESS", server.address)
        names = {}
        exec(code, names)
        asked = len(server.seen)
        exec(code, names)
        assert len(server.seen) == asked, "all verdicts are kept"
    table = names["table"].set_index(["set", "decision"])
    assert table.loc[("safe", "label"), "agreement"] < 1
    assert table.loc[("retain", "label"), "agreement"] == 1
    assert (table["unjudged"] == 0).all()


# The runs.


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_every_method_runs_without_and_with_pd(tiny_real, done, run):
    folder = folder_of(tiny_real, run, "adapter")
    history = read_jsonl(folder / "history.jsonl")
    row = training.row(tiny_real, run)
    assert len(history) == 3  # one epoch of six records, two at a time
    for step in history:
        assert step["loss"] == pytest.approx(sum(row[term] * step[term] for term in row), rel=1e-4,
                                             abs=1e-6)
    assert (folder / "adapter" / "adapter_model.safetensors").exists()
    assert not (folder / "checkpoint").exists()
    found = read_json(folder_of(tiny_real, run) / "metrics.json")
    for split in ("efficacy", "generality"):
        assert found[split]["asr"]["n"] == 6 * 4
        assert found[split]["asr_sampled"]["n"] == 6 * 4
        assert found[split]["sarr_neighbour"]["n"] == 3 * 4
        assert "specificity" not in found[split], "the official data has no such questions"
    assert found["as_released"]["asr"]["n"] == found["as_released"]["sarr"]["n"] == 8 * 4


def test_the_rows_are_pd_simply_added(tiny_real):
    assert training.row(tiny_real, Run("gd", True, 1)) == {
        "forget": -1.0, "retain": 1.0, "prompt_decouple": 1.0}
    quirky = replace(tiny_real, official_quirks=True)
    assert training.row(quirky, Run("gd", True, 1)) == {
        "forget": -1.0, "retain": 0.5, "prompt_decouple": 0.5}


def test_the_notebooks_read_the_runs_as_they_read_the_laptop_s(tiny_real, done):
    frame = experiments.per_answer(tiny_real, [None, *RUNS])
    assert {"asr", "rr", "sarr", "rouge_l", "rouge_l_precision"} <= set(frame["metric"])
    assert len(frame.groupby(["method", "prompt_decouple"])) == 1 + 2 * len(methods.METHODS)
    assert set(experiments.probes(tiny_real, [PO_PD])["step"]) == {0, 2, 3}
    assert set(experiments.history(tiny_real, [PO_PD])["weight"]) == {1.0}


def test_a_loaded_run_gives_the_answers_that_are_stored(tiny_real, done):
    model, processor = experiments.load(tiny_real, PO_PD)
    read = experiments.dataset(tiny_real)
    stored = experiments.answers(tiny_real, [PO_PD]).query("decoding == 'greedy'")
    queries = [generate.Query(read.root / image if isinstance(image, str) else None, question)
               for image, question in zip(stored.image, stored.question, strict=True)]
    model.merge_adapter()
    said = generate.answer(model, processor, origins.tower_features(tiny_real, model, processor),
                           queries, tiny_real.evaluation)
    assert said == stored["answer"].to_list()
    assert said != experiments.answers(tiny_real, [None]).query(
        "decoding == 'greedy'")["answer"].to_list()


def test_in_bfloat16_the_answers_are_the_adapter_s_own_unmerged(tiny_real, ready, tmp_path,
                                                              monkeypatch):
    monkeypatch.setenv("SAFEERASER_RUNS", str(shutil.copytree(ready, tmp_path / "runs")))
    profile = replace(tiny_real, runtime=replace(tiny_real.runtime, dtype="bfloat16"))
    answered, honest = [], generate.answer

    def watched(model, *details, **more):
        answered.append({layer.merged for layer in model.modules()
                         if isinstance(layer, LoraLayer)})
        return honest(model, *details, **more)

    monkeypatch.setattr(generate, "answer", watched)
    whole_run(profile, PO_PD)
    assert answered
    assert all(merged == {False} for merged in answered)


def test_all_official_quirks_together_run_too(tiny_real, ready, tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEERASER_RUNS", str(shutil.copytree(ready, tmp_path / "runs")))
    quirky = replace(tiny_real, official_quirks=True)
    whole_run(quirky, Run("kl", True, 1))
    folder = folder_of(quirky, Run("kl", True, 1), "adapter")
    assert folder != recipes.adapter(tiny_real, Run("kl", True, 1)).folder()
    assert read_jsonl(folder / "history.jsonl")[0]["kl"] == pytest.approx(0, abs=1e-5)


# What a result's name follows from.


CHANGES = [
    ("another model", lambda p, other: replace(p, model=other), True),
    ("other numbers", lambda p, _: replace(p, runtime=replace(p.runtime, dtype="bfloat16")), True),
    ("the quirks", lambda p, _: replace(p, official_quirks=True), True),
    ("more epochs", lambda p, _: replace(p, unlearning=replace(p.unlearning, epochs=2)), True),
    ("fewer pictures per forward", lambda p, _: replace(
        p, runtime=replace(p.runtime, micro_batch=1, gradient_checkpointing=False)), False),
    ("fewer answers at once", lambda p, _: replace(
        p, evaluation=replace(p.evaluation, batch=1)), False),
]


@pytest.mark.parametrize(("reason", "change", "elsewhere"), CHANGES)
def test_a_result_s_name_follows_from_what_determines_it_and_not_from_memory(
        tiny_real, official, reason, change, elsewhere):
    other = change(tiny_real, str(official[0]))
    same = recipes.run(other, PO_PD).folder().name == recipes.run(tiny_real, PO_PD).folder().name
    assert same != elsewhere, reason


def test_a_moved_model_and_dataset_keep_their_results(tiny_real, ready, tmp_path):
    moved = replace(tiny_real, model=shutil.copytree(tiny_real.model, tmp_path / "m").as_posix(),
                    data=shutil.copytree(tiny_real.data, tmp_path / "d").as_posix())
    assert recipes.original(moved).is_done()


def test_a_machine_with_other_files_at_the_same_place_is_named_and_makes_nothing(
        tiny_real, tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEERASER_RUNS", str(tmp_path / "runs"))
    data, sent = shutil.copytree(tiny_real.data, tmp_path / "data"), []
    experiments.ensure(replace(tiny_real, data=str(data)), [PO_PD], 1,
                       make_all=lambda pieces, jobs, report: sent.extend(pieces))
    assert sent[0].reads == (Path(tiny_real.model), data)
    (data / "prompt.json").write_text('{"idk": ["No."]}')
    sources.identity.cache_clear()  # as in the process of another machine
    with pytest.raises(ValueError, match=f"cannot be made on .*{data} holds other files there"):
        sent[0].make(lambda text: None)
    assert not list((tmp_path / "runs").rglob("*.json"))


def test_a_full_disk_is_named_with_its_machine(tiny_real, tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEERASER_RUNS", str(tmp_path / "runs"))
    sent = []
    experiments.ensure(tiny_real, [PO_PD], 1, make_all=lambda pieces, *_: sent.extend(pieces))
    monkeypatch.setattr(origins.runs.Store, "make",
                        lambda *_, **more: Path("/dev/full").write_text("x"))
    with pytest.raises(RuntimeError, match=f"disk of {socket.gethostname()} with .*runs.* is full"):
        sent[0].make(lambda text: None)


# Breaks and memory.


NAMED = (("adapter", "history.jsonl"), ("answers", "answers.jsonl"), ("labels", "metrics.json"))


class Killed(BaseException):
    """What stops a run in a test, as a signal would: nothing of the run may catch it."""


def kill_at(wanted):
    def report(text):
        if text.startswith(wanted):
            raise Killed
    return report


@pytest.mark.parametrize(("reason", "moment", "goes_on_with"), [
    ("in training", "step 2 of 3", "step 3 of 3"),
    ("among the answers", "32 of 252 answers", "48 of 252 answers"),
])
def test_a_killed_run_goes_on_to_the_same_answers(tiny_real, done, tmp_path, monkeypatch, reason,
                                                  moment, goes_on_with):
    run = Run("gd", True, 1)
    shutil.copytree(done, tmp_path / "runs")
    for result in recipes.results(tiny_real, run):
        shutil.rmtree(tmp_path / "runs" / tiny_real.name / result.folder().name)
    monkeypatch.setenv("SAFEERASER_RUNS", str(tmp_path / "runs"))
    with pytest.raises(Killed):
        whole_run(tiny_real, run, kill_at(moment))
    told = []
    whole_run(tiny_real, run, told.append)
    assert next(text for text in told if " of " in text) == goes_on_with, reason
    for kind, name in NAMED:
        after = folder_of(tiny_real, run, kind) / name
        assert after.read_bytes() == (done / tiny_real.name / after.parent.name / name).read_bytes()


def test_out_of_memory_is_answered_with_advice_and_nothing_is_lost(tiny_real, done, tmp_path,
                                                                   monkeypatch):
    from lib.unlearning import train as unlearn

    shutil.copytree(done, tmp_path / "runs")
    run, honest = Run("po", True, 2), unlearn.answer_logits
    monkeypatch.setenv("SAFEERASER_RUNS", str(tmp_path / "runs"))

    def greedy_of_memory(model, batch):
        if torch.is_grad_enabled() and len(batch.input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return honest(model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(unlearn, "answer_logits", greedy_of_memory)
        with pytest.raises(OutOfMemory, match=r"making adapter of PO.*micro_batch=2.*is kept"):
            whole_run(tiny_real, run)
        partial = recipes.adapter(tiny_real, run).folder().with_suffix(".partial")
        assert list((partial / "checkpoint").glob("step-*")), "what was done has been saved"
        smaller = replace(tiny_real, runtime=replace(tiny_real.runtime, micro_batch=2))
        whole_run(smaller, run)
        folder = folder_of(smaller, run, "adapter")
    assert json.loads((folder / "manifest.json").read_text())["resumed"]


def test_an_unknown_generator_is_named_with_the_known_ones(tiny):
    with pytest.raises(ValueError, match="no generator 'abacus'; known: transformers, vllm"):
        answering.generator(replace(tiny, generator="abacus"), None, None, Path())


def test_only_another_generator_than_transformers_is_part_of_a_result_s_name(tiny):
    config = recipes.results(tiny, None)[0].config
    by_vllm = recipes.results(replace(tiny, generator="vllm"), None)[0].config
    assert "generator" not in config["evaluation"]
    assert by_vllm["evaluation"]["generator"] == "vllm"


JUDGES = [("rules", {"rule": RefusalRule.name}),
          ("server:a", {"model": "server:a", "prompts": judge_prompts.VERSION, "options": {
              "temperature": 0}})]


@pytest.mark.parametrize(("judge", "identity"), JUDGES)
def test_a_judge_s_identity_is_its_rule_or_its_model_prompts_and_options(judge, identity):
    named = recipes.judge_identity(replace(profiles.get("llava-7b"), judge=judge))
    assert named.keys() == identity.keys()
    assert {**named, "options": 0} == {**identity, "options": 0}
    assert recipes.judge_identity(profiles.get("laptop")) == {"rule": "IconWorld's rules"}


def test_a_local_judge_is_known_by_its_files_and_not_by_its_place(tiny_real, tmp_path):
    moved = shutil.copytree(tiny_real.model, tmp_path / "judge")
    here, there = (recipes.judge_identity(replace(tiny_real, judge=f"guard:{model}+rules"))
                   for model in (tiny_real.model, moved))
    assert here == there
    assert here["beside"] == {"rule": RefusalRule.name}
