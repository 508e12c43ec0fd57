"""What a run at a real profile costs: tokens, FLOPs, GPU memory, disk and hours of every step.

    python -m lib.scale.estimate --profile llava-7b [--gpu h100]    the table, and what does not fit
    python -m lib.scale.estimate --explain                          what it assumes

Nothing is loaded or downloaded for it: sizes of the model from `shapes`, of the data from the
folder or as assumed, arithmetic from `arithmetic`, speed from `gpus` times an assumed utilisation.
`tests/benchmarks/gpu.py` prints its predictions beside measurements.
"""

import argparse
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from lib.base import paths
from lib.model.settings import Runtime
from lib.running import profiles
from lib.running.profiles import Profile
from lib.scale import arithmetic, gpus, shapes
from lib.scale.arithmetic import GIB, Row, Training
from lib.scale.gpus import Gpu
from lib.scale.shapes import Shape
from lib.scale.workload import Assumed, asked, benchmarked, measured, run_rows, step_rows
from lib.unlearning.terms import TERMS


@dataclass(frozen=True)
class Line:
    """One step of the pipeline. Memory is its peak; disk what stays, or is needed in between."""

    step: str
    tokens: float
    flops: float  # needed ones
    again: float  # those that gradient checkpointing computes a second time
    memory: float  # bytes
    disk: float  # bytes
    seconds: float  # NaN: the GPU's speed is not known


@dataclass(frozen=True)
class Costs:
    """All lines of a profile on a GPU, and what of it does not fit."""

    profile: Profile
    gpu: Gpu | None
    lines: list[Line]
    problems: list[str]

    @property
    def total(self) -> Line:
        """All steps together; memory is the largest peak."""
        return Line("in all", *(sum(getattr(line, name) for line in self.lines) for name in
                                ("tokens", "flops", "again")),
                    max(line.memory for line in self.lines), sum(line.disk for line in self.lines),
                    sum(line.seconds for line in self.lines))

    def hours(self, slots: int = 1) -> dict[str, float]:
        """Hours of the plan's steps by their names, with so many runs side by side.

        Nothing where the speed is not known.
        """
        if math.isnan(self.total.seconds):
            return {}
        tower, original, *runs = self.lines
        found = {"vision tower's features": tower.seconds / 3600,
                 "original model: answers and gate": original.seconds / 3600}
        name = ""
        for line in runs:  # the answers' line follows that of their training
            name = name if line.step.startswith(" ") else line.step
            found[name] = found.get(name, 0) + line.seconds / 3600 / slots
        return found

    def __str__(self) -> str:
        where = (f"one {self.gpu.name} ({self.gpu.memory:.0f} GiB)" if self.gpu else
                 "no GPU found here: --gpu names one, of " + ", ".join(gpus.KNOWN))
        head = (f"{'step':44}{'tokens':>9}{'PFLOP':>11}{'+ again':>11}{'GPU GiB':>9}"
                f"{'disk GiB':>10}{'hours':>8}")
        said = [f"Expected costs of {self.profile.name}, {where}", head,
                *map(_shown, [*self.lines, self.total]),
                "python -m lib.scale.estimate --explain prints what this assumes.", *self.problems]
        return "\n".join(said)


def _shown(line: Line) -> str:
    hours = "?" if math.isnan(line.seconds) else f"{line.seconds / 3600:.1f}"
    return (f"{line.step:44}{line.tokens / 1e6:8.1f}M{line.flops / 1e15:11,.0f}"
            f"{line.again / 1e15:11,.0f}{line.memory / GIB:9.1f}{line.disk / GIB:10.1f}{hours:>8}")


def costs(profile: Profile, gpu: Gpu | None, assumed: Assumed | None = None) -> Costs:
    """The plan's costs; `gpu` None: hours are unknown and memory is not judged."""
    assumed = assumed or measured(profile.data)
    shape = shapes.of(profile.model)
    lines = [_features(shape, gpu, assumed),
             _answers(shape, profile, gpu, assumed, "original model: answers", 1)]
    for name, rows in run_rows(profile).items():
        lines.append(_training(shape, profile, gpu, assumed, name, rows))
        lines.append(_answers(shape, profile, gpu, assumed, "    their answers", len(rows)))
    lines += _benchmarks(shape, profile, gpu, assumed)
    return Costs(profile, gpu, lines, _problems(shape, profile, gpu, assumed, lines))


def how(profile: Profile, runtime: Runtime | None = None) -> Training:
    """How the profile's training steps are computed on a GPU."""
    runtime, settings = runtime or profile.runtime, profile.unlearning
    return Training(settings.lora_rank, settings.lora_dropout > 0,
                    4 if runtime.dtype == "float32" else 2, runtime.gradient_checkpointing,
                    runtime.four_bit)


def training_memory(shape: Shape, rows: Sequence[Row], profile: Profile,
                    runtime: Runtime | None = None) -> int:
    """Bytes at the peak of a step over these rows, `micro_batch` of the longest in a forward."""
    runtime = runtime or profile.runtime
    longest = sorted(rows, key=lambda row: row.tokens)[-(runtime.micro_batch or len(rows)):]
    return arithmetic.training_bytes(shape, longest, how(profile, runtime))


