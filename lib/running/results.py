"""A result: what determines it, how it is built, what it is made from, and by which code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lib.base import provenance, runs
from lib.base.missing import Missing
from lib.base.paths import private, profile_dir
from lib.running import memory
from lib.running.profiles import Profile

Report = Callable[[str], None]
# The code of each kind of result: these modules and all of lib that they import (`provenance`).
DEPENDS = {
    "dataset": ("lib.world.iconworld",),
    "base": ("lib.model.pretrain", "lib.model.llava"),
    "tower": ("lib.scale.features",),
    "judge": ("lib.evaluation.judges",),
    "adapter": ("lib.unlearning.train", "lib.base.checkpoints", "lib.evaluation.answers",
                "lib.running.training"),
    "answers": ("lib.evaluation.answers", "lib.model.llava", "lib.model.merged",
                "lib.running.answering"),
    "labels": ("lib.evaluation.judges", "lib.evaluation.metrics", "lib.running.labelling"),
    "specificity": ("lib.scale.harness", "lib.model.merged"),
    "costs": (),  # a speed, of which a little changed code says little
}
# What is looked up by name at a real profile, or for a judge that is a model.
OF_REAL = {"dataset": ("lib.data.dataset", "lib.data.report"),
           "adapter": ("lib.scale.attention", "lib.scale.features", "lib.scale.quirks"),
           "answers": ("lib.scale.attention", "lib.scale.features", "lib.scale.vllm")}
OF_JUDGES = {"judge": ("lib.scale.judges",), "labels": ("lib.scale.judges",)}


def quiet(text: str) -> None:
    """Reports nothing."""


@dataclass(frozen=True)
class Result:
    """A result in the profile's store, and how it is built; `needs` have to be there first.

    `facts` are what others want to know about it: they are written into its manifest.
    """

    profile: Profile
    kind: str
    config: dict
    build: Callable[[Path, Report], dict | None]
    needs: tuple[Result, ...] = ()
    facts: dict = field(default_factory=dict)

    def folder(self) -> Path:
        """Where it is, or will be."""
        return self._store().folder(self.kind, self.config)

    def is_done(self) -> bool:
        """Whether it is there, every file as it was written."""
        return self._store().is_done(self.kind, self.config)

    def make(self, report: Report = quiet) -> Path:
        """Its folder, after building what is missing. Raises memory.OutOfMemory with advice."""
        if self.profile.real:  # what models say there may be harmful
            private(profile_dir(self.profile.name))
        for need in self.needs:
            if not need.folder().exists():
                need.make(report)
        with memory.advised(self.profile, f"making {self.name}"):
            return self._store().make(self.kind, self.config, lambda to: self.build(to, report),
                                      origin=self.origin(), facts=self.facts)

    @property
    def name(self) -> str:
        """What it is, in words."""
        return " of ".join([self.kind, *([self.facts["run"]] if "run" in self.facts else [])])

    def done(self) -> Path:
        """Its folder. Raises Missing, with what to run, if it is not there."""
        if not self.folder().exists():
            raise Missing(
                f"{self.folder()} is not there yet: run ./reproduce.sh --profile "
                f"{self.profile.name}, which makes all that the notebooks read.")
        return self.folder()

    def forget(self) -> None:
        """Remove it, if it is there, so that `make` makes it again."""
        self._store().remove(self.kind, self.config)

    def code(self) -> dict[str, str]:
        """The code by which it would be made now."""
        more = OF_REAL.get(self.kind, ()) if self.profile.real else ()
        if self.profile.judge != "rules":
            more += OF_JUDGES.get(self.kind, ())
        return provenance.code((*DEPENDS[self.kind], *more))

    def origin(self) -> dict:
        """The code by which it would be made now, and what it would be made from."""
        return {"code": self.code(), "from": {need.folder().name: runs.digest(need.folder())
                                              for need in self.needs}}

    def is_own_stale(self) -> bool:
        """Whether it is there and was made by other code than today's."""
        held = runs.manifest(self.folder())
        return bool(held) and held.get("code") != self.code()

    def is_stale(self) -> bool:
        """Whether it, or what it was made from, was made by other code than today's."""
        held = runs.manifest(self.folder())
        if not held:
            return False
        now, then = self.origin()["from"], held.get("from", {})
        return (self.is_own_stale() or any(need.is_stale() for need in self.needs)
                or any(bits and then.get(name) != bits for name, bits in now.items()))

    def _store(self) -> runs.Store:
        return runs.Store(profile_dir(self.profile.name))
