"""Pieces of work side by side on a Ray cluster: one GPU each, or one core and one thread.

Ray gives out the tasks; what is done and who does it is in the run store (`agenda`), so a
driver that was killed and started again goes on. Lost workers and nodes are replaced here and not
by Ray's own retries: before each further attempt this looks at what the lost one has left behind.
"""

import os
import secrets
import signal
import socket
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from lib.base import environment, paths, provenance
from lib.base.runs import is_whole
from lib.running.agenda import Agenda, Piece, Report
from lib.scale import ray_nodes
from lib.scale.judge_limits import Settings
from lib.scale.ray_nodes import Home, Site, Survey

ATTEMPTS = 4  # per piece, until its workers' deaths count as its own fault
LOOK_SECONDS = 1
ANSWER_SECONDS = (120, 30)  # for a node to say what it has: at first, and while others work
OWN_MEMORY = 10**8  # bytes of the object store of a local Ray, through which nothing large goes


class Cluster:
    """A Ray cluster to which this process is connected, as an engine."""

    def __init__(self, ray, where: str, device: str):
        self.ray, self.where = ray, where
        self.needs = {"CPU": 1, "GPU": 1} if device != "cpu" else {"CPU": 1}
        if device == "auto" and not self.slots:
            self.needs = {"CPU": 1}
        if not self.slots:
            what = "no GPU with a core" if device == "cuda" else "no core"
            raise RuntimeError(f"{where} has {what} to give to a run, and this profile needs one: "
                               f"{self._listed()}. Let a machine that has it join the cluster: "
                               "ray start --address=HOST:PORT.")

    @property
    def slots(self) -> int:
        """How many runs the cluster as it is now has room for."""
        return sum(self.rooms().values())

    def rooms(self) -> dict[str, int]:
        """How many runs each node has room for, by Ray's name of the node."""
        return {node["NodeID"]: min(int(node["Resources"].get(each, 0)) for each in self.needs)
                for node in self._nodes()}

    @property
    def summary(self) -> str:
        """What there is to work with, in words."""
        unit = "GPU" if "GPU" in self.needs else "core"
        return f"one run per {unit} on {self.where} ({self._listed()}: {self.slots} side by side)"

    def _listed(self) -> str:
        return "; ".join(f"{node['NodeManagerHostname']} {node['Resources'].get('GPU', 0):g} GPUs, "
                         f"{node['Resources'].get('CPU', 0):g} cores" for node in self._nodes())

    def _nodes(self) -> list[dict]:
        return [node for node in self.ray.nodes() if node["Alive"]]

    def make_all(self, pieces: Sequence[Piece], _planned: int, report: Report) -> None:
        """Make those of the pieces that are not there, as many at once as there is room for.

        Raises RuntimeError as `workers.make_all` does; a worker or node that is lost is replaced.
        """
        with closing(Agenda(pieces)) as agenda:
            if agenda.waiting:
                with _home(self.ray) as home, closing(_Shift(self, agenda, home)) as shift:
                    shift.work(report)
            agenda.check()


@contextmanager
def _home(ray) -> Iterator[Home]:
    """Mark the driver's runs folder, so that tasks know it when they see it."""
    mark = Path(".locks", f"driver-{uuid.uuid4().hex}")
    runs = paths.runs_root()
    (runs / mark).parent.mkdir(parents=True, exist_ok=True)
    (runs / mark).touch()
    try:
        yield Home(ray.get_runtime_context().get_node_id(), runs, mark)
    finally:
        (runs / mark).unlink(missing_ok=True)


