"""`lib/model/prompts.py`: a model's processor, and prompts with one picture or none."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig

from lib.base.missing import Missing
from lib.model import llava as model
from lib.model.packing import Example, Packer
from lib.model.prompts import (
    PromptError,
    image_tokens,
    prompt,
    prompt_for_one_image,
    read_processor,
)
from tests.tiny_llava import TEMPLATE


@pytest.fixture
def folder(tiny_real, tmp_path) -> Path:
    """A tiny LLaVA-1.5 without its weights, for a test to change."""
    names = shutil.ignore_patterns("*.safetensors")
    return Path(shutil.copytree(tiny_real.model, tmp_path / "model", ignore=names))


def changed(name: str, **values):
    """Set these keys of a JSON file; None takes one out."""
    def change(folder):
        known = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps({k: v for k, v in known.items() if v is not None}))

    return change


def pictures(**values):
    def change(folder):
        known = json.loads((folder / "processor_config.json").read_text())["image_processor"]
        changed("processor_config.json", image_processor=known | values)(folder)

    return change


def template(text: str):
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


def in_tokenizer(text: str):
    def change(folder):
        (folder / "chat_template.jinja").unlink()
        changed("tokenizer_config.json", chat_template=text)(folder)

    return change


def renamed(*names: str):
    """The image token is "<img>" in these files."""
    def change(folder):
        for name in names:
            text = (folder / name).read_text()
            (folder / name).write_text(text.replace("<image>", "<img>"))

    return change


def together(*changes):
    return lambda folder: [change(folder) for change in changes]


def processor_of(folder: Path):
    return read_processor(folder, AutoConfig.from_pretrained(folder))


TEXT_ONLY = "{% for m in messages %}{{ m['role'] ~ ': ' ~ m['content'] }}{% endfor %}"
SPELT = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.mark.parametrize(("reason", "change"), [
    ("as it is", lambda folder: None),
    ("no padding token", changed("tokenizer_config.json", pad_token=None)),
    ("the template in the tokenizer", in_tokenizer(TEMPLATE)),
    ("several templates", in_tokenizer([{"name": "default", "template": TEMPLATE},
                                        {"name": "tool_use", "template": "none"}])),
    ("no template", lambda folder: (folder / "chat_template.jinja").unlink()),
    ("no patch size", changed("processor_config.json", patch_size=None)),
    ("sizes as one number", pictures(crop_size=56, size=56)),
    ("another name for the image token", renamed(*SPELT, "processor_config.json")),
    ("and the processor does not say it",
     together(renamed(*SPELT), changed("processor_config.json", image_token=None))),
])
def test_a_prompt_has_the_question_and_the_image_tokens_of_its_picture(folder, reason, change):
    change(folder)
    processor = processor_of(folder)
    for with_image, count in ((True, 16), (False, 0)):
        text = prompt(processor, "What is a stew?", with_image)
        assert text.startswith("USER: ")
        assert text.endswith("What is a stew? ASSISTANT:"), reason
        assert text.count(processor.image_token) == count
    ids = processor.tokenizer(processor.image_token, add_special_tokens=False).input_ids
    assert ids == [32000]
    assert image_tokens(processor) == 16
    assert processor.tokenizer.pad_token is not None


@pytest.mark.parametrize(("reason", "change", "words"), [
    ("knows only texts", in_tokenizer(TEXT_ONLY), "writes 0 image tokens"),
    ("joins texts", in_tokenizer(TEXT_ONLY.replace("~", "+")), "cannot write a question"),
    ("is against it", template("{{ raise_exception('no pictures') }}"), "no pictures"),
    ("is cut off", template(TEMPLATE[:40]), "TemplateSyntaxError"),
    ("shows it twice", template(TEMPLATE.replace("<image>", "<image><image>")), "writes 2 image"),
    ("shows one always", template(TEMPLATE.replace("{% endif %}", "<image>{% endif %}")),
     "writes 2 image"),
    ("shows one for a text, too", template("<image> {{ messages[0]['content'][-1]['text'] }}"),
     "writes 1 image tokens .* with no picture"),
    ("drops the question", template("USER: {% for p in messages[0]['content'] if p['type'] == "
                                    "'image' %}<image>{% endfor %} ASSISTANT:"),
     "does not write the question"),
    ("divides by zero", template("{{ 1 / 0 }}"), "ZeroDivisionError"),
    ("does not say who is next", template(TEMPLATE.partition("{% if add_gen")[0]),
     "ends with the question: .*add_generation_prompt"),
    ("spells it otherwise", renamed("tokenizer.json", "tokenizer_config.json"), "0 image tokens"),
])
def test_a_template_that_gives_no_such_prompt_is_named(folder, reason, change, words):
    change(folder)
    with pytest.raises(Missing, match=f"(?s)chat template of the model in {folder}.*{words}"):
        processor_of(folder)


@pytest.mark.parametrize(("change", "words"), [
    (changed("tokenizer_config.json", eos_token=None), "no eos_token"),
    (changed("config.json", image_token_index=5000), "piece of text '▁unused5000' there"),
    (changed("config.json", image_token_index=99999), "tokenizer has no such number"),
    (pictures(crop_size={"height": 112, "width": 112}), "112 x 112 pixels, and its vision tower"),
    (pictures(do_center_crop=False), "pictures of all sizes"),
    (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer or processor in"),
    (lambda folder: (folder / "processor_config.json").write_text("{"), "processor_config.json"),
])
def test_what_does_not_fit_the_model_is_said_with_its_folder(folder, change, words):
    change(folder)
    with pytest.raises(Missing, match=words) as caught:
        processor_of(folder)
    assert str(folder) in str(caught.value)


def test_a_tokenizer_with_more_words_than_the_model_is_refused(folder):
    text = json.loads((folder / "config.json").read_text())["text_config"]
    changed("config.json", text_config=text | {"vocab_size": 32001})(folder)
    with pytest.raises(Missing, match="32002 tokens, and the model knows 32001"):
        processor_of(folder)


def test_a_text_that_holds_the_image_token_is_refused(tiny_real):
    llava, processor = model.load(tiny_real.model)
    with pytest.raises(PromptError, match=r"question holds '<image>'"):
        prompt_for_one_image(processor, "What is <image>?", False)
    for with_image, count in ((True, 16), (False, 0)):
        with pytest.raises(PromptError, match=rf"{count + 1} image tokens, and {count} belong"):
            Packer(llava, processor).segment(Example("retain", "What?", "An <image>."), with_image)
