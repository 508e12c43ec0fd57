"""Specificity as the paper names it: seven public benchmarks, run by lmms-eval (an extra).

lmms-eval is called as its documentation says, `python -m lmms_eval`, one benchmark at a time, so
that a killed or failed one costs no other. What it writes is read back as numbers from 0 to 1.
Its package asks for versions of its own: SAFEERASER_LMMS_PYTHON may name another Python that has
it. Three of its habits are guarded against here: it exits with 0 when an evaluation failed; an
answer that could not be generated counts as an empty one, noted only in its log; and it
puts questions as plain text into a chat template, of which LLaVA-1.5's drops them, so the
model is handed over without one and gets lmms-eval's own vicuna format.
"""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

LOG = "log.txt"
LOST = re.compile(r"Error .* in generating")  # what lmms-eval logs instead of stopping


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of the paper, its task and metric in lmms-eval; `top` is the metric's best."""

    name: str
    task: str
    metric: str
    top: float = 1.0
    judged: bool = False  # by a model behind an OpenAI key


# Split, and accuracy or F1, are not known to us from the paper: the splits are those with public
# answers. MM-Vet and MMBench ask a judge; without an answer from it MM-Vet counts a 0.
BENCHMARKS = (
    Benchmark("GQA", "gqa", "exact_match"),
    Benchmark("VizWiz", "vizwiz_vqa_val", "exact_match"),
    Benchmark("ScienceQA", "scienceqa_img", "exact_match"),
    Benchmark("VQA", "vqav2_val", "exact_match"),
    Benchmark("POPE", "pope", "pope_accuracy"),
    Benchmark("MM-Vet", "mmvet", "gpt_eval_score", 100, judged=True),
    Benchmark("MMBench", "mmbench_en_dev", "gpt_eval_score", 100, judged=True),
)


class HarnessError(RuntimeError):
    """lmms-eval is missing, failed, or wrote what cannot be read; says what to do."""


def measure(checkpoint: Path, output: Path, benchmarks: Sequence[Benchmark] = BENCHMARKS,
            dtype: str = "bfloat16", device: str = "cuda",
            report: Callable[[str], None] = lambda text: None) -> pd.DataFrame:
    """Run the benchmarks on a model folder (`merged.save_merged`, without chat template).

    Each writes below `output`; those that have results there are not run again. Returns a row per
    benchmark: benchmark, value (0 to 1), stderr and n (questions; both None if not given).
    Raises HarnessError after all others have run if one failed.
    """
    check(benchmarks)
    failures = []
    for number, benchmark in enumerate(benchmarks, start=1):
        report(f"benchmark {number} of {len(benchmarks)}: {benchmark.name}")
        try:
            if result(output / benchmark.task, benchmark) is None:
                _run(checkpoint, output / benchmark.task, benchmark, dtype, device)
        except HarnessError as error:
            failures.append(str(error))
    if failures:
        raise HarnessError("\n".join(failures))
    return read(output, benchmarks)


def check(benchmarks: Sequence[Benchmark] = BENCHMARKS) -> None:
    """Raise HarnessError unless lmms-eval is installed and has the key that its judges need."""
    probe = subprocess.run([_python(), "-c", "import importlib.util, sys; "
                            "sys.exit(importlib.util.find_spec('lmms_eval') is None)"])
    if probe.returncode:
        raise HarnessError(
            f"Specificity at this profile needs lmms-eval, which {_python()} does not have: "
            'pip install -e ".[lmms]", or install lmms_eval into an environment of its own and '
            "set SAFEERASER_LMMS_PYTHON to that environment's python.")
    judged = [benchmark.name for benchmark in benchmarks if benchmark.judged]
    if judged and not os.environ.get("OPENAI_API_KEY"):
        raise HarnessError(f"{' and '.join(judged)} are judged by a model behind an OpenAI key: "
                           "set OPENAI_API_KEY (and MODEL_VERSION to name the model), or leave "
                           "these benchmarks out. Without the key lmms-eval would count zeros.")


def read(output: Path, benchmarks: Sequence[Benchmark] = BENCHMARKS) -> pd.DataFrame:
    """The table of what lies below `output`; raises HarnessError, naming what is missing."""
    found = {each: result(output / each.task, each) for each in benchmarks}
    missing = [each.name for each, row in found.items() if row is None]
    if missing:
        raise HarnessError(f"There are no results of {', '.join(missing)} in {output}: run these "
                           "benchmarks, or leave them out.")
    return pd.DataFrame([{"benchmark": each.name, **row} for each, row in found.items()])


