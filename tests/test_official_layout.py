"""LLaVA-1.5's exact on-disk layout through lib: names, chat format, 576 image tokens, LoRA."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib.base.missing import Missing
from lib.data import dataset
from lib.data.pictures import open_image
from lib.model import generate, likelihood
from lib.model import llava as model
from lib.model.finite import NotFinite
from lib.model.packing import Example, Features, Group, Packer, answer_logits, image_tokens, prompt
from lib.model.settings import Evaluation, Runtime
from lib.unlearning import terms
from lib.unlearning.settings import Unlearning

SETTINGS = Unlearning(lora_rank=4, lora_alpha=8, lora_dropout=0.05)
ROW = {"forget": -1.0, "retain": 0.5, "prompt_decouple": 0.5}


@pytest.fixture
def llava(official):
    return model.load(official[0])


@pytest.fixture(scope="module")
def record(official):
    return dataset.read(official[1]).train[0]


@pytest.fixture(scope="module")
def groups(record):
    sets = record.sets()

    def examples(term, name, count):
        return tuple(Example(term, p.question, p.answer) for p in sets[name][1][:count])

    return [Group(record.image, (*examples("forget", "forget", 2),
                                 *examples("retain", "retain image", 2))),
            Group(record.safe_image, examples("prompt_decouple", "prompt decouple", 2)),
            Group(None, examples("retain", "retain text", 2))]


def adapted(llava):
    """With an adapter that does something, and a projector that has moved."""
    whole = model.add_lora(llava[0], SETTINGS).eval()
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return whole


# On disk.


def test_the_released_names_are_all_found(official, llava):
    stored = {name: value for file in official[0].glob("*.safetensors")
              for name, value in load_file(file).items()}
    assert any(name.startswith("vision_tower.vision_model.encoder.layers.1") for name in stored)
    loaded = llava[0].state_dict()
    ours = {name.replace("language_model.model.", "model.language_model.")
                .replace("language_model.lm_head", "lm_head")
                .replace("vision_tower.vision_model.", "model.vision_tower.")
                .replace("multi_modal_projector", "model.multi_modal_projector"): value
            for name, value in stored.items()}
    assert loaded.keys() == ours.keys()
    assert all(torch.equal(loaded[name], value.float()) for name, value in ours.items())


@pytest.mark.parametrize("place", ["nowhere", "chat_template.json", "tokenizer_config.json"])
def test_an_older_download_asks_in_the_same_words(official, tmp_path, record, place):
    """Without processor_config.json; the chat template elsewhere, or nowhere."""
    folder = shutil.copytree(official[0], tmp_path / "model")
    whole = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").unlink()
    (folder / "preprocessor_config.json").write_text(json.dumps(whole["image_processor"]))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    if place != "nowhere":
        known = json.loads((folder / place).read_text()) if (folder / place).exists() else {}
        (folder / place).write_text(json.dumps(known | {"chat_template": template}))
    (_, theirs), (_, ours) = model.load(folder), model.load(official[0])
    pair = record.sets()["forget"][1][0]
    assert prompt(theirs, pair.question, True) == prompt(ours, pair.question, True)


def test_a_model_that_lacks_a_weight_is_refused(official, tmp_path):
    folder = shutil.copytree(official[0], tmp_path / "model")
    file = folder / "model-00001-of-00002.safetensors"
    weights = load_file(file)
    del weights["multi_modal_projector.linear_2.weight"]
    save_file(weights, file, {"format": "pt"})
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    del index["weight_map"]["multi_modal_projector.linear_2.weight"]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"lacks 1 weights, such as .*linear_2.weight"):
        model.load(folder)


@pytest.fixture
def small(tiny_real, tmp_path):
    """A copy of a tiny model, for a test to damage."""
    return Path(shutil.copytree(tiny_real.model, tmp_path / "small"))


def test_a_weight_of_another_shape_is_named_with_both(small):
    config = json.loads((small / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 48
    (small / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"6 weights of another shape than its config.json says, "
                                         r"such as .*down_proj.weight: \[32, 64\] instead of "
                                         r"\[32, 48\]"):
        model.load(small)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(small, value):
    file = small / "model-00002-of-00002.safetensors"
    weights = load_file(file)
    weights["language_model.model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(NotFinite, match=r"1 hold numbers that are not finite, such as "
                                        r"model.language_model.layers.1.mlp.up_proj.weight"):
        model.load(small)


def test_a_config_that_transformers_refuses_is_said_in_one_sentence(small):
    config = json.loads((small / "config.json").read_text())
    config["text_config"] = []
    (small / "config.json").write_text(json.dumps(config))
    with pytest.raises(Missing, match=r"config.json cannot be used \(.*text_config"):
        model.load(small)


def test_bfloat16_is_asked_only_of_a_gpu_that_has_it(small, monkeypatch):
    """An older GPU emulates it, so that torch calls it supported."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported",
                        lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    with pytest.raises(Missing, match=r'asks for bfloat16, and Tesla V100 has none: .*"auto"'):
        model.load(small, Runtime(device="cuda", dtype="bfloat16"))
    with pytest.warns(match="Tesla V100 has no bfloat16: .* in float32"):
        assert model.dtype_of(Runtime(device="auto", dtype="auto")) == torch.float32
    assert model.dtype_of(Runtime(device="cpu", dtype="bfloat16")) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert model.dtype_of(Runtime(device="auto", dtype="auto")) == torch.bfloat16
    with pytest.raises(ValueError, match="no dtype 'bf16'; known: auto, float32"):
        model.dtype_of(Runtime(dtype="bf16"))


