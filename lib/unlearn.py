"""One unlearning run: LoRA and projector trained on a method's row of weights, resumable.

Which pictures, wordings and refusals a step sees follows from (seed, step) alone, so a run that was
killed goes on from its checkpoint exactly as if it had not been.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib import losses
from lib.batching import Batch, Example, Group, Packer, answer_logits
from lib.dataset import Dataset, Record
from lib.model import add_lora
from lib.profiles import Unlearning
from lib.runs import write_json

WATCHED = ("forget", "refusal", "retain", "kl", "prompt_decouple")


@dataclass(frozen=True)
class Task:
    """What one run is to do: `row` holds the weights of the loss's terms."""

    row: Mapping[str, float]
    seed: int
    settings: Unlearning


def unlearn(model, packer: Packer, dataset: Dataset, task: Task, checkpoint: Path,
            probe: Callable[[object], dict] = lambda model: {},
            report: Callable[[str], None] = lambda text: None) -> tuple:
    """Train on `task`, from `checkpoint` if a run was interrupted there.

    Returns (model with adapter, history: one row per step with loss, gradient norm and every term
    of the loss, probes: rows of `probe(model)` and of the other terms, every `probe_every` steps).
    """
    torch.manual_seed(task.seed)
    model = add_lora(model, task.settings)
    run = _Run(model, task)
    run.resume(checkpoint)
    steps = task.settings.steps
    while run.step < steps:
        if run.step % task.settings.probe_every == 0:
            run.probe(packer, dataset, probe)
        run.advance(packer, dataset)
        if run.step % task.settings.checkpoint_every == 0 and run.step < steps:
            run.save(checkpoint)
        report(f"step {run.step} of {steps}")
    run.probe(packer, dataset, probe)
    return model.eval(), run.history, run.probes


