"""`lib/scale/costs.py`; the measurement by its real path, for a tiny model on a CPU."""

import re
import shlex
from dataclasses import replace

import pytest
import torch

from lib.base import runs
from lib.evaluation.evaluate import questions
from lib.model import generate
from lib.running import experiments, memory, options, origins, pipeline
from lib.running.profiles import LLAVA_7B, PROFILES
from lib.scale import costs
from lib.scale.costs import QUESTIONS, STEPS
from lib.unlearning import train
from lib.unlearning.methods import METHODS

WITH_PD = f"unlearning with PD: {len(METHODS)} runs"

CHAPTERS = ["00", "01", "02", "03", "04", "05"]
TAKEN = {"step_seconds": 2.0, "answer_seconds": 0.25, "peak_bytes": 3 * 2**30}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEERASER_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))


@pytest.fixture
def on_a_gpu(monkeypatch):
    """A GPU's name, and what is measured there; how often it is is counted."""
    made = []
    monkeypatch.setattr(costs, "gpu", lambda: "Abacus 9000")
    monkeypatch.setattr(costs, "_measure", lambda *_: made.append(1) or TAKEN)
    return made


# The plan, counted.


def test_the_counts_are_those_of_the_data_as_a_run_reads_them(tiny_real):
    read = origins.checked(tiny_real)
    asked = questions(read, None)
    answers = len(asked) + sum(question.set == "harmful" for question in asked)
    table, said = costs._table(tiny_real, read)
    steps = tiny_real.unlearning.steps_for(len(read.train))
    assert table.loc[WITH_PD].tolist() == [len(METHODS) * steps, len(METHODS) * answers]
    assert table.loc["original model: answers and gate"].tolist() == [0, answers]
    assert said == (f"14 records, 24 pictures; {answers} answers of each model, 0 of them for a "
                    "judge")
    few = replace(tiny_real, evaluation=replace(tiny_real.evaluation, train_records=0))
    assert costs._table(few, read)[0]["answers"].sum() < table["answers"].sum()


@pytest.mark.parametrize(("judge", "kinds"), [
    ("rules", ()), ("server:any", ("harmful", "safe", "retain", "specificity", "neighbour")),
    ("guard:any+rules", ("harmful",))])
def test_answers_are_for_a_judge_where_a_model_reads_them(tiny_real, judge, kinds):
    read = origins.checked(tiny_real)
    judged = sum((1 + tiny_real.evaluation.samples if q.set == "harmful" else 1)
                 for q in questions(read, None) if q.set in kinds)
    assert f", {judged:,} of them" in costs._table(replace(tiny_real, judge=judge), read)[1]


def test_the_table_s_steps_are_those_of_the_plan(tiny_real, on_a_gpu):
    found = costs.expected(tiny_real, measure=True).hours()
    steps = {step.name for step in experiments.steps(tiny_real, CHAPTERS, 1)}
    assert steps - found.keys() == {"dataset: read and checked", "vision tower's features"}
    assert not found.keys() - steps


@pytest.mark.parametrize("data", [None, "somebody/data"])
def test_without_data_it_asks_for_them(data):
    found = costs.expected(replace(LLAVA_7B, data=data), "h100")
    assert "once --data gives the data" in found.text
    assert "H100 SXM" in found.text
    assert found.hours() == {}


def test_a_file_that_cannot_be_read_stops_no_plan(tmp_path):
    (tmp_path / "all_train.json").write_text('[{"image_id": "a.j')
    assert "once --data" in costs.expected(replace(LLAVA_7B, data=str(tmp_path))).text


# Measured.


def test_hours_are_measured_seconds_times_the_counts(tiny_real, on_a_gpu):
    found = costs.expected(tiny_real, measure=True)
    table, _ = costs._table(tiny_real, origins.checked(tiny_real))
    for name, row in table.iterrows():
        assert found.hours()[name] == pytest.approx((row.steps * 2 + row.answers / 4) / 3600)
    assert found.hours(slots=2)[WITH_PD] == pytest.approx(found.hours()[WITH_PD] / 2)
    assert "3.0 GiB were taken" in found.text


def test_it_is_measured_once_and_its_cost_is_said_first(tiny_real, on_a_gpu, capsys):
    assert costs.expected(tiny_real).hours() == {}, "unless it is told to"
    first = costs.expected(tiny_real, measure=True)
    assert "about a minute" in capsys.readouterr().out
    second = costs.expected(tiny_real, measure=True)
    assert capsys.readouterr().out == ""
    assert (len(on_a_gpu), second.text) == (1, first.text)
    assert "Measured on Abacus 9000" in first.text
    assert costs.expected(tiny_real).hours() == first.hours(), "a run takes what is there"


