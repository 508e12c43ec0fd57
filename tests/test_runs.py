import csv
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lib.base import provenance
from lib.base.paths import ROOT
from lib.base.runs import (
    Store,
    claimed,
    read_json,
    read_jsonl,
    write_csv,
    write_json,
    write_jsonl,
)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


def two_files(folder):
    write_jsonl(folder / "answers.jsonl", [{"answer": "a cup"}, {"answer": "a cat"}])
    write_json(folder / "adapter" / "weights.json", [1.5, 2.5])
    return {"asr": 0.5, "rr": 0.25}


def never(folder):
    raise AssertionError(f"{folder} was built although the result was there")


CONFIG = {"lr": 0.001, "terms": {"forget": -1.0, "retain": 1}, "layers": ("q", "v"), "pd": True}


@pytest.mark.parametrize(("reason", "config"), [
    ("key order", {"pd": True, "layers": ("q", "v"), "terms": {"retain": 1, "forget": -1.0},
                   "lr": 0.001}),
    ("list for tuple", {**CONFIG, "layers": ["q", "v"]}),
    ("whole float for int and int for whole float",
     {**CONFIG, "terms": {"forget": -1, "retain": 1.0}}),
    ("NumPy numbers", {**CONFIG, "lr": np.float64(0.001),
                       "terms": {"forget": np.int64(-1), "retain": np.float32(1)}}),
    ("NumPy truth value", {**CONFIG, "pd": np.bool_(True)}),
])
def test_equal_configs_share_a_folder(store, reason, config):
    assert store.folder("unlearn", config) == store.folder("unlearn", CONFIG)


@pytest.mark.parametrize(("reason", "config"), [
    ("a number differs in its last place", {**CONFIG, "lr": 0.0010000000000000002}),
    ("order in a list", {**CONFIG, "layers": ("v", "q")}),
    ("text is not a number", {**CONFIG, "lr": "0.001"}),
    ("1 is not True", {**CONFIG, "pd": 1}),
    ("None is not absent", {**CONFIG, "seed": None}),
    ("nested value", {**CONFIG, "terms": {"forget": -1.0, "retain": 2}}),
])
def test_different_configs_have_different_folders(store, reason, config):
    assert store.folder("unlearn", config) != store.folder("unlearn", CONFIG)


def test_a_folder_is_named_after_its_step_and_twelve_digits_of_the_hash(store):
    digits = hashlib.sha256(b'{"lr":0.5,"seed":1}').hexdigest()[:12]
    assert store.folder("base", {"seed": 1, "lr": 0.5}) == store.root / f"base-{digits}"


@pytest.mark.parametrize(("reason", "config", "named"), [
    ("path", {"data": {"root": Path("x")}}, r"config\['data'\]\['root'\] is a PosixPath"),
    ("set in a list", {"layers": ["q", {"v"}]}, r"config\['layers'\]\[1\] is a set"),
    ("array", {"weights": np.zeros(2)}, r"config\['weights'\] is a ndarray"),
    ("numbers as keys", {"weights": {1: 0.5}}, r"config\['weights'\] is a dict with keys"),
    ("NaN", {"lr": float("nan")}, r"config\['lr'\] is nan"),
    ("infinity", {"lr": [float("-inf")]}, r"config\['lr'\]\[0\] is -inf"),
    ("not a dict", ["lr"], "a list"),
])
def test_a_config_that_json_cannot_hold_is_refused_by_name(store, reason, config, named):
    with pytest.raises((TypeError, ValueError), match=named):
        store.make("unlearn", config, never)
    assert not store.root.exists()


@pytest.mark.parametrize("step", ["", "a/b", "..", "a.partial", "two words"])
def test_a_step_name_that_is_no_plain_folder_name_is_refused(store, step):
    with pytest.raises(ValueError, match="letters"):
        store.folder(step, {})


