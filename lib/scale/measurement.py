"""A few training steps and answers of a real profile, timed on this machine: a result of its own.

They are those of a run: the same data, settings and code, with the dearest of the losses.
"""

import time
from dataclasses import asdict, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from lib.base import provenance
from lib.evaluation import evaluate
from lib.model import generate
from lib.model import llava as models
from lib.model.merged import merge_if_exact
from lib.model.packing import Features
from lib.running import experiments, origins, recipes
from lib.running.origins import Made
from lib.running.profiles import Profile
from lib.scale import sources
from lib.unlearning.terms import TERMS, reads
from lib.unlearning.train import step_rows, unlearn

STEPS, QUESTIONS = 3, 16  # that are timed, after one step and one answer that are not


def gpu() -> str | None:
    """The name of this machine's first GPU, as its driver has it."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def measurement(profile: Profile) -> Made:
    """Seconds of a picture in the tower, a step and an answer, and the peaks of memory."""
    config = {**origins.identity(profile), "data": sources.identity(profile.data, "dataset"),
              "dtype": str(models.dtype_of(profile.runtime)), "device": gpu() or "cpu",
              "runtime": asdict(profile.runtime), "unlearning": asdict(profile.unlearning),
              "evaluation": asdict(profile.evaluation), "weights": _dearest(profile)[1]}
    return Made(profile, "costs", config, partial(_measure, profile))


def _dearest(profile: Profile) -> tuple[recipes.Run, dict[str, float]]:
    """The run with PD that reads the most kinds of answers, and its weights.

    What the original model is asked for counts as one more.
    """
    rows = [(run, recipes.row(profile, run)) for run in experiments.main_runs(profile, True)]
    return max(rows, key=lambda each: len(reads(each[1])) + sum(TERMS[name].needs_original
                                                                for name in each[1]))


def _measure(profile: Profile, folder: Path) -> dict[str, float]:
    read, (model, processor) = origins.checked(profile, pictures=False), origins.load(profile)
    seen, long = Features(model, processor), STEPS + 2
    settings = replace(profile.unlearning, steps=STEPS + 1, epochs=None, probe_every=long,
                       checkpoint_every=long)
    task = replace(recipes.task(profile, _dearest(profile)[0]), settings=settings)
    first, *pictures = ([row.image for row in step_rows(read, task, step) if row.image]
                        for step in range(STEPS + 1))
    found = {"tower": _tower(seen, first, sum(pictures, []))}
    with TemporaryDirectory() as scratch:
        packer = recipes.packer(profile, model, processor, seen)
        model, found["training"] = _steps(model, packer, read, task, Path(scratch))
    merge_if_exact(model)
    asked = evaluate.held_out(evaluate.questions(read, None), "harmful")[:QUESTIONS]
    found["answering"] = _answers(profile, model, processor, seen, asked)
    return {f"{name}_{unit}": value for name, values in found.items()
            for unit, value in zip(("seconds", "bytes"), values, strict=True)}


def _tower(seen: Features, first: list[Path], others: list[Path]) -> tuple[float, float]:
    """(seconds of a picture, bytes); the pictures that follow are known then."""
    seen.add(first)
    before, started = len(seen.known), _start()
    seen.add(others)
    return (time.perf_counter() - started) / max(1, len(seen.known) - before), _peak()


def _steps(model, packer, read, task, scratch: Path) -> tuple[object, tuple[float, float]]:
    """The model with its adapter, and (seconds of a step, bytes)."""
    ends, _ = [], _start()
    model, _, _ = unlearn(model, packer, read, task, scratch,
                          report=lambda text: ends.append(time.perf_counter()))
    return model, ((ends[-1] - ends[-1 - STEPS]) / STEPS, _peak())


def _answers(profile: Profile, model, processor, seen: Features, asked) -> tuple[float, float]:
    """(seconds of an answer, bytes). The questions are put as often as fills a run's batch."""
    at_once = generate.ON_A_CPU if models.llava(model).device.type == "cpu" else generate.ON_A_GPU
    count = max(QUESTIONS, profile.evaluation.batch or at_once)
    queries = [generate.Query(q.image, q.question) for q in islice(cycle(asked), count)]
    ask = partial(generate.answer, model, processor, seen, settings=profile.evaluation)
    seen.add([query.image for query in queries])
    ask(queries=queries[:1])
    started = _start()
    ask(queries=queries)
    return (time.perf_counter() - started) / count, _peak()


def _start() -> float:
    """Now, from when the peak of memory counts."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    return time.perf_counter()


def _peak() -> float:
    """Bytes on the GPU; without one, of this process since it began."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return provenance.peak_memory_mb() * 1e6