def step_flops(shape: Shape, row: Mapping[str, float], profile: Profile,
               assumed: Assumed) -> tuple[int, int]:
    """(needed, computed a second time) of one training step; forwards of the original count."""
    settings = profile.unlearning
    original = [(name,) for name in row if TERMS[name].needs_original]
    rows, *before = (step_rows(of, settings.images, settings.queries, shape.image_tokens, assumed)
                     for of in (row, *original))
    needed = (arithmetic.forward_flops(shape, rows, settings.lora_rank)
              + arithmetic.backward_flops(shape, rows, settings.lora_rank)
              + sum(arithmetic.forward_flops(shape, kept) for kept in before))
    again = arithmetic.recomputed_flops(shape, rows, settings.lora_rank)
    return needed, again if profile.runtime.gradient_checkpointing else 0


def _training(shape: Shape, profile: Profile, gpu: Gpu | None, assumed: Assumed, name: str,
              weights: Sequence[Mapping[str, float]]) -> Line:
    settings, rank = profile.unlearning, profile.unlearning.lora_rank
    steps = settings.steps_for(assumed.train)
    rows = [step_rows(row, settings.images, settings.queries, shape.image_tokens, assumed)
            for row in weights]
    work = [step_flops(shape, row, profile, assumed) for row in weights]
    needed, again = (steps * sum(flops) for flops in zip(*work, strict=True))
    adapters = len(weights) * 2 * arithmetic.trained(shape, rank)
    return Line(name, steps * sum(row.tokens for of in rows for row in of), needed, again,
                max(training_memory(shape, of, profile) for of in rows),
                adapters + arithmetic.checkpoint_bytes(shape, rank),
                (needed + again) / _rate(gpu, assumed.training_rate))


def _features(shape: Shape, gpu: Gpu | None, assumed: Assumed) -> Line:
    pictures = assumed.pictures
    flops = arithmetic.tower_flops(shape, pictures)
    seconds = max(flops / _rate(gpu, assumed.reading_rate), pictures * assumed.picture_seconds)
    return Line(f"tower features of {pictures:,} pictures", pictures * shape.image_tokens, flops, 0,
                arithmetic.weight_bytes(shape), arithmetic.feature_bytes(shape, pictures),
                seconds if gpu else math.nan)


def _answers(shape: Shape, profile: Profile, gpu: Gpu | None, assumed: Assumed, name: str,
             models: int) -> Line:
    count, settings = models * asked(profile, assumed), profile.evaluation
    prompt = assumed.prefix + shape.image_tokens + assumed.question
    batch = _at_once(shape, profile, gpu, assumed)
    reading, writing = arithmetic.generation_flops(shape, prompt, assumed.answer)
    return Line(f"{name} ({count:,})", count * (prompt + assumed.answer),
                count * (reading + writing), 0,
                arithmetic.generation_bytes(shape, batch, prompt, settings.max_new_tokens,
                                            four_bit=profile.runtime.four_bit),
                count * assumed.answer_bytes,
                count / batch * batch_seconds(shape, batch, prompt, assumed.answer, gpu, assumed))


def _at_once(shape: Shape, profile: Profile, gpu: Gpu | None, assumed: Assumed) -> int:
    """How many answers are generated together; on an unknown GPU as on one of 40 GB."""
    settings, bits = profile.evaluation, profile.runtime.four_bit
    room = (gpu or gpus.KNOWN["a100-40"]).memory * GIB * assumed.usable
    return settings.batch or arithmetic.answers_at_once(
        shape, room - arithmetic.weight_bytes(shape, four_bit=bits),
        assumed.prefix + shape.image_tokens + assumed.question, settings.max_new_tokens)


def _benchmarks(shape: Shape, profile: Profile, gpu: Gpu | None, assumed: Assumed) -> list[Line]:
    """Specificity: one question at a time, of a merged model that is on disk meanwhile."""
    questions, models = benchmarked(profile)
    if not questions:
        return []
    count, prompt = models * questions, assumed.prefix + shape.image_tokens + assumed.short
    each = batch_seconds(shape, 1, prompt, assumed.word, gpu, assumed) + assumed.picture_seconds
    return [Line(f"specificity by {profile.benchmarks}: {models} runs",
                 count * (prompt + assumed.word),
                 count * sum(arithmetic.generation_flops(shape, prompt, assumed.word)), 0,
                 arithmetic.generation_bytes(shape, 1, prompt, 1024),
                 arithmetic.weight_bytes(shape), count * each)]


def batch_seconds(shape: Shape, batch: int, prompt: int, new: int, gpu: Gpu | None,
                  assumed: Assumed) -> float:
    """Seconds for `batch` answers of `new` tokens each on average, generated together.

    Reading is bound by FLOP/s. For each new token all weights and the whole cache pass through the
    GPU once, and no layer is faster than Python starts it.
    """
    if gpu is None:
        return math.nan
    reading, _ = arithmetic.generation_flops(shape, prompt, new)
    steps = new if batch == 1 else new * assumed.longest
    passing = (arithmetic.weight_bytes(shape)
               + arithmetic.cache_bytes(shape, round(batch * (prompt + steps / 2))))
    token = max(passing / (gpu.bandwidth * 1e9 * assumed.bandwidth_rate),
                shape.layers * assumed.layer_seconds)
    return batch * reading / _rate(gpu, assumed.reading_rate) + steps * token


