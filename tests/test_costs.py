"""`lib/scale/estimate.py`."""

import math
import re
from dataclasses import replace

import pytest

from lib.running import experiments, pipeline
from lib.running.profiles import LAPTOP, LLAVA_7B, LLAVA_13B, PROFILES
from lib.scale import arithmetic, estimate, gpus, shapes, workload
from lib.scale.arithmetic import GIB
from lib.scale.gpus import KNOWN
from lib.scale.workload import Assumed

SEVEN = shapes.RELEASED["llava-1.5-7b"]


@pytest.mark.parametrize(("profile", "gpu"), [
    (LLAVA_7B, "a100-40"), (LLAVA_7B, "h200"), (LLAVA_13B, "a100-80"), (LLAVA_13B, "h100")])
def test_a_real_profile_fits_the_gpus_it_is_meant_for(profile, gpu):
    found = estimate.costs(profile, KNOWN[gpu])
    assert found.problems == []
    assert max(line.memory for line in found.lines) < KNOWN[gpu].memory * GIB


@pytest.mark.parametrize("profile", [LLAVA_7B, LLAVA_13B], ids=lambda profile: profile.name)
@pytest.mark.parametrize("gpu", ["rtx-4090", "l4", "a100-40"])
def test_what_is_advised_when_memory_is_short_does_fit(profile, gpu):
    small = replace(profile, runtime=replace(profile.runtime, gradient_checkpointing=False,
                                             micro_batch=None))
    problems = estimate.costs(small, KNOWN[gpu]).problems
    training = next(p for p in problems if "for training" in p)
    changes = dict(re.findall(r"(\w+)=(\w+)", training))
    assert changes, training
    runtime = replace(small.runtime, **{name: {"True": True}.get(value) or int(value)
                                        for name, value in changes.items()})
    batch = re.search(r"batch=(\d+) in", "".join(problems))
    answers = replace(small.evaluation, batch=int(batch[1])) if batch else small.evaluation
    advised = replace(small, runtime=runtime, evaluation=answers)
    assert not [p for p in estimate.costs(advised, KNOWN[gpu]).problems if "for training" in p]
    assert batch is None or estimate.costs(advised, KNOWN[gpu]).problems == []


def test_four_bits_are_advised_only_where_nothing_else_fits():
    plenty = replace(LLAVA_7B.runtime, gradient_checkpointing=False, micro_batch=None)
    unlike = replace(LLAVA_7B, runtime=plenty)
    on_40, on_22, on_15 = (estimate.costs(unlike, replace(KNOWN["l4"], memory=memory)).problems[0]
                           for memory in (39.4, 22.0, 15.5))
    assert "micro_batch=1 in" in on_40
    assert "gradient_checkpointing=True" in on_22
    assert "four_bit" not in on_40 + on_22
    assert "four_bit=True" in on_15


def test_the_benchmarks_are_one_more_line_of_their_own():
    without, some, every = (
        estimate.costs(replace(LLAVA_7B, benchmarks=names), KNOWN["h200"]).lines
        for names in ("", "GQA,POPE", "all"))
    assert some[:-1] == every[:-1] == without
    assert some[-1].step == "specificity by GQA,POPE: 9 runs"
    assert every[-1].seconds == pytest.approx(some[-1].seconds * 246_815 / 21_578)
    assert some[-1].disk > 12 * GIB, "the merged model, meanwhile"


def test_answers_are_judged_with_what_is_advised_for_training():
    training, *answers = estimate.costs(LLAVA_13B, KNOWN["rtx-5090"]).problems
    assert "With four_bit=True in" in training, "and nothing that is not needed"
    assert answers == [], "the weights are in a quarter of the memory then"


def test_a_gpu_that_is_too_small_for_anything_is_told_so():
    problems = estimate.costs(LLAVA_13B, replace(KNOWN["l4"], memory=6.0)).problems
    assert "take a larger GPU" in problems[0]
    assert "Not even one fits" in problems[1]


def test_too_little_disk_is_told_with_the_number_that_is_needed(monkeypatch):
    monkeypatch.setattr(estimate, "_free_disk", lambda: 3 * GIB)
    problem = estimate.costs(LLAVA_7B, KNOWN["h200"]).problems[0]
    assert re.search(r"Too little disk: \d\d GiB are needed .* 3 GiB are free", problem)
    assert "SAFEERASER_RUNS" in problem


def test_without_a_gpu_hours_are_unknown_and_the_known_gpus_are_listed():
    found = estimate.costs(LLAVA_7B, None)
    assert all(math.isnan(line.seconds) for line in found.lines)
    assert "rtx-4090" in str(found)
    assert "?" in str(found)


def test_a_faster_gpu_takes_fewer_hours_for_the_same_work():
    slow, fast = (estimate.costs(LLAVA_7B, KNOWN[name]) for name in ("a100-80", "h100"))
    for one, other in zip(slow.lines, fast.lines, strict=True):
        assert (one.tokens, one.flops, one.disk) == (other.tokens, other.flops, other.disk)
        assert one.seconds >= other.seconds


