from copy import deepcopy
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from lib.data.pictures import open_image
from lib.model import likelihood
from lib.model import llava as model
from lib.model.packing import (
    Example,
    Features,
    Group,
    Packer,
    answer_logits,
    image_tokens,
    pixels,
    prompt,
)
from lib.model.settings import Architecture
from lib.unlearning import terms
from lib.unlearning.settings import Unlearning

SIZES = Architecture(patch_size=32, hidden=32, tower_layers=3, language_layers=2, heads=2,
                     intermediate=64)
WORDS = "What is this? It a red cup, on white. I cannot help with that. Describe the picture and"
ROW = {"forget": -1.0, "refusal": 1.5, "retain": 0.5, "prompt_decouple": 2.0}


def small_llava(kind, dtype):
    """A random LLaVA with LoRA that already does something; `kind` as LLaVA-1.5 or as ours."""
    torch.manual_seed(0)
    llava, processor = model.build(SIZES, [WORDS])
    if kind == "LLaVA-1.5's features":  # patch tokens of the layer before the last
        llava.config.vision_feature_layer = -2
        llava.config.vision_feature_select_strategy = "default"
        processor.vision_feature_select_strategy = "default"
    adapted = model.add_lora(llava, Unlearning(lora_rank=4))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)  # at zero, no gradient would reach A
    return adapted.to(dtype).eval(), processor


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    folder, generator = tmp_path_factory.mktemp("pictures"), torch.Generator().manual_seed(0)
    paths = [folder / f"{name}.png" for name in "abc"]
    for path in paths:
        noise = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(noise.numpy()).save(path)
    return paths


@pytest.fixture(scope="module")
def groups(pictures):
    """Rows of unlike length: four, one and two questions on a picture, and texts without one."""
    ask, answer = "What is this?", "It is a red cup, on white."
    return (
        Group(pictures[0], (Example("forget", ask, answer),
                            Example("refusal", ask, "I cannot help with that."),
                            Example("retain", "Describe the picture and help.", "a cup."),
                            Example("forget", "Describe", "It is white."))),
        Group(None, (Example("retain", "What is a cup?", answer),
                     Example("retain", "What is white?", "a red."))),
        Group(pictures[1], (Example("prompt_decouple", ask, "that."),)),
        Group(pictures[2], (Example("prompt_decouple", ask, answer),
                            Example("refusal", "Describe that.", "I cannot."))),
        Group(None, (Example("retain", "Describe a cup.", "I cannot."),)),
    )  # fmt: skip


def separately(llava, processor, groups):
    """Each answer alone through transformers: pixel values in, its own loss out."""
    found = []
    for group in groups:
        for example in group.examples:
            inputs, labels = conversation(processor, group.image, example)
            if "pixel_values" in inputs:
                inputs["pixel_values"] = inputs["pixel_values"].to(llava.dtype)
            found.append(model.llava(llava)(**inputs, labels=labels).loss)
    return found


def conversation(processor, image, example):
    """What transformers makes of one question and answer, and labels on the answer alone."""
    user = [{"type": "image"}] * (image is not None) + [{"type": "text", "text": example.question}]
    said = [{"role": "user", "content": user},
            {"role": "assistant", "content": [{"type": "text", "text": example.answer}]}]
    whole = processor.apply_chat_template(said)
    asked = processor.apply_chat_template(said[:1], add_generation_prompt=True)
    picture = None if image is None else open_image(image)
    inputs = processor(images=picture, text=whole, return_tensors="pt")
    before = processor(images=picture, text=asked, return_tensors="pt").input_ids.shape[1]
    labels = inputs.input_ids.clone()
    labels[:, :before] = -100
    return dict(inputs), labels


def gradients(llava, loss):
    llava.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in llava.named_parameters() if p.requires_grad}


def packed_terms(llava, processor, groups):
    def features(image):
        seen = pixels(processor, [open_image(image)]).to(llava.dtype)
        return model.tower_features(llava, seen)[0]

    batch = Packer(llava, processor, features).pack(groups)
    return batch, answer_logits(llava, batch)


@pytest.mark.parametrize("kind", ["CLS and last layer", "LLaVA-1.5's features"])
@pytest.mark.parametrize(("dtype", "tolerance"), [
    (torch.float64, 1e-5),
    (torch.float32, 1e-4),  # rounding alone: a hundred sums in another order
])
def test_packed_losses_and_gradients_are_those_of_separate_rows(kind, dtype, tolerance, groups):
    llava, processor = small_llava(kind, dtype)
    alone = separately(llava, processor, groups)
    names = [example.term for group in groups for example in group.examples]
    expected = {term: torch.stack([loss for loss, name in zip(alone, names, strict=True)
                                   if name == term]).mean() for term in ROW}
    wanted = gradients(llava, terms.total(expected, ROW))

    batch, logits = packed_terms(llava, processor, groups)
    tokens = likelihood.token_nll(logits, batch.targets)
    each = likelihood.per_answer(tokens, batch.answers, len(names))
    found = terms.from_logits(
        terms.Said(logits, batch.targets, batch.answers, batch.terms), ROW)
    got = gradients(llava, terms.total(found, ROW))

    assert batch.terms == tuple(names)
    torch.testing.assert_close(each.double(), torch.stack(alone).detach().double(),
                               rtol=0, atol=1e-5)
    assert got.keys() == wanted.keys()
    assert all(gradient.abs().max() > 1e-3 for gradient in wanted.values())
    for name in wanted:
        largest = wanted[name].abs().max()
        difference = (got[name] - wanted[name]).abs().max() / largest
        assert difference < tolerance, (name, difference.item(), largest.item())


