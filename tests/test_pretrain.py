import math
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from lib.base.runs import read_jsonl
from lib.model import pretrain
from lib.model.finite import NotFinite
from lib.model.llava import build, tower_features
from lib.model.packing import Packer, pixels
from lib.model.pretrain import Log, contrastive_loss
from lib.running import experiments
from lib.world import iconworld

LN2 = math.log(2)


# The contrastive loss.


def test_the_loss_by_hand_with_one_right_caption_each():
    logits = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]])  # 3/4 for the right one
    expected = -math.log(3 / 4)
    assert contrastive_loss(logits, torch.eye(2, dtype=torch.bool)).item() == pytest.approx(
        expected)


def test_both_ways_count_alike():
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])  # columns are even
    from_pictures = (-math.log(3 / 4) - math.log(1 / 4)) / 2
    found = contrastive_loss(logits, torch.eye(2, dtype=torch.bool)).item()
    assert found == pytest.approx((from_pictures + LN2) / 2)


def test_several_right_captions_share_the_target():
    positive = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    certain = torch.where(positive, 0.0, -100.0)
    # The best there is: half of the mass on each of two captions costs ln 2, a single one nothing.
    assert contrastive_loss(certain, positive).item() == pytest.approx(2 * LN2 / 3)
    one_sided = certain - 3 * torch.eye(3) * positive.float().sum(1).eq(2).float()[:, None]
    assert contrastive_loss(one_sided, positive) > contrastive_loss(certain, positive) + 0.1


def test_with_distinct_captions_it_is_clip_s_own_loss():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
             "num_attention_heads": 2, "projection_dim": 8}
    text = {**sizes, "vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    clip = CLIPModel(CLIPConfig(text_config=text, projection_dim=8,
                                vision_config={**sizes, "image_size": 32, "patch_size": 16})).eval()
    ids = torch.randint(3, 30, (5, 6))
    ids[:, -1] = 2
    out = clip(input_ids=ids, pixel_values=torch.randn(5, 3, 32, 32), return_loss=True)
    ours = contrastive_loss(out.logits_per_image, torch.eye(5, dtype=torch.bool))
    torch.testing.assert_close(ours, out.loss)
    assert out.loss > 0.1


# The stages.


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(before, model):
    """The parts of the model of which a weight has changed."""
    parts = {"vision_tower": "tower", "multi_modal_projector": "projector",
             "language_model": "language", "lm_head": "head"}
    return {part for name, value in model.state_dict().items()
            for key, part in parts.items() if key in name and not torch.equal(value, before[name])}


@pytest.fixture(scope="module")
def begun(tiny):
    """(model, processor, pictures, images, packer) of the tiny profile, not trained yet."""
    torch.manual_seed(0)
    model, processor = build(tiny.architecture, iconworld.vocabulary_texts())
    pictures = iconworld.pool(tiny.world, 84)
    images = pixels(processor, [picture.draw() for picture in pictures])
    features = dict(zip(pictures, tower_features(model, images), strict=True))
    return model, processor, pictures, images, Packer(model, processor, features.__getitem__)


@pytest.fixture
def settings(tiny):
    return replace(tiny.pretraining, contrastive_steps=3, language_steps=3, alignment_steps=3,
                   instruction_steps=3, batch=4)


STAGES = {
    "contrastive": {"tower"},
    "language": {"language", "head"},
    "alignment": {"projector"},
    "instruction": {"projector", "language", "head"},
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_trains_its_own_parts_and_no_others(begun, settings, stage):
    model, processor, pictures, images, packer = begun
    before, log = snapshot(model), Log(lambda text: None)
    model.requires_grad_(True)  # whatever the stage before has left
    arguments = {"contrastive": (model, processor, pictures, images.half(), settings),
                 "language": (model, processor, settings),
                 "alignment": (model, packer, pictures, settings),
                 "instruction": (model, packer, pictures, settings)}
    getattr(pretrain, stage)(*arguments[stage], log)
    assert changed(before, model) == STAGES[stage]
    assert [(row["stage"], row["step"]) for row in log.rows] == [(stage, 3)]


@pytest.fixture(scope="module")
def log(tiny, tiny_runs):
    return read_jsonl(next((tiny_runs / tiny.name).glob("base-*")) / "log.jsonl")


@pytest.mark.parametrize("stage", STAGES)
def test_the_loss_falls_in_every_stage(log, stage):
    rows = [row for row in log if row["stage"] == stage]
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))
    # Not simply the last: a contrastive step whose captions tell the danger alone costs more.
    assert min(row["loss"] for row in rows[1:]) < rows[0]["loss"]
    assert all(0 <= row["accuracy"] <= 1 for row in rows)


