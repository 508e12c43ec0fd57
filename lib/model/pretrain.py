"""From nothing to a small LLaVA, in the stages of the real one.

1. contrastive: vision tower and a text tower learn which caption belongs to which picture (CLIP);
2. language: the language model learns the world's sentences, as LLaVA starts from a trained LLM;
3. alignment: the projector alone learns to caption pictures (LLaVA's first stage);
4. instruction: projector and language model learn to answer questions (LLaVA's second stage).
The tower is frozen from stage 2 on, so its features are computed once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

from lib.model import finite, likelihood
from lib.model.llava import build, tower_features
from lib.model.packing import Example, Group, Packer, answer_logits, pixels
from lib.model.settings import Architecture, Pretraining
from lib.world import iconworld
from lib.world.iconworld import Picture
from lib.world.settings import World

DANGER = 0.1  # share of contrastive steps whose captions tell the danger alone
Report = Callable[[str], None]


@dataclass
class Log:
    """Rows of {stage, step, loss, accuracy}, and where progress is told."""

    report: Report
    rows: list[dict] = field(default_factory=list)
    every: int = 10

    def __call__(self, stage: str, step: int, steps: int, loss: Tensor, accuracy: Tensor) -> None:
        if step % self.every == 0 or step == steps:
            self.rows.append({"stage": stage, "step": step, "loss": loss.item(),
                              "accuracy": accuracy.item()})
            self.report(f"{stage}, step {step} of {steps}, loss {loss.item():.3f}")


def train(world: World, sizes: Architecture, settings: Pretraining, report: Report) -> tuple:
    """Train a small LLaVA on pictures of a world.

    Returns (model, processor, rows of the training log: stage, step, loss in nats, accuracy 0-1).
    """
    log = Log(report)
    torch.manual_seed(settings.seed)
    model, processor = build(sizes, iconworld.vocabulary_texts())
    pictures = iconworld.pool(world, settings.pictures)
    images = torch.cat([pixels(processor, [picture.draw() for picture in part]).half()
                        for part in _lots(pictures, 256)])  # half precision: 800 MB
    contrastive(model, processor, pictures, images, settings, log)
    model.model.vision_tower.requires_grad_(False)
    features = dict(zip(pictures, _in_parts(model, images), strict=True))
    packer = Packer(model, processor, features.__getitem__)
    language(model, processor, settings, log)
    alignment(model, packer, pictures, settings, log)
    instruction(model, packer, pictures, settings, log)
    return model.eval(), processor, log.rows


def contrastive(model, processor, pictures: list[Picture], images: Tensor, settings: Pretraining,
                log: Log) -> None:
    """Stage 1. images: [pictures, 3, height, width], half precision; trains `model`'s tower.

    Half of the captions tell all, half only name the thing: what it is must not hang on its
    colours. In some steps they only say whether it is dangerous, as captions do from which CLIP has
    learned. A caption is right for every picture of the batch of which it is true.
    """
    clip = _clip(model, processor)
    tellings = list(zip(*(picture.captions() for picture in pictures), strict=True))
    count = len(pictures)
    tokens = processor.tokenizer([f" {text}</s>" for texts in tellings for text in texts],
                                 padding=True, padding_side="right", return_tensors="pt")
    facts = torch.stack([_equal(texts) for texts in tellings])  # [tellings, pictures]
    colours = torch.tensor([picture.has_named_colours for picture in pictures])
    step_through = _steps("contrastive", clip.parameters(), settings.contrastive_steps,
                          settings.contrastive_lr)
    for step, update in step_through:
        rng = np.random.default_rng([settings.seed, 1, step])
        chosen = _draw(len(pictures), settings.contrastive_batch, rng)
        told = _telling(colours[chosen], rng)
        captions = told * count + chosen
        out = clip(pixel_values=images[chosen].float(), input_ids=tokens.input_ids[captions],
                   attention_mask=tokens.attention_mask[captions])
        true = facts[told, chosen] == facts[told][:, chosen].T  # [picture, caption]
        loss = contrastive_loss(out.logits_per_image, true)
        update(loss)
        found = true.gather(1, out.logits_per_image.argmax(1, keepdim=True)).float().mean()
        log("contrastive", step, settings.contrastive_steps, loss.detach(), found)


def contrastive_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """CLIP's symmetric loss, nats; several right captions share the target evenly.

    logits: [pictures, captions], positive: the same shape, bool -> scalar.
    """
    target = positive.float()
    ways = ((logits, target), (logits.T, target.T))
    return sum(functional.cross_entropy(way, t / t.sum(1, keepdim=True)) for way, t in ways) / 2


def _clip(model, processor) -> CLIPModel:
    """A CLIP around the model's own vision tower."""
    vision = model.config.vision_config
    text = {"vocab_size": len(processor.tokenizer), "hidden_size": vision.hidden_size,
            "intermediate_size": 2 * vision.hidden_size, "num_hidden_layers": 2,
            "num_attention_heads": vision.num_attention_heads, "max_position_embeddings": 16,
            "projection_dim": vision.projection_dim,
            "bos_token_id": processor.tokenizer.bos_token_id,
            "eos_token_id": processor.tokenizer.eos_token_id,
            "pad_token_id": processor.tokenizer.pad_token_id}
    config = CLIPConfig(text_config=text, vision_config=vision.to_dict(),
                        projection_dim=vision.projection_dim)
    clip = CLIPModel(config)
    clip.vision_model = model.model.vision_tower
    return clip.train()


