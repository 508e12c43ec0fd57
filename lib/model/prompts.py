"""A model's processor, and a question as its chat template writes it: with one picture or none."""

from pathlib import Path

from transformers import AutoProcessor, LlavaConfig

from lib.base.missing import Missing
from lib.model.check import AGAIN

IMAGE_TOKEN = "<image>"
CHAT_TEMPLATE = (  # LLaVA-1.5's conversation: USER: <image>\nquestion ASSISTANT: answer</s>
    "{% for message in messages %}{{ message['role'].upper() + ':' }}"
    "{% for part in message['content'] if part['type'] == 'image' %} <image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ ('' if message['content'][0]['type'] == 'image' else ' ') + part['text'] }}{% endfor %}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


class PromptError(ValueError):
    """Chat template or question give no prompt that can be used; the message says why."""


def read_processor(folder: Path, config: LlavaConfig):
    """A model's processor, told what older downloads of LLaVA-1.5 do not say.

    Raises Missing, before any answer, for a tokenizer, pictures or a template that do not fit.
    """
    try:
        processor = AutoProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    except Exception as error:  # a dozen kinds, by what is wrong in which file
        raise Missing(f"The tokenizer or processor in {folder} cannot be read "
                      f"({type(error).__name__}: {error}): {AGAIN}.") from error
    tokenizer, image = processor.tokenizer, config.image_token_id
    if wrong := _of_tokenizer(tokenizer, config) or _of_pictures(processor, config):
        raise Missing(f"The model in {folder} cannot be used: {wrong}.")
    processor.patch_size = config.vision_config.patch_size
    processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    processor.num_additional_image_tokens = 1  # CLIP's CLS token
    processor.image_token = tokenizer.convert_ids_to_tokens(image)
    processor.image_token_id = image
    if processor.chat_template is None:  # the first uploads of LLaVA-1.5 had none
        processor.chat_template = tokenizer.chat_template or (
            CHAT_TEMPLATE.replace(IMAGE_TOKEN, processor.image_token))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    try:
        texts = [prompt_for_one_image(processor, "What is this?", with_image)
                 for with_image in (True, False)]
        if any(text.rstrip().endswith("this?") for text in texts):
            raise PromptError(f"{_named(processor)} ends with the question: it has to write after "
                              "it where the answer begins (add_generation_prompt).")
    except PromptError as error:
        raise Missing(str(error)) from error
    return processor


def _of_tokenizer(tokenizer, config: LlavaConfig) -> str | None:
    """What is wrong with a tokenizer for this model, if anything is."""
    image, words = config.image_token_id, config.text_config.vocab_size
    token = tokenizer.convert_ids_to_tokens(image) if image < len(tokenizer) else None
    if token is None or tokenizer.encode(token, add_special_tokens=False) != [image]:
        known = "no such number" if token is None else f"the piece of text {token!r} there"
        return (f"its config.json says that token {image} stands for a picture, and its tokenizer "
                f"has {known}")
    if tokenizer.eos_token is None:
        return "its tokenizer has no eos_token (tokenizer_config.json), so that no answer could end"
    if len(tokenizer) > words:
        return f"its tokenizer has {len(tokenizer)} tokens, and the model knows {words}"
    return None


def _of_pictures(processor, config: LlavaConfig) -> str | None:
    size, wanted = _picture_size(processor), config.vision_config.image_size
    if (size["height"], size["width"]) == (wanted, wanted):
        return None
    made = f"of {size['height']} x {size['width']} pixels" if size["height"] else "of all sizes"
    return f"its processor makes pictures {made}, and its vision tower takes {wanted} x {wanted}"


def prompt(processor, question: str, with_image: bool) -> str:
    """The chat template's text up to where the answer begins, one image token per feature."""
    text = prompt_for_one_image(processor, question, with_image)
    return text.replace(processor.image_token, processor.image_token * image_tokens(processor))


def prompt_for_one_image(processor, question: str, with_image: bool) -> str:
    """The same with one image token, as the chat template writes it.

    Raises PromptError unless it holds the question, and one image token, or none without an image.
    """
    parts = [{"type": "image"}] * with_image + [{"type": "text", "text": question}]
    try:
        text = processor.apply_chat_template([{"role": "user", "content": parts}],
                                             add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program of the model's makers
        raise PromptError(f"{_named(processor)} cannot write a question of a user with parts of "
                          f"type image and text ({type(error).__name__}: {error}).") from error
    token = processor.image_token
    if token in question:
        raise PromptError(f"A question holds {token!r}, the sign that stands for a picture: take "
                          "it out of the dataset's texts.")
    if (found := text.count(token)) != with_image:
        raise PromptError(f"{_named(processor)} writes {found} image tokens ({token}) for a "
                          f"question with {'one picture' if with_image else 'no picture'}: it has "
                          "to write one for each part of type image, and no other.")
    if question.strip() not in text:
        raise PromptError(f"{_named(processor)} does not write the question as it is.")
    return text


def _named(processor) -> str:
    return (f"The chat template of the model in {processor.tokenizer.name_or_path} "
            "(chat_template.jinja, or chat_template in its JSON files)")


def encode(tokenizer, text: str) -> list[int]:
    """Token ids, with the beginning-of-sequence token of a Llama once.

    Its tokenizer adds one; but some chat templates have already written it.
    """
    written = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    return tokenizer(text, add_special_tokens=not written).input_ids


def image_tokens(processor) -> int:
    """How many tokens an image takes in a prompt, as LlavaProcessor counts them."""
    size = _picture_size(processor)
    patches = (size["height"] // processor.patch_size) * (size["width"] // processor.patch_size)
    dropped = processor.vision_feature_select_strategy == "default"
    return patches + processor.num_additional_image_tokens - dropped


def _picture_size(processor) -> dict:
    """Height and width of the pictures that the tower gets; None where they are not all alike."""
    pictures = processor.image_processor
    size = pictures.crop_size if pictures.do_center_crop else pictures.size
    return {side: size.get(side) for side in ("height", "width")}
