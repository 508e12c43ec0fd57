"""The arithmetic against real models: counted FLOPs, saved tensors, grown caches."""

import pytest
import torch
from test_batching import groups, pictures  # noqa: F401
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from lib.model.llava import add_lora, build, llava, tower_features
from lib.model.packing import Group, Packer, answer_logits
from lib.model.settings import Architecture
from lib.scale import arithmetic, shapes
from lib.scale.arithmetic import Row, Training
from lib.scale.workload import rows_of
from lib.unlearning.settings import Unlearning

RANK = 4
SIZES = Architecture(patch_size=32, hidden=32, tower_layers=3, language_layers=3, heads=2,
                     intermediate=88)


def adapted(dtype=torch.float32, attention="eager"):
    torch.manual_seed(0)
    model, processor = build(SIZES, ["What is this? It a red cup, on white. I cannot help with "
                                     "that. Describe the picture and"])
    model.set_attn_implementation(attention)
    return add_lora(model.to(dtype), Unlearning(lora_rank=RANK)).train(), processor


@pytest.fixture(params=["packed", "separate"])
def counted(request, groups):  # noqa: F811
    """(shape, rows, batch, model): all questions of a picture in one row, or each in its own."""
    model, processor = adapted()
    if request.param == "separate":
        groups = [Group(g.image, (e,)) for g in groups for e in g.examples]
    batch = Packer(model, processor).pack(groups)
    whole = llava(model)
    return (shapes.from_config(whole.config), rows_of(batch, whole.config.image_token_id), batch,
            model)


def dense(shape, rows, batch):
    """What eager attention computes beyond the needed pairs: every pair of a padded row."""
    pairs = batch.input_ids.shape[0] * batch.input_ids.shape[1] ** 2
    return 4 * shape.hidden * shape.layers * (pairs - sum(row.pairs for row in rows))


def padding(shape, rows, batch):
    """FLOPs of one pass over padding through all weights of the layers."""
    tokens = batch.input_ids.numel() - sum(row.tokens for row in rows)
    return 2 * tokens * shape.layers * shape.layer_linears, 2 * tokens * shape.lora(RANK)


def test_needed_pairs_are_those_that_the_mask_shows(counted):
    _, rows, batch, _ = counted
    kept = batch.segments >= 0
    shown = (batch.mask()[:, 0] & kept[:, :, None]).sum((1, 2)).tolist()
    assert [row.pairs for row in rows] == shown


def test_rows_tell_the_tokens_and_targets_of_a_real_batch(counted):
    _, rows, batch, _ = counted
    assert [row.tokens for row in rows] == (batch.segments >= 0).sum(1).tolist()
    assert sum(row.targets for row in rows) == len(batch.targets)


def test_forward_flops_are_those_that_torch_counts(counted):
    shape, rows, batch, model = counted
    with FlopCounterMode(display=False) as counter:
        answer_logits(model, batch)
    extra = dense(shape, rows, batch) + sum(padding(shape, rows, batch))
    assert counter.get_total_flops() == arithmetic.forward_flops(shape, rows, RANK) + extra


def test_backward_flops_are_those_that_torch_counts(counted):
    shape, rows, batch, model = counted
    loss = answer_logits(model, batch).sum()
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    frozen, lora = padding(shape, rows, batch)
    extra = 2 * dense(shape, rows, batch) + frozen + 2 * lora
    assert counter.get_total_flops() == arithmetic.backward_flops(shape, rows, RANK) + extra


def test_packing_needs_fewer_flops_than_rows_of_their_own():
    row = Row(581, ((30, 160),) * 8, True)
    shape = shapes.RELEASED["llava-1.5-7b"]
    packed, alone = (arithmetic.forward_flops(shape, rows) for rows in ([row], row.separate()))
    assert 2.5 < alone / packed < 3.5