def test_as_many_answers_at_once_as_the_gpu_holds_and_no_more():
    room = 60 * GIB
    fitting = arithmetic.answers_at_once(SEVEN, room, 611, 512)
    peaks = [arithmetic.generation_bytes(SEVEN, n, 611, 512) - arithmetic.weight_bytes(SEVEN)
             for n in (fitting, fitting + 1)]
    assert peaks[0] <= room < peaks[1]
    assert arithmetic.answers_at_once(SEVEN, 0, 611, 512) == 1
    assert arithmetic.answers_at_once(SEVEN, 1e15, 611, 512) == arithmetic.MOST_ANSWERS


def test_every_number_of_a_line_is_in_the_table():
    found = estimate.costs(LLAVA_7B, KNOWN["h100"])
    table = str(found)
    for line in found.lines:
        shown = next(row for row in table.splitlines() if row.startswith(line.step))
        assert f"{line.memory / GIB:.1f}" in shown
        assert f"{line.seconds / 3600:.1f}" in shown
    assert "in all" in table


def test_checkpointing_costs_a_forward_and_saves_memory():
    rows = workload.step_rows({"forget": -1.0}, 8, 4, 576, Assumed())
    on, off = (replace(LLAVA_7B, runtime=replace(LLAVA_7B.runtime, gradient_checkpointing=value))
               for value in (True, False))
    needed, again = estimate.step_flops(SEVEN, {"forget": -1.0}, on, Assumed())
    assert estimate.step_flops(SEVEN, {"forget": -1.0}, off, Assumed()) == (needed, 0)
    assert 0.4 < again / needed < 0.5
    assert (estimate.training_memory(SEVEN, rows, off)
            > 1.5 * estimate.training_memory(SEVEN, rows, on))


def test_answers_together_are_many_times_faster_than_one_by_one():
    one, many = (estimate.batch_seconds(SEVEN, batch, 611, 128, KNOWN["h200"], Assumed())
                 for batch in (1, 32))
    assert 10 < 32 * one / many < 32


def test_explain_prints_every_assumption(capsys):
    assert estimate.main(["--explain"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n{name}" in shown for name in Assumed.__dataclass_fields__)


def test_the_command_prints_the_table_of_a_named_gpu(capsys):
    assert estimate.main(["--profile", "llava-13b", "--gpu", "H100"]) == 0
    assert "llava-13b, one H100 SXM (79 GiB)" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "said"), [
    (["--gpu", "abacus"], "known: b200"), (["--profile", "laptop"], "needs no GPU"),
    (["--profile", "nothing"], "llava-7b")])
def test_a_wrong_option_is_a_sentence(arguments, said, capsys):
    assert estimate.main(arguments) == 2
    assert said in capsys.readouterr().err


def test_small_profiles_are_not_real():
    assert [name for name, profile in PROFILES.items() if profile.real] == ["llava-7b", "llava-13b"]
    assert not LAPTOP.real
    assert gpus.KNOWN


def test_the_plan_begins_with_the_costs_and_asks_for_the_data(capsys):
    assert pipeline.main(["--profile", "llava-7b", "--list", "--gpu", "a100-40"]) == 0
    shown = capsys.readouterr().out
    assert "one A100 40 GB (39 GiB)" in shown
    assert "--data" in shown


def test_the_plan_refuses_an_unknown_gpu(capsys):
    assert pipeline.main(["--profile", "llava-7b", "--list", "--gpu", "abacus"]) == 2
    assert "known: b200" in capsys.readouterr().err


def test_what_does_not_fit_does_not_start(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(estimate, "_free_disk", lambda: 0)
    monkeypatch.setenv("SAFEERASER_RUNS", str(tmp_path))
    assert pipeline.main(["--profile", "llava-7b", "--data", "somebody/data"]) == 2
    assert "Too little disk" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


def test_the_plan_s_steps_have_the_hours_of_the_costs(tiny_real):
    found = estimate.costs(tiny_real, KNOWN["h100"])
    steps = experiments.steps(tiny_real, ["00", "01", "02", "03", "04", "05"], 1)
    assert found.hours().keys() == {step.name for step in steps} - {"dataset: read and checked"}
    assert sum(found.hours().values()) == pytest.approx(
        sum(line.seconds for line in found.lines) / 3600)
    assert estimate.costs(tiny_real, None).hours() == {}


def test_a_look_at_the_plan_names_what_is_wrong_with_the_data(tmp_path, capsys):
    (tmp_path / "all_train.json").write_text('[{"image_id": "img/Sex/1.jpg"}]')
    assert pipeline.main(["--profile", "llava-7b", "--list", "--data", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "all_train.json, record 0, SDImage_path: is missing" in said
    assert "all_val.json: is missing" in said