def per_answer(table: pd.DataFrame) -> pd.DataFrame:
    """Rows for `metrics.per_answer`: specificity is the mean over benchmarks, as in the paper.

    A benchmark takes the place of a record, so an interval is one over benchmarks.
    """
    return pd.DataFrame({"split": "generality", "metric": "specificity",
                         "record": "benchmark/" + table.benchmark, "category": table.benchmark,
                         "value": table.value.astype(float)})


def result(folder: Path, benchmark: Benchmark) -> dict | None:
    """value, stderr and n of the newest result in a folder; None if there is none.

    lmms-eval names its file `<model>/<date>_results.json`, older ones `results.json`; other
    programs' files end alike, so only one that holds this task counts.
    """
    for path in sorted(folder.rglob("*results.json"), key=os.path.getmtime, reverse=True):
        found = _read(path)
        numbers = _dict(_dict(found, "results"), benchmark.task)
        if numbers:
            return _row(numbers, found, benchmark, path)
    return None


def _row(numbers: dict, found: dict, benchmark: Benchmark, path: Path) -> dict:
    if _dict(found, "config").get("limit"):
        raise HarnessError(f"{path} holds {benchmark.name} on a part of its questions (--limit): "
                           "remove it and run the benchmark again.")
    value = _number(numbers, benchmark.metric)
    if value is None or not 0 <= value <= benchmark.top:
        raise HarnessError(f"{path} holds no {benchmark.metric} of {benchmark.name} between 0 and "
                           f"{benchmark.top:g} (there: {', '.join(map(str, numbers))}): remove it "
                           "and run the benchmark again.")
    stderr = _number(numbers, f"{benchmark.metric}_stderr")
    counted = _dict(_dict(found, "n-samples"), benchmark.task).get("effective")
    n = counted if counted is not None else numbers.get("samples")
    return {"value": value / benchmark.top, "n": n if isinstance(n, int) else None,
            "stderr": None if stderr is None else stderr / benchmark.top}


def _number(numbers: dict, metric: str) -> float | None:
    """The metric's value under "metric,filter" (or "metric" alone); the first filter's."""
    for key, value in numbers.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if key.split(",")[0] == metric and is_number and math.isfinite(value):
            return float(value)
    return None


def _read(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # cut off when it was killed
        return {}
    return found if isinstance(found, dict) else {}


def _dict(found: dict, key: str) -> dict:
    value = found.get(key)
    return value if isinstance(value, dict) else {}


def command(checkpoint: Path, output: Path, benchmark: Benchmark, dtype: str,
            device: str) -> list[str]:
    """What is run; lmms-eval splits its arguments at commas, so no path may hold one."""
    for path in (checkpoint, output):
        if set(str(path)) & set(",=\"'{}[]"):
            raise HarnessError(f"lmms-eval cannot take the path {path}: use one without commas, "
                               "equals signs, quotes and brackets (SAFEERASER_RUNS moves it).")
    return [_python(), "-m", "lmms_eval", "--model", "llava_hf",
            "--model_args", f"pretrained={checkpoint},dtype={dtype},device={device}",
            "--tasks", benchmark.task, "--batch_size", "1", "--output_path", str(output)]


def _run(checkpoint: Path, output: Path, benchmark: Benchmark, dtype: str, device: str) -> None:
    output.mkdir(parents=True, exist_ok=True)
    log = output / LOG
    with log.open("wb") as file:  # not our own output: it may quote what a model said
        done = subprocess.run(command(checkpoint, output, benchmark, dtype, device), stdout=file,
                              stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    said = log.read_text(encoding="utf-8", errors="replace")
    if lost := len(LOST.findall(said)):
        for path in output.rglob("*results.json"):
            path.unlink()
        raise HarnessError(f"{benchmark.name}: the model failed on {lost} questions, which "
                           f"lmms-eval counts as empty answers. The reasons are in {log}.")
    if done.returncode or result(output, benchmark) is None:
        raise HarnessError(f"{benchmark.name} gave no result (lmms-eval exited with "
                           f"{done.returncode}). What it said is in {log}.")


def _python() -> str:
    return os.environ.get("SAFEERASER_LMMS_PYTHON") or sys.executable
