"""`lib/scale/shapes.py`."""

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from lib.model.llava import add_lora
from lib.scale import shapes
from lib.scale.shapes import RELEASED
from lib.unlearning.settings import Unlearning

# What config.json of the released 13B says beside LlamaConfig's defaults, which are the 7B's.
WIDER = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
         "num_attention_heads": 40, "num_key_value_heads": 40}
TOWER = CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
                         num_attention_heads=16, image_size=336, patch_size=14)
SMALL = (CLIPVisionConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                          num_attention_heads=2, image_size=64, patch_size=16),
         LlamaConfig(vocab_size=99, hidden_size=64, intermediate_size=160, num_hidden_layers=2,
                     num_attention_heads=4, num_key_value_heads=2))
CONFIGS = {
    "llava-1.5-7b": LlavaConfig(vision_config=TOWER, text_config=LlamaConfig(vocab_size=32064)),
    "llava-1.5-13b": LlavaConfig(vision_config=TOWER,
                                 text_config=LlamaConfig(vocab_size=32064, **WIDER)),
    "grouped heads, CLS kept": LlavaConfig(vision_config=SMALL[0], text_config=SMALL[1],
                                           vision_feature_select_strategy="full"),
}


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request):
    """(the real model, without memory, and its shape)"""
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(CONFIGS[request.param])
    return model, shapes.from_config(CONFIGS[request.param])


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_every_part_has_as_many_parameters_as_the_real_module(pair):
    model, shape = pair
    inner = model.model
    assert shape.tower == count(inner.vision_tower)
    assert shape.projector == count(inner.multi_modal_projector)
    assert shape.language == count(inner.language_model)
    assert shape.head == count(model.lm_head)
    assert shape.parameters == count(model)


def test_an_adapter_has_as_many_parameters_as_peft_s(pair):
    model, shape = pair
    with torch.device("meta"):
        adapted = add_lora(model, Unlearning(lora_rank=32))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == shape.lora(32) + shape.projector


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_sizes_are_those_of_their_configs(name):
    assert shapes.from_config(CONFIGS[name], RELEASED[name].name) == RELEASED[name]


@pytest.mark.parametrize(("model", "parameters"), [
    ("llava-hf/llava-1.5-7b-hf", 7_063_427_072), ("LLaVA-1.5-13B", 13_351_494_656)])
def test_a_released_model_is_known_by_its_name(model, parameters):
    assert shapes.of(model).parameters == parameters
    assert shapes.of(model).image_tokens == 576


def test_a_folder_s_config_is_read(tmp_path):
    CONFIGS["grouped heads, CLS kept"].save_pretrained(tmp_path)
    shape = shapes.of(str(tmp_path))
    assert (shape.layers, shape.key_value, shape.image_tokens) == (2, 32, 17)


def test_a_name_that_is_not_known_asks_for_the_folder():
    with pytest.raises(ValueError, match=r"give the folder.*llava-1.5-7b"):
        shapes.of("somebody/another-llava")
