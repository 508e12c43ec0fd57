"""A question as the model's chat template writes it: with one picture or with none, or an error."""

from jinja2 import TemplateError


class PromptError(ValueError):
    """The chat template, or the question, gives no prompt that can be used; the message says why."""


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
    except (TemplateError, TypeError, ValueError) as error:
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
    size = processor.image_processor.crop_size if processor.image_processor.do_center_crop else (
        processor.image_processor.size)
    patches = (size["height"] // processor.patch_size) * (size["width"] // processor.patch_size)
    dropped = processor.vision_feature_select_strategy == "default"
    return patches + processor.num_additional_image_tokens - dropped
