"""What follows ./reproduce.sh: the options, checked before anything that takes long is imported."""

import argparse
import os
from dataclasses import replace
from pathlib import Path

from lib.base.extras import scale
from lib.running import chapters, engines, profiles

MOST_JOBS = 8  # unless asked for: each takes up to 1 GB of memory
PUBLISHED_PROFILE = "laptop"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        known = ", ".join(option for action in self._actions for option in action.option_strings)
        raise ValueError(f"{message}. Known options: {known}.")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options, checked; ValueError says in one sentence what is wrong."""
    parser = _Parser(prog="./reproduce.sh", allow_abbrev=False, add_help=False)
    parser.add_argument("--profile", default=PUBLISHED_PROFILE)
    parser.add_argument("--only")
    for setting in profiles.GIVEN:
        switch = {"action": "store_const", "const": "1"} if setting in profiles.SWITCHES else {}
        parser.add_argument(profiles.option(setting), **switch)
    parser.add_argument("--jobs")
    parser.add_argument("--gpu")
    parser.add_argument("--engine", default="local", choices=engines.NAMES)
    parser.add_argument("--address")
    for flag in ("--list", "--fresh", "--stale", "--vouch", "--publish", "--test"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args(arguments)
    given = {setting: getattr(options, setting) for setting in profiles.GIVEN}
    given |= {setting: _placed(given[setting]) for setting in ("model", "data")}
    given["judge"] = _judge_placed(given["judge"])
    options.profile = profiles.get(options.profile, **given)
    options.profile = _with_labelled(options.profile)
    if options.profile.benchmarks:
        scale("harness").named(options.profile.benchmarks)
    _check_judge(options.profile)
    if options.gpu:
        scale("costs").known(options.gpu)
    if options.profile.real and not options.list:
        profiles.data_of(options.profile)
    if options.jobs is None:  # a real model fills a GPU, or all cores of a machine without
        alone = options.profile.real and not engines.gpus()
        options.jobs = "1" if alone else str(min(cores(), MOST_JOBS))
    options.notebooks = [] if options.test else chapters.choose(options.only)
    if not (options.jobs.isdecimal() and int(options.jobs) > 0):
        raise ValueError(f"--jobs {options.jobs}: give a whole number from 1 up, the runs that go "
                         f"side by side; this machine has {cores()} cores.")
    options.jobs = int(options.jobs)
    engines.check(options.engine, options.address)
    if options.publish and (options.only or options.profile.name != PUBLISHED_PROFILE):
        raise ValueError(f"--publish copies a full run of the profile {PUBLISHED_PROFILE}: leave "
                         "out --only and --profile.")
    return options


def hand_down(profile: profiles.Profile) -> None:
    """Let the notebooks' kernels, which know only the profile's name, find what was given."""
    if profile.real:
        os.environ.update({profiles.variable(setting): str(getattr(profile, setting) or "")
                           for setting in profiles.GIVEN})


def _placed(source: str | None) -> str | None:
    """A folder as seen from where ./reproduce.sh was called, absolute; a hub name as it is."""
    folder = Path(os.environ.get("SAFEERASER_CALLED_FROM", "."), source or "").resolve()
    return str(folder) if source and folder.is_dir() else source


def _judge_placed(name: str | None) -> str | None:
    """A judge's name with its folders placed."""
    kind, colon, model = (name or "").partition(":")
    if kind == "guard":
        model, plus, other = model.partition("+")
        return f"{kind}{colon}{_placed(model) or ''}{plus}{_judge_placed(other) or ''}"
    return f"{kind}{colon}{_placed(model)}" if kind == "local" and model else name


def _with_labelled(profile: profiles.Profile) -> profiles.Profile:
    """The profile with its labelled sample's place absolute; ValueError if it cannot be used."""
    if profile.labelled is None:
        return profile
    from lib.evaluation import labelled  # takes a second to import

    called_from = os.environ.get("SAFEERASER_CALLED_FROM", ".")
    file = Path(called_from, Path(profile.labelled).expanduser()).resolve()
    labelled.read(file)
    return replace(profile, labelled=str(file))


def _check_judge(profile: profiles.Profile) -> None:
    """Raise ValueError for a judge that could not be asked here: hours of training come first."""
    if profile.judge != "rules":
        from lib.evaluation import judges  # takes a second to import

        judges.check(profile.judge)


def cores() -> int:
    """Return the number of cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)  # macOS has none
    return len(usable(0)) if usable else os.cpu_count() or 1
