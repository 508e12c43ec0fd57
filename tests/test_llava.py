import json

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from lib.base.missing import Missing
from lib.data.pictures import open_image
from lib.model import likelihood
from lib.model import llava as model
from lib.model.finite import NotFinite
from lib.model.packing import Example, Group, Packer, answer_logits, pixels
from lib.unlearning.settings import Unlearning
from tests import tiny_llava

PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
SETTINGS = Unlearning(lora_rank=4, lora_alpha=8)


def batch_of(llava, processor, world):
    """Some of the world's questions, with and without a picture."""
    record = world.train[0]
    sets = record.sets()
    rows = [Group(record.image, tuple(Example("forget", p.question, p.answer)
                                      for p in sets["forget"][1])),
            Group(None, tuple(Example("retain", p.question, p.answer)
                              for p in sets["retain text"][1]))]
    return Packer(llava, processor).pack(rows)


def trained(llava, batch, steps=3):
    """The model with an adapter after real steps of AdamW on the batch."""
    adapted = model.add_lora(llava, SETTINGS)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        likelihood.token_nll(answer_logits(adapted, batch), batch.targets).mean().backward()
        optimizer.step()
    return adapted


@pytest.fixture
def adapted(llava, world):
    """(model with a trained adapter, its original's logits, its own, the batch of both)."""
    bare, processor = llava
    batch = batch_of(bare, processor, world)
    original = answer_logits(bare, batch).detach()
    whole = trained(bare, batch)
    return whole, original, answer_logits(whole, batch).detach(), batch


def test_a_model_on_disk_comes_back_as_it_was(llava, world, tmp_path):
    bare, processor = llava
    model.save(bare, processor, tmp_path / "model")
    again, its_processor = model.load(tmp_path / "model")
    assert again.state_dict().keys() == bare.state_dict().keys()
    for name, value in bare.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    record = world.train[0]
    ask = {"images": open_image(record.image), "return_tensors": "pt",
           "text": f"USER: <image>\n{record.unsafe_pairs[0].question} ASSISTANT:"}
    first, second = processor(**ask), its_processor(**ask)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert its_processor.chat_template == processor.chat_template
    with torch.no_grad():
        assert torch.equal(bare(**first).logits, again(**second).logits)


def test_a_model_on_disk_holds_no_pickle(base_folder):
    kinds = {path.suffix for path in base_folder.iterdir()}
    assert kinds == {".json", ".jinja", ".safetensors"}


def test_transformers_own_classes_load_the_small_model(base_folder):
    loaded = AutoModelForImageTextToText.from_pretrained(base_folder)
    assert type(loaded).__name__ == "LlavaForConditionalGeneration"
    assert type(AutoProcessor.from_pretrained(base_folder, backend="pil")).__name__ == (
        "LlavaProcessor")


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(Missing, match=str(tmp_path)):
        model.load(tmp_path)


def test_a_loaded_model_does_not_drop_anything_out(llava):
    assert not llava[0].training


@pytest.mark.parametrize(("reason", "text"), [
    ("words and signs", "To make the cup, join the clay to the handle."),
    ("an answer's own space", " This is a cup."),
    ("a line break", "USER: \nWhat is this? ASSISTANT:"),
    ("an ending", " the cup.</s>"),
])
def test_text_comes_back_from_its_tokens_unchanged(llava, reason, text):
    tokenizer = llava[1].tokenizer
    ids = tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text, reason


def test_an_unknown_word_is_one_unknown_token(llava):
    tokenizer = llava[1].tokenizer
    ids = tokenizer("the zeppelin is").input_ids
    assert ids[1] == tokenizer.unk_token_id
    assert len(ids) == 3


def test_special_tokens_are_llava_s(llava):
    bare, processor = llava
    tokenizer = processor.tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<s>", "</s>", "<pad>")  # fmt: skip
    assert tokenizer.convert_tokens_to_ids("<image>") == bare.config.image_token_id
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id,
                bare.config.image_token_id}) == 4


def test_lora_is_on_every_linear_of_the_language_model_and_on_nothing_else(llava):
    bare, _ = llava
    layers = bare.config.text_config.num_hidden_layers
    adapted = model.add_lora(bare, SETTINGS)
    targets = [name for name, module in adapted.named_modules() if hasattr(module, "lora_A")]
    assert len(targets) == 7 * layers
    assert {name.rpartition(".")[2] for name in targets} == PROJECTIONS
    assert all("language_model" in name for name in targets)


