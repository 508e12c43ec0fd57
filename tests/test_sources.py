import shutil

import pytest

from lib import sources
from lib.missing import Missing
from tests import tiny_llava


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    return (tiny_llava.write_model(folder / "model", image_size=28),
            tiny_llava.write_dataset(folder / "data"))


@pytest.fixture
def copies(made, tmp_path):
    """Copies of both folders, which a test may change."""
    sources.identity.cache_clear()
    return [shutil.copytree(folder, tmp_path / folder.name) for folder in made]


def test_a_folder_is_itself(made):
    assert sources.folder(made[0]) == made[0]
    assert sources.folder(str(made[1]), "dataset") == made[1]


@pytest.mark.parametrize(("kind", "option"), [("model", "--model"), ("dataset", "--data")])
@pytest.mark.parametrize("source", ["/nowhere/at/all", "../nothing", "a/b/c", "nothing", ""])
def test_what_is_neither_folder_nor_hub_name_is_refused_with_its_option(source, kind, option,
                                                                        tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = source or "a/b/"
    with pytest.raises(Missing, match=f"no {kind} folder.*{option}"):
        sources.folder(source, kind)


def test_a_hub_name_that_cannot_be_fetched_is_explained(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Missing, match=r"nobody/nothing.*give a local folder with --data"):
        sources.folder("nobody/nothing-of-this-name", "dataset")


def test_a_moved_folder_is_the_same_source(made, copies):
    for one, other, kind in zip(made, copies, ("model", "dataset"), strict=True):
        assert sources.identity(str(one), kind) == sources.identity(str(other), kind)


def change_a_weight(model, data):
    file = model / "model-00002-of-00002.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


CHANGES = [
    ("a weight", "model", change_a_weight),
    ("the chat template", "model", lambda model, data: (model / "chat_template.jinja").write_text(
        "another")),
    ("a picture less", "dataset", lambda model, data: next(data.rglob("*.png")).unlink()),
    ("another picture", "dataset", lambda model, data: next(data.rglob("*.png")).write_bytes(
        b"of another size")),
    ("another refusal", "dataset", lambda model, data: (data / "prompt.json").write_text("{}")),
]


@pytest.mark.parametrize(("reason", "kind", "change"), CHANGES)
def test_other_files_under_the_same_path_are_another_source(copies, reason, kind, change):
    folder = str(copies[kind == "dataset"])
    before = sources.identity(folder, kind)
    change(*copies)
    sources.identity.cache_clear()
    assert sources.identity(folder, kind) != before, reason


def test_what_lies_beside_the_data_does_not_matter(copies):
    before = sources.identity(str(copies[1]), "dataset")
    (copies[1] / "notes.md").write_text("a note")
    sources.identity.cache_clear()
    assert sources.identity(str(copies[1]), "dataset") == before
