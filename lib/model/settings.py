"""The settings of a model: its sizes, its training, where it computes, how it answers."""

from dataclasses import dataclass

AUTO_DTYPE = "SAFEERASER_AUTO_DTYPE"  # set where other machines make the runs: what "auto" is there


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
class Evaluation:
    """How answers are generated; three samples as in the paper."""

    train_records: int | None = 8  # per category, the first ones (None: all): efficacy
    max_new_tokens: int = 20
    batch: int | None = 128  # answers at once; None: as many as the GPU has room for
    samples: int = 3
    temperature: float = 1.0
    top_p: float = 0.9


@dataclass(frozen=True)
class Runtime:
    """Where and how a model computes.

    Only `dtype` and `four_bit` are part of a result's name: the rest may be changed in the middle,
    say after running out of memory, and what is finished stays.
    """

    device: str = "cpu"  # or "cuda", or "auto": the GPU if there is one
    dtype: str = "float32"  # or "bfloat16", or "auto": bfloat16 on a GPU, float32 on a CPU
    attention: str = "sdpa"  # or "auto": on a GPU FlexAttention for packed rows, where it is right
    gradient_checkpointing: bool = False
    four_bit: bool = False  # the frozen weights in NF4 (QLoRA): a quarter of the memory
    micro_batch: int | None = None  # pictures (rows) per forward in training; None: a step's all
    stored_features: bool = False  # the tower's features on disk, or in memory


CPU = Runtime()
