"""The settings of one unlearning run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Unlearning:
    """One unlearning run. Official values where they carry over: rank, warm-up, clip, weight decay.

    Learning rate, alpha and the number of steps belong to a model of 2 M parameters; they were
    chosen on a tuning world (docs/settings.md). What is None or 0 below is off, and then
    no part of a result's name in the run store.
    """

    steps: int = 400
    images: int = 6  # harmful pictures per step, and as many safe ones
    queries: int = 2  # per picture and step, of its four; and as many of its four retain pairs
    lr: float = 2e-3
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip: float = 1.0
    lora_rank: int = 32
    lora_alpha: int = 64
    probe_every: int = 50
    checkpoint_every: int = 100
    epochs: float | None = None  # passes over the training records, instead of `steps`
    lora_dropout: float = 0.0
    max_answer_tokens: int | None = None  # a longer answer is cut there, and then has no end

    def steps_for(self, records: int) -> int:
        """The number of optimizer steps with so many training records."""
        return self.steps if self.epochs is None else round(self.epochs * records / self.images)