def test_a_result_holds_its_config_its_metrics_and_the_fingerprint_of_every_file(store):
    config = {"seed": 3, "layers": ("q", "v")}
    folder = store.make("unlearn", config, two_files)
    assert folder == store.folder("unlearn", config)
    assert store.is_done("unlearn", config)
    assert read_json(folder / "config.json") == {"seed": 3, "layers": ["q", "v"]}
    assert read_json(folder / "metrics.json") == {"asr": 0.5, "rr": 0.25}
    listed = read_json(folder / "manifest.json")["files"]
    for name in ("answers.jsonl", "adapter/weights.json", "config.json", "metrics.json"):
        content = (folder / name).read_bytes()
        assert listed.pop(name) == {"bytes": len(content),
                                    "sha256": hashlib.sha256(content).hexdigest()}
    assert listed == {}


def test_the_manifest_says_how_the_result_came_about(store):
    def slow(folder):
        time.sleep(0.05)

    manifest = read_json(store.make("base", {"seed": 3}, slow, device="two GPUs") / "manifest.json")
    assert (manifest["step"], manifest["seed"], manifest["device"]) == ("base", 3, "two GPUs")
    assert 0.05 <= manifest["seconds"] < 5
    assert manifest["resumed"] is False
    assert {"git_commit", "git_dirty", "packages", "python", "platform",
            "peak_memory_mb"} < manifest.keys()


def test_a_step_without_seed_or_metrics_has_null_and_nothing(store):
    folder = store.make("data", {}, lambda folder: None)
    assert read_json(folder / "metrics.json") == {}
    assert read_json(folder / "manifest.json")["seed"] is None


def test_two_stores_write_byte_identical_metrics_and_config(tmp_path):
    first, second = Store(tmp_path / "a"), Store(tmp_path / "b")
    first = first.make("x", {"a": 1, "b": 2}, lambda folder: {"rr": 1.0, "asr": 0.1})
    second = second.make("x", {"b": 2, "a": 1}, lambda folder: {"asr": 0.1, "rr": 1.0})
    for name in ("metrics.json", "config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_finished_step_is_not_built_again(store):
    folder = store.make("unlearn", CONFIG, two_files)
    assert store.make("unlearn", CONFIG, never) == folder


def test_the_checkpoint_and_leftovers_of_killed_writes_are_not_part_of_a_result(store):
    def build(folder):
        write_json(folder / "checkpoint" / "state.json", {"step": 3})
        (folder / ".history.json.123.tmp").write_text('{"half": ')

    folder = store.make("unlearn", CONFIG, build)
    assert sorted(path.name for path in folder.rglob("*")) == [
        "config.json", "manifest.json", "metrics.json"]


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "manifest.json"])
def test_a_build_that_writes_the_stores_own_files_is_told_to_use_a_subfolder(store, name):
    with pytest.raises(ValueError, match=f"{name}.*subfolder"):
        store.make("base", {}, lambda folder: write_json(folder / name, {"model_type": "llava"}))
    assert not store.is_done("base", {})


def edit(path):
    path.write_bytes(path.read_bytes().replace(b"cup", b"cap"))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize(("reason", "name", "damage"), [
    ("a byte was changed", "answers.jsonl", edit),
    ("cut off", "answers.jsonl", truncate),
    ("emptied", "answers.jsonl", lambda path: path.write_bytes(b"")),
    ("missing", "answers.jsonl", Path.unlink),
    ("missing in a subfolder", "adapter/weights.json", Path.unlink),
    ("replaced by a folder", "answers.jsonl", lambda path: (path.unlink(), path.mkdir())),
    ("metrics cut off", "metrics.json", truncate),
    ("no manifest", "manifest.json", Path.unlink),
    ("manifest cut off", "manifest.json", truncate),
    ("manifest empty", "manifest.json", lambda path: path.write_text("")),
    ("manifest lists nothing", "manifest.json", lambda path: path.write_text('{"files": {}}')),
    ("manifest of another shape", "manifest.json", lambda path: path.write_text("[1, 2]")),
])
def test_a_damaged_result_is_noticed_and_made_again(store, caplog, reason, name, damage):
    folder = store.make("unlearn", CONFIG, two_files)
    damage(folder / name)
    assert not store.is_done("unlearn", CONFIG)
    assert store.make("unlearn", CONFIG, two_files) == folder
    assert store.is_done("unlearn", CONFIG)
    [warning] = caplog.messages
    assert "damaged" in warning
    assert Path(name).name in warning
    assert "\n" not in warning
    assert {path.name for path in store.root.iterdir()} == {".locks", folder.name}


