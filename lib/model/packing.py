"""One image with all its questions in one row, exact against one row per question.

The questions about an image share its prefix (opening words and image tokens), so a row is
`[prefix][Q1 A1][Q2 A2]...`. Each question sees the prefix and itself; positions start again after
the prefix. Questions without an image are rows with a shorter prefix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from lib.base.extras import scale
from lib.data.pictures import open_image
from lib.model.finite import NotFinite, is_finite
from lib.model.llava import llava, tower_features
from lib.model.prompts import PromptError, encode, image_tokens, prompt

BLOCK = 128  # tokens per side of a block, FlexAttention's default
BY_BLOCKS = "sdpa_or_blocks"  # the name of the attention that skips what is not seen


@dataclass(frozen=True)
class Example:
    """A question and the answer to train on; `term` says which part of the loss it is for."""

    term: str
    question: str
    answer: str


@dataclass(frozen=True)
class Group:
    """Examples that share an image (None: no image)."""

    image: Path | None
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Segment:
    """Token ids of one example: `prompt`, then `answer` with its end-of-sequence token."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True)
class Batch:
    """Packed rows, padded on the right."""

    input_ids: Tensor  # [rows, length]
    position_ids: Tensor  # [rows, length]; the same place in a question, the same number
    segments: Tensor  # [rows, length]: 0 prefix, 1.. the questions, -1 padding
    features: Tensor | None  # [images, image tokens, hidden], in the order of their rows
    targets: Tensor  # [answer tokens]: the token to predict
    places: Tensor  # [answer tokens]: where in the flat [rows * length] it is predicted from
    answers: Tensor  # [answer tokens]: which answer each token belongs to
    terms: tuple[str, ...]  # by answer
    documents: Tensor | None = None  # [rows, length]: the row that a token of a joined row is from

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        here = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in here.items()
                                if isinstance(value, Tensor)})

    def mask(self) -> Tensor:
        """[rows, 1, length, length] bool: which token (third) sees which (fourth)."""
        mine, theirs = self.segments[:, :, None], self.segments[:, None, :]
        order = torch.arange(self.segments.shape[1], device=self.segments.device)
        earlier = order[:, None] >= order[None, :]
        # Padding sees itself: a row of the mask without any True would give NaN.
        visible = (theirs == mine) | (theirs == 0) & (mine > 0)
        if self.documents is not None:
            visible &= self.documents[:, :, None] == self.documents[:, None, :]
        return (visible & earlier)[:, None]

    def joined(self) -> "Batch":
        """All rows end to end in one, for attention that skips what is not seen.

        No row is padded to the longest; only the whole is, to a full block of attention.
        """
        kept = self.segments >= 0
        rows = torch.arange(len(kept), device=kept.device)[:, None].expand_as(kept)
        filler = -int(kept.sum()) % BLOCK

        def line(values: Tensor, fill: int) -> Tensor:
            return functional.pad(values[kept], (0, filler), value=fill)[None]

        moved = kept.flatten().cumsum(0) - 1  # a place among all -> its place among the kept
        return replace(self, input_ids=line(self.input_ids, int(self.targets[0])),
                       position_ids=line(self.position_ids, 0), segments=line(self.segments, -1),
                       documents=line(rows, -1), places=moved[self.places])


class Packer:
    """Turns groups into batches for one model and its processor; remembers what it has encoded.

    `features` gives an image's tower features, [image tokens, hidden] (default: `Features`). An
    answer of more than `longest` tokens is cut there; without `end` none has its end.
    """

    def __init__(self, model, processor, features: Callable[[Path], Tensor] | None = None,
                 longest: int | None = None, end: bool = True):
        self.processor, self.longest, self.end = processor, longest, end
        self.device = llava(model).device
        self.features = features or Features(model, processor)
        self.image_token = llava(model).config.image_token_id
        self._segments: dict[tuple, Segment] = {}

    def segment(self, example: Example, with_image: bool) -> Segment:
        """The example's tokens: the chat template's prompt, then what is to be learned.

        The official code ends a training text with the answer, so that no end is ever learned;
        here the end-of-sequence token belongs to the answer.
        """
        key = (example.question, example.answer, with_image)
        if key not in self._segments:
            tokenizer = self.processor.tokenizer
            text = prompt(self.processor, example.question, with_image)
            ids = encode(tokenizer, text)
            said = f"{text} {example.answer}{tokenizer.eos_token if self.end else ''}"
            whole = encode(tokenizer, said)
            if whole[: len(ids)] != ids:
                raise ValueError(f"The tokens of {text!r} change when the answer follows: the "
                                 "chat template has to end where a token ends.")
            shown = image_tokens(self.processor) if with_image else 0
            if whole.count(self.image_token) != shown:
                raise PromptError(f"A question with its answer has {whole.count(self.image_token)} "
                                  f"image tokens, and {shown} belong to its picture: no text of "
                                  f"the dataset may hold {self.processor.image_token!r}.")
            self._segments[key] = Segment(ids, whole[len(ids):][: self.longest])
        return self._segments[key]

    def pack(self, groups: Sequence[Group]) -> Batch:
        """One row per group."""
        rows = [_row([self.segment(e, group.image is not None) for e in group.examples],
                     self.image_token) for group in groups]
        length = max(len(row["ids"]) for row in rows)
        pad = self.processor.tokenizer.pad_token_id
        images = [self.features(group.image) for group in groups if group.image is not None]
        counts = [0]
        for group in groups:
            counts.append(counts[-1] + len(group.examples))
        return Batch(
            _padded([row["ids"] for row in rows], length, pad),
            _padded([row["positions"] for row in rows], length, 0),
            _padded([row["segments"] for row in rows], length, -1),
            torch.stack(images) if images else None,
            torch.tensor([token for row in rows for token in row["targets"]]),
            torch.tensor([place + i * length for i, row in enumerate(rows)
                          for place in row["places"]]),
            torch.tensor([answer + counts[i] for i, row in enumerate(rows)
                          for answer in row["answers"]]),
            tuple(example.term for group in groups for example in group.examples),
        ).to(self.device)


