"""What one command is to do, what it costs, and what is there already."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from lib.base import paths, runs
from lib.base.progress import minutes_in_words
from lib.running import chapters, profiles

NOTEBOOK_MINUTES = 0.4  # most of it: the kernel's start and its imports
OTHER = "made by other code"


@dataclass(frozen=True)
class Plan:
    """What one run is to do: `done` and `current` are as the store and the notebooks are now."""

    profile: profiles.Profile
    engine: object  # of lib.running.engines
    jobs: int
    steps: list  # of experiments.Step
    done: dict[str, bool]  # by the step's id
    notebooks: list[Path]
    mark: Callable[[Path], str]  # the fingerprint of a notebook, with the results as they are now
    current: dict[Path, bool]  # whether its executed copy has that fingerprint
    timed: bool  # whether the expected minutes are more than a guess
    other_code: tuple[str, ...]  # the names of the steps that have results by other code

    def lines(self) -> list[tuple[str, float, bool]]:
        """Return (name, expected minutes, already there) of everything in its order."""
        steps = [(step.name, step.minutes, self.done[step.id]) for step in self.steps]
        return steps + [(f"notebook {notebook.stem}", NOTEBOOK_MINUTES, self.current[notebook])
                        for notebook in self.notebooks]

    def results(self) -> list:
        """All that its steps make."""
        return [made for step in self.steps for made in step.results]


def make_plan(profile: profiles.Profile, notebooks: list[Path], jobs: int, engine,
              expected=None) -> Plan:
    """Return the plan for these notebooks, after checking that they take our parameters.

    expected: `lib.scale.costs.Costs` of a real profile, None of others.
    """
    from lib.running import experiments  # takes seconds: not before the options are known good

    for notebook in notebooks:
        chapters.check_parameters(notebook, ["profile_name"])
    steps = experiments.steps(profile, [chapters.number(n) for n in notebooks], engine.slots,
                              engine.make_all)
    hours = expected.hours(engine.slots) if expected else {}
    steps = [replace(step, minutes=60 * hours.get(step.name, step.minutes / 60)) for step in steps]
    there = {step.id: step.is_done() for step in steps}
    done = {step.id: there[step.id] and all(there.get(judged, True) for judged in step.before)
            for step in steps}
    needed = {notebook: experiments.steps(profile, [chapters.number(notebook)], jobs)
              for notebook in notebooks}
    mark = partial(_mark, profile, needed)
    current = {notebook: all(done[step.id] for step in needed[notebook])
               and chapters.is_current(notebook, profile.name, mark(notebook))
               for notebook in notebooks}
    other_code = tuple(s.name for s in steps if any(made.is_stale() for made in s.results))
    return Plan(profile, engine, jobs, steps, done, notebooks, mark, current,
                bool(hours) or not profile.real, other_code)


def _mark(profile: profiles.Profile, needed: dict[Path, list], notebook: Path) -> str:
    """The fingerprint of a notebook: of its sources, and of the results that it reads."""
    read = [Path(profile.labelled).read_text("utf-8-sig")] if profile.labelled else []
    bits = [runs.digest(made.folder()) for step in needed[notebook] for made in step.results]
    return chapters.fingerprint(notebook, profile.name,
                                [*(step.id for step in needed[notebook]), *bits, *read])


def show(plan: Plan) -> None:
    """Print what there is to do, what it costs, and what is there already."""
    lines = plan.lines()
    print(f"Profile {plan.profile.name}, {plan.engine.summary}, results in "
          f"{paths.profile_dir(plan.profile.name)}")
    for name, minutes, there in lines:
        words = minutes_in_words(minutes) if plan.timed else "?"
        words = "there already" if there else words
        print(f"  {OTHER if name in plan.other_code else words:>{len(OTHER)}}  {name}")
    left = sum(minutes for _, minutes, there in lines if not there)
    words = minutes_in_words(left) if plan.timed else "as long as it takes on this machine"
    print(f"In all: {words}." if left else "Nothing to do.", flush=True)
