"""The pipeline at work in a throw-away repository: `lib/running/pipeline.py`."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lib.base import disk
from lib.base.paths import ROOT
from lib.running import chapters, engines, pipeline, profiles
from lib.running.options import hand_down, parse
from tests import toy_repository
from tests.toy_repository import CLAIM, FIGURE, IMPORTS, notebook


@pytest.fixture
def toy(monkeypatch, capsys):
    return toy_repository.Toy(monkeypatch, capsys)


@pytest.fixture
def fresh(toy, tmp_path):
    """A repository in which nothing ran yet, with chapters that do next to nothing."""
    return toy.enter(toy_repository.make(tmp_path / "a repository", "1 + 1"))


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory):
    """A repository in which everything ran, started as a command, and what that printed."""
    root = tmp_path_factory.mktemp("finished") / "repository"
    toy_repository.make(root, IMPORTS, FIGURE, CLAIM)
    command = [sys.executable, "-m", "lib.running.pipeline"]
    return root, subprocess.run(command, cwd=root, env=toy_repository.environment(),
                                text=True, capture_output=True, timeout=300)


@pytest.fixture
def finished(toy, finished_once, tmp_path):
    """A copy of that repository."""
    return toy.enter(shutil.copytree(finished_once[0], tmp_path / "copy"))


def executed(root, profile="laptop"):
    return sorted(path.name for path in (root / "runs" / profile / "notebooks").glob("*.ipynb"))


def test_a_run_makes_every_step_notebook_and_figure(finished_once):
    root, result = finished_once
    assert result.returncode == 0, result.stdout + result.stderr
    assert executed(root) == ["00_first.ipynb", "01_second.ipynb"]
    figures = root / "runs" / "laptop" / "figures"
    assert {path.name for path in figures.iterdir()} >= {"figure_00.png", "figure_01.csv"}
    assert "[1/5] the dataset of it ... 0 s, about" in result.stdout
    assert "[5/5] notebook 0" in result.stdout
    assert "2 of 2 notebooks ran; 2 of 2 checks hold; 2 of 2 findings hold." in result.stdout
    assert str(figures) in result.stdout


def test_the_plan_comes_first_with_the_expected_minutes(finished_once):
    _, result = finished_once
    plan = result.stdout[:result.stdout.index("[1/5]")].splitlines()
    assert [line.split("  ")[-1] for line in plan[1:6]] == [
        "the dataset of it", "the base of it", "the runs of it",
        "notebook 00_first", "notebook 01_second"]
    assert plan[6] == "In all: 50 s."


def test_a_second_run_does_nothing_and_says_the_same_about_the_claims(toy, finished_once, finished):
    copies = [*finished.glob("runs/laptop/notebooks/*")]
    before = [path.stat().st_mtime_ns for path in copies]
    second = toy.run()
    assert second.status == 0
    assert "Nothing to do." in second.out
    assert [path.stat().st_mtime_ns for path in copies] == before
    claims = second.out[second.out.index("Checks"):second.out.index("Figures")]
    assert "01  ✓ holds: The sky is blue (1 of 1)" in claims
    assert "01  ✓ holds: The sky is high (1 of 1)" in claims
    assert claims in finished_once[1].stdout


def test_the_list_shows_the_plan_and_does_nothing(toy, fresh):
    result = toy.run("--list")
    assert result.status == 0
    assert "the base of it" in result.out
    assert not (fresh / "runs").exists()


def test_a_run_never_touches_the_repositorys_own_notebooks(finished):
    for path in (finished / "notebooks").iterdir():
        code = [cell for cell in chapters.read(path).cells if cell.cell_type == "code"]
        assert not any(cell.outputs for cell in code)


@pytest.mark.parametrize(("reason", "change", "again"), [
    ("nothing changed", lambda root: None, []),
    ("its source changed", lambda root: notebook(
        root / "notebooks/00_first.ipynb", IMPORTS, FIGURE), ["00"]),
    ("a comment in lib changed", lambda root: (root / "lib/figures/tables.py").write_text(
        f"# shorter\n{(root / 'lib/figures/tables.py').read_text()}"), []),
    ("lib changed", lambda root: (root / "lib/figures/tables.py").write_text("# shorter"),
     ["00", "01"]),
    ("a figure is gone", lambda root: (root / "runs/laptop/figures/figure_01.png").unlink(),
     ["01"]),
    ("its claims are gone", lambda root: (root / "runs/laptop/claims/01.json").unlink(), ["01"]),
    ("its copy is gone", lambda root: (root / "runs/laptop/notebooks/00_first.ipynb").unlink(),
     ["00"]),
    ("a step that it needs is damaged",
     lambda root: next(root.glob("runs/laptop/base-*/result.txt")).write_text("!"), ["01"]),
])
def test_a_notebook_runs_again_only_when_something_it_depends_on_changed(
        toy, finished, reason, change, again):
    change(finished)
    plan = toy.run("--list").out.splitlines()
    assert [line.split()[-1][:2] for line in plan
            if " notebook " in line and "there already" not in line] == again, reason


def test_only_the_chosen_chapters_and_their_steps_run(toy, fresh):
    result = toy.run("--only", "0")
    assert result.status == 0
    assert executed(fresh) == ["00_first.ipynb"]
    assert "the base of it" not in result.out


def test_a_failing_notebook_is_named_with_its_line_and_the_others_still_run(toy, fresh):
    notebook(fresh / "notebooks/00_first.ipynb", "a = 1\nraise KeyError('no such run')")
    result = toy.run()
    assert result.status == 1
    assert "00_first failed in cell [3], line 2:\n    raise KeyError('no such run')" in result.out
    assert "KeyError: 'no such run'" in result.out
    assert executed(fresh) == ["00_first.unfinished.ipynb", "01_second.ipynb"]
    assert "1 of 2 notebooks ran" in result.out


def test_a_failing_step_stops_the_run_with_its_own_sentence(toy, fresh, monkeypatch):
    monkeypatch.setenv("TOY_BROKEN_STEP", "base")
    result = toy.run()
    assert result.status == 1
    assert "[2/5] the base of it ... FAILED" in result.out
    assert "ASR >= 0.95, and it is 0.50: train longer" in result.err
    assert "Traceback" not in result.err
    assert "Traceback" in (fresh / "runs/laptop/failure.txt").read_text()
    assert not executed(fresh)


@pytest.mark.parametrize(("profile", "sky", "status", "verdict"), [
    ("laptop", "grey", 1, "✗ does not hold: The sky is blue (1 of 1)"),
    ("laptop", "low", 0, "✗ does not hold: The sky is high (1 of 1)"),
    ("smoke", "grey", 0, "not judged at this profile: The sky is blue (1 of 1)"),
])
def test_a_check_that_does_not_hold_is_a_failure_and_a_finding_is_a_result(
        toy, fresh, monkeypatch, profile, sky, status, verdict):
    notebook(fresh / "notebooks/00_first.ipynb", IMPORTS, CLAIM)
    monkeypatch.setenv("TOY_SKY", sky)
    result = toy.run("--profile", profile, "--only", "00")
    assert result.status == status
    assert verdict in result.out


@pytest.mark.parametrize(("reason", "options", "words"), [
    ("unknown profile", ["--profile", "lapdog"], ["lapdog", "smoke", "laptop"]),
    ("unknown chapter", ["--only", "00,07"], ["'07'", "00_first", "01_second"]),
    ("a chapter's name", ["--only", "first"], ["'first'", "00_first"]),
    ("no jobs at all", ["--jobs", "0"], ["--jobs 0", "whole number", "cores"]),
    ("jobs in words", ["--jobs", "many"], ["--jobs many", "whole number"]),
    ("half a job", ["--jobs", "1.5"], ["--jobs 1.5", "whole number"]),
    ("negative jobs", ["--jobs=-1"], ["--jobs -1", "whole number"]),
    ("unknown engine", ["--engine", "slurm"], ["slurm", "local", "ray"]),
    ("no use for an address", ["--address", "head:6379"], ["--address head:6379", "--engine ray"]),
    ("no port", ["--engine", "ray", "--address", "head"], ["--address head", "HOST:PORT"]),
    ("a Ray client", ["--engine", "ray", "--address", "ray://head:1"], ["ray://", "HOST:PORT"]),
    ("unknown option", ["--fast"], ["--fast", "--profile", "--only", "--fresh"]),
    ("an option cut short", ["--prof", "smoke"], ["--prof", "--profile"]),
    ("an option without its value", ["--only"], ["--only", "expected one argument"]),
    ("publishing a part", ["--publish", "--only", "00"], ["--publish", "full run", "--only"]),
    ("publishing the smoke test", ["--publish", "--profile", "smoke"], ["--publish", "laptop"]),
])
def test_an_option_that_cannot_be_is_answered_with_one_sentence(toy, fresh, reason, options, words):
    result = toy.run(*options)
    assert result.status == 2, reason
    assert result.err.count("\n") == 1
    assert all(word in result.err for word in words)
    assert not result.out
    assert not (fresh / "runs").exists()


def test_a_notebook_without_our_parameter_stops_the_run_before_any_step(toy, fresh):
    notebook(fresh / "notebooks/00_first.ipynb", parameters='profil_name = "laptop"')
    result = toy.run()
    assert result.status == 1
    assert "00_first.ipynb has no parameter profile_name" in result.err
    assert "sets: profil_name" in result.err
    assert not list(fresh.glob("runs/*/dataset-*"))


def test_fresh_says_what_it_removes_and_begins_again(toy, fresh):
    toy.run("--only", "00")
    (fresh / "runs/smoke").mkdir()
    result = toy.run("--only", "00", "--fresh")
    assert result.out.startswith(f"Removing {fresh / 'runs' / 'laptop'}\n")
    assert "[1/2] the dataset of it" in result.out
    assert (fresh / "runs/smoke").exists()


def test_fresh_keeps_what_was_paid_for_and_takes_a_link_for_a_folder(toy, fresh, tmp_path):
    (tmp_path / "elsewhere" / "judges").mkdir(parents=True)
    (tmp_path / "elsewhere" / "judges" / "verdicts.jsonl").touch()
    (tmp_path / "elsewhere" / "old").touch()
    (fresh / "runs").mkdir()
    (fresh / "runs/laptop").symlink_to(tmp_path / "elsewhere")
    result = toy.run("--only", "00", "--fresh")
    assert result.status == 0, result.err
    assert (tmp_path / "elsewhere" / "judges" / "verdicts.jsonl").exists()
    assert not (tmp_path / "elsewhere" / "old").exists()


def test_fresh_is_refused_while_another_command_is_at_work(toy, fresh):
    (fresh / "runs/laptop/old").mkdir(parents=True)
    with disk.at_work(fresh / "runs/laptop"):
        result = toy.run("--only", "00", "--fresh")
    assert result.status == 2
    assert result.err.startswith("Nothing is removed: another process is at work in ")
    assert (fresh / "runs/laptop/old").exists()


@pytest.mark.parametrize("spoil", [Path.touch, lambda runs: runs.symlink_to("/no/such/folder")],
                         ids=["a file", "a link to nothing"])
def test_a_runs_folder_that_cannot_be_written_is_said_without_a_traceback(toy, fresh, spoil):
    spoil(fresh / "runs")
    result = toy.run("--only", "00")
    assert result.status == 1
    assert f"Nothing can be written to {fresh / 'runs' / 'laptop'}: " in result.err
    assert "Traceback" not in result.err


def test_lost_claims_are_no_success(toy, fresh, monkeypatch):
    notebook(fresh / "notebooks/00_first.ipynb", IMPORTS, CLAIM)
    assert toy.run("--only", "00").status == 0
    executed = chapters.execute

    def disturbed(path, profile_name, mark):
        executed(path, profile_name, mark)
        (fresh / "runs/laptop/claims/00.json").write_text("[]")  # as a reader's first cell does

    monkeypatch.setattr(chapters, "execute", disturbed)
    (fresh / "runs/laptop/notebooks/00_first.ipynb").unlink()
    result = toy.run("--only", "00")
    assert result.status == 1
    assert "00_first: its claims are not those of its run" in result.out


@pytest.mark.parametrize(("where", "how"), [
    ("a notebook", signal.SIGINT),
    ("a step", signal.SIGTERM),
])
def test_a_stopped_run_says_so_leaves_no_process_and_goes_on_when_called_again(
        toy, fresh, where, how):
    notebook(fresh / "notebooks/01_second.ipynb", """