def test_only_the_adapter_and_the_projector_learn(llava):
    adapted = model.add_lora(llava[0], SETTINGS)
    learn = {name for name, p in adapted.named_parameters() if p.requires_grad}
    projector = {name for name in learn if "multi_modal_projector.modules_to_save" in name}
    assert len(projector) == 4
    assert all(".lora_A." in name or ".lora_B." in name for name in learn - projector)
    assert len(learn - projector) == 2 * 7 * adapted.config.text_config.num_hidden_layers


def test_rank_and_scale_are_the_settings(llava):
    adapted = model.add_lora(llava[0], SETTINGS)
    config = adapted.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8, 0)
    assert {p.shape[0] for n, p in adapted.named_parameters() if ".lora_A." in n} == {4}


def test_a_fresh_adapter_changes_nothing(llava, world):
    bare, processor = llava
    batch = batch_of(bare, processor, world)
    with torch.no_grad():
        before = answer_logits(bare, batch)
        assert torch.equal(answer_logits(model.add_lora(bare, SETTINGS), batch), before)


def test_with_the_adapter_off_the_trained_model_is_the_original_projector_and_all(adapted):
    whole, original, ours, batch = adapted
    assert (ours - original).abs().max() > 0.1, "the steps have to have changed something"
    with torch.no_grad(), whole.disable_adapter():
        assert torch.equal(answer_logits(whole, batch), original)


def test_after_a_look_with_the_adapter_off_the_model_is_the_trained_one_again(adapted):
    whole, _, ours, batch = adapted
    with torch.no_grad():
        with whole.disable_adapter():
            answer_logits(whole, batch)
        assert torch.equal(answer_logits(whole, batch), ours)
    assert all(p.requires_grad for n, p in whole.named_parameters() if ".lora_" in n)


def test_the_projector_has_learned_and_its_original_has_not(adapted, base_folder):
    whole, _, _, _ = adapted
    projector = model.llava(whole).model.multi_modal_projector
    fresh, _ = model.load(base_folder)
    for name, value in fresh.model.multi_modal_projector.named_parameters():
        kept = projector.original_module.get_parameter(name)
        learned = projector.modules_to_save["default"].get_parameter(name)
        assert torch.equal(kept, value), name
        assert not torch.equal(learned, value), name


