"""Ray: a cluster of two nodes on this machine, one of which does not see the driver's store.

`lib/scale/ray_engine.py` and `ray_nodes.py`. Needs the extra `ray`.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from lib.base import environment
from lib.base.paths import ROOT
from lib.base.runs import Store, is_whole, read_json
from lib.running import experiments, recipes
from lib.running.agenda import Agenda
from lib.running.experiments import Run
from tests import toy_pieces
from tests.killable_steps import PARTS
from tests.test_runs_killed import journal_lines
from tests.test_workers import wait_for

if lacking := environment.missing(environment.extra("ray")):
    pytest.skip(f"needs {', '.join(lacking)}: {environment.pip_command('ray')}",
                allow_module_level=True)

import ray
from ray.cluster_utils import Cluster

from lib.scale import ray_engine

NODE = {"num_cpus": 1, "object_store_memory": 10**8, "include_dashboard": False}
CHECKS = {  # a node that is gone is noticed within half a minute
    "health_check_period_ms": 500, "health_check_failure_threshold": 3,
    "health_check_timeout_ms": 10_000}
QUICK, SLOW = 0.0, 0.05  # seconds per part: a piece has 40


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """The runs folder of the second node."""
    return tmp_path_factory.mktemp("second_node") / "runs"


@pytest.fixture(scope="module")
def nodes(elsewhere, tmp_path_factory):
    """A cluster: its head works in the driver's runs folder, its second node in one of its own.

    Of the repository its nodes have only tests/, where the toy pieces are: lib has to be sent.
    """
    theirs = tmp_path_factory.mktemp("on_nodes")
    (theirs / "tests").symlink_to(ROOT / "tests")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SAFEERASER_RUNS", raising=False)
        patch.setenv("PYTHONPATH", str(theirs))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_register_timeout_seconds", "600")
        cluster = Cluster(initialize_head=True,
                          head_node_args={**NODE, "_system_config": CHECKS})
        cluster.add_node(**NODE, env_vars={"SAFEERASER_RUNS": str(elsewhere)})
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def engine(nodes):
    with ray_engine.start(nodes.address, 1, "cpu") as cluster:
        yield cluster


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEERASER_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(autouse=True)
def _watchful(monkeypatch):
    monkeypatch.setattr(ray_engine, "LOOK_SECONDS", 0.2)


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "journal"


def quiet(text):
    """Reports nothing."""


def counted(journal, word):
    return Counter(words[1] for words in journal_lines(journal) if words[0] == word)


def workers_at(journal):
    """The process that began each piece last."""
    return {words[1]: int(words[3]) for words in journal_lines(journal) if words[0] == "start"}


def assert_all_is_there_once(pieces, journal, unwritten=0):
    """Every piece ended once, and no part of one was made twice; a kill may come between a part's
    checkpoint and its line."""
    assert all(is_whole(piece.folder) for piece in pieces)
    assert counted(journal, "end") == dict.fromkeys(toy_pieces.NAMES, 1)
    parts = Counter((words[1], words[2]) for words in journal_lines(journal) if words[0] == "part")
    assert set(parts.values()) == {1}
    assert len(parts) >= len(pieces) * PARTS - unwritten


# What it makes.


def test_the_cluster_is_described_before_the_work(engine):
    assert engine.slots == 2
    assert "2 side by side" in engine.summary
    assert engine.summary.count("0 GPUs, 1 cores") == 2


def test_a_profile_that_needs_a_gpu_is_refused_at_once(engine):
    with pytest.raises(RuntimeError, match="has no GPU with a core to give"):
        ray_engine.Cluster(ray, "this cluster", "cuda")
    assert ray_engine.Cluster(ray, "this cluster", "auto").summary.startswith("one run per core")


def test_a_folder_that_a_node_lacks_is_named_before_the_work(engine, runs, journal):
    pieces = [replace(piece, reads=(ROOT, Path("/no/such")))
              for piece in toy_pieces.pieces("folder", journal)]
    with pytest.raises(RuntimeError, match=r"lacks the folder /no/such; .* lacks .*/no/such\. In"):
        engine.make_all(pieces, 1, quiet)
    assert not counted(journal, "start")


def test_each_task_on_a_node_with_gpus_sees_one_of_them(nodes, engine, runs, journal):
    with_gpus = nodes.add_node(**NODE | {"num_cpus": 2, "num_gpus": 2})
    pieces = toy_pieces.pieces("gpus", journal, SLOW / 5)
    on_gpus = ray_engine.Cluster(ray, "this cluster", "cuda")
    assert (on_gpus.slots, on_gpus.summary.split(" on ")[0]) == (2, "one run per GPU")
    on_gpus.make_all(pieces, 1, quiet)
    nodes.remove_node(with_gpus)
    assert {read_json(piece.folder / "metrics.json")["gpu"] for piece in pieces} == {"0", "1"}


def test_pieces_made_on_both_nodes_are_in_the_drivers_store(engine, runs, journal, elsewhere):
    pieces, told = toy_pieces.pieces("both", journal, SLOW), []
    engine.make_all(pieces, 1, told.append)
    assert_all_is_there_once(pieces, journal)
    copied = [piece for piece in pieces if is_whole(elsewhere / piece.folder.relative_to(runs))]
    assert 0 < len(copied) < len(pieces), "both nodes have to work, or nothing was tested"
    assert {read_json(piece.folder / "metrics.json")["word"] for piece in pieces} == {"original"}
    assert any("part " in text for text in told)
    assert any(" min left" in text or " s left" in text for text in told)
    assert not [path for path in (runs / "toy").iterdir() if path.suffix], "nothing half done"


CHOSEN = [Run("po", True, 1), Run("ga", False, 1)]  # as many as there are nodes


PLACED = ("adapter/README.md", "adapter/adapter_config.json")  # they say where the base model is


def assert_same_bytes(here, there, names, but=()):
    """Size and sha256 of every file of these results are the same in both stores."""
    for name in names:
        assert is_whole(there / name)
        listed = [read_json(store / name / "manifest.json")["files"] for store in (here, there)]
        assert listed[0].keys() == listed[1].keys()
        assert [each for each in listed[0] if listed[0][each] != listed[1][each]
                and each not in but] == [], name


def test_runs_on_two_nodes_give_the_same_bytes_as_here(engine, tiny, tiny_runs, tmp_path,
                                                       monkeypatch, elsewhere):
    threads = torch.get_num_threads()
    for name, make_all in (("here", toy_pieces.in_this_process), ("ray", engine.make_all)):
        root = Path(shutil.copytree(tiny_runs, tmp_path / name))
        monkeypatch.setenv("SAFEERASER_RUNS", str(root))
        experiments.ensure(tiny, CHOSEN, 2, quiet, make_all)
    torch.set_num_threads(threads)
    names = [recipes.run(tiny, run).folder().name for run in CHOSEN]
    assert_same_bytes(tmp_path / "here" / "tiny", tmp_path / "ray" / "tiny", names, but=PLACED)
    assert len(list((elsewhere / "tiny").glob("adapter-*"))) == 1, "the other is made on the head"


def test_a_real_profile_s_results_have_the_local_engine_s_bytes(
        engine, tiny_real, real_runs, tmp_path, monkeypatch, elsewhere):
    """Tower, original and runs: of a model and a dataset outside of any store."""
    monkeypatch.setenv("SAFEERASER_RUNS", str(real_runs))
    experiments.ensure(tiny_real, CHOSEN, 2)
    monkeypatch.setenv("SAFEERASER_RUNS", str(tmp_path))
    for step in experiments.steps(tiny_real, ["00"], 2, engine.make_all):
        step.make(quiet)
    experiments.ensure(tiny_real, CHOSEN, 2, quiet, engine.make_all)
    made = [path.name for path in (tmp_path / tiny_real.name).glob("*-*")]
    assert sorted(name.split("-")[0] for name in made) == [
        "adapter", "adapter", "answers", "answers", "answers", "dataset", "labels", "labels",
        "labels", "tower"]
    assert_same_bytes(real_runs / tiny_real.name, tmp_path / tiny_real.name, made)
    assert len(list((elsewhere / tiny_real.name).glob("adapter-*"))) == 1


def test_a_manifest_from_a_node_names_the_drivers_commit(engine, runs, journal):
    pieces = toy_pieces.pieces("commit", journal)
    engine.make_all(pieces, 1, quiet)
    found = {read_json(piece.folder / "manifest.json")["git_commit"] for piece in pieces}
    assert found == {ray_engine.provenance.git_commit(ROOT)[0]}


def test_what_is_there_is_not_given_out(engine, runs, journal):
    pieces, told = toy_pieces.pieces("again", journal), []
    engine.make_all(pieces, 1, quiet)
    engine.make_all(pieces, 1, told.append)
    assert told == []
    assert_all_is_there_once(pieces, journal)


def test_what_a_node_had_finished_is_collected_and_not_made_again(engine, runs, journal, elsewhere):
    """As after a driver was killed before it could collect."""
    pieces = toy_pieces.pieces("left", journal)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFEERASER_RUNS", str(elsewhere))
        toy_pieces.make(pieces[0].name, "left", journal, QUICK, quiet)
    engine.make_all(pieces, 1, quiet)
    assert_all_is_there_once(pieces, journal)


def test_a_piece_that_fails_is_named_and_the_others_are_made(engine, runs, journal):
    pieces = toy_pieces.pieces("failing", journal)
    with pytest.raises(RuntimeError) as stopped:
        engine.make_all([toy_pieces.lone("bad", toy_pieces.fail), *pieces], 1, quiet)
    assert "1 of 5 failed, the first of them bad" in str(stopped.value)
    assert "the loss is not a number" in str(stopped.value)
    assert_all_is_there_once(pieces, journal)


# What is lost on the way.


def test_a_worker_killed_in_the_middle_is_replaced_and_goes_on(engine, runs, journal):
    pieces, killed = toy_pieces.pieces("worker", journal, SLOW), []

    def kill_one(text):
        if not killed and counted(journal, "part")["step0"] > 5:
            killed.append(workers_at(journal)["step0"])
            os.kill(killed[0], signal.SIGKILL)

    engine.make_all(pieces, 1, kill_one)
    assert killed != [workers_at(journal)["step0"]]
    assert counted(journal, "start")["step0"] == 2
    assert_all_is_there_once(pieces, journal, unwritten=1)


def test_a_piece_that_kills_every_worker_is_given_up(engine, runs, journal):
    pieces, told = toy_pieces.pieces("poison", journal), []
    with pytest.raises(RuntimeError, match="1 of 5 failed, the first of them bad:\nLost 4 times"):
        engine.make_all([toy_pieces.lone("bad", toy_pieces.die), *pieces], 1, told.append)
    assert_all_is_there_once(pieces, journal)
    assert any("3 workers were lost" in text for text in told)


def test_the_work_of_a_lost_node_is_done_by_the_others(nodes, engine, runs, journal):
    """The lost node shares the driver's store: another one goes on from its checkpoints."""
    third = nodes.add_node(**NODE)
    pieces, lost = toy_pieces.pieces("node", journal, SLOW), []

    def remove(text):
        if not lost:
            theirs = workers_of(third)
            at_work = [name for name, pid in workers_at(journal).items() if pid in theirs]
            if at_work and counted(journal, "part")[at_work[0]] > 5:
                lost.extend(at_work)
                nodes.remove_node(third, allow_graceful=False)

    assert engine.slots == 3
    engine.make_all(pieces, 1, remove)
    wait_for(lambda: engine.slots == 2)
    assert counted(journal, "start")[lost[0]] == 2
    assert_all_is_there_once(pieces, journal, unwritten=1)