def test_the_model_learns_to_answer(log):
    last = [row for row in log if row["stage"] == "instruction"][-1]
    assert last["accuracy"] > 0.6
    assert [row["accuracy"] for row in log if row["stage"] == "language"][-1] > 0.3


def test_the_log_of_the_base_model_can_be_read_as_a_table(in_tiny_runs, tiny, log):
    table = experiments.base_log(tiny)
    assert list(table.columns) == ["stage", "step", "loss", "accuracy"]
    assert list(dict.fromkeys(table["stage"])) == list(STAGES)
    assert len(table) == len(log)


def test_a_seed_fixes_every_weight_and_another_one_does_not(tiny):
    def made(seed):
        few = replace(tiny.pretraining, seed=seed, pictures=84, contrastive_steps=2,
                      language_steps=2, alignment_steps=2, instruction_steps=2, batch=4)
        model, _, log = pretrain.train(tiny.world, tiny.architecture, few, lambda text: None)
        return snapshot(model), log

    (first, its_log), (again, same_log), (other, _) = made(0), made(0), made(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert its_log == same_log
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


@pytest.mark.parametrize("seed", range(50))
def test_no_caption_tells_colours_that_have_no_name(seed):
    named = torch.tensor([True, False] * 8)
    told = pretrain._telling(named, np.random.default_rng(seed))
    assert (told == 2).all() or ((told[~named] == 1).all() and set(told[named].tolist()) <= {0, 1})


def test_nothing_of_the_text_tower_is_left_in_the_model(llava):
    model, _ = llava
    names = " ".join(model.state_dict())
    assert "vision_tower" in names
    assert not [part for part in ("text_model", "logit_scale", "visual_proj") if part in names]
    assert not model.training


def test_progress_names_the_stage_and_the_step():
    told = []
    log = Log(told.append)
    for step in range(1, 13):
        log("language", step, 12, torch.tensor(1.5), torch.tensor(0.25))
    assert told == ["language, step 10 of 12, loss 1.500", "language, step 12 of 12, loss 1.500"]
    assert log.rows[-1] == {"stage": "language", "step": 12, "loss": 1.5, "accuracy": 0.25}


# Numbers that are not finite.


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_stops_at_the_step_at_which_its_loss_is_not_finite(begun, settings, stage):
    model, processor, pictures, images, packer = begun
    model, log = deepcopy(model), Log(lambda text: None)
    model.lm_head.weight.data[:] = float("nan")
    model.model.vision_tower.embeddings.class_embedding.data[:] = float("nan")
    packer = Packer(model, processor, packer.features)
    calls = {"contrastive": (model, processor, pictures, images, settings, log),
             "language": (model, processor, settings, log),
             "alignment": (model, packer, pictures, settings, log),
             "instruction": (model, packer, pictures, settings, log)}
    with pytest.raises(NotFinite, match=f"stage {stage}, step 1 of 3: the loss is nan"):
        getattr(pretrain, stage)(*calls[stage])
    assert log.rows == []


def test_a_stage_is_not_begun_with_a_rate_of_zero(begun, settings):
    model, processor, *_ = begun
    with pytest.raises(ValueError, match="learning rate of the stage language is 0"):
        pretrain.language(deepcopy(model), processor, replace(settings, lr=0.0), Log(print))
