"""`lib/scale/costs.py`."""

import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from lib.evaluation.evaluate import questions
from lib.model import llava as models
from lib.model.merged import DTYPE
from lib.running import experiments, memory, options, origins, pipeline
from lib.running.profiles import LLAVA_7B, PROFILES
from lib.scale import costs, features, measurement

CHAPTERS = ["00", "01", "02", "03", "04", "05"]
TAKEN = {"tower_seconds": 0.5, "training_seconds": 2.0, "answering_seconds": 0.25,
         "tower_bytes": 1e9, "training_bytes": 3e9, "answering_bytes": 2e9}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEERASER_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))


@pytest.fixture
def on_a_gpu(monkeypatch):
    """A GPU's name, and what is measured there; how often it is is counted."""
    made = []
    monkeypatch.setattr(measurement, "gpu", lambda: "Abacus 9000")
    monkeypatch.setattr(measurement, "_measure", lambda *_: made.append(1) or TAKEN)
    return made


# The plan, counted.


def test_the_data_are_counted_as_a_run_reads_them(tiny_real):
    read = origins.checked(tiny_real)
    asked = questions(read, None)
    harmful = sum(question.set == "harmful" for question in asked)
    found = costs.counted(replace(tiny_real, judge="server:any"))
    assert found == {"train": len(read.train), "records": len(read.train) + len(read.val),
                     "pairs": 14 * 14, "pictures": len(features.pictures(read)),
                     "answers": len(asked) + harmful, "judged": len(asked) + harmful,
                     "assumed": False}


@pytest.mark.parametrize(("judge", "judged"), [
    ("rules", 0), ("server:any", 24), ("guard:any+rules", 16), ("guard:any+server:other", 24)])
def test_answers_are_for_a_judge_where_a_model_reads_them(judge, judged):
    found = costs.counted(replace(LLAVA_7B, judge=judge))
    assert found["judged"] == judged * 2400


@pytest.mark.parametrize("data", [None, "somebody/data"])
def test_without_data_the_paper_s_numbers_are_assumed(data):
    found = costs.counted(replace(LLAVA_7B, data=data))
    assert found["assumed"]
    assert (found["records"] * 12, found["pictures"]) == (found["pairs"], 3000) == (28_800, 3000)
    assert found["answers"] == 2400 * (12 + 4 * 3)
    assert "assumed" in str(costs.expected(LLAVA_7B, "h100"))


def test_few_train_records_of_each_category_give_few_answers():
    few = replace(LLAVA_7B, evaluation=replace(LLAVA_7B.evaluation, train_records=8))
    assert costs.counted(few)["answers"] == (600 + 6 * 8) * 24


def test_a_file_that_cannot_be_read_stops_no_plan(tmp_path):
    (tmp_path / "all_train.json").write_text('[{"image_id": "a.j')
    assert costs.counted(replace(LLAVA_7B, data=str(tmp_path)))["assumed"]


def test_the_table_s_steps_are_those_of_the_plan(tiny_real, on_a_gpu):
    found = costs.expected(tiny_real, measure=True).hours()
    steps = {step.name for step in experiments.steps(tiny_real, CHAPTERS, 1)}
    assert found.keys() == steps - {"dataset: read and checked"}


# Measured.


def test_hours_are_measured_seconds_times_the_counts(tiny_real, on_a_gpu):
    found = costs.expected(tiny_real, measure=True)
    answers, steps = costs.counted(tiny_real)["answers"], 3  # one epoch of six records, two a step
    assert found.hours()["original model: answers and gate"] == pytest.approx(answers / 4 / 3600)
    assert found.hours()["unlearning with PD: 4 runs"] == pytest.approx(
        4 * (steps * 2 + answers / 4) / 3600)
    assert sum(found.hours().values()) == pytest.approx(found.table.hours.sum())
    assert found.hours(slots=2)["unlearning with PD: 4 runs"] == pytest.approx(
        found.hours()["unlearning with PD: 4 runs"] / 2)
    assert found.table["GPU GiB"].max() == pytest.approx(3e9 / costs.GIB)


def test_it_is_measured_once_and_its_cost_is_said_first(tiny_real, on_a_gpu, capsys):
    assert costs.expected(tiny_real).hours() == {}, "unless it is told to"
    first = costs.expected(tiny_real, measure=True)
    assert "about a minute" in capsys.readouterr().out
    second = costs.expected(tiny_real, measure=True)
    assert capsys.readouterr().out == ""
    assert (len(on_a_gpu), str(second)) == (1, str(first))
    assert "Measured on Abacus 9000" in str(first)
    assert costs.expected(tiny_real).hours() == first.hours(), "a run takes what is there"


