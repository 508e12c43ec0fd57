"""Ray: a cluster of two nodes on this machine, which share a runs folder (`ray_engine.py`).

Needs the extra `ray`.
"""

import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from lib.base import environment, provenance
from lib.base.paths import ROOT
from lib.base.runs import Store, is_whole, manifest, read_json
from lib.running import engines, experiments, origins
from lib.running.agenda import Agenda
from lib.running.experiments import Run
from lib.scale import ray_engine
from tests import toy_pieces
from tests.killable_steps import PARTS
from tests.test_runs_killed import journal_lines
from tests.test_workers import wait_for

if lacking := environment.missing(environment.extra("ray")):
    pytest.skip(f"needs {', '.join(lacking)}: {environment.pip_command('ray')}",
                allow_module_level=True)

import ray
from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "object_store_memory": 10**8, "include_dashboard": False}
CHECKS = {  # a node that is gone is noticed within seconds
    "health_check_period_ms": 500, "health_check_failure_threshold": 3,
    "health_check_timeout_ms": 10_000}
QUICK, SLOW = 0.0, 0.03  # seconds per part: a piece has 40
CHOSEN = [Run("po", True, 1), Run("ga", False, 1)]  # as many as there are nodes


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """A cluster. Of the repository its nodes have only tests/, where the toy pieces are: lib has
    to be sent."""
    theirs = tmp_path_factory.mktemp("on_nodes")
    (theirs / "tests").symlink_to(ROOT / "tests")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(theirs))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_register_timeout_seconds", "600")
        cluster = Cluster(initialize_head=True,
                          head_node_args={**NODE, "_system_config": CHECKS})
        cluster.add_node(**NODE)
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def engine(nodes):
    with engines.start("ray", 1, "cpu", nodes.address) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The runs folder of all tests: workers, which know one each, are started once."""
    return tmp_path_factory.mktemp("shared") / "runs"


@pytest.fixture(autouse=True)
def _in_runs(runs, monkeypatch):
    monkeypatch.setenv("SAFEERASER_RUNS", str(runs))


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


def test_the_cluster_is_described_and_a_gpu_that_it_lacks_is_named(nodes, engine):
    assert engine.slots == 2
    assert engine.summary.startswith(f"one run per core on Ray at {nodes.address} (")
    assert engine.summary.count("0 GPUs, 1 cores") == 2
    assert "2 side by side" in engine.summary
    with pytest.raises(RuntimeError, match="has no GPU with a core to give"):
        ray_engine.Cluster(ray, "this cluster", "cuda")
    assert ray_engine.Cluster(ray, "this cluster", "auto").summary.startswith("one run per core")


def test_what_a_node_lacks_is_named_before_the_work(engine, runs, journal, monkeypatch):
    monkeypatch.setattr(ray_engine, "_desk", lambda: nullcontext(Path("/runs/.locks/ray-1")))
    monkeypatch.setattr(environment, "needed", lambda: ["torch", "of-no-shop>=1"])
    pieces = [replace(piece, reads=(ROOT, Path("/no/such")))
              for piece in toy_pieces.pieces("lacking", journal)]
    with pytest.raises(RuntimeError) as refused:
        engine.make_all(pieces, 1, quiet)
    assert str(refused.value).count(" lacks of-no-shop, the folder /no/such, the runs folder /runs "
                                    "of the machine that asks (all nodes have to share it") == 2
    assert not counted(journal, "start")


def test_a_node_that_lacks_torch_can_say_so():
    code = "import sys; sys.modules['torch'] = None; from lib.scale import ray_engine"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_each_task_on_a_node_with_gpus_sees_one_of_them(nodes, engine, runs, journal):
    with_gpus = nodes.add_node(**NODE | {"num_cpus": 2, "num_gpus": 2})
    pieces = toy_pieces.pieces("gpus", journal, SLOW)
    on_gpus = ray_engine.Cluster(ray, "this cluster", "cuda")
    assert (on_gpus.slots, on_gpus.summary.split(" on ")[0]) == (2, "one run per GPU")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ray_engine.AUTO_DTYPE, "auto")
        patch.setattr(ray_engine, "_auto_dtype", lambda: "bfloat16")
        on_gpus.agree()
        assert os.environ[ray_engine.AUTO_DTYPE] == "bfloat16"
        on_gpus.make_all(pieces, 1, quiet)
    nodes.remove_node(with_gpus)
    assert {read_json(piece.folder / "metrics.json")["gpu"] for piece in pieces} == {"0", "1"}


def test_a_node_says_what_auto_is_there(engine):
    assert engine._ask(engine._nodes()[1], ray_engine._auto_dtype) in ("float32", "bfloat16")


def test_pieces_are_made_once_on_both_nodes_and_say_how_far_they_are(engine, runs, journal):
    pieces, told = toy_pieces.pieces("both", journal, SLOW), []
    engine.make_all(pieces, 1, told.append)
    assert_all_is_there_once(pieces, journal)
    assert any("part " in text and "(on " in text for text in told)
    assert any(" min left" in text or " s left" in text for text in told)
    parents = {read_json(piece.folder / "metrics.json")["parent"] for piece in pieces}
    assert len(parents) == 2, "both nodes have to work"
    assert {manifest(piece.folder)["git_commit"] for piece in pieces} == {
        provenance.git_commit(ROOT)[0]}
    assert not list((runs / ".locks").glob("ray-*")), "nothing is left behind"
    told.clear()
    engine.make_all(pieces, 1, told.append)
    assert told == []
    assert_all_is_there_once(pieces, journal)


def test_a_real_profile_s_results_have_the_local_engine_s_bytes(engine, tiny_real, real_runs,
                                                                 runs, monkeypatch):
    """Tower, original and runs: of a model and a dataset outside of any store."""
    monkeypatch.setenv("SAFEERASER_RUNS", str(real_runs))
    experiments.ensure(tiny_real, CHOSEN, 2)
    monkeypatch.setenv("SAFEERASER_RUNS", str(runs))
    for step in experiments.steps(tiny_real, ["00"], 2, engine.make_all):
        step.make(quiet)
    experiments.ensure(tiny_real, CHOSEN, 2, quiet, engine.make_all)
    made = {path.name: manifest(path)["files"]
            for path in (runs / tiny_real.name).glob("*-*")}
    assert sorted(name.split("-")[0] for name in made) == [
        "adapter", "adapter", "answers", "answers", "answers", "dataset", "labels", "labels",
        "labels", "tower"]
    assert made == {name: manifest(real_runs / tiny_real.name / name)["files"] for name in made}


def test_a_head_without_a_gpu_names_results_by_the_dtype_of_those_that_make_them(
        engine, tiny_real, runs, monkeypatch):
    open_dtype = replace(tiny_real, runtime=replace(tiny_real.runtime, dtype="auto"))
    alone = origins.tower(open_dtype).config
    monkeypatch.setenv(ray_engine.AUTO_DTYPE, "bfloat16")
    assert (alone["dtype"], origins.tower(open_dtype).config["dtype"]) == ("float32", "bfloat16")
    tower = experiments.steps(open_dtype, ["00"], 2, engine.make_all)[1]
    tower.make(quiet)
    assert tower.is_done()


def test_pieces_that_fail_or_kill_every_worker_are_named_and_the_others_made(engine, runs, journal):
    pieces = toy_pieces.pieces("failing", journal)
    bad, poison = (toy_pieces.lone(name, work) for name, work in (
        ("bad", toy_pieces.fail), ("poison", toy_pieces.die)))
    with pytest.raises(RuntimeError, match=r"1 of 5 failed.* bad:(.|\n)*the loss is not a number"):
        engine.make_all([bad, *pieces], 1, quiet)
    assert_all_is_there_once(pieces, journal)
    with pytest.raises(RuntimeError, match="1 of 1 failed, the first of them poison:\nLost 4 "):
        engine.make_all([poison, *pieces], 1, quiet)


# What is lost on the way.


def test_the_work_of_a_killed_worker_and_of_a_lost_node_is_gone_on_with(nodes, engine, runs,
                                                                        journal):
    third = nodes.add_node(**NODE)
    pieces, killed, lost = toy_pieces.pieces("lost", journal, SLOW), [], []

    def trouble(text):
        begun = [name for name, count in counted(journal, "part").items() if count > 5]
        theirs = workers_of(third) if not lost else ()
        for name in begun:
            pid = workers_at(journal)[name]
            if not lost and pid in theirs:
                lost.append(name)
                nodes.remove_node(third, allow_graceful=False)
            elif not killed and pid not in theirs and name not in lost:
                killed.append(name)
                os.kill(pid, signal.SIGKILL)

    assert engine.slots == 3
    engine.make_all(pieces, 1, trouble)
    wait_for(lambda: engine.slots == 2)
    assert [counted(journal, "start")[name] for name in (*killed, *lost)] == [2, 2]
    assert_all_is_there_once(pieces, journal, unwritten=2)


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


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_that_is_stopped_takes_its_tasks_along_and_the_next_goes_on(
        engine, nodes, runs, journal, how):
    first = driver(runs, f"driver {how}", journal, SLOW, nodes.address)
    wait_for(lambda: sum(counted(journal, "part").values()) > 10)
    first.send_signal(how)
    said, _ = first.communicate(timeout=60)
    assert first.returncode != 0
    assert how == signal.SIGKILL or "KeyboardInterrupt" in said
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists()
                             for pid in workers_at(journal).values()))
    pieces = toy_pieces.pieces(f"driver {how}", journal)
    agenda = Agenda(pieces)
    assert agenda.take(), "its claims are gone, too"
    agenda.close()
    engine.make_all(pieces, 1, quiet)
    assert_all_is_there_once(pieces, journal, unwritten=2)


# Connections.


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
