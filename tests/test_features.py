import shutil

import pytest
import torch
from safetensors.torch import load_file

from lib.data import dataset
from lib.model import llava as model
from lib.model.finite import NotFinite
from lib.model.packing import Features, Packer
from lib.model.settings import Runtime
from lib.scale import features


@pytest.fixture(scope="module")
def data(official):
    return dataset.read(official[1])


def stored(official, data, folder, dtype="float32", count=None):
    """(StoredFeatures of the dataset's first pictures, the model's own Features)."""
    llava = model.load(official[0], Runtime(dtype=dtype))
    images = features.pictures(data)[:count]
    features.write(folder / features.FILE, *llava, images, data.root, batch=4)
    own = Features(*llava)
    return features.StoredFeatures(folder / features.FILE, data.root, own), own, llava


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_stored_is_what_the_tower_gives(official, data, tmp_path, dtype):
    kept, own, llava = stored(official, data, tmp_path, dtype, count=6)
    for image in features.pictures(data)[:6]:
        found = kept(image)
        assert found.shape == (576, 32)
        assert found.dtype == llava[0].dtype
        torch.testing.assert_close(found, own(image), rtol=1e-5, atol=1e-6)


def test_every_picture_of_the_dataset_is_there_once(data):
    shown = features.pictures(data)
    assert len(shown) == len(set(shown)) == 24  # twelve records, a harmful and a safe picture each
    assert {record.safe_image for record in data.val} <= set(shown)


def test_the_files_are_ordinary_safetensors_files(official, data, tmp_path):
    stored(official, data, tmp_path, count=5)
    files = sorted((tmp_path / features.FILE).iterdir())
    assert [len(load_file(file)) for file in files] == [4, 1]
    assert load_file(files[1]).popitem()[1].shape == (576, 32)


def test_stored_pictures_are_not_opened_again(official, data, tmp_path):
    kept, own, _ = stored(official, data, tmp_path, count=6)
    kept.add(features.pictures(data)[:6])
    assert own.known == {}


def test_another_picture_s_features_are_computed(official, data, tmp_path):
    kept, own, _ = stored(official, data, tmp_path, count=2)
    picture = tmp_path / "of_the_notebook.png"
    shutil.copy(data.train[0].image, picture)
    torch.testing.assert_close(kept(picture), kept(data.train[0].image), rtol=1e-5, atol=1e-6)
    assert list(own.known) == [picture]


def test_a_packer_takes_them(official, data, tmp_path):
    from lib.model.packing import Example, Group

    kept, _, llava = stored(official, data, tmp_path, count=2)
    row = Group(data.train[0].image, (Example("retain", "What is this?", "A stew."),))
    batch = Packer(*llava, kept).pack([row])
    assert torch.equal(batch.features[0], kept(data.train[0].image))


def test_a_tower_that_sees_nan_is_said_with_the_picture(tiny_real, tmp_path):
    data, llava = dataset.read(tiny_real.data), model.load(tiny_real.model)
    llava[0].model.vision_tower.embeddings.class_embedding.data[0] = float("nan")
    images = features.pictures(data)[:2]
    with pytest.raises(NotFinite, match=f"not finite in {images[0]}"):
        Features(*llava).add(images)
    with pytest.raises(NotFinite, match=f"not finite in {images[0]}"):
        features.write(tmp_path / features.FILE, *llava, images, data.root)


def test_there_is_room_for_several_layers_side_by_side(tiny_real, tmp_path):
    data, llava = dataset.read(tiny_real.data), model.load(tiny_real.model)
    llava[0].config.vision_feature_layer = [-2, -1]
    images = features.pictures(data)[:2]
    features.write(tmp_path / features.FILE, *llava, images, data.root)
    kept = features.StoredFeatures(tmp_path / features.FILE, data.root, Features(*llava))
    assert kept(images[1]).shape == (16, 64)
    assert torch.equal(kept(images[1]), Features(*llava)(images[1]))