def test_damage_to_one_result_leaves_the_others_alone(store):
    other = store.make("unlearn", {"seed": 1}, two_files)
    before = (other / "manifest.json").read_bytes()
    (store.make("unlearn", {"seed": 2}, two_files) / "answers.jsonl").unlink()
    store.make("unlearn", {"seed": 2}, two_files)
    assert (other / "manifest.json").read_bytes() == before


def test_files_that_were_added_later_are_no_damage(store):
    (store.make("unlearn", CONFIG, two_files) / ".DS_Store").write_text("a file manager was here")
    assert store.is_done("unlearn", CONFIG)


def test_a_build_that_raises_leaves_its_partial_folder_for_the_next_try(store):
    def failing(folder):
        write_json(folder / "checkpoint" / "state.json", {"step": 3})
        raise MemoryError("too small a machine")

    def resuming(folder):
        return read_json(folder / "checkpoint" / "state.json")

    with pytest.raises(MemoryError, match="too small"):
        store.make("unlearn", CONFIG, failing)
    final = store.folder("unlearn", CONFIG)
    assert not final.exists()
    assert final.with_name(final.name + ".partial").is_dir()
    assert read_json(store.make("unlearn", CONFIG, resuming) / "metrics.json") == {"step": 3}
    assert read_json(final / "manifest.json")["resumed"] is True
    assert not final.with_name(final.name + ".partial").exists()


def fail(*arguments):
    raise OSError("power cut")


