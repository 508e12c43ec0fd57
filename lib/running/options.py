"""What follows ./reproduce.sh: the options, checked before anything that takes long is imported."""

import argparse
import os
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
    """Return the options, checked; ValueError or Missing says in one sentence what is wrong."""
    options = _parser().parse_args(arguments)
    given = {setting: getattr(options, setting) for setting in profiles.GIVEN}
    options.profile = profile = profiles.get(options.profile, **given)
    _check(profile)
    if options.gpu:
        scale("costs").known(options.gpu)
    if profile.real and not options.list:
        profiles.data_of(profile)
    options.notebooks = [] if options.test else chapters.choose(options.only)
    options.jobs = _jobs(options.jobs, profile)
    engines.check(options.engine, options.address)
    if options.publish and (options.only or profile.name != PUBLISHED_PROFILE):
        raise ValueError(f"--publish copies a full run of the profile {PUBLISHED_PROFILE}: leave "
                         "out --only and --profile.")
    return options


def _parser() -> _Parser:
    parser = _Parser(prog="./reproduce.sh", allow_abbrev=False, add_help=False)
    parser.add_argument("--profile", default=PUBLISHED_PROFILE)
    placed = {"model": _placed, "data": _placed, "judge": _judge_placed, "labelled": _file_placed}
    for setting in profiles.GIVEN:
        kind = ({"action": "store_const", "const": "1"} if setting in profiles.SWITCHES else
                {"type": placed.get(setting, str)})
        parser.add_argument(profiles.option(setting), **kind)
    for option in ("--only", "--jobs", "--gpu", "--address"):
        parser.add_argument(option)
    parser.add_argument("--engine", default="local", choices=engines.NAMES)
    for flag in ("--list", "--fresh", "--stale", "--vouch", "--publish", "--test"):
        parser.add_argument(flag, action="store_true")
    return parser


def _check(profile: profiles.Profile) -> None:
    """Raise ValueError for what a run would only stumble over after hours of training."""
    if profile.benchmarks:
        scale("harness").named(profile.benchmarks)
    if profile.labelled:
        from lib.evaluation import labelled  # takes a second to import

        labelled.read(profile.labelled)
    if profile.judge != "rules":
        from lib.evaluation import judges  # likewise

        judges.check(profile.judge)


def _jobs(asked: str | None, profile: profiles.Profile) -> int:
    """How many runs go side by side: a real model fills a GPU, or all cores if there is none."""
    if asked is None:
        return 1 if profile.real and not engines.gpus() else min(cores(), MOST_JOBS)
    if not (asked.isdecimal() and int(asked) > 0):
        raise ValueError(f"--jobs {asked}: give a whole number from 1 up, the runs that go side by "
                         f"side; this machine has {cores()} cores.")
    return int(asked)


def hand_down(profile: profiles.Profile) -> None:
    """Let the notebooks' kernels, which know only the profile's name, find what was given."""
    if profile.real:
        os.environ.update({profiles.variable(setting): str(getattr(profile, setting) or "")
                           for setting in profiles.GIVEN})


def _file_placed(file: str) -> str:
    """A file as seen from where ./reproduce.sh was called, absolute."""
    called_from = os.environ.get("SAFEERASER_CALLED_FROM", ".")
    return str(Path(called_from, Path(file).expanduser()).resolve())


def _placed(source: str) -> str:
    """The same of a folder; a hub name as it is."""
    folder = _file_placed(source)
    return folder if source and Path(folder).is_dir() else source


def _judge_placed(name: str) -> str:
    """A judge's name with its folders placed."""
    kind, colon, model = name.partition(":")
    if kind == "guard":
        model, plus, other = model.partition("+")
        return f"{kind}{colon}{_placed(model)}{plus}{_judge_placed(other)}"
    return f"{kind}{colon}{_placed(model)}" if kind == "local" else name


def cores() -> int:
    """Return the number of cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)  # macOS has none
    return len(usable(0)) if usable else os.cpu_count() or 1
