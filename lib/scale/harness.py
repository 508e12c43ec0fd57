"""Specificity as the paper names it: seven public benchmarks, run by lmms-eval (an extra).

lmms-eval is called as its documentation says, `python -m lmms_eval`, one benchmark at a time, so
that a killed or failed one costs no other. What it writes is read back as numbers from 0 to 1.
Its package asks for versions of its own: SAFEERASER_LMMS_PYTHON may name another Python that has
it. Four of its habits (version 0.7.3) are guarded against here: it exits with 0 when an evaluation
failed; an answer that could not be generated, or not judged, counts as a wrong one, noted only in
its log; it writes the variable HF_TOKEN into that log; and it goes on without its parent.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from packaging.version import Version

from lib.base.missing import Missing

LOG = "log.txt"
# What lmms-eval logs instead of stopping; an error's own text may be of several lines.
LOST = re.compile(r" in generating(?=\x1b|\s*$)|^(?!.*max trials).*failed to get a score",
                  re.MULTILINE)
OLDEST = "0.7.3"  # the version that was tried
MODEL = "llava_hf"
VERSION = "import importlib.metadata as m; print(m.version('lmms_eval'))"
LOADS = f"from lmms_eval.models import get_model; get_model('{MODEL}')"
# `-m lmms_eval`, in a process that the kernel kills with its parent (PR_SET_PDEATHSIG, SIGKILL):
# it would hold the GPU for hours.
START = ("import ctypes, runpy; ctypes.CDLL(None).prctl(1, 9); "
         "runpy.run_module('lmms_eval', run_name='__main__', alter_sys=True)")


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of the paper, its task and metric in lmms-eval; `top` is the metric's best."""

    name: str
    task: str
    metric: str
    questions: int  # as its authors count them; what was asked is in the result
    top: float = 1.0
    judged: bool = False  # by a model behind an OpenAI key


# Task and metric: lmms_eval/tasks of version 0.7.3. Split, and accuracy or F1, are not known to us
# from the paper: the splits are those with public answers. MM-Vet asks a judge about each answer.
# MMBench's usual task, mmbench_en_dev, asks one about answers in which its rules find no letter,
# and draws one at random when the judge fails; mmbench_en_dev_static has rules only.
BENCHMARKS = (
    Benchmark("GQA", "gqa", "exact_match", 12_578),
    Benchmark("VizWiz", "vizwiz_vqa_val", "exact_match", 4_319),
    Benchmark("ScienceQA", "scienceqa_img", "exact_match", 2_017),
    Benchmark("VQA", "vqav2_val", "exact_match", 214_354),
    Benchmark("POPE", "pope", "pope_accuracy", 9_000),
    Benchmark("MM-Vet", "mmvet", "gpt_eval_score", 218, 100, judged=True),
    Benchmark("MMBench", "mmbench_en_dev_static", "gpt_eval_score", 4_329, 100),
)


class HarnessError(RuntimeError):
    """lmms-eval failed, or wrote what cannot be read; says what to do."""


def named(names: str) -> tuple[Benchmark, ...]:
    """The benchmarks of a list of names with commas between, or "all"; none for "".

    In the paper's order, whatever the list's. Raises ValueError, listing the known names.
    """
    wanted = [name.strip() for name in names.split(",")] if names.strip() else []
    known = {each.name.lower(): each for each in BENCHMARKS}
    if unknown := [name for name in wanted if name.lower() not in {*known, "all"}]:
        raise ValueError(f"There is no benchmark {', '.join(map(repr, unknown))}; known: all, "
                         f"{', '.join(each.name for each in BENCHMARKS)}.")
    chosen = {name.lower() for name in wanted}
    return tuple(each for name, each in known.items() if chosen & {name, "all"})


def measure(checkpoint: Path, output: Path, benchmarks: Sequence[Benchmark] = BENCHMARKS,
            dtype: str = "bfloat16", device: str = "cuda",
            report: Callable[[str], None] = lambda text: None) -> dict[str, float]:
    """The benchmarks' values (0 to 1) for a model folder (`merged.save_merged`).

    Each writes below `output`; those that have results there are not run again. Raises HarnessError
    after all others have run if one failed.
    """
    check(benchmarks)
    found, failures = {}, []
    for number, benchmark in enumerate(benchmarks, start=1):
        report(f"benchmark {number} of {len(benchmarks)}: {benchmark.name}")
        folder = output / benchmark.task
        try:
            if _lost(folder) or value(folder, benchmark) is None:
                _run(command(checkpoint, folder, benchmark, dtype, device), folder, benchmark)
            found[benchmark.name] = value(folder, benchmark)
        except HarnessError as error:
            failures.append(str(error))
    if failures:
        raise HarnessError("\n".join(failures))
    return found