class _Run:
    """A run's state between two steps."""

    def __init__(self, model, task: Task):
        self.model, self.task = model, task
        self.step, self.history, self.probes = 0, [], []
        self.trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=task.settings.lr,
                                           weight_decay=task.settings.weight_decay)

    def advance(self, packer: Packer, dataset: Dataset) -> None:
        """One step of the optimizer; its row of history."""
        records = chosen(dataset.train, self.task.settings.images, self.task.seed, self.step)
        rng = np.random.default_rng([self.task.seed, 1, self.step])
        rows = groups(records, dataset.refusals, self.task.row, rng, self.task.settings.queries)
        found = terms(self.model, packer, rows, "kl" in self.task.row)
        loss = losses.total(found, self.task.row)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.task.settings)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), self.task.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.history.append({"step": self.step, "loss": loss.item(), "gradient_norm": norm.item(),
                             **{name: value.item() for name, value in found.items()}})

    @torch.no_grad()
    def probe(self, packer: Packer, dataset: Dataset, ask: Callable[[object], dict]) -> None:
        """A look from outside: `ask(model)`, and every term, in the loss or not, on val."""
        if self.probes and self.probes[-1]["step"] == self.step:
            return
        records = dataset.val[:: max(1, len(dataset.val) // self.task.settings.images)]
        rng = np.random.default_rng([self.task.seed, 2])
        everything = groups(records, dataset.refusals, dict.fromkeys(WATCHED, 1.0), rng)
        found = terms(self.model, packer, everything, True)
        self.probes.append({"step": self.step, **ask(self.model),
                            **{name: found[name].item() for name in WATCHED}})

    def save(self, folder: Path) -> None:
        """Replace the checkpoint in `folder` in one go."""
        fresh = folder / "next"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        save_file({name: p.detach().contiguous() for name, p in self.trained.items()},
                  fresh / "weights.safetensors")
        save_file({f"{name}/{kind}": value for name, p in self.trained.items()
                   for kind, value in self.optimizer.state[p].items()},
                  fresh / "optimizer.safetensors")
        write_json(fresh / "state.json", {"step": self.step, "history": self.history,
                                          "probes": self.probes})
        fresh.rename(folder / f"step-{self.step:08d}")
        for older in sorted(folder.glob("step-*"))[:-1]:
            shutil.rmtree(older)

    def resume(self, folder: Path) -> None:
        """Go on from the newest checkpoint in `folder`, if there is one."""
        saved = sorted(folder.glob("step-*"))
        if not saved:
            return
        weights = load_file(saved[-1] / "weights.safetensors")
        moments = load_file(saved[-1] / "optimizer.safetensors")
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(weights[name])
                self.optimizer.state[parameter] = {
                    key.rpartition("/")[2]: value for key, value in moments.items()
                    if key.rpartition("/")[0] == name}
        state = json.loads((saved[-1] / "state.json").read_text(encoding="utf-8"))
        self.step, self.history, self.probes = state["step"], state["history"], state["probes"]


def chosen(records: Sequence[Record], count: int, seed: int, step: int) -> list[Record]:
    """The records of one step: each once per epoch, in an order that follows from the seed."""
    places = range(step * count, (step + 1) * count)
    orders = {epoch: np.random.default_rng([seed, 0, epoch]).permutation(len(records))
              for epoch in {place // len(records) for place in places}}
    return [records[orders[place // len(records)][place % len(records)]] for place in places]


def groups(records: Sequence[Record], refusals: Sequence[str], row: Mapping[str, float],
           rng, queries: int | None = None) -> list[Group]:
    """The rows of one step: per record its harmful and its safe picture, and all texts together.

    Only what a term of `row` asks for. Of a record's four queries and of its four retain pairs so
    many are drawn, the same queries for both pictures (None: all). The official code draws a retain
    item and a PD item of other records (data_module.py:153); here all are of the same record.
    """
    keeps = {"retain", "kl", "refusal_and_retain"} & set(row)
    found, texts = [], []
    # All draws before any refusal: so the methods see the same pairs.
    drawn = [(_some(record.unsafe_pairs, queries, rng),
              _some([*record.text_pairs, *record.image_pairs], queries, rng)) for record in records]
    for record, (asked, kept) in zip(records, drawn, strict=True):
        sets, harmful = record.sets(), []
        for pair in (sets["forget"][1][i] for i in asked):
            if "forget" in row:
                harmful.append(Example("forget", pair.question, pair.answer))
            if {"refusal", "refusal_and_retain"} & set(row):
                refusal = refusals[rng.integers(len(refusals))]
                harmful.append(Example("refusal", pair.question, refusal))
        if keeps:
            pairs = [*sets["retain text"][1], *sets["retain image"][1]]
            count = len(sets["retain text"][1])
            texts += _examples("retain", [pairs[i] for i in kept if i < count])
            harmful += _examples("retain", [pairs[i] for i in kept if i >= count])
        if harmful:
            found.append(Group(record.image, tuple(harmful)))
        if "prompt_decouple" in row:
            pairs = sets["prompt decouple"][1]
            safe = _examples("prompt_decouple", [pairs[i] for i in asked])
            found.append(Group(record.safe_image, tuple(safe)))
    # Texts in rows about as long as the pictures' rows, so that little is padding.
    return found + [Group(None, tuple(texts[i : i + 8])) for i in range(0, len(texts), 8)]


def _some(items: Sequence, count: int | None, rng) -> list[int]:
    """Places of `count` of the items, in order."""
    return sorted(rng.permutation(len(items))[:count])


def _examples(term: str, pairs: Sequence) -> list[Example]:
    return [Example(term, pair.question, pair.answer) for pair in pairs]


def terms(model, packer: Packer, rows: Sequence[Group], with_kl: bool) -> dict[str, Tensor]:
    """Every term of the loss that the rows hold answers for, in one forward (KL: and a half)."""
    batch = packer.pack(rows)
    logits = answer_logits(model, batch)
    found = losses.nll_terms(logits, batch.targets, batch.answers, batch.terms)
    if with_kl:
        found["kl"] = _kl(model, packer, rows, batch, logits)
    return found


def _kl(model, packer: Packer, rows: Sequence[Group], batch: Batch, logits: Tensor) -> Tensor:
    """KL on the retain answers, to the same model with adapter and projector switched back."""
    kept = [Group(row.image, tuple(e for e in row.examples if e.term == "retain")) for row in rows]
    retain = packer.pack([row for row in kept if row.examples])
    with torch.no_grad(), model.disable_adapter():
        original = answer_logits(model, retain)
    ours = torch.tensor([term == "retain" for term in batch.terms])[batch.answers]
    return losses.kl(original, logits[ours], retain.answers, len(retain.terms))


def learning_rate(step: int, settings: Unlearning) -> float:
    """Linear warm-up, then half a cosine to zero, as `get_cosine_schedule_with_warmup`."""
    warm = max(1, round(settings.warmup * settings.steps))
    if step < warm:
        return settings.lr * step / warm
    done = (step - warm) / max(1, settings.steps - warm)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * done))