def test_tower_flops_are_those_that_torch_counts():
    model, _ = adapted()
    llava(model).set_attn_implementation("eager")
    shape = shapes.from_config(llava(model).config)
    with FlopCounterMode(display=False) as counter:
        tower_features(model, torch.randn(2, 3, 64, 64))
    assert counter.get_total_flops() == arithmetic.tower_flops(shape, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_what_a_layer_keeps_for_its_backward_is_what_autograd_saves(groups, dtype, dropout):  # noqa: F811
    model, processor = adapted(dtype, "sdpa")
    set_dropout(model, dropout)
    model.to(dtype)
    shape = shapes.from_config(llava(model).config)
    seen = torch.zeros(shape.image_tokens, SIZES.hidden, dtype=dtype)
    batch = Packer(model, processor, lambda image: seen).pack(groups)
    how = Training(RANK, dropout > 0, dtype.itemsize, mask_bytes=dtype.itemsize)
    rows, length = batch.input_ids.shape
    angles = 2 * rows * length * shape.hidden // shape.heads * dtype.itemsize  # once for all layers
    dense_mask = shape.layers * rows * length**2 * dtype.itemsize
    assert saved_by_layers(model, batch) == (
        shape.layers * rows * length * arithmetic.layer_bytes(shape, how) + angles + dense_mask)


def set_dropout(model, share):
    for module in model.modules():
        if hasattr(module, "lora_dropout") and share:
            module.lora_dropout["default"] = torch.nn.Dropout(share)


def saved_by_layers(model, batch):
    """Bytes that all language layers save, each storage once, parameters not at all."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found, inside = {}, []
    layers = llava(model).model.language_model.layers
    for layer in layers:
        layer.register_forward_pre_hook(lambda *_: inside.append(True))
        layer.register_forward_hook(lambda *_: inside.clear())

    def keep(tensor):
        storage = tensor.untyped_storage()
        if inside and storage.data_ptr() not in own:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)  # kept alive: no reuse
        return tensor

    mask = batch.mask().untyped_storage().nbytes()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answer_logits(model, batch)
    return sum(size for size, tensor in found.values() if size != mask)


def test_a_cache_takes_as_many_bytes_as_one_that_was_filled():
    model, _ = adapted()
    shape = shapes.from_config(llava(model).config)
    output = llava(model).model.language_model(input_ids=torch.ones(3, 11, dtype=torch.long),
                                               use_cache=True)
    tensors = [t for layer in output.past_key_values.layers for t in (layer.keys, layer.values)]
    assert sum(t.nbytes for t in tensors) == arithmetic.cache_bytes(shape, 33, 4)


def test_features_take_as_many_bytes_as_real_ones():
    model, _ = adapted()
    shape = shapes.from_config(llava(model).config)
    features = tower_features(model, torch.randn(2, 3, 64, 64))
    assert features.nbytes == arithmetic.feature_bytes(shape, 2, 4)


def test_generation_flops_are_those_that_torch_counts():
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                       num_attention_heads=2, image_size=64, patch_size=32),
        text_config=LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=88,
                                num_hidden_layers=3, num_attention_heads=2), image_token_index=3)
    model = LlavaForConditionalGeneration(config).eval()
    model.set_attn_implementation("eager")
    shape, prompt, new = shapes.from_config(config), 9, 4
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.generate(input_ids=torch.full((1, prompt), 5), max_new_tokens=new, do_sample=False,
                       min_new_tokens=new, pad_token_id=0)
    reading, writing = arithmetic.generation_flops(shape, prompt, new)
    no_picture = 2 * sum(shape.projector_linears) * shape.image_tokens
    unseen = prompt * prompt - prompt * (prompt + 1) // 2  # eager computes what no token sees
    assert counter.get_total_flops() == (reading + writing - no_picture
                                         + 4 * shape.hidden * shape.layers * unseen)


def test_four_bits_take_about_a_quarter():
    shape = shapes.RELEASED["llava-1.5-13b"]
    assert 0.28 < arithmetic.weight_bytes(shape, 2, True) / arithmetic.weight_bytes(shape) < 0.33