def check(benchmarks: Sequence[Benchmark] = BENCHMARKS) -> None:
    """Raise Missing unless lmms-eval can load its model and has the key that its judges need."""
    version()
    loads = _tried(_python(), LOADS)
    if loads.returncode:
        raise Missing(f"lmms-eval cannot load {MODEL} in {_python()}: "
                      f"{(loads.stderr.strip().splitlines() or ['no word'])[-1]}")
    judged = [benchmark.name for benchmark in benchmarks if benchmark.judged]
    if judged and not os.environ.get("OPENAI_API_KEY"):
        raise Missing(f"{' and '.join(judged)} asks a model behind an OpenAI key about each answer:"
                      " set OPENAI_API_KEY (and MODEL_VERSION to name the model), or leave this "
                      "benchmark out. Without the key lmms-eval would count zeros.")


def version() -> str:
    """lmms-eval's version. Raises Missing, with what to do, if it is not there or an older one."""
    found = _tried(_python(), VERSION).stdout.strip()
    if Version(found or "0") < Version(OLDEST):
        raise Missing(
            f"Specificity at this profile needs lmms-eval {OLDEST} or newer, and {_python()} has "
            f"{found or 'none'}: pip install -e \".[lmms]\", or install it into an environment of "
            "its own and set SAFEERASER_LMMS_PYTHON to that environment's python.")
    return found


@cache
def _tried(python: str, code: str) -> subprocess.CompletedProcess:
    return subprocess.run([python, "-c", code], capture_output=True, text=True)


def value(folder: Path, benchmark: Benchmark) -> float | None:
    """What a finished benchmark's file says, from 0 to 1; None if there is none.

    lmms-eval names it `<model>/<date>_results.json`, and under "results" the metric
    "metric,filter"; other programs' files end alike, so only one that holds this task counts.
    """
    for path in folder.rglob("*results.json"):
        try:
            numbers = json.loads(path.read_text(encoding="utf-8"))["results"][benchmark.task]
        except (ValueError, KeyError, TypeError):  # cut off, or another program's
            continue
        said = [number for key, number in numbers.items() if key.split(",")[0] == benchmark.metric]
        if not (said and isinstance(said[0], int | float) and 0 <= said[0] <= benchmark.top):
            raise HarnessError(f"{path} holds no {benchmark.metric} of {benchmark.name} between 0 "
                               f"and {benchmark.top:g}: remove it and run the benchmark again.")
        return said[0] / benchmark.top
    return None


def command(checkpoint: Path, output: Path, benchmark: Benchmark, dtype: str,
            device: str) -> list[str]:
    """What is run; lmms-eval splits its arguments at commas, so no path may hold one."""
    for path in (checkpoint, output):
        if set(str(path)) & set(",=\"'{}[]"):
            raise HarnessError(f"lmms-eval cannot take the path {path}: use one without commas, "
                               "equals signs, quotes and brackets (SAFEERASER_RUNS moves it).")
    # device_map: lmms-eval's own default is "", which transformers 5 does not take.
    model = {"pretrained": checkpoint, "dtype": dtype, "device": device, "device_map": device,
             "trust_remote_code": False}
    return [_python(), "-c", START, "--model", MODEL,
            "--model_args", ",".join(f"{name}={value}" for name, value in model.items()),
            "--tasks", benchmark.task, "--batch_size", "1", "--output_path", str(output)]


def _run(line: list[str], output: Path, benchmark: Benchmark) -> None:
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    surroundings, log = dict(os.environ), output / LOG
    if token := surroundings.pop("HF_TOKEN", None):  # lmms-eval logs it under this name
        surroundings["HUGGING_FACE_HUB_TOKEN"] = token
    with log.open("wb") as file:  # not our own output: it may quote what a model said
        done = subprocess.run(line, stdout=file, stderr=subprocess.STDOUT,
                              stdin=subprocess.DEVNULL, env=surroundings)
    if lost := _lost(output):
        raise HarnessError(f"{benchmark.name}: the model or the judge failed on {lost} questions, "
                           f"which lmms-eval counts as wrong. The reasons are in {log}.")
    if done.returncode or value(output, benchmark) is None:
        raise HarnessError(f"{benchmark.name} gave no result (lmms-eval exited with "
                           f"{done.returncode}). What it said is in {log}.")


def _lost(output: Path) -> int:
    """How many answers lmms-eval lost, by its log."""
    log = output / LOG
    said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return len(LOST.findall(said))


def _python() -> str:
    return os.environ.get("SAFEERASER_LMMS_PYTHON") or sys.executable