def test_an_older_download_s_processor_learns_how_an_image_is_counted(official, tmp_path):
    folder = shutil.copytree(official[0], tmp_path / "model")
    config = json.loads((folder / "processor_config.json").read_text())
    for name in ("patch_size", "num_additional_image_tokens", "vision_feature_select_strategy"):
        config.pop(name, None)
    (folder / "processor_config.json").write_text(json.dumps(config))
    assert image_tokens(model.load(folder)[1]) == 576


@pytest.mark.parametrize(("runtime", "dtype"), [
    (Runtime(), torch.float32),
    (Runtime(dtype="bfloat16"), torch.bfloat16),
])
def test_the_runtime_says_in_which_numbers_a_model_is(official, runtime, dtype):
    loaded, _ = model.load(official[0], runtime)
    assert loaded.dtype == dtype
    assert loaded.device.type == "cpu"
    assert model.dtype_of(Runtime(dtype="auto")) == torch.float32, "on a CPU"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("runtime", "said"), [
    (Runtime(device="cuda"), 'set device="auto" in lib/running/profiles.py'),
    (Runtime(device="auto", four_bit=True), r"pip install -e '\.\[gpu\]'"),
])
def test_what_the_machine_cannot_do_is_said_before_loading(official, runtime, said):
    with pytest.raises(Missing, match=said):
        model.load(official[0], runtime)


def test_weights_that_do_not_fit_into_the_machine_are_not_read(official, monkeypatch):
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}
    monkeypatch.setattr(model.model_check.os, "sysconf", sizes.get)
    with pytest.raises(Missing, match=r"no GPU here, and the model in .* takes 0 of the 0 GiB"):
        model.load(official[0])


# Prompts.


def test_a_prompt_is_vicuna_s_and_begins_once(llava, record):
    llava_model, processor = llava
    tokenizer, question = processor.tokenizer, record.image_pairs[0].question
    shown = "<image>" * 576
    assert prompt(processor, question, True) == f"USER: {shown}\n{question} ASSISTANT:"
    ids = Packer(*llava).segment(Example("retain", question, "It is."), True).prompt
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids.count(llava_model.config.image_token_id) == 576