def workers_of(node):
    """The processes of a node's workers."""
    raylet = node.all_processes["raylet"][0].process.pid
    return {child.pid for child in psutil.Process(raylet).children(recursive=True)}


# Drivers.


def driver(runs, tag, journal, pause, address):
    environment = {**os.environ, "SAFEERASER_RUNS": str(runs)}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.toy_pieces", tag, str(journal), str(pause), address],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def safe(*stores):
    """The names of the pieces that are finished in one of these stores."""
    return {path.parent.name for store in stores for path in store.glob("toy/step?-*/metrics.json")
            if not path.parent.suffix}


def test_a_driver_killed_in_the_middle_and_started_again_loses_nothing(
        nodes, runs, journal, elsewhere):
    shutil.rmtree(elsewhere / "toy", ignore_errors=True)
    first = driver(runs, "driver", journal, SLOW, nodes.address)
    wait_for(lambda: len(safe(runs, elsewhere)) > 1 and sum(counted(journal, "part").values())
             > 2 * PARTS + 10)
    first.kill()
    first.communicate()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists()
                             for pid in workers_at(journal).values()))
    again = driver(runs, "driver", journal, QUICK, nodes.address)
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert_all_is_there_once(toy_pieces.pieces("driver", journal), journal, unwritten=2)