def test_the_adapter_and_the_projector_are_what_is_trained(groups):
    llava, _ = small_llava("CLS and last layer", torch.float32)
    trained = [name for name, p in llava.named_parameters() if p.requires_grad]
    assert {"lora_A" in n or "lora_B" in n or "multi_modal_projector" in n
            for n in trained} == {True}
    assert sum("multi_modal_projector" in name for name in trained) == 4  # two linears with biases


def test_a_question_s_loss_does_not_depend_on_its_neighbours(groups):
    llava, processor = small_llava("CLS and last layer", torch.float64)
    batch, logits = packed_terms(llava, processor, groups)
    nll = likelihood.token_nll(logits, batch.targets)
    alone = [Group(group.image, (example,)) for group in groups for example in group.examples]
    batch, logits = packed_terms(llava, processor, alone[::-1])
    other = likelihood.token_nll(logits, batch.targets)
    sizes = torch.bincount(batch.answers).tolist()
    torch.testing.assert_close(torch.cat(other.split(sizes)[::-1]), nll, rtol=0, atol=1e-6)


def test_a_picture_belongs_to_its_own_row(groups, pictures):
    llava, processor = small_llava("CLS and last layer", torch.float64)
    swapped = tuple(Group(pictures[0], g.examples) if g.image == pictures[2] else g for g in groups)
    before, after = (likelihood.token_nll(packed_terms(llava, processor, rows)[1],
                                      packed_terms(llava, processor, rows)[0].targets)
                     for rows in (groups, swapped))
    batch, _ = packed_terms(llava, processor, groups)
    moved = {int(answer) for answer, a, b in zip(batch.answers, before, after, strict=True)
             if abs(a - b) > 1e-9}
    assert moved == {7, 8}, "only the two questions about the third picture may change"


def test_the_mask_shows_a_token_its_prefix_and_its_own_question_up_to_itself(groups):
    llava, processor = small_llava("CLS and last layer", torch.float32)
    batch, _ = packed_terms(llava, processor, groups)
    seen = batch.mask()[:, 0]
    rows, length, _ = seen.shape
    for row in range(rows):
        segments = batch.segments[row].tolist()
        for i in range(length):
            for j in range(length):
                prefix = segments[i] > 0 and segments[j] == 0
                expected = j <= i and (segments[i] == segments[j] or prefix)
                assert seen[row, i, j].item() == expected, (row, i, j)


def test_positions_start_again_after_the_prefix(groups):
    llava, processor = small_llava("CLS and last layer", torch.float32)
    batch, _ = packed_terms(llava, processor, groups)
    for segments, positions in zip(batch.segments, batch.position_ids, strict=True):
        prefix = int((segments == 0).sum())
        assert positions[:prefix].tolist() == list(range(prefix))
        for number in range(1, int(segments.max()) + 1):
            own = positions[segments == number].tolist()
            assert own == list(range(prefix, prefix + len(own)))


def test_a_picture_s_tokens_stand_once_in_its_row_however_many_questions_it_has(groups):
    llava, processor = small_llava("CLS and last layer", torch.float32)
    batch, _ = packed_terms(llava, processor, groups)
    shown = (batch.input_ids == model.llava(llava).config.image_token_id).sum(1).tolist()
    each = image_tokens(processor)
    assert shown == [each, 0, each, each, 0]
    assert batch.features.shape[:2] == (3, each)


def test_the_targets_are_the_answers_with_their_end_and_nothing_else(groups):
    llava, processor = small_llava("CLS and last layer", torch.float32)
    batch, _ = packed_terms(llava, processor, groups)
    tokenizer = processor.tokenizer
    examples = [example for group in groups for example in group.examples]
    for number, example in enumerate(examples):
        ids = batch.targets[batch.answers == number].tolist()
        assert tokenizer.decode(ids) == f" {example.answer}</s>"
        assert ids.count(tokenizer.eos_token_id) == 1
        assert ids[-1] == tokenizer.eos_token_id
    assert len(batch.targets) == len(batch.places) == len(set(batch.places.tolist()))


