"""How results travel between two stores, without Ray: `lib/scale/ray_nodes.py`, `Store.adopt`."""

import shutil
import subprocess
import sys

import pytest

from lib.base.paths import ROOT
from lib.base.runs import Store, claimed, is_whole
from lib.scale import ray_nodes
from lib.scale.ray_nodes import receive, send


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A finished result in one store, sent in parts of five bytes."""
    monkeypatch.setattr(ray_nodes, "PART", 5)
    return Store(tmp_path / "there").make("x", {"seed": 1}, fill)


def fill(folder):
    (folder / "deep" / "deeper").mkdir(parents=True)
    (folder / "deep" / "deeper" / "weights.bin").write_bytes(bytes(range(12)))
    (folder / "ten.txt").write_text("0123456789")
    (folder / "empty.txt").touch()
    return {"total": 1}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def here(tmp_path):
    return Store(tmp_path / "here")


def adopt(store, folder, parts):
    return store.adopt(folder.name, lambda incoming: receive(parts, incoming))


def test_a_result_arrives_as_it_was_sent(made, here):
    arrived = adopt(here, made, send(made))
    assert contents(arrived) == contents(made)
    assert here.is_done("x", {"seed": 1})
    assert [path.name for path in here.root.iterdir() if path.name != ".locks"] == [made.name]


def test_no_part_is_larger_than_the_limit(made):
    assert max(len(data) for _, data in send(made)) == 5


def test_a_result_that_is_there_is_not_copied_again(made, here):
    adopt(here, made, send(made))
    adopt(here, made, iter([("never", b"read")]))
    assert here.is_done("x", {"seed": 1})


def test_what_is_cut_off_or_changed_on_its_way_is_refused_and_can_be_sent_again(made, here):
    parts = list(send(made))
    for wrong in (parts[:-1], [*parts[:-1], (parts[-1][0], b"*")]):
        with pytest.raises(ValueError, match="arrived damaged"):
            adopt(here, made, wrong)
        assert not is_whole(here.root / made.name)
    assert is_whole(adopt(here, made, parts))


def test_a_result_that_arrives_ends_what_was_begun_here(made, here):
    begun = here.root / f"{made.name}.partial"
    (begun / "checkpoint").mkdir(parents=True)
    adopt(here, made, send(made))
    assert not begun.exists()


@pytest.mark.parametrize("name", ["../stolen", "/tmp/stolen", "a/../../stolen", "a\0b"])
def test_no_file_that_arrives_leaves_its_folder(tmp_path, name):
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="leads out of it"):
        receive([(name, b"x")], tmp_path / "in")
    assert list(tmp_path.rglob("*")) == [tmp_path / "in"]


def test_a_node_that_lacks_torch_can_say_so():
    code = "import sys; sys.modules['torch'] = None; from lib.scale import ray_nodes"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


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


def test_a_damaged_result_is_replaced_by_the_one_that_arrives(made, here):
    arrived = adopt(here, made, send(made))
    (arrived / "ten.txt").write_text("9876543210")
    shutil.rmtree(arrived / "deep")
    assert contents(adopt(here, made, send(made))) == contents(made)