class _Shift:
    """The work on one agenda: which task has which piece, and what nodes have left behind."""

    def __init__(self, cluster: Cluster, agenda: Agenda, home: Home):
        self.ray, self.cluster, self.agenda, self.home = cluster.ray, cluster, agenda, home
        self.running: dict = {}  # task -> piece
        self.lost: Counter[Piece] = Counter()
        self.finished: dict[Path, Site] = {}  # results in nodes' own runs folders
        self.begun: dict[Path, list[str]] = {}  # the nodes that see a checkpoint, if not all do
        self.sent: Counter[str] = Counter()  # how often to each of these
        self.is_stale, self.asked = True, set()  # the nodes whose packages were looked for
        self.requirements = environment.needed()
        self.make = self.ray.remote(num_cpus=1, num_gpus=cluster.needs.get("GPU", 0),
                                    max_retries=0)(ray_nodes.make)
        self.survey = self.ray.remote(num_cpus=0, max_retries=0)(ray_nodes.survey)
        desk = self.ray.remote(num_cpus=0, max_restarts=-1)(ray_nodes.Desk)
        self.desk = desk.options(scheduling_strategy=ray_nodes.on(home.node)).remote()

    def work(self, report: Report) -> None:
        """Give out the pieces, and again those whose worker was lost, until every one is made."""
        while self.agenda.is_open():
            self._fill()
            for task in self._ready():
                self._settle(task, self.running.pop(task))
            self._listen()
            report(self.agenda.told() + self._trouble())

    def _fill(self) -> None:
        while self.agenda.waiting and len(self.running) < self.cluster.slots:
            piece = self.agenda.take()
            if piece is None:
                self.is_stale = True  # other drivers have the rest, and may leave it to this one
                return
            if self.is_stale or self.cluster.rooms().keys() - self.asked:
                self._look_around()
            self._give_out(piece)

    def _look_around(self) -> None:
        """Learn what nodes with runs folders of their own have. RuntimeError if one lacks packages,
        or a folder that is read."""
        pieces = (*self.agenda.waiting, *self.agenda.at_work)
        wanted = [self._name(piece.folder) for piece in pieces]
        surveys = self._surveys(wanted, sorted({path for piece in pieces for path in piece.reads}))
        lacking = [f"{found.site.host} lacks {', '.join(found.lacks)}"
                   for found in surveys if found.lacks]
        if lacking:
            raise RuntimeError(
                f"Not every node of the cluster has what a run needs: {'; '.join(lacking)}. "
                "Install requirements.lock there; folders have to be at the same path everywhere.")
        self.is_stale = False
        self.finished = {name: found.site for found in surveys for name in found.finished}
        seen = {name: [found.site.node for found in surveys if name in found.begun]
                for name in wanted}
        self.begun = {name: nodes for name, nodes in seen.items() if 0 < len(nodes) < len(surveys)}

    def _surveys(self, wanted: list[Path], folders: list[Path]) -> list[Survey]:
        """Return what the nodes with room answer in time; one that is lost meanwhile is none."""
        rooms = self.cluster.rooms()
        new = rooms.keys() - self.asked
        self.asked |= new
        tasks = [self.survey.options(scheduling_strategy=ray_nodes.on(node))
                 .remote(self.home, wanted, self.requirements if node in new else (), folders)
                 for node, room in rooms.items() if room]
        if not tasks:
            return []
        seconds = ANSWER_SECONDS[not new]
        ready, _ = self.ray.wait(tasks, num_returns=len(tasks), timeout=seconds)
        answers = []
        for task in ready:
            try:
                answers.append(self.ray.get(task))
            except self.ray.exceptions.RayTaskError:
                raise  # a fault of the program
            except self.ray.exceptions.RayError:
                continue
        return answers

    def _give_out(self, piece: Piece) -> None:
        name = self._name(piece.folder)
        if name in self.finished:
            self._collect(piece, self.finished.pop(name))
            return
        where = {}
        if nodes := self.begun.pop(name, None):
            node = min(nodes, key=self.sent.__getitem__)
            self.sent[node] += 1
            where = {"scheduling_strategy": ray_nodes.on(node, soft=True)}
        sent = replace(piece, needs=(*piece.needs, *filter(is_whole, piece.before)))
        task = self.make.options(**where).remote(sent, self.home, self.desk)
        self.running[task] = piece

    def _ready(self) -> list:
        if not self.running:
            time.sleep(LOOK_SECONDS)
            return []
        return self.ray.wait(list(self.running), timeout=LOOK_SECONDS)[0]

    def _settle(self, task, piece: Piece) -> None:
        """Take in what a task that has ended made, or learn why it did not."""
        try:
            site = self.ray.get(task)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, self.ray.exceptions.RayError):
                self._again(piece, error.cause)  # what it needed was lost on its way
            else:
                self.agenda.finish(piece, str(error))
        except self.ray.exceptions.RayError as error:
            self._again(piece, error)
        else:
            self._collect(piece, site)

    def _collect(self, piece: Piece, site: Site) -> None:
        """Finish a piece, after copying it here if it was made in another store."""
        try:
            if not site.shared:
                for folder in (*piece.before, piece.folder):
                    ray_nodes.fetch(site.node, site.runs / self._name(folder), folder)
        except (self.ray.exceptions.RayError, ValueError) as error:
            self._again(piece, error)
        else:
            self.agenda.finish(piece)

    def _again(self, piece: Piece, error: Exception) -> None:
        self.lost[piece] += 1
        self.is_stale = True
        if self.lost[piece] < ATTEMPTS:
            self.agenda.put_back(piece)
        else:
            self.agenda.finish(piece, f"Lost {ATTEMPTS} times, with its worker or node (perhaps "
                                      f"for want of memory) or on its way. The last: {error}")

    def _listen(self) -> None:
        try:
            told = self.ray.get(self.desk.told.remote(), timeout=LOOK_SECONDS)
        except self.ray.exceptions.RayError:  # it is being started, or started again
            return
        for piece in self.agenda.at_work:
            if piece.name in told:
                self.agenda.at_work[piece] = told[piece.name]

    def _trouble(self) -> str:
        lost = sum(self.lost.values())
        words = f"; {lost} workers were lost" if lost else ""
        return words if self.cluster.slots else f"{words}; no node with room is left: waiting"

    def _name(self, folder: Path) -> Path:
        return folder.relative_to(self.home.runs)

    def close(self) -> None:
        """Stop what is still at work."""
        for task in self.running:
            self.ray.cancel(task, force=True)
        self.ray.kill(self.desk)


