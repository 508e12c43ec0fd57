"""One unlearning run: LoRA and projector trained on a method's row of weights, resumable.

Which pictures, wordings and refusals a step sees follows from (seed, step) alone, so a run that was
killed goes on from its checkpoint exactly as if it had not been. A step's rows go through the model
in as many lots as its memory asks for; the gradient is that of the whole step.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

from lib.base import checkpoints
from lib.base.extras import scale
from lib.data.dataset import Dataset
from lib.data.overlap import examples
from lib.model import finite
from lib.model.llava import add_lora, checkpoint_layers, llava
from lib.model.packing import Batch, Group, Packer, answer_logits
from lib.model.settings import CPU, Runtime
from lib.unlearning import terms
from lib.unlearning.settings import Unlearning
from lib.unlearning.steps import chosen, groups, lots, shares
from lib.unlearning.terms import TERMS, Said

WATCHED = ("forget", "refusal", "retain", "kl", "prompt_decouple")  # by probes, in all runs


@dataclass(frozen=True)
class Task:
    """What one run is to do: `row` holds the weights of the loss's terms, `start` is the folder of
    the adapter from which it goes on, if it does."""

    row: Mapping[str, float]
    seed: int
    settings: Unlearning
    runtime: Runtime = CPU
    official_quirks: bool = False
    start: Path | None = None


def unlearn(model, packer: Packer, dataset: Dataset, task: Task, checkpoint: Path,
            probe: Callable[[object], dict] = lambda model: {},
            report: Callable[[str], None] = lambda text: None) -> tuple:
    """Train on `task`, from `checkpoint` if a run was interrupted there.

    Returns (model with adapter, history: one row per step with loss, gradient norm and every term
    of the loss, probes: rows of `probe(model)` and of the other terms, every `probe_every` steps).
    Raises finite.NotFinite at the step whose loss, gradient or weights are not finite.
    """
    finite.check_rates({"lr": task.settings.lr, "clip": task.settings.clip})
    steps = task.settings.steps_for(len(dataset.train))
    task = replace(task, settings=replace(task.settings, steps=steps, epochs=None))
    model = prepared(model, task)
    if task.runtime.attention == "auto":
        report(scale("attention").choose(model))
    run = _Run(model, task)
    run.resume(checkpoint)
    while run.step < steps:
        if run.step % task.settings.probe_every == 0:
            run.probe(packer, dataset, probe)
        try:
            found = run.collect(packer, dataset)
        except torch.OutOfMemoryError:  # with fewer rows per forward it can go on from here
            run.save(checkpoint)
            raise
        run.update(found)
        if run.step % task.settings.checkpoint_every == 0 and run.step < steps:
            run.save(checkpoint)
        report(f"step {run.step} of {steps}")
    run.probe(packer, dataset, probe)
    return model.eval(), run.history, run.probes


def prepared(model, task: Task):
    """The model as a run begins with it: with LoRA drawn from its seed, or trained before."""
    torch.manual_seed(task.seed)
    model = add_lora(model, task.settings)
    if task.start is not None:
        take_adapter(model, task.start)
    if task.runtime.gradient_checkpointing:
        checkpoint_layers(llava(model))
    return model


def take_adapter(model, folder: Path) -> None:
    """Give the model's fresh adapter a trained one's weights; ValueError if they do not fit."""
    stored = load_file(folder / "adapter_model.safetensors")
    if get_peft_model_state_dict(model).keys() != stored.keys():
        raise ValueError(f"The adapter in {folder} has other parts than this run trains.")
    set_peft_model_state_dict(model, stored)


class _Run:
    """A run's state between two steps."""

    def __init__(self, model, task: Task):
        self.model, self.task = model, task
        self.step, self.history, self.probes = 0, [], []
        self.model_parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        # A step of 1e-4 is lost in bfloat16's three digits, so AdamW works on float32 copies.
        self.trained = {n: p if p.dtype == torch.float32 else p.detach().float().requires_grad_()
                        for n, p in self.model_parameters.items()}
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=task.settings.lr,
                                           weight_decay=task.settings.weight_decay)

    def collect(self, packer: Packer, dataset: Dataset) -> dict[str, float]:
        """The gradient of one step, a lot at a time; every term and the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(1_000_003 * self.task.seed + self.step)  # of LoRA's dropout
        self.model.train()
        parts = lots(step_rows(dataset, self.task, self.step), self.task.runtime.micro_batch)
        found: Counter[str] = Counter()
        for lot, share in zip(parts, shares(packer, parts, self.task.official_quirks), strict=True):
            values = said_of(self.model, packer, lot, self.task.row, self.task.official_quirks)
            row = {name: weight * share[name] for name, weight in self.task.row.items()
                   if name in values}
            loss = terms.total(values, row)
            loss.backward()
            self._take_gradients()
            found.update({"loss": loss.item()} | {name: value.item() * share[name]
                                                  for name, value in values.items()})
        finite.check_numbers(found, self._where(), self._advice())
        return dict(found)

    def update(self, found: dict[str, float]) -> None:
        """One step of the optimizer; its row of history."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.task.settings)
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), self.task.settings.clip).item()
        finite.check_numbers({"the gradient's norm": norm}, self._where(), self._advice())
        self.optimizer.step()
        self._hand_out()
        self.step += 1
        self.check_weights()
        self.history.append({"step": self.step, "gradient_norm": norm, **found})

    def check_weights(self) -> None:
        """Raise NotFinite if the step's weights are not finite, in the numbers of the model."""
        finite.check_tensors(self.model_parameters.items(),
                             f"The weights after step {self.step} of {self.task.settings.steps}",
                             self._advice())

    def _where(self) -> str:
        return f"Step {self.step + 1} of {self.task.settings.steps}, on training records"

    def _advice(self) -> str:
        in_float16 = llava(self.model).dtype == torch.float16
        return ("The run stops here, and no such step is kept. Try"
                f"{' bfloat16 instead of float16,' * in_float16} a lower lr than "
                f"{self.task.settings.lr:g} or a longer warmup (lib/running/profiles.py).")

    def _take_gradients(self) -> None:
        """Add the model's gradients to those of the float32 copies, where there are copies."""
        for name, copy in self.trained.items():
            parameter = self.model_parameters[name]
            if copy is not parameter and parameter.grad is not None:
                gradient = parameter.grad.float()
                copy.grad = gradient if copy.grad is None else copy.grad + gradient
                parameter.grad = None

    @torch.no_grad()
    def _hand_out(self) -> None:
        """Give the model what the float32 copies are now."""
        for name, copy in self.trained.items():
            if copy is not self.model_parameters[name]:
                self.model_parameters[name].copy_(copy)

    @torch.no_grad()
    def probe(self, packer: Packer, dataset: Dataset, ask: Callable[[object], dict]) -> None:
        """A look from outside: `ask(model)`, and every term, in the loss or not, on val.

        On held-out records, if there are any (`overlap.examples`).
        """
        if self.probes and self.probes[-1]["step"] == self.step:
            return
        records = examples(dataset)
        records = records[:: max(1, len(records) // self.task.settings.images)]
        rng = np.random.default_rng([self.task.seed, 2])
        everything = groups(records, dataset.refusals, WATCHED, rng)
        self.model.eval()
        values = measured(self.model, packer, everything, WATCHED, self.task)
        found = {name: values[name].item() for name in WATCHED}
        finite.check_numbers(found, f"After {self.step} steps, on records of val", self._advice())
        self.probes.append({"step": self.step, **ask(self.model), **found})

    def save(self, folder: Path) -> None:
        """Add a checkpoint to `folder`."""
        checkpoints.save(folder, self.step, {"history": self.history, "probes": self.probes},
                         self.trained, self.optimizer)

    def resume(self, folder: Path) -> None:
        """Go on from the newest checkpoint in `folder` that is whole, if there is one."""
        if state := checkpoints.resume(folder, self.trained, self.optimizer):
            self.step, self.history, self.probes = (
                state[name] for name in ("step", "history", "probes"))
            self._hand_out()


def step_rows(dataset: Dataset, task: Task, step: int) -> list[Group]:
    """What one step of a run sees."""
    rng = np.random.default_rng([task.seed, 1, step])
    records = chosen(dataset.train, task.settings.images, task.seed, step)
    if not task.official_quirks:
        return groups(records, dataset.refusals, task.row, rng, task.settings.queries)
    quirks = scale("quirks")
    others = quirks.partners(records, dataset.train, rng)
    parts = [groups(of, dataset.refusals, row, rng, task.settings.queries)
             for of, row in zip((records, others), quirks.sides(task.row), strict=True)]
    return quirks.capitalized([*parts[0], *parts[1]])


@torch.no_grad()
def measured(model, packer: Packer, rows: Sequence[Group], names: Iterable[str],
             task: Task) -> dict[str, Tensor]:
    """`said_of` all rows together, in as many forwards as the run's memory asks for."""
    parts, found = lots(rows, task.runtime.micro_batch), {}
    for lot, share in zip(parts, shares(packer, parts, task.official_quirks), strict=True):
        values = said_of(model, packer, lot, names, task.official_quirks)
        found |= {name: found.get(name, 0) + share[name] * values[name] for name in values}
    return found


def said_of(model, packer: Packer, rows: Sequence[Group], names: Iterable[str],
            official_quirks: bool = False) -> dict[str, Tensor]:
    """Every term of the loss that the rows hold answers for, in one forward: name -> scalar.

    Of the terms that need the original model only those in `names`: each is half a forward more.
    """
    batch = packer.pack(rows)
    said = Said(answer_logits(model, batch), batch.targets, batch.answers, batch.terms)
    found = terms.from_logits(said, names)
    for term in (TERMS[name] for name in names if TERMS[name].needs_original):
        if not set(term.reads).intersection(said.kinds):
            continue
        part = _only(packer, rows, term.reads)
        found[term.name] = (
            scale("quirks").kl_everywhere(model, part) if official_quirks and term.name == "kl" else
            term.value(_beside_original(model, part, said.logits[said.of(term.reads)])))
    return found


def _only(packer: Packer, rows: Sequence[Group], kinds: Sequence[str]) -> Batch:
    """The rows with these kinds of answers alone."""
    kept = [Group(row.image, tuple(e for e in row.examples if e.term in kinds)) for row in rows]
    return packer.pack([row for row in kept if row.examples])


def _beside_original(model, part: Batch, logits: Tensor) -> Said:
    """What the model said, with what it said before: with adapter and projector switched back."""
    with torch.no_grad(), model.disable_adapter():
        original = answer_logits(model, part)
    return Said(logits, part.targets, part.answers, part.terms, original)


def learning_rate(step: int, settings: Unlearning) -> float:
    """Linear warm-up, then half a cosine to zero, as `get_cosine_schedule_with_warmup`."""
    warm = max(1, round(settings.warmup * settings.steps))
    if step < warm:
        return settings.lr * step / warm
    done = (step - warm) / max(1, settings.steps - warm)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * done))