def test_a_template_that_writes_the_beginning_itself_gives_it_once_too(llava):
    processor = llava[1]
    processor.chat_template = "{{ bos_token }}" + processor.chat_template
    text = prompt(processor, "What is this?", True)
    assert text.startswith("<s>USER")
    ids = Packer(*llava).segment(Example("retain", "What is this?", "It is."), True).prompt
    assert ids == processor.tokenizer(text, add_special_tokens=False).input_ids
    assert ids.count(processor.tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("answer", ["It is a stew.", "1. Stir it.", "\"Salt\" – und Öl.",
                                    "A line\nand another", "你好"])
def test_the_answer_s_tokens_give_the_answer_and_its_end(llava, answer):
    tokenizer = llava[1].tokenizer
    segment = Packer(*llava).segment(Example("retain", "What is this?", answer), True)
    assert segment.answer[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(segment.answer[:-1]).strip() == answer


def test_a_long_answer_is_cut_and_has_no_end(llava):
    tokenizer, example = llava[1].tokenizer, Example("retain", "What?", "Salt and " * 40)
    whole = Packer(*llava).segment(example, False).answer
    cut = Packer(*llava, longest=12).segment(example, False).answer
    assert cut == whole[:12]
    assert tokenizer.eos_token_id not in cut


# Packed rows of 576 image tokens.


def separately(llava, processor, groups):
    """Each answer alone through transformers' own processor and forward: its own loss."""
    found = []
    for group in groups:
        for example in group.examples:
            text = prompt(processor, example.question, False) if group.image is None else (
                f"USER: <image>\n{example.question} ASSISTANT:")
            picture = None if group.image is None else open_image(group.image)
            whole = processor(text=f"{text} {example.answer}</s>", images=picture,
                              return_tensors="pt")
            before = processor(text=text, images=picture, return_tensors="pt").input_ids.shape[1]
            labels = whole.input_ids.clone()
            labels[:, :before] = -100
            if picture is not None:
                whole["pixel_values"] = whole["pixel_values"].to(llava.dtype)
            found.append(model.llava(llava)(**whole, labels=labels).loss.float())
    return found


def gradients(llava, loss):
    llava.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in llava.named_parameters() if p.requires_grad}


def test_packed_losses_and_gradients_are_those_of_separate_rows(llava, groups):
    processor = llava[1]
    whole = adapted(llava).double()
    alone = separately(whole, processor, groups)
    names = [example.term for group in groups for example in group.examples]
    means = {term: torch.stack([loss for loss, name in zip(alone, names, strict=True)
                                if name == term]).mean() for term in ROW}
    wanted = gradients(whole, terms.total(means, ROW))
    batch = Packer(whole, processor).pack(groups)
    assert batch.input_ids.shape[1] < 2 * 576, "the image stands once in its row"
    logits = answer_logits(whole, batch)
    tokens = likelihood.token_nll(logits, batch.targets)
    each = likelihood.per_answer(tokens, batch.answers, len(names))
    torch.testing.assert_close(each, torch.stack(alone).detach(), rtol=0, atol=1e-5)
    found = terms.from_logits(
        terms.Said(logits, batch.targets, batch.answers, batch.terms), ROW)
    got = gradients(whole, terms.total(found, ROW))
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0, name
        error = (got[name] - gradient).abs().max() / gradient.abs().max()
        assert error < 1e-5, (name, error.item())


# LoRA.


def test_lora_is_on_the_language_model_s_linears_and_the_projector_is_trained(llava):
    whole = model.add_lora(llava[0], SETTINGS)
    targets = {name for name, module in whole.named_modules() if hasattr(module, "lora_A")}
    assert len(targets) == 7 * 2
    assert all("language_model.layers." in name for name in targets)
    trained = [name for name, p in whole.named_parameters() if p.requires_grad]
    assert sum("multi_modal_projector" in name for name in trained) == 4
    assert whole.peft_config["default"].lora_dropout == 0.05


def test_with_the_adapter_off_the_model_is_the_original_projector_and_all(llava, groups):
    batch = Packer(*llava).pack(groups)
    with torch.no_grad():
        before = answer_logits(llava[0], batch)
        whole = adapted(llava)
        assert (answer_logits(whole, batch) - before).abs().max() > 0.1
        with whole.disable_adapter():
            assert torch.equal(answer_logits(whole, batch), before)


def test_the_merged_model_is_the_unmerged_one(llava, groups):
    whole = adapted(llava)
    batch = Packer(*llava).pack(groups)
    with torch.no_grad():
        unmerged = answer_logits(whole, batch)
        whole.merge_adapter()
        torch.testing.assert_close(answer_logits(whole, batch), unmerged, rtol=1e-4, atol=1e-4)


def test_an_adapter_comes_back_in_the_model_s_numbers(official, groups, tmp_path):
    runtime = Runtime(dtype="bfloat16")
    bare, processor = model.load(official[0], runtime)
    batch = Packer(bare, processor).pack(groups)
    whole = adapted((bare, processor))
    whole.save_pretrained(tmp_path)
    again = model.load_adapter(model.load(official[0], runtime)[0], tmp_path)
    assert {p.dtype for n, p in again.named_parameters() if "lora_" in n} == {torch.bfloat16}
    with torch.no_grad():
        assert torch.equal(answer_logits(again, batch), answer_logits(whole, batch))


def test_an_old_adapter_with_the_names_of_transformers_4_is_refused(official, llava, tmp_path):
    adapted(llava).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({name.replace("model.language_model.layers", "language_model.model.layers"): value
               for name, value in load_file(file).items()}, file)
    with pytest.raises(ValueError, match="does not fit the model"):
        model.load_adapter(model.load(official[0])[0], tmp_path)


# Answers.


def test_batched_answers_are_those_of_transformers_own_generate(llava, record):
    whole, processor = llava
    queries = [generate.Query(record.image, pair.question) for pair in record.image_pairs]
    queries += [generate.Query(None, pair.question) for pair in record.text_pairs]
    settings = Evaluation(max_new_tokens=6, batch=4)
    ours = generate.answer(whole, processor, Features(whole, processor), queries, settings)
    for query, said in zip(queries, ours, strict=True):
        text = (prompt(processor, query.question, False) if query.image is None else
                f"USER: <image>\n{query.question} ASSISTANT:")
        inputs = processor(text=text, images=None if query.image is None else
                           open_image(query.image), return_tensors="pt")
        ids = whole.generate(**inputs, max_new_tokens=6, do_sample=False)
        alone = processor.tokenizer.decode(ids[0, inputs.input_ids.shape[1]:],
                                           skip_special_tokens=True).strip()
        assert said == alone