def _rate(gpu: Gpu | None, share: float) -> float:
    return gpu.tflops * 1e12 * share if gpu else math.nan


# What does not fit.


def _problems(shape: Shape, profile: Profile, gpu: Gpu | None, assumed: Assumed,
              lines: Sequence[Line]) -> list[str]:
    free, needed = _free_disk(), sum(line.disk for line in lines)
    short = [f"Too little disk: {needed / GIB:.0f} GiB are needed in {paths.runs_root()}, and "
             f"{free / GIB:.0f} GiB are free. Set SAFEERASER_RUNS to a larger disk."]
    found = short if free < needed else []
    if gpu is None:
        return found
    problem, runtime = _training_problem(shape, profile, gpu, assumed)
    advised = replace(profile, runtime=runtime)
    return found + problem + _answering_problem(shape, advised, gpu, assumed)


def _training_problem(shape: Shape, profile: Profile, gpu: Gpu,
                      assumed: Assumed) -> tuple[list[str], Runtime]:
    """What does not fit, if anything; and the runtime that does."""
    room, settings = gpu.memory * GIB * assumed.usable, profile.unlearning
    steps = [step_rows(row, settings.images, settings.queries, shape.image_tokens, assumed)
             for rows in run_rows(profile).values() for row in rows]

    def peak(runtime: Runtime) -> int:
        return max(training_memory(shape, rows, profile, runtime) for rows in steps)

    if peak(profile.runtime) <= room:
        return [], profile.runtime
    fitting = next((way for way in _smaller(profile.runtime) if peak(way) <= room), None)
    problem = (f"Too little GPU memory for training: {peak(profile.runtime) / GIB:.0f} GiB are "
            f"needed, {room / GIB:.0f} of {gpu.memory:.0f} GiB can be used. " + (
                f"With {_difference(profile.runtime, fitting)} in the profile's Runtime "
                f"(lib/running/profiles.py) it takes {peak(fitting) / GIB:.0f} GiB." if fitting else
                "Nothing that can be set makes it fit: take a larger GPU or the smaller model."))
    return [problem], fitting or profile.runtime


def _smaller(runtime: Runtime) -> list[Runtime]:
    """Ways that need less memory, those that cost the least time first."""
    rows = [n for n in (8, 4, 2, 1) if n <= (runtime.micro_batch or 99)]
    return [replace(runtime, micro_batch=n, gradient_checkpointing=checkpointing, four_bit=bits)
            for bits in sorted({runtime.four_bit, True})
            for checkpointing in sorted({runtime.gradient_checkpointing, True}) for n in rows]


def _difference(old: Runtime, new: Runtime) -> str:
    return ", ".join(f"{f.name}={getattr(new, f.name)}" for f in fields(Runtime)
                     if getattr(new, f.name) != getattr(old, f.name))


def _answering_problem(shape: Shape, profile: Profile, gpu: Gpu, assumed: Assumed) -> list[str]:
    room, settings = gpu.memory * GIB * assumed.usable, profile.evaluation
    prompt = assumed.prefix + shape.image_tokens + assumed.question

    def peak(batch: int) -> int:
        return arithmetic.generation_bytes(shape, batch, prompt, settings.max_new_tokens,
                                           four_bit=profile.runtime.four_bit)

    batch = _at_once(shape, profile, gpu, assumed)
    if peak(batch) <= room:
        return []
    fits = next((n for n in range(batch - 1, 0, -1) if peak(n) <= room), None)
    return [f"Too little GPU memory for {batch} answers at once: {peak(batch) / GIB:.0f} GiB are "
            f"needed, {room / GIB:.0f} of {gpu.memory:.0f} GiB can be used. " + (
                f"batch={fits} of the profile's Evaluation would fit." if fits else
                "Not even one fits: set four_bit=True in its Runtime, or take a larger GPU.")]


def _free_disk() -> int:
    folder = paths.runs_root().resolve()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def explain() -> str:
    """Every assumption with its value and what it means."""
    lines = [f"{f.name:16}{getattr(Assumed(), f.name):>8g}  {f.metadata['why']}"
             for f in fields(Assumed)]
    return "\n".join(["What the cost model assumes (lib/scale/workload.py):", *lines])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m lib.scale.estimate",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("--profile", default="llava-7b")
    parser.add_argument("--gpu", help=f"one of {', '.join(gpus.KNOWN)} (default: this machine's)")
    parser.add_argument("--explain", action="store_true", help="print what is assumed")
    chosen = parser.parse_args(arguments)
    try:
        profile = profiles.get(chosen.profile)
        if not profile.real:
            raise ValueError(f"{profile.name} needs no GPU; ./reproduce.sh --list has its plan.")
        gpu = gpus.named(chosen.gpu) if chosen.gpu else gpus.found()
        print(explain() if chosen.explain else costs(profile, gpu))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