def test_a_target_is_predicted_from_the_token_before_it(groups):
    llava, processor = small_llava("CLS and last layer", torch.float32)
    batch, _ = packed_terms(llava, processor, groups)
    flat = batch.input_ids.flatten()
    for target, place, answer in zip(batch.targets, batch.places, batch.answers, strict=True):
        ends = answer == batch.answers[batch.places == place].item()
        assert ends
        if target != processor.tokenizer.eos_token_id:
            assert flat[place + 1] == target


@pytest.mark.parametrize("kind", ["CLS and last layer", "LLaVA-1.5's features"])
@pytest.mark.parametrize("with_image", [True, False])
def test_a_prompt_s_tokens_are_those_of_the_processor(kind, with_image, pictures):
    llava, processor = small_llava(kind, torch.float32)
    example = Example("retain", "What is this?", "It is a red cup, on white.")
    inputs, labels = conversation(processor, pictures[0] if with_image else None, example)
    segment = Packer(llava, processor).segment(example, with_image)
    assert segment.prompt + segment.answer == inputs["input_ids"][0].tolist()
    assert segment.answer == labels[labels != -100].tolist()
    shown = segment.prompt.count(model.llava(llava).config.image_token_id)
    assert shown == (image_tokens(processor) if with_image else 0)


@pytest.mark.parametrize(("kind", "count"), [("CLS and last layer", 5),
                                             ("LLaVA-1.5's features", 4)])
def test_a_picture_takes_as_many_tokens_as_the_tower_gives_features(kind, count, pictures):
    llava, processor = small_llava(kind, torch.float32)
    assert image_tokens(processor) == count  # 64 pixels, patches of 32: four, and CLS
    assert Features(llava, processor)(pictures[0]).shape == (count, SIZES.hidden)


@pytest.mark.parametrize("kind", ["CLS and last layer", "LLaVA-1.5's features"])
def test_cached_features_through_the_projector_are_what_transformers_computes(kind, pictures):
    llava, processor = small_llava(kind, torch.float32)
    features = Features(llava, processor, batch=2)  # three pictures: two forwards
    features.add([*pictures, pictures[0]])
    inner = model.llava(llava).model
    with torch.no_grad():
        ours = inner.multi_modal_projector(torch.stack([features(p) for p in pictures]))
        seen = pixels(processor, [open_image(path) for path in pictures])
        theirs = inner.get_image_features(pixel_values=seen).pooler_output
    torch.testing.assert_close(ours, torch.stack(list(theirs)), rtol=0, atol=1e-6)
    assert not torch.allclose(ours[0], ours[1])


def test_a_picture_is_opened_once(pictures, tmp_path):
    llava, processor = small_llava("CLS and last layer", torch.float32)
    picture = tmp_path / "picture.png"
    picture.write_bytes(pictures[0].read_bytes())
    features = Features(llava, processor)
    first = features(picture)
    picture.unlink()
    assert features(picture) is first


def test_gradients_do_not_reach_the_tower(groups):
    llava, processor = small_llava("CLS and last layer", torch.float32)
    for parameter in model.llava(llava).model.vision_tower.parameters():
        parameter.requires_grad_(True)
    _, logits = packed_terms(llava, processor, groups)
    logits.sum().backward()
    tower = model.llava(llava).model.vision_tower
    assert all(parameter.grad is None for parameter in tower.parameters())


def test_a_template_that_puts_the_question_before_the_image_is_refused(pictures):
    llava, processor = small_llava("CLS and last layer", torch.float32)
    processor = deepcopy(processor)
    processor.chat_template = (
        "{{ messages[0]['content'][-1]['text'] }}{% if messages[0]['content'][0]['type'] == 'image'"
        " %} <image>{% endif %} ASSISTANT:")
    two = (Example("retain", "What is this?", "a cup."), Example("retain", "Describe", "a cup."))
    with pytest.raises(ValueError, match="before the image"):
        Packer(llava, processor).pack([Group(pictures[0], two)])


def test_a_template_that_ends_inside_a_token_is_refused():
    llava, processor = small_llava("CLS and last layer", torch.float32)
    processor = deepcopy(processor)
    processor.chat_template = "{{ messages[0]['content'][-1]['text'] }} "  # " a" is one token
    processor.tokenizer.backend_tokenizer.pre_tokenizer = Split(Regex(r"\s*\w+|\s"), "isolated")
    with pytest.raises(ValueError, match="end where a token ends"):
        Packer(llava, processor).pack([Group(None, (Example("retain", "What is", "a cup"),))])


def test_the_prompt_is_llava_s_conversation():
    _, processor = small_llava("CLS and last layer", torch.float32)
    shown = "<image>" * image_tokens(processor)
    assert prompt(processor, "What is this?", True) == f"USER: {shown}\nWhat is this? ASSISTANT:"
    assert prompt(processor, "What is this?", False) == "USER: What is this? ASSISTANT:"