def test_what_a_live_driver_has_given_out_is_not_given_out_by_another(engine, nodes, runs, journal):
    pieces, told = toy_pieces.pieces("two", journal, SLOW), []
    other = driver(runs, "two", journal, SLOW, nodes.address)
    wait_for(lambda: counted(journal, "start"))
    engine.make_all(pieces, 1, told.append)
    said, _ = other.communicate(timeout=300)
    assert other.returncode == 0, said
    assert_all_is_there_once(pieces, journal)


def test_control_c_stops_the_tasks(nodes, runs, journal):
    running = driver(runs, "stopped", journal, SLOW, nodes.address)
    wait_for(lambda: sum(counted(journal, "part").values()) > 5)
    running.send_signal(signal.SIGINT)
    said, _ = running.communicate(timeout=60)
    assert running.returncode != 0
    assert "KeyboardInterrupt" in said
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists()
                             for pid in workers_at(journal).values()))
    assert not counted(journal, "end")
    assert Agenda(toy_pieces.pieces("stopped", journal)).take(), "its claims are gone, too"


# Options.


def test_the_pipeline_shows_the_cluster_in_its_plan(nodes, tmp_path):
    options = ["--profile", "smoke", "--only", "00", "--list", "--engine", "ray"]
    shown = subprocess.run(
        [sys.executable, "-m", "lib.running.pipeline", *options, "--address", nodes.address],
        cwd=ROOT,
        env={**os.environ, "SAFEERASER_RUNS": str(tmp_path)}, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert f"one run per core on Ray at {nodes.address}" in shown.stdout
    assert "2 side by side" in shown.stdout


def test_a_cluster_that_is_not_there_is_named_with_what_to_do(runs):
    with pytest.raises(RuntimeError) as refused, ray_engine.start("127.0.0.1:1", 1, "cpu"):
        pass
    assert "could not be reached at 127.0.0.1:1" in str(refused.value)
    assert "ray start --address" in str(refused.value)


def test_without_an_address_a_ray_of_its_own_is_started_and_stopped(nodes, runs, journal, tmp_path):
    code = ("from lib.scale import ray_engine; from tests import toy_pieces\n"
            "from pathlib import Path\n"
            "with ray_engine.start(None, 2, 'cpu') as cluster:\n"
            "    print(cluster.summary, cluster.slots)\n"
            f"    cluster.make_all(toy_pieces.pieces('own', Path({str(journal)!r})), 2, print)\n")
    own = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                         env={**os.environ, "HOME": str(tmp_path)}, timeout=600)
    assert own.returncode == 0, own.stderr
    assert "on a Ray of its own" in own.stdout
    assert_all_is_there_once(toy_pieces.pieces("own", journal), journal)
    assert Store(runs / "toy").is_done("step0", {"tag": "own"})
    assert not (tmp_path / ".ray").exists(), "a token there changes how later clusters start"
