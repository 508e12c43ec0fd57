"""An unlearning run, from its row of weights to its adapter, and what it says on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from lib.base import disk, runs
from lib.data import dataset as datasets
from lib.evaluation import answers
from lib.evaluation.questions import Question, held_out, questions
from lib.model.packing import Packer
from lib.running import origins
from lib.running.profiles import Profile
from lib.running.results import Report, Result
from lib.unlearning import methods
from lib.unlearning.train import Task, unlearn

PROBE = 64  # questions per probe, at most: half about harmful pictures and half about safe ones


@dataclass(frozen=True)
class Run:
    """One unlearning run; a weight for PD other than the method's own is part of the sweep.

    `after`: the run from whose adapter it goes on, instead of from the original model.
    """

    method: str
    prompt_decouple: bool
    seed: int
    prompt_decouple_weight: float | None = None
    after: Run | None = None

    @property
    def name(self) -> str:
        """What it is called, without its seed."""
        weight = "" if self.prompt_decouple_weight is None else f" {self.prompt_decouple_weight:g}"
        before = "" if self.after is None else f" after {self.after.name}"
        return f"{methods.run_name(self.method, self.prompt_decouple)}{weight}{before}"

    @property
    def row(self) -> dict[str, float]:
        """The weights of its loss, by the official code's rows."""
        return self.row_of("official")

    def row_of(self, rows: str) -> dict[str, float]:
        """The weights of its loss, by these rows (`methods.ROWS`)."""
        return methods.weights(self.method, self.prompt_decouple, self.prompt_decouple_weight, rows)

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"


def row(profile: Profile, chosen: Run) -> dict[str, float]:
    """The weights of a run's loss at this profile."""
    return chosen.row_of(profile.rows)


def task(profile: Profile, chosen: Run, start: Path | None = None) -> Task:
    """A run, as `unlearn` takes it; `start`: the adapter from which it goes on."""
    return Task(row(profile, chosen), chosen.seed, profile.unlearning, profile.runtime,
                profile.official_quirks, start)


def packer(profile: Profile, model, processor, seen) -> Packer:
    """What makes a profile's training batches; `seen` gives the pictures' features."""
    return Packer(model, processor, seen, profile.unlearning.max_answer_tokens,
                  end=not profile.official_quirks)


def train(profile: Profile, chosen: Run, before: Result | None, at_hand: dict, folder: Path,
          report: Report) -> None:
    """Write adapter, history and probes into `folder`; the model stays `at_hand` for answers.

    `before`: the result with the adapter from which the run goes on.
    """
    read, (model, processor) = origins.read_dataset(profile), origins.load(profile)
    seen = origins.tower_features(profile, model, processor)
    probe = partial(_probe, profile, processor, seen, read)
    model, history, probes = unlearn(model, packer(profile, model, processor, seen), read,
                                     task(profile, chosen, before and before.done() / "adapter"),
                                     folder / "checkpoint", probe, report)
    _save(model, folder / "adapter")
    disk.flush_all(folder / "adapter")
    for name, rows in (("history", history), ("probes", probes)):
        runs.write_jsonl(folder / f"{name}.jsonl", [dict(sorted(one.items())) for one in rows])
    at_hand["model"] = model, processor, seen


def _save(model, folder: Path) -> None:
    """Write an adapter without what differs by chance or place: sets' order, paths, a README."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config = runs.read_json(folder / "adapter_config.json")
    for name in ("target_modules", "modules_to_save"):
        if isinstance(config.get(name), list):
            config[name] = sorted(config[name])
    base = config.get("base_model_name_or_path") or ""
    config["base_model_name_or_path"] = "/".join(Path(base).parts[-2:])
    runs.write_json(folder / "adapter_config.json", config)


def _probe(profile: Profile, processor, seen, read: datasets.Dataset, model) -> dict:
    """What the model says to a few questions; it is judged with the run's answers."""
    model.eval()
    frame = answers.answered(model, processor, seen, probed(read),
                             replace(profile.evaluation, samples=0), read.root)
    return {"answers": list(frame["answer"])}


def probed(read: datasets.Dataset) -> list[Question]:
    """The questions of a probe, held out if there are such."""
    asked = questions(read, None)
    return [question for kind in ("harmful", "safe")
            for question in _spread(held_out(asked, kind), PROBE // 2)]


def _spread(items: Sequence, count: int) -> list:
    return list(items)[:: max(1, len(items) // count)]
