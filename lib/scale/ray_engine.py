"""Runs side by side on a Ray cluster whose nodes share the runs folder: one GPU each, or one core.

Ray gives out the tasks, and again those whose worker or node was lost. What is done, and who does
it, is in the run store (`agenda`): a run goes on from its checkpoint on whichever node, and a
driver that was killed and started again goes on.
"""

import os
import secrets
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from lib.base import disk, environment, paths, provenance
from lib.model.settings import AUTO_DTYPE, Runtime
from lib.running.agenda import Agenda, Piece, Report

RETRIES = 3  # of a piece whose worker or node was lost, until that counts as its own fault
LOOK_SECONDS = 1
ANSWER_SECONDS = 120  # for a node to say what it has
OWN_MEMORY = 10**8  # bytes of the object store of a local Ray, through which nothing large goes
ADVICE = ("This machine has to be a node of the cluster itself (ray start --address=HOST:PORT), "
          "with the same versions of Ray and Python. A cluster that asks for a token wants "
          "RAY_AUTH_MODE=token for this command and every ray start, and the same "
          "~/.ray/auth_token on every machine.")


class Cluster:
    """A Ray cluster to which this process is connected, as an engine."""

    def __init__(self, ray, where: str, device: str):
        self.ray, self.where = ray, where
        self.needs = ["CPU"] if device == "cpu" else ["CPU", "GPU"]
        if device == "auto" and not self.slots:
            self.needs = ["CPU"]
        if not self.slots:
            what = "no GPU with a core" if device == "cuda" else "no core"
            raise RuntimeError(f"{where} has {what} to give to a run, and this profile needs one: "
                               f"{self._listed()}. Let a machine that has it join the cluster: "
                               "ray start --address=HOST:PORT.")

    @property
    def slots(self) -> int:
        """How many runs the cluster as it is now has room for."""
        return sum(map(self._room, self._nodes()))

    @property
    def summary(self) -> str:
        """What there is to work with, in words."""
        unit = "GPU" if "GPU" in self.needs else "core"
        return f"one run per {unit} on {self.where} ({self._listed()}: {self.slots} side by side)"

    def agree(self) -> None:
        """Let dtype "auto" be, here and in all tasks, what it is on the cluster's first GPU.

        Results are named by it, and this machine may have no GPU of its own.
        """
        if "GPU" in self.needs:
            first = next(filter(self._room, self._nodes()))
            os.environ[AUTO_DTYPE] = self._ask(first, _auto_dtype) or "auto"

    def make_all(self, pieces: Sequence[Piece], _planned: int, report: Report) -> None:
        """Make those of the pieces that are not there, as many at once as there is room for.

        Raises RuntimeError as `workers.make_all` does, and, before a node gets work, if it lacks
        packages, a folder that is read, or the runs folder.
        """
        make, running, asked = self._task(), {}, set()
        with closing(Agenda(pieces)) as agenda, _desk() as desk:
            try:
                while agenda.is_open():
                    self._check(asked, desk, agenda.waiting)
                    while len(running) < self.slots and (piece := agenda.take()):
                        running[make.remote(piece, desk)] = piece
                    for done in self._ready(list(running)):
                        agenda.finish(running.pop(done), self._failure(done))
                    for piece in agenda.at_work:
                        agenda.at_work[piece] = _last_word(desk, piece)
                    report(agenda.told() if self.slots else
                           f"{agenda.told()}; no node with room is left: waiting")
            finally:
                for task in running:
                    self.ray.cancel(task, force=True)
            agenda.check()

    def _task(self):
        variables = {"SAFEERASER_RUNS": str(paths.runs_root()),
                     AUTO_DTYPE: os.environ.get(AUTO_DTYPE, "auto")}
        return self.ray.remote(num_cpus=1, num_gpus=self.needs.count("GPU"), max_retries=RETRIES,
                               runtime_env={"env_vars": variables})(_make)

    def _check(self, asked: set[str], desk: Path, pieces: Sequence[Piece]) -> None:
        """Ask nodes that have not been asked; RuntimeError names those that lack something."""
        folders = sorted({folder for piece in pieces for folder in piece.reads})
        needed = environment.needed()
        new = [node for node in self._nodes()
               if self._room(node) and node["NodeID"] not in asked]
        asked.update(node["NodeID"] for node in new)
        with ThreadPoolExecutor() as pool:
            answers = list(pool.map(lambda node: self._ask(node, _lacking, needed, folders, desk),
                                    new))
        if any(answers):
            lacks = [f"{node['NodeManagerHostname']} lacks {', '.join(what)}"
                     for node, what in zip(new, answers, strict=True) if what]
            raise RuntimeError(
                f"Not every node of the cluster has what a run needs: {'; '.join(lacks)}. "
                "Install requirements.lock there; folders have to be at the same path everywhere.")

    def _ask(self, node: dict, function, *details):
        """What a function gives on a node, which needs no room; None if the node is lost."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ask = self.ray.remote(num_cpus=0, max_retries=0, max_calls=1, scheduling_strategy=there)
        try:
            return self.ray.get(ask(function).remote(*details), timeout=ANSWER_SECONDS)
        except self.ray.exceptions.RayTaskError:
            raise  # a fault of the program
        except self.ray.exceptions.RayError:
            return None

    def _ready(self, tasks: list) -> list:
        if not tasks:
            time.sleep(LOOK_SECONDS)
            return []
        return self.ray.wait(tasks, timeout=LOOK_SECONDS)[0]

    def _failure(self, task) -> str | None:
        """Why a task that has ended made nothing, if so."""
        try:
            self.ray.get(task)
        except self.ray.exceptions.RayTaskError as error:
            return str(error)
        except self.ray.exceptions.RayError as error:
            return (f"Lost {RETRIES + 1} times, with its worker or node (perhaps for want of "
                    f"memory). The last: {error}")
        return None

    def _nodes(self) -> list[dict]:
        return [node for node in self.ray.nodes() if node["Alive"]]

    def _room(self, node: dict) -> int:
        return min(int(node["Resources"].get(each, 0)) for each in self.needs)

    def _listed(self) -> str:
        return "; ".join(f"{node['NodeManagerHostname']} {node['Resources'].get('GPU', 0):g} GPUs, "
                         f"{node['Resources'].get('CPU', 0):g} cores" for node in self._nodes())


@contextmanager
def _desk() -> Iterator[Path]:
    """A folder in the runs folder, where tasks write how far they are.

    A node that does not see it has another runs folder.
    """
    locks = paths.runs_root() / disk.LOCKS
    locks.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="ray-", dir=locks, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _last_word(desk: Path, piece: Piece) -> str:
    said = desk / piece.folder.name
    return said.read_text(encoding="utf-8") if said.exists() else "starts"


# What is done on the nodes. Torch is imported only where it is known to be there.


def _make(piece: Piece, desk: Path) -> None:
    piece.make(partial(_tell, desk / piece.folder.name))


def _tell(said: Path, text: str) -> None:
    said.write_text(f"{text} (on {socket.gethostname()})", encoding="utf-8")


def _lacking(requirements: list[str], folders: Sequence[Path], desk: Path) -> list[str]:
    lacks = environment.missing(requirements)
    lacks += [f"the folder {folder}" for folder in folders if not folder.is_dir()]
    if not desk.is_dir():
        lacks.append(f"the runs folder {desk.parents[1]} of the machine that asks (all nodes have "
                     "to share it, for instance over NFS; SAFEERASER_RUNS names another)")
    return lacks


def _auto_dtype() -> str:
    from lib.model.llava import dtype_of

    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides GPUs from who asks for none
    return str(dtype_of(Runtime(device="auto", dtype="auto"))).removeprefix("torch.")


# The connection.


@contextmanager
def start(address: str | None, jobs: int, device: str) -> Iterator[Cluster]:
    """Connect to the cluster at HOST:PORT or "auto"; None: start a Ray on this machine until the
    end of the block, with `jobs` cores. `device`: "cpu", "cuda", or "auto" (GPUs if there are)."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would send them over the network
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))  # else without end
    if not address:  # else Ray writes one into the home folder, for which later clusters then ask
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    own = {"address": "local", "num_cpus": jobs, "include_dashboard": False,
           "object_store_memory": OWN_MEMORY}
    before = signal.getsignal(signal.SIGTERM)
    try:
        _knock(address)
        ray.init(**({"address": address} if address else own), logging_level="ERROR",
                 log_to_driver=False, runtime_env=_runtime_environment())
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise RuntimeError(f"Ray could not be reached at {address or 'this machine'}: {error}\n"
                           f"{ADVICE}") from error
    signal.signal(signal.SIGTERM, before)  # Ray's would end this process without a word
    try:
        cluster = Cluster(ray, f"Ray at {address}" if address else "a Ray of its own", device)
        cluster.agree()
        yield cluster
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """Raise OSError at once if nobody listens at HOST:PORT, for which Ray would wait minutes."""
    if address and address != "auto":
        host, _, port = address.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _runtime_environment() -> dict:
    """What workers get from the driver: its lib, the commit of which it is, and where its judge
    is, so that no node asks another one."""
    from lib.scale.judge_limits import Settings  # here: a node that lacks packages has to say so

    commit, changed = provenance.git_commit(paths.ROOT)
    told = {provenance.COMMIT: f"{commit} {'changed' if changed else ''}"} if commit else {}
    told |= Settings.handed_down()
    # A working directory, and not a module: its lib comes before any that a node has at our path.
    # What stays here is listed: a pattern for all of it would match the directory itself.
    others = [f"/{path.name}" for path in paths.ROOT.iterdir() if path.name != "lib"]
    return {"working_dir": str(paths.ROOT), "excludes": [*others, "__pycache__"], "env_vars": told}
