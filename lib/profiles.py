"""The one dial: a profile fixes the world, the model, the training, the runs and the gates.

`get("laptop")` is what the notebooks and the figures in the repository show. `smoke` walks the same
path in three minutes with too little training to show anything; its claims are not judged.
"""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class World:
    """IconWorld's size; pictures of both splits come from disjoint colours and backgrounds."""

    seed: int = 0
    train_per_category: int = 120
    val_per_category: int = 16
    specificity_pictures: int = 96


@dataclass(frozen=True)
class Architecture:
    """Sizes of the small LLaVA: vision tower (CLIP) and language model (Llama)."""

    image_size: int = 64
    patch_size: int = 16
    hidden: int = 128
    tower_layers: int = 4
    language_layers: int = 4
    heads: int = 4
    intermediate: int = 352


@dataclass(frozen=True)
class Pretraining:
    """Pictures and steps of each stage (chapter 00); `lr` is the peak of a one-cycle schedule."""

    seed: int = 0
    pictures: int = 33600
    contrastive_steps: int = 1000
    contrastive_batch: int = 128
    contrastive_lr: float = 2e-3
    language_steps: int = 150
    alignment_steps: int = 100
    instruction_steps: int = 2500
    batch: int = 16
    lr: float = 2e-3


@dataclass(frozen=True)
class Gate:
    """What the base model must reach on val before anything is unlearned (rates, 0 to 1)."""

    asr: float = 0.95
    exact_match: float = 0.95
    sarr: float = 0.03
    specificity: float = 0.95


@dataclass(frozen=True)
class Unlearning:
    """One unlearning run. Official values where they carry over: rank, warm-up, clip, weight decay.

    Learning rate, alpha and the number of steps belong to a model of 2 M parameters; they were
    chosen on a tuning world (README, "Hyper-parameters").
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


@dataclass(frozen=True)
class Evaluation:
    """How answers are generated; three samples as in the paper."""

    train_records: int = 8  # per category, the first ones: efficacy
    max_new_tokens: int = 20
    batch: int = 128
    samples: int = 3
    temperature: float = 1.0
    top_p: float = 0.9


@dataclass(frozen=True)
class Profile:
    """Everything that determines the results of `runs/<name>/`."""

    name: str
    strict: bool  # whether the gate and the claims are judged
    seeds: tuple[int, ...] = (1, 2, 3)
    sweep_weights: tuple[float, ...] = (0.3, 3.0)  # of PD, beside 0 and the official 1
    world: World = World()
    architecture: Architecture = Architecture()
    pretraining: Pretraining = Pretraining()
    gate: Gate = Gate()
    unlearning: Unlearning = Unlearning()
    evaluation: Evaluation = Evaluation()
    base_minutes: float = 12  # expected on two cores, for the plan
    run_minutes: float = 1.8  # of one unlearning run on one core

    def asdict(self) -> dict:
        """The profile as plain dicts, for configs that JSON holds."""
        return asdict(self)


LAPTOP = Profile("laptop", strict=True)
SMOKE = Profile(
    "smoke",
    strict=False,
    seeds=(1, 2),
    sweep_weights=(0.3,),
    world=World(train_per_category=6, val_per_category=2, specificity_pictures=12),
    architecture=Architecture(tower_layers=2, language_layers=2, hidden=64, intermediate=128),
    pretraining=Pretraining(pictures=252, contrastive_steps=30, contrastive_batch=64,
                            language_steps=30, alignment_steps=10, instruction_steps=60),
    unlearning=Unlearning(steps=12, images=4, probe_every=6, checkpoint_every=6),
    evaluation=Evaluation(train_records=2, samples=1),
    base_minutes=0.4,
    run_minutes=0.1,
)
PROFILES = {profile.name: profile for profile in (SMOKE, LAPTOP)}


def get(name: str) -> Profile:
    """Return the profile of this name; ValueError lists the known ones."""
    if name not in PROFILES:
        raise ValueError(f"There is no profile {name!r}; known: {', '.join(PROFILES)}.")
    return PROFILES[name]