class Features:
    """Tower features by image file, each computed once and kept."""

    def __init__(self, model, processor, batch: int = 128):
        self.model, self.processor, self.batch = model, processor, batch
        self.known: dict[Path, Tensor] = {}

    def __call__(self, image: Path) -> Tensor:
        if image not in self.known:
            self.add([image])
        return self.known[image]

    def add(self, images: Sequence[Path]) -> None:
        """Compute many at once."""
        missing = [image for image in dict.fromkeys(images) if image not in self.known]
        for start in range(0, len(missing), self.batch):
            part = missing[start : start + self.batch]
            self.known.update(zip(part, seen(self.model, self.processor, part), strict=True))


def seen(model, processor, images: Sequence[Path]) -> Tensor:
    """The tower's features of image files, on the CPU: [images, image tokens, hidden].

    Raises NotFinite, with a picture's name, for numbers that are not finite.
    """
    found = tower_features(model, pixels(processor, [open_image(image) for image in images])).cpu()
    if not is_finite(found):
        first = next(i for i, features in enumerate(found) if not is_finite(features))
        raise NotFinite(f"The vision tower sees numbers that are not finite in {images[first]}: "
                        "its weights are damaged, or too large for float16 (dtype in "
                        "lib/running/profiles.py).")
    return found


def pixels(processor, pictures: Sequence) -> Tensor:
    """PIL pictures as the tower wants them: [pictures, 3, height, width]."""
    return processor.image_processor(images=list(pictures), return_tensors="pt").pixel_values


def _row(segments: Sequence[Segment], image_token: int) -> dict:
    """Token lists of one packed row; the prefix is what all its prompts begin with."""
    shared = _shared([segment.prompt for segment in segments], image_token)
    row = {"ids": segments[0].prompt[:shared], "positions": list(range(shared)),
           "segments": [0] * shared, "targets": [], "places": [], "answers": []}
    for number, segment in enumerate(segments):
        own = segment.prompt[shared:] + segment.answer[:-1]  # nothing follows the last token
        first = len(row["ids"]) + len(segment.prompt) - shared - 1
        row["ids"] = row["ids"] + own
        row["positions"] += range(shared, shared + len(own))
        row["segments"] += [number + 1] * len(own)
        row["targets"] += segment.answer
        row["places"] += range(first, first + len(segment.answer))
        row["answers"] += [number] * len(segment.answer)
    return row


def _shared(prompts: Sequence[list[int]], image_token: int) -> int:
    """Length of the prompts' common beginning, less than any of them whole."""
    shortest = min(len(prompt) for prompt in prompts) - 1
    same = next((i for i in range(shortest)
                 if any(prompt[i] != prompts[0][i] for prompt in prompts)), shortest)
    if image_token in prompts[0][same:]:
        raise ValueError("The chat template puts the question before the image: questions about "
                         "one image then share no prefix.")
    return same


def _padded(lists: Sequence[Sequence[int]], length: int, value: int) -> Tensor:
    return torch.tensor([[*items, *[value] * (length - len(items))] for items in lists])


def skips_blocks(model) -> bool:
    """Whether packed rows go through FlexAttention (`lib/scale/attention.py`)."""
    return llava(model).config.text_config._attn_implementation == BY_BLOCKS


def answer_logits(model, batch: Batch) -> Tensor:
    """Logits at the answers' tokens only, in one forward: [answer tokens, vocabulary]."""
    whole, blocks = llava(model), skips_blocks(model)
    if blocks:
        batch = batch.joined()
    mask = (scale("attention").block_mask(batch.segments, batch.documents) if blocks else
            batch.mask())
    embeds = whole.get_input_embeddings()(batch.input_ids)
    if batch.features is not None:
        seen = whole.model.multi_modal_projector(batch.features)
        at_image = (batch.input_ids == whole.config.image_token_id)[..., None]
        embeds = embeds.masked_scatter(at_image, seen.to(embeds.dtype))
    hidden = whole.model.language_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=batch.position_ids,
        use_cache=False).last_hidden_state
    return whole.lm_head(hidden.flatten(0, 1)[batch.places])
