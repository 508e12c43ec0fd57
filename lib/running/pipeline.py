"""The whole companion in one command: plan, steps, notebooks, claims (what ./reproduce.sh runs).

First the steps that the chosen chapters need are made in the run store, then the notebooks, which
read the store, are executed side by side. Exit status: 0 when every notebook ran and every check
held, 1 when not, 2 for an option that cannot be, 130 when stopped. A finding that does not hold is
a result: it is printed, and changes no status.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

from lib.base import disk, paths
from lib.base.extras import scale
from lib.base.missing import Missing
from lib.base.progress import Progress
from lib.figures import claims
from lib.running import chapters, engines, options, profiles
from lib.running.overview import NOTEBOOK_MINUTES, OTHER, Plan, make_plan, show
from lib.running.publish import publish

FAILURE = "failure.txt"
PAID_FOR = ("judges",)  # verdicts and the spending count: no --fresh removes them
KINDS = {"check": "Checks of data and code", "finding": "Findings"}  # of claims, as printed


class RefusedError(ValueError):
    """What is asked for cannot be done here; nothing was begun."""


def unusable(profile: profiles.Profile, look: bool) -> list[str]:
    """What is wrong with a real profile's folders, as far as that is told in seconds.

    The data only for a `look` at the plan, and if some may be left out, which is never done without
    a word: a run checks them whole, with every picture.
    """
    from lib.data import report as dataset_report  # seconds each: not before the options are good
    from lib.model import check as model_check
    from lib.running import origins

    wrong = []
    if Path(profile.model).is_dir():
        wrong += model_check.check(Path(profile.model))
    look |= profile.leave_out
    if not (look and profile.data and Path(profile.data).is_dir()):
        return wrong
    try:
        read = origins.checked(profile, pictures=False)
    except Missing as error:
        return [*wrong, str(error)]
    print(dataset_report.said(read))
    return wrong


def run(plan: Plan) -> dict[Path, str]:
    """Do what the plan lists as not there yet; return an account of each failed notebook."""
    progress = Progress([minutes for _, minutes, there in plan.lines() if not there])
    for step in [step for step in plan.steps if not plan.done[step.id]]:
        progress.start(step.name)
        try:
            step.make(progress.report)
        except Exception:
            progress.finish(step.name, step.minutes, "FAILED after ")
            raise
        progress.finish(step.name, step.minutes)
    return _execute(plan, progress)


def _execute(plan: Plan, progress: Progress) -> dict[Path, str]:
    """Execute the notebooks that are not current, as many at once as there are jobs."""
    marks = {notebook: plan.mark(notebook) for notebook in plan.notebooks
             if not plan.current[notebook]}  # with the results as they are now
    failures = {}
    with chapters.kernels(threads=max(1, options.cores() // plan.jobs)):
        pool = ThreadPoolExecutor(plan.jobs)  # each thread only waits for its kernel
        at_work = {pool.submit(_timed, chapters.execute, notebook, plan.profile.name, mark):
                   notebook for notebook, mark in marks.items()}
        try:
            for future in as_completed(at_work):
                notebook, (seconds, error) = at_work[future], future.result()
                progress.finish(f"notebook {notebook.stem}", NOTEBOOK_MINUTES,
                                "FAILED after " if error else "", seconds)
                if error:
                    failures[notebook] = chapters.explain(notebook, plan.profile.name, error)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C waits for no kernel
    return dict(sorted(failures.items()))


def _timed(work: Callable, *arguments) -> tuple[float, Exception | None]:
    started = time.monotonic()
    try:
        work(*arguments)
    except Exception as error:
        return time.monotonic() - started, error
    return time.monotonic() - started, None


def verdict(plan: Plan, failures: dict[Path, str]) -> int:
    """Print the claims of the plan's chapters and what went wrong; return the exit status."""
    table = claims.table(plan.profile)
    table = table[table.chapter.str[:2].isin([chapters.number(n) for n in plan.notebooks])]
    for kind, title in KINDS.items():
        print(f"\n{title}")
        for row in table[table.kind == kind].itertuples():
            print(f"  {row.chapter[:2]}  {row.verdict}: {row.claim} ({row.shown})")
    ran = [notebook for notebook in plan.notebooks if notebook not in failures]
    wrong = [*failures.values(), *chapters.lost_claims(ran, plan.profile.name)]
    for each in wrong:
        print(f"\n{each}")
    print(f"\nFigures and tables: {paths.figures_dir(plan.profile.name)}")
    print(f"Notebooks with outputs: {paths.notebooks_dir(plan.profile.name)}")
    held = {kind: table.holds[table.kind == kind] for kind in KINDS}
    print(f"{len(ran)} of {len(plan.notebooks)} notebooks ran; "
          + ("; ".join(f"{rows.sum()} of {len(rows)} {kind}s hold" for kind, rows in held.items())
             if plan.profile.strict else f"{len(table)} claims are not judged at this profile")
          + ".", flush=True)
    return int(bool(wrong) or (plan.profile.strict and not held["check"].all()))


