"""`lib/model/merged.py`: what is evaluated is what was trained, in whatever numbers a model is."""

import json
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from lib.model.finite import NotFinite
from lib.model.llava import add_lora, llava, load
from lib.model.merged import DTYPE, merge_if_exact, save_merged
from lib.model.settings import Runtime
from lib.unlearning.settings import Unlearning

SHARE = 0.005  # of a weight's size, that is learned: about what a run at full scale changes


@pytest.fixture(scope="module")
def folder(tiny_real):
    """A tiny LLaVA-1.5, stored in float16 as the released ones are."""
    return Path(tiny_real.model)


def learned(folder, dtype: str, share: float = SHARE) -> tuple:
    """A model in these numbers, with an adapter that changes every linear by a share of its size.

    Returns (model, processor, the wanted weights in float32 by their plain names).
    """
    bare, processor = load(folder, Runtime(dtype=dtype))
    wanted = {name: value.float() for name, value in bare.state_dict().items()}
    torch.manual_seed(0)
    model = add_lora(bare, Unlearning(lora_rank=4, lora_alpha=8)).eval()
    with torch.no_grad():
        for name, layer in bare.named_modules():
            if isinstance(layer, LoraLayer):
                a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                b.copy_(torch.randn(b.shape))
                size = (2 * b.float() @ a.float()).norm() / wanted[f"{name}.weight"].norm()
                b.copy_(b * (share / size))
                wanted[f"{name}.weight"] = wanted[f"{name}.weight"] + 2 * b.float() @ a.float()
        projector = bare.model.multi_modal_projector.modules_to_save["default"]
        for name, value in projector.named_parameters():
            value.mul_(1 + share)
            wanted[f"model.multi_modal_projector.{name}"] = value.float().clone()
    return model, processor, wanted


def lost(found: dict, wanted: dict, original: dict) -> float:
    """How far `found` is from `wanted`, as a share of what was learned."""
    names = [name for name in wanted if not torch.equal(wanted[name], original[name])]
    far, learned = (torch.cat([(a[name].float() - b[name]).flatten() for name in names]).norm()
                    for a, b in ((found, wanted), (original, wanted)))
    return (far / learned).item()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_of_a_small_learned_change_nothing_is_lost_on_disk(folder, tmp_path, dtype):
    model, processor, wanted = learned(folder, dtype)
    original = {name: value.float() for name, value in
                load(folder, Runtime(dtype=dtype))[0].state_dict().items()}
    save_merged(model, processor, tmp_path / "merged")
    again, _ = load(tmp_path / "merged", Runtime(dtype=DTYPE))
    assert again.state_dict().keys() == original.keys()
    assert lost(again.state_dict(), wanted, original) < 1e-4


def test_in_bfloat16_s_own_numbers_a_third_of_it_would_be_lost(folder):
    """Why nothing is merged there: PEFT's sum in the model's numbers, for comparison."""
    model, _, wanted = learned(folder, "bfloat16")
    original = {name: value.float() for name, value in
                load(folder, Runtime(dtype="bfloat16"))[0].state_dict().items()}
    linears = [name for name, layer in llava(model).named_modules()
               if isinstance(layer, LoraLayer)]
    model.merge_adapter()
    state = llava(model).state_dict()
    found = {f"{name}.weight": state[f"{name}.base_layer.weight"] for name in linears}
    assert 0.2 < lost(found, {name: wanted[name] for name in found}, original) < 0.5


@pytest.mark.parametrize(("dtype", "merges"), [("float32", True), ("bfloat16", False),
                                               ("float16", False)])
def test_only_float32_weights_are_merged_in_memory(folder, dtype, merges):
    model, _, _ = learned(folder, dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merge_if_exact(model)
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    assert {layer.merged for layer in layers} == {merges}
    moved = [name for name, value in model.state_dict().items()
             if not torch.equal(value, before[name])]
    assert len(moved) == merges * len(layers)


@pytest.mark.parametrize("merged_before", [False, True])
def test_the_model_in_memory_stays_what_it_is(folder, tmp_path, merged_before):
    model, processor, wanted = learned(folder, "float32")
    if merged_before:
        merge_if_exact(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_merged(model, processor, tmp_path / "merged")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert any(layer.merged for layer in model.modules() if isinstance(layer, LoraLayer)) == (
        merged_before)
    found = load(tmp_path / "merged")[0].state_dict()
    assert all(torch.allclose(found[name], wanted[name], atol=1e-6) for name in wanted)


def test_a_merged_folder_says_that_it_is_in_float32(folder, tmp_path):
    model, processor, _ = learned(folder, "bfloat16")
    save_merged(model, processor, tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    parts = (config, config["text_config"], config["vision_config"])
    assert {part.get("dtype", "float32") for part in parts} == {"float32"}
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float32}


def test_a_merged_model_takes_the_place_of_what_was_in_its_folder(folder, tmp_path):
    llava = load(folder)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "leftover.safetensors").touch()
    save_merged(*llava, tmp_path / "old")
    again, processor = load(tmp_path / "old")
    assert processor.chat_template == llava[1].chat_template
    assert all(torch.equal(value, again.state_dict()[name])
               for name, value in llava[0].state_dict().items())
    assert not (tmp_path / "old" / "leftover.safetensors").exists()


def test_weights_that_are_not_finite_are_not_written(folder, tmp_path):
    model, processor, _ = learned(folder, "float32")
    next(p for n, p in model.named_parameters() if "lora_B" in n).data[0, 0] = float("nan")
    with pytest.raises(NotFinite, match="merged weights: 1 hold numbers that are not finite"):
        save_merged(model, processor, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
