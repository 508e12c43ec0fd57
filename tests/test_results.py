"""Names of results, and the code that made them: `lib/running/results.py` and `again.py`."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib.base import paths, provenance
from lib.base.runs import Store, manifest, read_json
from lib.evaluation.verdicts import Verdict
from lib.evaluation.world_rule import RuleJudge
from lib.running import again, engines, experiments, overview, recipes
from lib.running.experiments import Run
from lib.running.profiles import get
from lib.running.results import DEPENDS
from tests.toy_pieces import in_this_process

GA = Run("ga", False, 1)


# Names: what a change makes again.


def named(profile):
    return [made.folder().name for made in recipes.results(profile, GA)]


def kinds_changed(profile, changed):
    pairs = zip(recipes.results(profile, GA), named(changed), strict=True)
    return [made.kind for made, name in pairs if made.folder().name != name]


def unlearning(**settings):
    return lambda p: replace(p, unlearning=replace(p.unlearning, **settings))


def evaluation(**settings):
    return lambda p: replace(p, evaluation=replace(p.evaluation, **settings))


NAMES = [
    (unlearning(steps=7), ["adapter", "answers", "labels"]),
    (unlearning(probe_every=1), []),
    (unlearning(checkpoint_every=1), []),
    (evaluation(samples=5), ["answers", "labels"]),
    (evaluation(max_new_tokens=5), ["answers", "labels"]),
    (lambda p: replace(p, judge="server:gpt-4o"), ["labels"]),
    (lambda p: replace(p, seeds=(1, 2, 3)), []),
]


@pytest.mark.parametrize(("change", "again"), NAMES)
def test_a_change_makes_again_only_what_depends_on_it(tiny, change, again):
    assert kinds_changed(tiny, change(tiny)) == again


def test_another_prompt_version_or_option_of_a_judge_labels_again_only(tiny, monkeypatch):
    judged = replace(tiny, judge="server:gpt-4o")
    before = named(judged)
    monkeypatch.setenv("SAFEERASER_JUDGE_OPTIONS", '{"temperature": 0.5}')
    other_options = named(judged)
    monkeypatch.setattr("lib.scale.judge_prompts.VERSION", "prompt 99")
    for one, other in ((before, other_options), (other_options, named(judged))):
        assert one[:2] == other[:2]
        assert one[2] != other[2]


# The code that made a result.


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A copy of lib that counts as today's code: edit(file, old, new)."""
    shutil.copytree(paths.ROOT / "lib", tmp_path / "copy" / "lib",
                    ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(paths, "ROOT", tmp_path / "copy")

    def edit(file, old, new):
        path = tmp_path / "copy" / "lib" / file
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        provenance._code_hash.cache_clear()

    yield edit
    provenance._code_hash.cache_clear()


def codes():
    return {kind: provenance.code(modules) for kind, modules in DEPENDS.items()}


SIGN = ("unlearning/terms.py", "return functional.kl_div(", "return -functional.kl_div(")
RULE = ("evaluation/world_rule.py", "def judge(", "EXTRA = 1\n\n    def judge(")
EDITS = [
    ("a sign in a loss", *SIGN, {"adapter"}),
    ("a rule", *RULE, {"judge", "labels"}),
    ("how answers are generated", "model/generate.py", "num_beams=1", "num_beams=2",
     {"adapter", "answers"}),
    ("a thing of the world", "world/things.csv", "shackle,handcuffs,", "shackle,handcuff,",
     {"dataset", "base", "judge", "labels"}),
    ("a comment", "unlearning/train.py", "import math", "import math  # a word", set()),
    ("a docstring", "unlearning/train.py", '"""One unlearning run:', '"""A run:', set()),
    ("its formatting", "unlearning/train.py", "WATCHED = (", "\n\nWATCHED  =  (", set()),
    ("a message of the store", "base/runs.py", "was cut off or edited", "is bad", set()),
]


@pytest.mark.parametrize(("reason", "file", "old", "new", "changed"), EDITS)
def test_a_result_s_code_changes_with_what_it_computes_and_with_nothing_else(
        elsewhere, reason, file, old, new, changed):
    before = codes()
    elsewhere(file, old, new)
    after = codes()
    assert {kind for kind in before if before[kind] != after[kind]} == changed, reason


def test_another_version_of_torch_is_other_code_but_not_another_build_of_it(monkeypatch):
    def with_torch(version):
        monkeypatch.setattr(provenance, "package_versions", lambda: {"torch": version})
        return provenance.code(["lib.unlearning.terms"])

    assert with_torch("2.9.1+cpu") == with_torch("2.9.1+cu128") != with_torch("2.9.2+cpu")


def test_a_partial_folder_of_other_code_begins_again(tmp_path):
    store, found = Store(tmp_path), []

    def build(folder):
        found.append(sorted(path.name for path in folder.glob("*.txt")))
        (folder / "begun.txt").write_text("by this code")
        if len(found) < 4:
            raise KeyboardInterrupt

    for code in ("a", "a", "b"):
        with pytest.raises(KeyboardInterrupt):
            store.make("step", {}, build, origin={"code": code})
    folder = store.make("step", {}, build, origin={"code": "b"})
    assert found == [[], ["begun.txt"], [], ["begun.txt"]]
    assert manifest(folder)["code"] == "b"
    assert manifest(folder)["resumed"]
    assert not (folder / "checkpoint").exists()


@pytest.fixture(scope="module")
def made_once(tiny, tiny_runs, tmp_path_factory):
    """A runs folder with one run of GA."""
    runs = Path(shutil.copytree(tiny_runs, tmp_path_factory.mktemp("runs") / "runs"))
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFEERASER_RUNS", str(runs))
        experiments.ensure(tiny, [GA], 1, make_all=in_this_process)
    torch.set_num_threads(threads)
    return runs


@pytest.fixture
def made(tiny, made_once, tmp_path, monkeypatch):
    """Its results, and the original model's, in a copy."""
    monkeypatch.setenv("SAFEERASER_RUNS", str(shutil.copytree(made_once, tmp_path / "runs")))
    return [*recipes.results(tiny, None), *recipes.results(tiny, GA)]


def stale(made):
    return [(result.facts["method"], result.kind) for result in made if result.is_stale()]


def test_a_result_s_manifest_says_of_which_run_it_is(made):
    for result in made:
        held = read_json(result.folder() / "manifest.json")
        assert held["facts"] == result.facts
        assert held["code"] == result.code()
        assert set(held["from"]) == {need.folder().name for need in result.needs}


def test_results_of_other_code_and_what_follows_from_them_are_told_and_made_again(
        tiny, made, elsewhere):
    assert stale(made) == []
    assert again.said(tiny).startswith("All ")
    elsewhere(*SIGN)
    of_ga = [("ga", kind) for kind in ("adapter", "answers", "labels")]
    assert stale(made) == of_ga
    assert again.said(tiny).startswith("3 of ")
    assert [result.kind for result in again.forget_stale(made)] == [kind for _, kind in of_ga]
    assert [result.folder().exists() for result in made] == [True, True, False, False, False]


def test_another_rule_leaves_adapters_and_answers_as_they_are(made, elsewhere):
    elsewhere(*RULE)
    assert stale(made) == [("vanilla", "labels"), ("ga", "labels")]


def test_a_result_from_before_there_was_such_a_note_counts_as_made_by_other_code(made):
    path = made[-1].folder() / "manifest.json"
    path.write_text(path.read_text().replace('"code"', '"nothing"'))
    assert stale(made) == [("ga", "labels")]


def test_what_was_made_from_another_adapter_than_is_there_is_stale(made):
    path = made[2].folder() / "manifest.json"
    path.write_text(path.read_text().replace('"bytes": ', '"bytes": 1'))
    assert stale(made) == [("ga", "answers"), ("ga", "labels")]


def test_equal_bits_are_vouched_for_and_when_they_were_made_stays(tiny, made, elsewhere):
    elsewhere(*RULE)
    files = [result.folder() / "manifest.json" for result in made]
    before = [path.stat().st_mtime_ns for path in files]
    lines, equal = again.vouch(tiny, made, 1, in_this_process, print)
    assert equal, lines
    assert len(lines) == 2
    assert stale(made) == []
    assert manifest(made[-1].folder())["vouched_by"] == "labels of GA, seed 1"
    assert [path.stat().st_mtime_ns for path in files] == before
    assert all(result.is_done() for result in made)
    assert not (paths.profile_dir(tiny.name) / again.SCRATCH).exists()


def test_other_bits_are_not_vouched_for(tiny, made, elsewhere, monkeypatch):
    elsewhere(*RULE)
    monkeypatch.setattr(RuleJudge, "judge", lambda self, items, report=None: [
        Verdict("normal", 1.0) for _ in items])
    monkeypatch.setattr("lib.evaluation.judges.known_answers", lambda judge: None)
    lines, equal = again.vouch(tiny, made, 1, in_this_process, print)
    assert not equal
    assert "other bits in labels.jsonl, metrics.json" in lines[0]
    assert stale(made) == [("vanilla", "labels"), ("ga", "labels")]


def test_the_plan_says_what_other_code_made(tiny, made, elsewhere, capsys):
    elsewhere(*RULE)
    plan = overview.make_plan(tiny, [paths.NOTEBOOKS / "00_a_small_llava.ipynb"], 1,
                              engines.local(1, [], "cpu"))
    overview.show(plan)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[-1] for line in lines if overview.OTHER in line] == [
        "original model: answers and gate"]


def test_a_judge_of_rules_has_no_model_in_its_code(tiny):
    assert recipes.run(get("laptop"), GA).code() == recipes.run(tiny, GA).code()
    asked = recipes.run(replace(tiny, judge="server:a"), GA)
    assert asked.code() != recipes.run(tiny, GA).code()