def test_a_step_that_only_lacks_its_final_name_is_not_built_again(store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        with pytest.raises(OSError, match="power cut"):
            store.make("unlearn", CONFIG, two_files)
    store.make("unlearn", CONFIG, never)
    assert store.is_done("unlearn", CONFIG)


def test_the_checkpoint_is_kept_until_the_manifest_is_there(store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "describe", fail)
        with pytest.raises(OSError, match="power cut"):
            store.make("unlearn", CONFIG, lambda folder: (folder / "checkpoint").mkdir())
    store.make("unlearn", CONFIG, lambda folder: (folder / "checkpoint").rmdir())


def test_metrics_that_json_cannot_hold_are_refused_by_name(store):
    with pytest.raises(TypeError, match=r"metrics.json\['asr'\] is a set"):
        store.make("unlearn", CONFIG, lambda folder: {"asr": {0.5}})
    assert not store.folder("unlearn", CONFIG).exists()


FULL_DISK = """
import resource, sys
from pathlib import Path
from lib.base.runs import Store, write_json
store = Store(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
{build}
try:
    store.make("big", {{}}, build)
except OSError as error:
    print("refused", store.is_done("big", {{}}))
"""


@pytest.mark.parametrize(("reason", "build"), [
    ("in the build", "def build(folder): (folder / 'weights').write_bytes(bytes(10_000))"),
    ("in the build's JSON", "def build(folder): write_json(folder / 'x.json', ['word'] * 9_000)"),
    ("in the store's own metrics", "def build(folder): return {'words': ['word'] * 9_000}"),
])
def test_a_disk_that_takes_no_more_leaves_nothing_under_the_final_name(store, reason, build):
    command = [sys.executable, "-c", FULL_DISK.format(build=build), store.root]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    output = subprocess.check_output(command, env=environment, cwd=ROOT, text=True)
    assert output.split() == ["refused", "False"]
    final = store.folder("big", {})
    partial = final.with_name(final.name + ".partial")
    assert not final.exists()
    assert partial.is_dir()
    assert not list(partial.rglob("manifest.json"))
    assert not list(partial.rglob("*.tmp"))
    assert store.make("big", {}, two_files) == final
    assert store.is_done("big", {})


@pytest.mark.parametrize(("reason", "answer"), [
    ("line breaks inside an answer", "one\ntwo\r\nthree"),
    ("separators that some readers take for line breaks", "a\u2028b\u0085c\x0bd"),
    ("letters outside ASCII", "Könnte ich 猫?"),
    ("empty", ""),
])
def test_rows_are_read_back_as_they_were_written(tmp_path, reason, answer):
    rows = [{"answer": answer, "score": 0.1, "exact": True, "sample": None}] * 2
    write_jsonl(tmp_path / "answers.jsonl", rows)
    assert read_jsonl(tmp_path / "answers.jsonl") == rows


def test_no_rows_make_an_empty_file(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [])
    assert (tmp_path / "rows.jsonl").read_bytes() == b""
    assert read_jsonl(tmp_path / "rows.jsonl") == []


@pytest.mark.parametrize(("reason", "value", "written"), [
    ("NaN is no JSON", float("nan"), None),
    ("nor is infinity", float("inf"), None),
    ("a whole float stays a float", 1.0, 1.0),
    ("NumPy numbers are numbers", np.float32(0.5), 0.5),
    ("NumPy truth values are truth values", np.bool_(True), True),
    ("tuples are lists", (1, 2), [1, 2]),
])
def test_numbers_become_json(tmp_path, reason, value, written):
    write_json(tmp_path / "x.json", {"value": value})
    read = read_json(tmp_path / "x.json")["value"]
    assert (read, type(read)) == (written, type(written))


@pytest.mark.parametrize(("cell", "written"), [
    ("=1+1", "'=1+1"), ("@SUM(A1)", "'@SUM(A1)"), ("+1 cup", "'+1 cup"), ("-a cup", "'-a cup"),
    ("\t=1", "'\t=1"), ("-0.5", "-0.5"), (-0.5, "-0.5"), ("a cup = b", "a cup = b"), (None, "")])
def test_no_text_in_a_table_is_a_formula_and_a_number_stays_one(tmp_path, cell, written):
    write_csv(tmp_path / "x.csv", pd.DataFrame({"answer": [cell], "n": [-1]}), index=False)
    with (tmp_path / "x.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["answer", "n"], [written, "-1"]]


def test_a_write_that_fails_keeps_the_file_that_was_there(tmp_path):
    write_json(tmp_path / "x.json", {"asr": 0.5})
    with pytest.raises(TypeError, match=r"x.json\['asr'\] is a PosixPath"):
        write_json(tmp_path / "x.json", {"asr": tmp_path})
    assert read_json(tmp_path / "x.json") == {"asr": 0.5}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_cut_off_file_is_named_in_the_error(tmp_path):
    (tmp_path / "x.json").write_text('{"asr": 0.')
    with pytest.raises(ValueError, match=r"x\.json is not JSON .* make it again"):
        read_json(tmp_path / "x.json")


def test_a_cut_off_row_is_named_by_file_and_line(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"a": 1}\n{"a": 2}\n{"a"')
    with pytest.raises(ValueError, match=r"answers\.jsonl, line 3 is not JSON"):
        read_jsonl(tmp_path / "answers.jsonl")


def test_a_claim_keeps_others_away_until_it_ends(tmp_path):
    x, y = tmp_path / "x", tmp_path / "y"
    with claimed(x) as first, claimed(x) as second, claimed(y) as other:
        assert (first, second, other) == (True, False, True)
    with claimed(tmp_path / "x") as again:
        assert again


def test_a_result_can_be_made_while_it_is_claimed(tmp_path):
    store = Store(tmp_path)
    with claimed(store.folder("x", {})):
        store.make("x", {}, lambda folder: {})
    assert store.is_done("x", {})
