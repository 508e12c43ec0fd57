"""`lib/model/check.py`: what is wrong with a model's folder is said before any of it is loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lib.base.missing import Missing
from lib.model import llava as model
from lib.model.check import INDEX, check
from lib.running import pipeline

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
CONFIG = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava",
          "text_config": {"model_type": "llama"},
          "vision_config": {"model_type": "clip_vision_model", "num_hidden_layers": 24}}


@pytest.fixture
def folder(tmp_path) -> Path:
    """What the check reads of a model in two shards."""
    for name in SHARDS:
        save_file({name: torch.zeros(8)}, tmp_path / name)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {name: name for name in SHARDS}}))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for name in ("tokenizer.json", "preprocessor_config.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def config(**changed):
    return lambda folder: (folder / "config.json").write_text(json.dumps(CONFIG | changed))


def cut(name: str):
    def damage(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return damage


def remove(*names: str):
    return lambda folder: [(folder / name).unlink() for name in names]


def pickled(folder):
    remove(*SHARDS, INDEX)(folder)
    (folder / "pytorch_model.bin").write_bytes(b"not read")


def pointer(*names: str):
    """What Git leaves in the place of a large file that it has not fetched."""
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4000000000\n"
    return lambda folder: [(folder / name).write_text(text) for name in names]


def index(names):
    return lambda folder: (folder / INDEX).write_text(json.dumps({"weight_map": names}))


def adapter(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")


def test_a_whole_model_is_good_in_shards_or_in_one_file(folder):
    assert check(folder) == []
    (folder / SHARDS[0]).rename(folder / "model.safetensors")
    remove(SHARDS[1], INDEX)(folder)
    assert check(folder) == []


@pytest.mark.parametrize(("damage", "words"), [
    (shutil.rmtree, ["no model", "no config.json"]),
    (adapter, ["holds an adapter", "model's own folder"]),
    (cut("config.json"), ["config.json is not JSON", "download it again"]),
    (lambda folder: (folder / "config.json").write_text("[]"), ["is not JSON with"]),
    (config(architectures=["LlamaForCausalLM"], model_type="llama"),
     ["LlamaForCausalLM, not LLaVA-1.5", "llava-hf/llava-1.5-7b-hf"]),
    (config(architectures=["LlavaLlamaForCausalLM"], text_config=None), ["LlavaLlamaForCausalLM"]),
    (config(architectures=None, model_type="llava_next"), ["is a llava_next, not"]),
    (config(text_config={"model_type": "mistral"}), ["a mistral with a clip_vision_model"]),
    (pickled, ["pickled weights alone (pytorch_model.bin)", "never loaded"]),
    (remove(INDEX), ["neither model.safetensors nor model.safetensors.index.json"]),
    (cut(INDEX), [INDEX, "weight_map"]),
    (index({"a": "../elsewhere.safetensors"}), [INDEX, "files beside it"]),
    (index(["a"]), [INDEX, "weight_map"]),
    (pointer(*SHARDS), ["Git LFS pointers", "2 of the model's files", SHARDS[0], "git lfs pull"]),
    (pointer("tokenizer.json"), ["Git LFS pointers", "tokenizer.json", "git lfs pull"]),
    (pointer("config.json"), ["Git LFS pointers", "config.json", "git lfs pull"]),
    (lambda folder: (remove("tokenizer.json")(folder), pointer("tokenizer.model")(folder)),
     ["Git LFS pointers", "tokenizer.model"]),
    (config(quantization_config={"quant_method": "awq"}), ["is quantized already", "four_bit"]),
    (config(vision_feature_layer=99), ["vision_feature_layer 99", "24 layers"]),
    (config(vision_feature_layer=[-2, -99]), ["vision_feature_layer [-2, -99]"]),
    (config(vision_feature_layer=[]), ["vision_feature_layer []"]),
    (config(text_config=["llama"]), ["config.json is not JSON with a model's settings"]),
    (config(architectures=["Qwen2VLForConditionalGeneration"], model_type="qwen2_vl"),
     ["Qwen2VLForConditionalGeneration, not LLaVA-1.5"]),
    (remove(SHARDS[1]), [f"{SHARDS[1]} is missing"]),
    (cut(SHARDS[0]), [f"{SHARDS[0]} is damaged or cut off"]),
    (remove("tokenizer.json"), ["neither tokenizer.json nor tokenizer.model"]),
    (remove("preprocessor_config.json"), ["processor_config.json"]),
])
def test_a_model_that_cannot_be_used_gets_one_sentence(folder, damage, words):
    damage(folder)
    (said,) = check(folder)
    assert all(word in said for word in words), said
    with pytest.raises(Missing) as caught:
        model.load(folder)
    assert str(folder) in str(caught.value)


def test_everything_that_is_missing_is_named_at_once_and_nothing_starts(folder, capsys):
    remove(*SHARDS, "tokenizer.json")(folder)
    assert len(check(folder)) == 3
    call = ["--profile", "llava-7b", "--data", "somebody/data", "--model", str(folder)]
    assert pipeline.main(call) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in (*SHARDS, "tokenizer.json"))


def test_pointers_of_files_that_are_not_read_do_no_harm(folder):
    pointer("pytorch_model.bin", "tokenizer.model", "picture.png")(folder)
    assert check(folder) == []


def test_a_hub_s_cache_is_read_through_its_links_and_its_root_says_where_to_look(folder, tmp_path):
    root = tmp_path / "models--somebody--llava"
    snapshot = root / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    for number, path in enumerate(sorted(path for path in folder.iterdir() if path.is_file())):
        path.rename(root / "blobs" / str(number))
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", str(number)))
    assert check(snapshot) == []
    assert "give the folder in its snapshots" in check(root)[0]
    (snapshot / SHARDS[0]).resolve().unlink()
    assert check(snapshot) == [f"{snapshot / SHARDS[0]} is missing: copy or download it again."]