import os, pathlib, time
if "TOY_SLOW_NOTEBOOK" in os.environ:
    pathlib.Path("started").touch()
    time.sleep(60)
""")
    slow = {"TOY_SLOW_STEP": "runs"} if where == "a step" else {"TOY_SLOW_NOTEBOOK": "1"}
    sign = "runs/laptop/base-*/manifest.json" if where == "a step" else "started"
    process = subprocess.Popen(
        [sys.executable, "-m", "lib.running.pipeline"], cwd=fresh, text=True,
        env=toy_repository.environment(**slow), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    wait_for(lambda: list(fresh.glob(sign)))
    kernels = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert output.endswith("run the same command again to go on.\n")
    assert "Traceback" not in output
    wait_for(lambda: not any(map(alive, kernels)))
    again = toy.run()
    assert again.status == 0
    assert "there already  the base of it" in again.out


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_nothing_is_published_when_a_notebook_failed(toy, fresh):
    notebook(fresh / "notebooks/00_first.ipynb", "1 / 0")
    result = toy.run("--publish")
    assert result.status == 1
    assert "Nothing is published" in result.out
    assert not (fresh / "figures").exists()


def test_the_option_test_runs_pytest_in_the_repository(fresh):
    (fresh / "test_sum.py").write_text("def test_sum():\n    assert 1 + 1 == 2\n")
    (fresh / "pytest.ini").touch()
    result = subprocess.run(
        [sys.executable, "-m", "lib.running.pipeline", "--test"], cwd=fresh, text=True,
        capture_output=True,
        env=toy_repository.environment(PYTEST_ADDOPTS=""), timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 passed" in result.stdout.splitlines()[-1]


# Models and data from elsewhere.


@pytest.fixture
def given(tmp_path, monkeypatch):
    """A model and a data folder, and nothing in the environment."""
    for name in ("MODEL", "DATA", "JUDGE", "CALLED_FROM"):
        monkeypatch.setenv(f"SAFEERASER_{name}", "")  # set, so that it is put back afterwards
        monkeypatch.delenv(f"SAFEERASER_{name}")
    for name in ("model", "data"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_a_real_profile_takes_model_and_data_and_fills_one_gpu(given):
    options = parse(["--profile", "llava-7b", "--model", str(given / "model"),
                              "--data", "somebody/safeeraser"])
    assert options.profile.model == str(given / "model")
    assert options.profile.data == "somebody/safeeraser"
    assert options.jobs == 1


def test_a_relative_folder_is_one_from_where_the_command_was_called(given, monkeypatch):
    monkeypatch.setenv("SAFEERASER_CALLED_FROM", str(given))
    options = parse(["--profile", "llava-13b", "--data", "data"])
    assert options.profile.data == str(given / "data")
    assert options.profile.model == "llava-hf/llava-1.5-13b-hf"


@pytest.mark.parametrize(("judge", "placed"), [
    ("local:model", "local:{}/model"),
    ("guard:model+local:model", "guard:{0}/model+local:{0}/model"),
    ("guard:org/guard+rules", "guard:org/guard+rules")])
def test_a_judge_s_folder_is_one_from_there_too(judge, placed, given, monkeypatch):
    (given / "model" / "config.json").write_text("{}")
    monkeypatch.setenv("SAFEERASER_CALLED_FROM", str(given))
    options = parse(["--profile", "llava-7b", "--data", "data", "--judge", judge])
    assert options.profile.judge == placed.format(given)


@pytest.mark.parametrize("list_only", [(), ("--list",)])
@pytest.mark.parametrize(("judge", "words"), [
    ("gpt-4o", "There is no judge 'gpt-4o'; known: rules"),
    ("server:gpt-4o", "key in OPENAI_API_KEY is missing"),
    ("local:nowhere", "no judge's folder 'nowhere'")])
def test_a_judge_that_cannot_be_asked_is_said_before_anything_starts(
        toy, fresh, given, judge, words, list_only, monkeypatch):
    for variable in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "SAFEERASER_JUDGE_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    result = toy.run("--profile", "llava-7b", "--data", str(given / "data"), "--judge", judge,
                     *list_only)
    assert result.status == 2
    assert words in result.err
    assert result.err.count("\n") == 1
    assert result.out == ""
    assert not (fresh / "runs").exists()


@pytest.mark.parametrize(("judged", "done"), [((True, True), True), ((True, False), False)])
def test_a_gate_is_passed_anew_as_long_as_anything_behind_it_is_to_be_made(judged, done,
                                                                          monkeypatch):
    from lib.running import experiments

    steps = [experiments.Step("gate", "gate", 1, lambda: True, None, ("a", "b", "not planned"))]
    steps += [experiments.Step(name, name, 1, lambda there=there: there, None)
              for name, there in zip("ab", judged, strict=True)]
    monkeypatch.setattr(experiments, "steps", lambda *_: steps)
    engine = engines.local(1, [], "cpu")
    assert pipeline.make_plan(profiles.SMOKE, [], 1, engine).done["gate"] is done


def test_the_kernels_find_the_same_model_and_data_by_the_profile_s_name(given):
    profile = parse(["--profile", "llava-7b", "--data", str(given / "data")]).profile
    hand_down(profile)
    assert profiles.get("llava-7b") == profile


@pytest.mark.parametrize(("options", "words"), [
    (["--profile", "llava-7b"], "give its folder with --data"),
    (["--profile", "laptop", "--data", "x"], "--official-quirks, --leave-out are for llava-7b"),
    (["--profile", "llava-7b", "--benchmarks", "GQA,MMMU"], "no benchmark 'MMMU'; known: all, GQA"),
])
def test_data_that_are_missing_or_not_wanted_are_said_in_one_sentence(toy, fresh, given, options,
                                                                      words):
    result = toy.run(*options)
    assert result.status == 2
    assert words in result.err


def test_a_wrong_option_is_said_before_anything_that_takes_seconds_is_imported():
    code = ("import sys\nfrom lib.running import pipeline\n"
            "assert pipeline.main(['--profile', 'nonsense']) == 2\n"
            "slow = {'torch', 'transformers', 'peft', 'openai'} & sys.modules.keys()\n"
            "assert not slow, slow")
    call = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert call.returncode == 0, call.stderr