def language(model, processor, settings: Pretraining, log: Log) -> None:
    """Stage 2: next-token prediction on the world's sentences and conversations without a picture.

    As in a real LLM, what is harmful is known in words before any picture is seen.
    """
    texts = [f" {answer}</s>" for _, answer in iconworld.sentences()]
    tokens = processor.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    trained = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    for step, update in _steps("language", trained, settings.language_steps, settings.lr):
        rng = np.random.default_rng([settings.seed, 2, step])
        chosen = _draw(len(texts), 4 * settings.batch, rng)
        ids, seen = tokens.input_ids[chosen], tokens.attention_mask[chosen].bool()
        logits = model(input_ids=ids, attention_mask=seen.long()).logits[:, :-1]
        targets = ids[:, 1:].masked_fill(~seen[:, 1:], -100)
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        update(loss)
        right = (logits.argmax(-1) == targets)[seen[:, 1:]].float().mean()
        log("language", step, settings.language_steps, loss.detach(), right)


def alignment(model, packer: Packer, pictures: list[Picture], settings: Pretraining,
              log: Log) -> None:
    """Stage 3: only the projector learns, from captions."""

    def groups(rng) -> Iterator[Group]:
        for i in rng.choice(len(pictures), 4 * settings.batch, replace=False):
            form = "describe" if pictures[i].has_named_colours else "type"
            asked = iconworld.ask(pictures[i], form, "train", rng)
            yield Group(pictures[i], (Example("caption", *asked),))

    projector = model.model.multi_modal_projector.parameters()
    _answer("alignment", model, packer, projector, groups, settings.alignment_steps, settings, log)


def instruction(model, packer: Packer, pictures: list[Picture], settings: Pretraining,
                log: Log) -> None:
    """Stage 4: projector and language model learn to answer, with and without a picture."""
    in_words = iconworld.text_lessons()

    def groups(rng) -> Iterator[Group]:
        for i in rng.choice(len(pictures), settings.batch, replace=False):
            asked = iconworld.lessons(pictures[i], rng)
            yield Group(pictures[i], tuple(Example("answer", *pair) for pair in asked))
        chosen = rng.choice(len(in_words), settings.batch // 4, replace=False)
        yield Group(None, tuple(Example("answer", *in_words[i]) for i in chosen))

    trained = [*model.model.multi_modal_projector.parameters(),
               *model.model.language_model.parameters(), *model.lm_head.parameters()]
    _answer("instruction", model, packer, trained, groups, settings.instruction_steps, settings,
            log)


def _answer(stage: str, model, packer: Packer, trained, groups: Callable, steps: int,
            settings: Pretraining, log: Log) -> None:
    """Minimise the answers' mean NLL over packed rows that `groups(rng)` draws for each step."""
    trained = list(trained)
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    for step, update in _steps(stage, trained, steps, settings.lr):
        rng = np.random.default_rng([settings.seed, len(stage), step])
        batch = packer.pack(list(groups(rng)))
        logits = answer_logits(model, batch)
        tokens = likelihood.token_nll(logits, batch.targets)
        loss = likelihood.per_answer(tokens, batch.answers, len(batch.terms)).mean()
        update(loss)
        right = (logits.argmax(-1) == batch.targets).float().mean()
        log(stage, step, steps, loss.detach(), right)


def _steps(stage: str, parameters, steps: int, lr: float) -> Iterator[tuple[int, Callable]]:
    """(step from 1, update(loss)) with AdamW, a one-cycle schedule and gradients clipped to 1.

    Raises NotFinite at a step whose loss or gradient is not finite.
    """
    finite.check_rates({f"The learning rate of the stage {stage}": lr})
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)

    def update(loss: Tensor) -> None:
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        finite.check_numbers({"the loss": loss.item(), "the gradient's norm": norm.item()},
                             f"Pre-training, stage {stage}, step {step} of {steps}",
                             f"Try a lower learning rate than {lr:g} (lib/running/profiles.py).")
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)

    for step in range(1, steps + 1):
        yield step, update


def _telling(colours: Tensor, rng) -> Tensor:
    """What each caption of a step tells: 0 all, 1 the name; or 2, the danger, for all of them.

    colours: [pictures] bool, whether there are names for a picture's colours (else: no 0).
    """
    count = len(colours)
    drawn = np.full(count, 2) if rng.random() < DANGER else rng.integers(2, size=count)
    told = torch.from_numpy(drawn)
    return told.where(colours | (told == 2), 1)


def _draw(size: int, count: int, rng) -> Tensor:
    return torch.from_numpy(rng.choice(size, min(count, size), replace=False))


def _equal(captions: list[str]) -> Tensor:
    """A number per caption, the same for equal ones."""
    numbers = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    return torch.tensor([numbers[caption] for caption in captions])


def _in_parts(model, images: Tensor) -> Tensor:
    return torch.cat([tower_features(model, part.float()) for part in images.split(256)])


def _lots(items: list, size: int) -> list[list]:
    return [items[start : start + size] for start in range(0, len(items), size)]
