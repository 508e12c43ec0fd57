"""A few training steps and answers of a real profile, timed on this machine: a result of its own.

They are those of a run: the same data, settings and code, with the dearest of the losses.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from lib.base import provenance
from lib.data.dataset import Dataset
from lib.evaluation import evaluate
from lib.model import generate
from lib.model import llava as models
from lib.model.merged import merge_if_exact
from lib.model.packing import Features
from lib.running import experiments, origins, training
from lib.running.profiles import Profile
from lib.running.results import Report, Result
from lib.scale import sources
from lib.unlearning.terms import TERMS, reads
from lib.unlearning.train import step_rows, unlearn

STEPS, QUESTIONS = 3, 16  # that are timed, after one step and one answer that are not


def gpu() -> str | None:
    """The name of this machine's first GPU, as its driver has it."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def measurement(profile: Profile) -> Result:
    """Seconds of a picture in the tower, a step and an answer, and the peaks of memory."""
    config = {**origins.identity(profile), "data": sources.identity(profile.data, "dataset"),
              "dtype": str(models.dtype_of(profile.runtime)), "device": gpu() or "cpu",
              "runtime": asdict(profile.runtime), "unlearning": asdict(profile.unlearning),
              "evaluation": asdict(profile.evaluation), "weights": _dearest(profile)[1],
              "official_quirks": profile.official_quirks, "leave_out": profile.leave_out}
    return Result(profile, "costs", config, partial(_measure, profile))


def _dearest(profile: Profile) -> tuple[training.Run, dict[str, float]]:
    """The run with PD that reads the most kinds of answers, and its weights.

    What the original model is asked for counts as one more.
    """
    rows = [(run, training.row(profile, run)) for run in experiments.main_runs(profile, True)]
    return max(rows, key=lambda each: len(reads(each[1])) + sum(TERMS[name].needs_original
                                                                for name in each[1]))


def _measure(profile: Profile, folder: Path, report: Report) -> dict[str, float]:
    read, (model, processor) = origins.checked(profile, pictures=False), origins.load(profile)
    seen, found, rare = Features(model, processor), {}, STEPS + 2
    settings = replace(profile.unlearning, steps=STEPS + 1, epochs=None, probe_every=rare,
                       checkpoint_every=rare)
    task = replace(training.task(profile, _dearest(profile)[0]), settings=settings)
    first, *others = ({row.image for row in step_rows(read, task, step) if row.image}
                      for step in range(STEPS + 1))
    fresh = sorted(set().union(*others) - first)
    seen.add(sorted(first))
    with _timed(found, "tower", len(fresh)):
        seen.add(fresh)
    ends = []
    with _timed(found, "training"), TemporaryDirectory() as scratch:
        packer = training.packer(profile, model, processor, seen)
        model, _, _ = unlearn(model, packer, read, task, Path(scratch),
                              report=lambda text: ends.append(time.perf_counter()))
    found["training_seconds"] = (ends[-1] - ends[-1 - STEPS]) / STEPS
    merge_if_exact(model)
    queries = _queries(profile, read, model)
    ask = partial(generate.answer, model, processor, seen, settings=profile.evaluation)
    ask(queries=queries[:1])
    seen.add([query.image for query in queries])
    with _timed(found, "answering", len(queries)):
        ask(queries=queries)
    return found


def _queries(profile: Profile, read: Dataset, model) -> list[generate.Query]:
    """A few held-out questions, as often as fills a run's batch."""
    asked = evaluate.held_out(evaluate.questions(read, None), "harmful")[:QUESTIONS]
    at_once = generate.ON_A_CPU if models.llava(model).device.type == "cpu" else generate.ON_A_GPU
    count = max(QUESTIONS, profile.evaluation.batch or at_once)
    return [generate.Query(q.image, q.question) for q in islice(cycle(asked), count)]


@contextmanager
def _timed(found: dict[str, float], name: str, count: int = 1) -> Iterator[None]:
    """Add the block's seconds, of each of `count`, and the peak of memory meanwhile, in bytes.

    On the GPU; without one, of this process since it began.
    """
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    yield
    found[f"{name}_seconds"] = (time.perf_counter() - started) / max(1, count)
    found[f"{name}_bytes"] = (torch.cuda.max_memory_allocated() if on_gpu else
                              provenance.peak_memory_mb() * 1e6)