def test_a_gpu_with_too_little_memory_is_advised(tiny_real, on_a_gpu, monkeypatch):
    def too_large(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(measurement, "_measure", too_large)
    found = costs.expected(tiny_real, measure=True)
    assert found.hours() == {}
    assert memory.advice(tiny_real) in str(found)


def test_what_hours_need_is_said(tiny_real, monkeypatch):
    if not torch.cuda.is_available():
        assert "there is no GPU. --gpu NAME" in str(costs.expected(tiny_real))
    monkeypatch.setattr(measurement, "gpu", lambda: "Abacus 9000")
    assert "--data gives" in str(costs.expected(replace(tiny_real, data=None)))
    assert "llava-1.5-7b-hf has not been downloaded" in str(
        costs.expected(replace(tiny_real, model=LLAVA_7B.model)))


def test_the_benchmarks_are_asked_of_the_original_and_of_the_main_runs(tiny_real, on_a_gpu):
    asking = replace(tiny_real, benchmarks="POPE,MM-Vet")
    row = costs.expected(asking, measure=True).table.loc["specificity by POPE,MM-Vet: 9 runs"]
    assert row["count"].item() == 9_218 * (1 + 2 * len(experiments.main_runs(asking, True)))
    assert row.hours.item() > 0


# The disk.


def test_sizes_are_those_of_real_modules_and_files(tiny_real, tmp_path):
    model, processor = models.load(Path(tiny_real.model))
    found = costs._sizes(tiny_real, elsewhere=False)
    assert found["picture"] == features.size(model, processor, 1)
    assert found["merged"] == model.num_parameters() * getattr(torch, DTYPE).itemsize
    assert found["weights"] == pytest.approx(2 * model.num_parameters(), rel=0.01), "float16"
    adapted = models.add_lora(model, tiny_real.unlearning)
    adapted.save_pretrained(tmp_path / "adapter")
    written = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert found["adapter"] == sum(tensor.nbytes for tensor in written.values())
    assert found["checkpoint"] == 6 * found["adapter"], "float32, two moments, twice"


def test_on_another_machine_s_gpu_numbers_take_half_the_room(tiny_real):
    here, there = (costs._sizes(tiny_real, elsewhere) for elsewhere in (False, True))
    if not torch.cuda.is_available():
        assert here["picture"] == 2 * there["picture"]


def test_too_little_disk_is_told_with_the_number_that_is_needed(tiny_real, monkeypatch, tmp_path):
    needed = costs.expected(tiny_real).table["disk GiB"].sum()
    free = SimpleNamespace(free=needed * costs.GIB * 0.9)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    said = costs.expected(tiny_real).short
    assert re.search(r"Too little disk: .* GiB are needed in .*runs, .*SAFEERASER_RUNS", said)
    taken = tmp_path / "runs" / tiny_real.name / "tower-1" / "tower.safetensors"
    taken.parent.mkdir(parents=True)
    taken.write_bytes(bytes(int(needed * costs.GIB * 0.2)))
    assert costs.expected(tiny_real).short == "", "what is there already needs no room"


def test_what_does_not_fit_does_not_start(tiny_real, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    given = ["--profile", "llava-7b", "--model", tiny_real.model, "--data", tiny_real.data]
    assert pipeline.main(given) == 2
    said = capsys.readouterr()
    assert "Too little disk" in said.out
    assert "Nothing was begun" in said.err
    assert not (tmp_path / "runs").exists()


# Other machines.


def test_the_table_of_the_docs_has_the_real_profiles_and_every_gpu_once():
    text = costs.TABLE.read_text(encoding="utf-8")
    real = [profile.name for profile in PROFILES.values() if profile.real]
    assert f"| `--gpu` | GPU | GiB | {' | '.join(real)} |" in text
    rows = pd.DataFrame(costs._rows())
    assert len(rows) == len(re.findall(r"^\| `[a-z]", text, re.MULTILINE)) == 12
    assert rows[0].map(costs._plain).is_unique
    assert "commit 99d5bc3" in text
    assert "not measured" in text


def test_every_command_of_the_docs_is_one_that_is_there():
    text = costs.TABLE.read_text(encoding="utf-8")
    commands = re.findall(r"^\./reproduce\.sh (.*?)(?:  #|$)", text, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert options.parse(shlex.split(command)).list


@pytest.mark.parametrize(("name", "shown"), [
    ("h100", "H100 SXM (79 GiB)"), ("H100", "H100 SXM"), ("a100-80gb", "A100 80 GB"),
    ("A100 40", "A100 40 GB"), ("rtx4090", "RTX 4090"), ("L40s", "L40S")])
def test_a_gpu_s_name_may_be_written_in_any_way(name, shown):
    assert shown in costs.known(name)


@pytest.mark.parametrize("name", ["a100", "tpu", "abacus"])
def test_an_unknown_gpu_lists_the_known_ones(name, capsys):
    assert pipeline.main(["--profile", "llava-7b", "--list", "--gpu", name]) == 2
    assert re.search(r"known: b200, h200, h100, .*rtx-3090", capsys.readouterr().err)


def test_a_plan_without_data_has_the_counts_and_asks_for_them(capsys):
    assert pipeline.main(["--profile", "llava-7b", "--list", "--gpu", "a100-40"]) == 0
    shown = capsys.readouterr().out
    assert "A100 40 GB (39 GiB)" in shown
    assert "93 (llava-7b), 262 (llava-13b)" in shown
    assert "--data" in shown


def test_a_look_at_the_plan_measures_and_has_its_minutes(tiny_real, on_a_gpu, capsys):
    given = ["--profile", "llava-7b", "--model", tiny_real.model, "--data", tiny_real.data]
    assert pipeline.main([*given, "--list", "--jobs", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("about a minute") < shown.index("Measured on Abacus 9000")
    assert "as long as it takes" not in shown
    assert len(on_a_gpu) == 1


def test_a_look_at_the_plan_names_what_is_wrong_with_the_data(tmp_path, capsys):
    (tmp_path / "all_train.json").write_text('[{"image_id": "img/Sex/1.jpg"}]')
    assert pipeline.main(["--profile", "llava-7b", "--list", "--data", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "all_train.json, record 0, SDImage_path: is missing" in said
    assert "all_val.json: is missing" in said