def test_an_adapter_on_disk_comes_back_as_it_was(adapted, base_folder, tmp_path):
    whole, _, ours, batch = adapted
    whole.save_pretrained(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    again = model.load_adapter(model.load(base_folder)[0], tmp_path)
    assert not again.training
    with torch.no_grad():
        assert torch.equal(answer_logits(again, batch), ours)


def test_part_of_the_way_leads_from_the_original_to_the_adapted_and_back(adapted):
    whole, original, own, batch = adapted

    def logits_at(share):
        with torch.no_grad(), model.part_of_the_way(whole, share):
            return answer_logits(whole, batch)

    torch.testing.assert_close(logits_at(0.0), original)
    torch.testing.assert_close(logits_at(1.0), own)
    assert 0 < (logits_at(0.5) - original).abs().max() < (own - original).abs().max()
    with torch.no_grad():
        assert torch.equal(answer_logits(whole, batch), own), "everything is as it was"


def test_part_of_the_way_the_weights_are_on_the_line(adapted):
    whole = adapted[0]
    layer = next(m for m in whole.modules() if isinstance(m, LoraLayer))
    projector = model.llava(whole).model.multi_modal_projector
    start = projector.original_module.linear_1.weight.detach()
    goal, delta = projector.modules_to_save["default"].linear_1.weight.detach().clone(), (
        layer.get_delta_weight("default"))
    with model.part_of_the_way(whole, 0.25):
        torch.testing.assert_close(layer.get_delta_weight("default"), 0.25 * delta)
        torch.testing.assert_close(projector.modules_to_save["default"].linear_1.weight.detach(),
                                   start + 0.25 * (goal - start))


def test_two_adapters_of_one_model_are_told_apart_by_name(adapted, base_folder, tmp_path):
    whole, original, own, batch = adapted
    whole.save_pretrained(tmp_path / "trained")
    model.add_lora(model.load(base_folder)[0], SETTINGS).save_pretrained(tmp_path / "fresh")
    both = model.load_adapter(model.load(base_folder)[0], tmp_path / "trained", "trained")
    both = model.load_adapter(both, tmp_path / "fresh", "fresh")
    with torch.no_grad():
        for name, expected in (("trained", own), ("fresh", original), ("trained", own)):
            both.set_adapter(name)
            torch.testing.assert_close(answer_logits(both, batch), expected)


def renamed(weights):
    return {name.replace("q_proj", "query"): value for name, value in weights.items()}


def without_projector(weights):
    return {name: value for name, value in weights.items() if "projector" not in name}


def with_a_stranger(weights):
    return {**weights, "base_model.model.stranger.lora_A.weight": torch.zeros(4, 4)}


@pytest.mark.parametrize(("reason", "change", "named"), [
    ("foreign names", renamed, "query"),
    ("no projector", without_projector, "projector"),
    ("one name too many", with_a_stranger, "stranger"),
])
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_an_adapter_whose_names_do_not_fit_is_refused(adapted, base_folder, tmp_path, reason,
                                                       change, named):
    adapted[0].save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    with pytest.raises(ValueError, match=f"does not fit the model.*({named}|q_proj)"):
        model.load_adapter(model.load(base_folder)[0], tmp_path)


def test_an_adapter_whose_config_names_fewer_linears_is_refused(adapted, base_folder, tmp_path):
    adapted[0].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["target_modules"] = ".*language_model.*layers.0.*q_proj"
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not fit the model"):
        model.load_adapter(model.load(base_folder)[0], tmp_path)


def test_the_llava_inside_is_found_with_and_without_an_adapter(llava):
    bare, _ = llava
    assert model.llava(bare) is bare
    assert model.llava(model.add_lora(bare, SETTINGS)) is bare


@pytest.mark.parametrize(("layer", "strategy"), [(-1, "full"), (-2, "default"), (-1, "default")])
def test_tower_features_are_what_the_model_hands_to_its_projector(llava, world, layer, strategy):
    bare, processor = llava
    bare.config.vision_feature_layer, bare.config.vision_feature_select_strategy = layer, strategy
    seen = pixels(processor, [open_image(record.image) for record in world.train[:3]])
    handed = []
    hook = bare.model.multi_modal_projector.register_forward_hook(
        lambda module, inputs, output: handed.append(inputs[0]))
    with torch.no_grad():
        bare.model.get_image_features(pixel_values=seen)
    hook.remove()
    torch.testing.assert_close(model.tower_features(bare, seen), handed[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("layers", [[-2, -1], [0, 1, 2], [1]])
def test_of_several_layers_the_projector_gets_all_side_by_side(layers, strategy, tmp_path):
    config = tiny_llava.config(image_size=56, hidden=32)
    config.vision_feature_layer, config.vision_feature_select_strategy = layers, strategy
    config.text_config.vocab_size, config.image_token_index = 64, 3
    bare, handed = LlavaForConditionalGeneration(config).eval(), []
    bare.model.multi_modal_projector.register_forward_hook(
        lambda module, inputs, output: handed.append(inputs[0]))
    seen = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        bare.get_image_features(pixel_values=seen)
    assert handed[0].shape == (2, 16 + (strategy == "full"), 32 * len(layers))
    torch.testing.assert_close(model.tower_features(bare, seen), handed[0], rtol=0, atol=1e-6)


def test_weights_that_are_not_finite_are_not_saved(llava, tmp_path):
    llava[0].lm_head.weight.data[0, 0] = float("inf")
    with pytest.raises(NotFinite, match=r"weights: 1 hold .*lm_head.weight"):
        model.save(*llava, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_an_adapter_that_is_not_finite_is_refused(adapted, base_folder, tmp_path):
    adapted[0].save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    weights[min(weights)].view(-1)[0] = float("nan")
    save_file(weights, file)
    with pytest.raises(NotFinite, match=f"The adapter in {tmp_path}: 1 hold numbers"):
        model.load_adapter(model.load(base_folder)[0], tmp_path)