def main(arguments: list[str] | None = None) -> int:
    try:
        chosen = options.parse(arguments)
    except (ValueError, Missing) as error:
        print(error, file=sys.stderr)
        return 2
    options.hand_down(chosen.profile)
    if chosen.test:
        return subprocess.call([sys.executable, "-m", "pytest"], cwd=paths.ROOT)
    folder = paths.profile_dir(chosen.profile.name)
    try:
        return _look(chosen) if chosen.list else _work(chosen, folder)
    except (RefusedError, disk.BusyError) as error:
        print(error, file=sys.stderr)
        return 2
    except Missing as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except Exception as error:
        return fail(error, folder)


def _expected(chosen):
    """Print and return what a real profile costs; None of others. RefusedError: not here."""
    if not chosen.profile.real:
        return None
    if wrong := unusable(chosen.profile, chosen.list):
        raise RefusedError("\n".join(wrong))
    expected = scale("costs").expected(chosen.profile, chosen.gpu, measure=chosen.list)
    print(expected.text, flush=True)
    return expected


def _look(chosen) -> int:
    """Show the plan of these options, and do nothing."""
    try:
        expected = _expected(chosen)
        with _engine(chosen) as engine:
            show(make_plan(chosen.profile, chosen.notebooks, chosen.jobs, engine, expected))
    except Missing as error:  # the counts need neither the data nor the model nor a network
        print(f"Which steps are there already cannot be told: {error}")
    return 0


def _work(chosen, folder: Path) -> int:
    """Do what these options ask for; return the exit status."""
    from lib.running import again  # takes seconds: not before the options are known good

    if chosen.fresh and folder.exists():
        print(f"Removing {folder}", flush=True)
        disk.clear(folder, PAID_FOR)
    expected = _expected(chosen)
    with disk.at_work(folder):
        with _engine(chosen) as engine:
            planned = partial(make_plan, chosen.profile, chosen.notebooks, chosen.jobs, engine,
                              expected)
            plan = planned()
            if chosen.vouch:
                return vouch(plan)
            if chosen.stale and plan.other_code:
                removed = again.forget_stale(plan.results())
                print(f"{len(removed)} results were {OTHER}, or from such: they are made again.")
                plan = planned()
            show(plan)
            (folder / FAILURE).unlink(missing_ok=True)
            failures = run(plan)
        with chapters.at_rest(plan.notebooks, plan.profile.name):
            return max(verdict(plan, failures), chosen.publish and publish_all(plan, failures))


def vouch(plan: Plan) -> int:
    """Compare results of other code with what today's makes; 1 if they are not the same."""
    from lib.running import again  # as above

    progress = Progress([0])
    progress.start("one result of each kind, made again to be compared")
    lines, equal = again.vouch(plan.profile, plan.results(), plan.jobs, plan.engine.make_all,
                               progress.report)
    print("\n".join(lines or [f"No result was {OTHER}."]), flush=True)
    return int(not equal)


def _engine(chosen):
    return engines.start(chosen.engine, chosen.jobs, chosen.profile.runtime.device, chosen.address)


def publish_all(plan: Plan, failures: dict[Path, str]) -> int:
    """Publish the plan's notebooks; 1 if one failed or other code made what they read."""
    if failures:
        print("Nothing is published, because not every notebook ran.")
        return 1
    if plan.other_code:
        print(f"Nothing is published, because other code than is here made: "
              f"{'; '.join(plan.other_code)}. --stale makes that again; --vouch compares.",
              file=sys.stderr)
        return 1
    publish(plan.notebooks, plan.profile.name)
    print(f"Published to {paths.NOTEBOOKS} and {paths.PUBLISHED_FIGURES}.")
    return 0


def fail(error: Exception, folder: Path) -> int:
    """Print what made the run stop, in its own words; the traceback goes to a file in `folder`."""
    account, words = folder / FAILURE, "".join(traceback.format_exception(error))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        account.write_text(words, encoding="utf-8")
        where = f"The full account: {account}"
    except OSError as unwritten:
        where = f"Nothing can be written to {folder}: {unwritten}"
    print(f"\n{type(error).__name__}: {error}\nThe run stops here. {where}", file=sys.stderr)
    return 1


def stop(*_signal) -> None:
    """End at once: what is under way is lost, what is in the store stays; kernels end with us."""
    for child in multiprocessing.active_children():
        child.terminate()
    print("\nStopped. What is finished is kept; run the same command again to go on.", flush=True)
    os._exit(130)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.stdout.reconfigure(errors="replace")  # a terminal without ✓ is no reason to fail
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        stop()
