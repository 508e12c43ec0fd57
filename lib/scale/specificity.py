"""Specificity of a released model: the paper's public benchmarks, one result per model.

A real profile asks for them by `benchmarks`. The model with its adapter merged lies on disk only
while lmms-eval reads it (lib/scale/harness.py); a result that was interrupted goes on with the next
benchmark.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from lib.base import runs
from lib.base.missing import Missing
from lib.model import llava as models
from lib.model.merged import DTYPE, save_merged
from lib.running import origins, recipes
from lib.running.profiles import Profile
from lib.running.results import Report, Result
from lib.running.training import Run
from lib.scale import harness
from lib.scale.harness import Benchmark, HarnessError

SECONDS = 0.3  # expected, for a question


def minutes(profile: Profile) -> float:
    """Expected for one model, for the plan."""
    return sum(each.questions for each in harness.named(profile.benchmarks)) * SECONDS / 60


def check(profile: Profile) -> str:
    """lmms-eval's version. Raises Missing, before anything starts, if the profile's benchmarks
    cannot be run; ValueError for unknown ones."""
    chosen = harness.named(profile.benchmarks)
    if profile.runtime.four_bit:
        raise Missing("The benchmarks need a model into which the adapter can be merged, and one "
                      "loaded in 4 bits cannot be: set four_bit=False in the profile's Runtime "
                      "(lib/running/profiles.py), or leave --benchmarks out.")
    harness.check(chosen)
    return harness.version()


def measured(profile: Profile, run: Run | None, version: str | None = None) -> Result:
    """The benchmarks' values for a run, or for the original model (None), by lmms-eval of this
    version (default: the one here)."""
    version = version or harness.version()
    made = () if run is None else (recipes.adapter(profile, run),)
    chosen = harness.named(profile.benchmarks)
    config = {"model": made[0].folder().name if made else origins.identity(profile),
              "benchmarks": [each.name for each in chosen], "lmms_eval": version}
    facts = {"part": f"specificity by {profile.benchmarks}", "run": str(run or recipes.ORIGINAL)}
    return Result(profile, "specificity", config,
                  partial(_measure, profile, run, version, chosen), made, facts)


def joined(frame: pd.DataFrame, profile: Profile, run: Run | None) -> pd.DataFrame:
    """`metrics.per_answer` of a run or the original model, its specificity by the benchmarks.

    Specificity is the mean over benchmarks, as in the paper: each takes the place of a record, so
    an interval is one over benchmarks. The frame as it is if the profile asks for none, and of a
    run at another weight of PD.
    """
    swept = run is not None and run.prompt_decouple_weight is not None
    if swept or not profile.benchmarks:
        return frame
    found = pd.Series(runs.read_json(measured(profile, run).done() / "metrics.json"))
    values = pd.DataFrame({"split": "generality", "metric": "specificity",
                           "record": "benchmark/" + found.index, "category": found.index,
                           "value": found.to_numpy()})
    return pd.concat([frame[frame["metric"].ne("specificity")], values], ignore_index=True)


def _measure(profile: Profile, run: Run | None, version: str, chosen: Sequence[Benchmark],
             folder: Path, report: Report) -> dict[str, float]:
    if (here := harness.version()) != version:  # on another machine of a cluster
        raise HarnessError(f"lmms-eval is {here} here, and {version} where this was started: "
                           "install the same on every machine.")
    dtype = str(models.dtype_of(profile.runtime)).removeprefix("torch.")
    # Merged on the CPU: the GPU has no room for it beside lmms-eval's.
    on_the_cpu = replace(profile.runtime, device="cpu", dtype=dtype, attention="sdpa")
    merged = folder / "checkpoint" / "merged"
    try:
        report("merges the adapter")
        model, processor = origins.load(replace(profile, runtime=on_the_cpu))
        if run is not None:
            model = models.load_adapter(model, recipes.adapter(profile, run).done() / "adapter")
        save_merged(model, processor, merged)
        del model
        return harness.measure(merged, folder / "benchmarks", chosen, DTYPE,
                               models.device_of(profile.runtime), report)
    finally:
        shutil.rmtree(merged, ignore_errors=True)