@contextmanager
def start(address: str | None, jobs: int, device: str) -> Iterator[Cluster]:
    """Connect to the cluster at HOST:PORT or "auto"; None: start a Ray on this machine until the
    end of the block, with `jobs` cores. `device`: "cpu", "cuda", or "auto" (GPUs if there are)."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would send them over the network
    if not address:  # else Ray writes one into the home folder, for which later clusters then ask
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    own = {"address": "local", "num_cpus": jobs, "include_dashboard": False,
           "object_store_memory": OWN_MEMORY}
    before = signal.getsignal(signal.SIGTERM)
    try:
        _knock(address)
        ray.init(**({"address": address} if address else own), logging_level="ERROR",
                 log_to_driver=False, runtime_env=_runtime_environment())
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise RuntimeError(f"Ray could not be reached at {address or 'this machine'}: {error}\n"
                           f"{_advice(error)}") from error
    signal.signal(signal.SIGTERM, before)  # Ray's would end this process without a word
    try:
        yield Cluster(ray, f"Ray at {address}" if address else "a Ray of its own", device)
    finally:
        ray.shutdown()


def _advice(error: Exception) -> str:
    if "authentication token" in f"{error} {error.__cause__}".lower():
        return ("The cluster asks for its token: set RAY_AUTH_MODE=token for this command and "
                "every ray start, with the same ~/.ray/auth_token on every machine.")
    return ("This machine has to be a node of the cluster itself (ray start --address=HOST:PORT), "
            "with the same versions of Ray and Python.")


def _knock(address: str | None) -> None:
    """Raise OSError at once if nobody listens at HOST:PORT, for which Ray would wait minutes."""
    if address and address != "auto":
        host, _, port = address.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _runtime_environment() -> dict:
    """What workers get from the driver: its lib, the commit of which it is, and where its judge
    is, so that no node asks another one."""
    commit, changed = provenance.git_commit(paths.ROOT)
    told = {provenance.COMMIT: f"{commit} {'changed' if changed else ''}"} if commit else {}
    told |= Settings.handed_down()
    # A working directory, and not a module: its lib comes before any that a node has at our path.
    # What stays here is listed: a pattern for all of it would match the directory itself.
    others = [f"/{path.name}" for path in paths.ROOT.iterdir() if path.name != "lib"]
    return {"working_dir": str(paths.ROOT), "excludes": [*others, "__pycache__"], "env_vars": told}
