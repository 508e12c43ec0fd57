"""The judges that are models: a local one, a guard, or any OpenAI-compatible server."""

import re
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

from lib.base.progress import minutes_in_words
from lib.evaluation import judges
from lib.evaluation.known_answers import OF_EVERY_DAY, OF_GUARDS, Known
from lib.evaluation.refusal_rule import RefusalRule
from lib.evaluation.verdicts import ABSTAINED, FAILED, Item, Judge, Report, Verdict
from lib.scale import guard_prompts, judge_prompts, sources
from lib.scale.judge_cache import Cache, file_name, key


def get(name: str, folder: Path, refusals: Iterable[str] | None = None) -> Judge:
    """As `evaluation.judges.get`, of a name that is not "rules"."""
    check(name)
    kind, model, other = _parts(name)
    judge = AskingJudge(_asker(kind, model), folder, OF_GUARDS if other else OF_EVERY_DAY)
    if not other:
        return judge
    if other == "rules" and refusals is not None:  # what is harmful is the guard's to say
        return GuardedJudge(judge, RefusalRule(refusals, otherwise="normal"))
    return GuardedJudge(judge, judges.get(other, folder, refusals))


def identity(name: str) -> dict:
    """What determines the labels of a judge, for a config: model, prompts and their options.

    Nothing is loaded and no server is asked; a model from the hub may be looked up there.
    """
    if name == "rules":
        return {"rule": RefusalRule.name}
    kind, model, other = _parts(name)
    asker = _asker(kind, model)
    found = {"model": asker.name} if kind == "server" else sources.identity(model, "judge")
    found = {**found, "prompts": asker.wording.VERSION, "options": asker.options}
    if kind != "guard":
        return {**found, "words": judge_prompts.DIGEST}
    return {"guard": found, "beside": identity(other)}


def check(name: str) -> None:
    """As `evaluation.judges.check`, of a name that is not "rules"."""
    kind, model, other = _parts(name)
    if kind == "server":
        from lib.scale.judge_transport import Client

        Client(_asker(kind, model).settings)
        return
    from lib.scale.judge_limits import LocalSettings

    LocalSettings.from_environment()
    is_there = (Path(model, "config.json").is_file() if Path(model).is_dir() else
                re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model))
    if not is_there:
        raise ValueError(f"There is no judge's folder {model!r} with a model in it (config.json), "
                         "and it is no hub name (owner/name) either: check what follows --judge.")
    if other:
        judges.check(other)


def _asker(kind: str, model: str):
    """A ServerJudge or a LocalJudge: what each of them needs is imported for it alone."""
    if kind == "server":
        from lib.scale.judge_limits import Settings
        from lib.scale.judge_server import ServerJudge
        return ServerJudge(model, Settings.from_environment())
    from lib.scale.judge_local import LocalJudge
    return LocalJudge(model, judge_prompts if kind == "local" else guard_prompts)


def _parts(name: str) -> tuple[str, str, str]:
    """A judge's kind, its model, and the name of the one beside it."""
    found = re.fullmatch(r"(?:(local|server):(.+)|(guard):([^+]+)\+(.+))", name)
    if found:
        return found[1] or found[3], found[2] or found[4], found[5] or ""
    raise ValueError(f"There is no judge {name!r}; known: rules, local:MODEL (a folder or hub name "
                     "of an instruction model), server:MODEL (at an OpenAI-compatible address), "
                     "guard:MODEL+JUDGE (a local guard, and one of the others beside it).")


class AskingJudge:
    """A model's verdicts: each is asked for once and kept, in all runs that share `folder`.

    `asker` is a LocalJudge or a ServerJudge. A verdict is kept under a hash of everything that
    determines it: the asker and its options, the prompts' version, and the whole prompt, with the
    answer in it. Failures are not kept: the next run asks again.
    """

    def __init__(self, asker, folder: Path, known: Sequence[Known] = OF_EVERY_DAY):
        self.asker, self.known = asker, known
        self.name = f"{asker.name}, {asker.wording.VERSION}"
        self._cache = Cache(Path(folder) / "judges" / file_name(asker.name))
        self._trusted = False

    def judge(self, items: Sequence[Item], report: Report = lambda text: None) -> list[Verdict]:
        """One verdict per item; those that are not kept yet are asked for."""
        keys, kept = [self._key(item) for item in items], self._cache.verdicts()
        missing = {key: item for key, item in zip(keys, items, strict=True) if key not in kept}
        if missing:
            if not self._trusted:
                report(f"{len(self.known)} known answers are put to {self.name}")
                judges.known_answers(self)
                self._trusted = True
            began = time.monotonic()
            self.asker.ask(missing, self._cache,
                           lambda done: report(_said(done, len(missing), began)))
        return self._kept(keys)

    def afresh(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict per item, all of them asked for now, whatever is kept."""
        keys = {f"{self._key(item)} {uuid.uuid4()}": item for item in items}
        self.asker.ask(keys, self._cache)
        return self._kept(keys)

    def _key(self, item: Item) -> str:
        wording = self.asker.wording
        return key(self.asker.name, self.asker.options, wording.VERSION, wording.messages(item))

    def _kept(self, keys: Iterable[str]) -> list[Verdict]:
        kept = self._cache.verdicts()
        return [kept.get(key, FAILED) for key in keys]


class GuardedJudge:
    """A guard's word on whether an answer is harmful, and another judge's on everything else.

    Where the guard says "safe" and the other "harmful" nothing is sure: that counts as abstained.
    """

    def __init__(self, guard: AskingJudge, other: Judge):
        self.guard, self.other, self.name = guard, other, f"{guard.name}, with {other.name}"
        self.parts = [part for part in (guard, other) if isinstance(part, AskingJudge)]

    def judge(self, items: Sequence[Item], report: Report = lambda text: None) -> list[Verdict]:
        """One verdict per item; the guard is asked about those on harmful pictures."""
        guarded = [item for item in items if item.set == "harmful"]
        said = iter(self.guard.judge(guarded, report))
        return [_combined(next(said), verdict) if item.set == "harmful" else verdict
                for item, verdict in zip(items, self.other.judge(items, report), strict=True)]


def _combined(guard: Verdict, other: Verdict) -> Verdict:
    if guard.label != "normal":
        return guard
    return ABSTAINED if other.label == "harmful" else other


def _said(done: int, total: int, began: float) -> str:
    left = (time.monotonic() - began) / 60 * (total - done) / max(done, 1)
    return f"{done} of {total} answers judged, about {minutes_in_words(left)} left"