def test_a_gpu_with_too_little_memory_is_advised(tiny_real, on_a_gpu, monkeypatch):
    def too_large(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(costs, "_measure", too_large)
    found = costs.expected(tiny_real, measure=True)
    assert found.hours() == {}
    assert memory.advice(tiny_real) in found.text


def test_what_hours_need_is_said(tiny_real, monkeypatch):
    if not torch.cuda.is_available():
        assert "no GPU here" in costs.expected(tiny_real).text
        assert costs.expected(tiny_real, measure=True).text.count("\n| `") == 12
    monkeypatch.setattr(costs, "gpu", lambda: "Abacus 9000")
    assert "once --data gives the data" in costs.expected(replace(tiny_real, data=None)).text
    assert "once llava-hf/llava-1.5-7b-hf has been downloaded" in costs.expected(
        replace(tiny_real, model=LLAVA_7B.model)).text


@pytest.fixture
def calls(monkeypatch):
    """What is made meanwhile: the losses' weights of each step, and how many are asked at once."""
    steps, asked = [], []
    collect, answer = train._Run.collect, generate.answer

    def counted(run, *details):
        steps.append(dict(run.task.row))
        return collect(run, *details)

    def said(*details, queries, settings):
        asked.append(len(queries))
        return answer(*details, queries, settings)

    monkeypatch.setattr(train._Run, "collect", counted)
    monkeypatch.setattr(generate, "answer", said)
    return steps, asked


@pytest.mark.parametrize("batch", [4, 40])
def test_steps_and_answers_are_timed_after_one_that_is_not(tiny_real, calls, batch):
    steps, asked = calls
    filled = replace(tiny_real, evaluation=replace(tiny_real.evaluation, batch=batch))
    folder = costs.measurement(filled).make()
    found = runs.read_json(folder / "metrics.json")
    assert found.keys() == TAKEN.keys()
    assert min(found["step_seconds"], found["answer_seconds"]) > 0
    assert len(steps) == STEPS + 1
    assert {tuple(sorted(row)) for row in steps} == {("forget", "kl", "prompt_decouple")}, (
        "the dearest loss has PD and asks the original model")
    assert asked == [1, max(batch, QUESTIONS)], "a run's batch is filled"
    assert [path.name for path in folder.parent.glob("*-*")] == [folder.name], "nothing is left"
    assert folder.name not in {step.id for step in experiments.steps(tiny_real, ["00", "04"], 1)}


def test_another_gpu_setting_or_model_is_measured_anew(tiny_real, official, monkeypatch):
    runtime = replace(tiny_real.runtime, micro_batch=1)
    names = {costs.measurement(profile).folder().name for profile in (
        tiny_real, replace(tiny_real, runtime=runtime), replace(tiny_real, model=str(official[0])),
        replace(tiny_real, data=str(official[1])), replace(tiny_real, official_quirks=True))}
    monkeypatch.setattr(costs, "gpu", lambda: "another")
    assert len(names | {costs.measurement(tiny_real).folder().name}) == 6


# Other machines, and the command.


def test_the_table_of_the_docs_has_the_real_profiles_and_every_gpu_once():
    text = costs.TABLE.read_text(encoding="utf-8")
    real = [profile.name for profile in PROFILES.values() if profile.real]
    assert f"| `--gpu` | GPU | GiB | {' | '.join(real)} |" in text
    assert len(costs.ROW.findall(text)) == len(set(costs.ROW.findall(text))) == 12
    assert "commit 99d5bc3" in text
    assert "not measured" in text


def test_every_command_of_the_docs_is_one_that_is_there():
    text = costs.TABLE.read_text(encoding="utf-8")
    commands = re.findall(r"^\./reproduce\.sh (.*?)(?:  #|$)", text, re.MULTILINE)
    looks = [command for command in commands if "--list" in command]
    assert len(looks) == 3
    for command in looks:
        assert options.parse(shlex.split(command)).list


@pytest.mark.parametrize(("name", "shown"), [
    ("H100", ["H100 SXM", "H100 PCIe"]), ("a100-80gb", ["A100 80 GB"]),
    ("A100 40", ["A100 40 GB | 39 | 93 | 262"]), ("rtx4090", ["RTX 4090"])])
def test_a_gpu_s_name_may_be_written_in_any_way(name, shown):
    assert costs.known(name).count("| `") == len(shown)
    assert all(each in costs.known(name) for each in shown)


def test_an_unknown_gpu_lists_the_known_ones(capsys):
    assert pipeline.main(["--profile", "llava-7b", "--list", "--gpu", "abacus"]) == 2
    assert re.search(r"known: b200, h200, h100, .*rtx-3090", capsys.readouterr().err)


def test_a_look_at_the_plan_measures_and_has_its_minutes(tiny_real, on_a_gpu, capsys):
    given = ["--profile", "llava-7b", "--model", tiny_real.model, "--data", tiny_real.data]
    assert pipeline.main([*given, "--list", "--jobs", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("about a minute") < shown.index("Measured on Abacus 9000")
    assert "as long as it takes" not in shown
    assert len(on_a_gpu) == 1
    assert pipeline.main(["--profile", "llava-7b", "--list", "--gpu", "a100-40"]) == 0
    assert "| A100 40 GB | 39 | 93 | 262 |" in capsys.readouterr().out, "without data, too"


def test_a_look_at_the_plan_names_what_is_wrong_with_the_data(tmp_path, capsys):
    (tmp_path / "all_train.json").write_text('[{"image_id": "img/Sex/1.jpg"}]')
    assert pipeline.main(["--profile", "llava-7b", "--list", "--data", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "all_train.json, record 0, SDImage_path: is missing" in said
    assert "all_val.json: is missing" in said
