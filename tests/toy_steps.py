"""Steps that take no time, in place of `experiments`: chapter 01 needs all, 00 the first."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from lib.base import paths, runs


@dataclass(frozen=True)
class Step:
    id: str
    name: str
    minutes: float
    is_done: Callable[[], bool]
    make: Callable[[Callable[[str], None]], None]
    before: tuple[str, ...] = ()
    results: tuple = ()


def _step(profile, name: str) -> Step:
    store, config = runs.Store(paths.profile_dir(profile.name)), {"toy": name}

    def build(folder):
        if os.environ.get("TOY_BROKEN_STEP") == name:
            raise ValueError("the gate asks for ASR >= 0.95, and it is 0.50: train longer")
        (folder / "result.txt").write_text(name)

    def make(report):
        report("half way")
        if os.environ.get("TOY_SLOW_STEP") == name:
            time.sleep(60)
        store.make(name, config, build)

    return Step(store.folder(name, config).name, f"the {name} of it", 0.01,
                lambda: store.is_done(name, config), make)


def steps(profile, chapters, jobs, make_all=None):
    names = ["dataset", "base", "runs"] if "01" in chapters else ["dataset"]
    return [_step(profile, name) for name in names]
