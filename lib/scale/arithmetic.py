"""Tokens -> FLOPs and bytes of a LLaVA's training and generation.

Only what has to be computed is called needed: no padding, nothing twice. A multiplication with its
addition is two FLOPs; what is not a matrix product (norms, rotations, softmax) is not counted.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from lib.scale.shapes import Shape

GIB = 2**30
MOST_ANSWERS = 256  # at once; more would hardly be faster: their cache is read for each new token


@dataclass(frozen=True)
class Row:
    """A packed row: a prefix, and questions of (tokens of their own, tokens of the answer)."""

    prefix: int
    questions: tuple[tuple[int, int], ...]
    has_image: bool

    @property
    def tokens(self) -> int:
        """Nothing follows an answer's last token, so it is never an input."""
        return self.prefix + sum(asked + answer - 1 for asked, answer in self.questions)

    @property
    def targets(self) -> int:
        return sum(answer for _, answer in self.questions)

    @property
    def pairs(self) -> int:
        """How many (token, token it sees) there are."""
        own = [asked + answer - 1 for asked, answer in self.questions]
        return _triangle(self.prefix) + sum(self.prefix * n + _triangle(n) for n in own)

    def separate(self) -> list["Row"]:
        """The same questions in rows of their own."""
        return [Row(self.prefix, (question,), self.has_image) for question in self.questions]


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


@dataclass(frozen=True)
class Training:
    """How a step is computed. Bytes are of a number: 2 bf16, 4 float32."""

    rank: int
    dropout: bool = True  # of the adapter's inputs
    bytes: int = 2
    checkpointing: bool = True
    four_bit: bool = False
    mask_bytes: int = 1  # of dropout's mask: a CPU keeps it in the activations' own numbers


# FLOPs.


def forward_flops(shape: Shape, rows: Sequence[Row], rank: int = 0) -> int:
    """One forward from cached tower features, lm_head at the targets alone; rank 0: no adapter."""
    tokens, targets = sum(row.tokens for row in rows), sum(row.targets for row in rows)
    weights = shape.layers * shape.layer_linears + shape.lora(rank)
    return (2 * weights * tokens + _attention(shape, sum(row.pairs for row in rows))
            + 2 * shape.head * targets + 2 * sum(shape.projector_linears) * _seen(shape, rows))


def backward_flops(shape: Shape, rows: Sequence[Row], rank: int) -> int:
    """To the inputs of everything, and to the weights of adapter and projector alone.

    The projector's input needs no gradient. Attention's backward is twice its forward.
    """
    tokens, targets = sum(row.tokens for row in rows), sum(row.targets for row in rows)
    weights = shape.layers * shape.layer_linears + 2 * shape.lora(rank)
    first, second = shape.projector_linears
    return (2 * weights * tokens + 2 * _attention(shape, sum(row.pairs for row in rows))
            + 2 * shape.head * targets + 2 * (first + 2 * second) * _seen(shape, rows))


def recomputed_flops(shape: Shape, rows: Sequence[Row], rank: int) -> int:
    """What gradient checkpointing computes a second time: every layer's forward."""
    weights = shape.layers * shape.layer_linears + shape.lora(rank)
    return (2 * weights * sum(row.tokens for row in rows)
            + _attention(shape, sum(row.pairs for row in rows)))


def tower_flops(shape: Shape, pictures: int) -> int:
    """The vision tower on so many pictures: every patch sees every other, and CLS."""
    seen = shape.patches + 1
    patching = 2 * 3 * shape.patch_size**2 * shape.tower_hidden * shape.patches
    attention = 4 * shape.tower_hidden * seen**2 * shape.tower_layers
    return pictures * (2 * shape.tower_linears * seen + attention + patching)


def generation_flops(shape: Shape, prompt: int, new: int) -> tuple[int, int]:
    """(prompt's, new tokens') FLOPs of one answer with a key-value cache and a merged adapter."""
    weights = shape.layers * shape.layer_linears
    reading = (2 * weights * prompt + _attention(shape, _triangle(prompt)) + 2 * shape.head
               + 2 * sum(shape.projector_linears) * shape.image_tokens)
    pairs = _triangle(prompt + new - 1) - _triangle(prompt)
    return reading, 2 * (weights + shape.head) * (new - 1) + _attention(shape, pairs)


def _attention(shape: Shape, pairs: int) -> int:
    """Scores and weighted values: each of a pair costs two products of a head's width per head."""
    return 4 * shape.hidden * pairs * shape.layers


def _seen(shape: Shape, rows: Sequence[Row]) -> int:
    return shape.image_tokens * sum(row.has_image for row in rows)


# Bytes on the GPU.


def weight_bytes(shape: Shape, bytes: int = 2, four_bit: bool = False) -> int:
    """The frozen model. NF4 with double quantisation takes 4.127 bits of a language linear."""
    linears = shape.layers * shape.layer_linears
    return round(bytes * (shape.parameters - linears) + linears * (4.127 / 8 if four_bit
                                                                   else bytes))


def trained(shape: Shape, rank: int) -> int:
    """Parameters that are trained: the adapter's, and a copy of the projector."""
    return shape.lora(rank) + shape.projector


def optimizer_bytes(shape: Shape, rank: int, bytes: int = 2) -> int:
    """Trained weights with their gradients, and AdamW's two moments, in float32.

    In a bf16 model the weights and gradients that compute are bf16, beside float32 copies of both.
    """
    return trained(shape, rank) * (16 + (2 * bytes if bytes < 4 else 0))


def layer_bytes(shape: Shape, how: Training) -> int:
    """What one language layer keeps of one token for its backward (checked by saved tensors).

    Through FlexAttention. With a dense mask each layer keeps that as well, in the model's numbers:
    `bytes` for every pair of tokens of a padded row.
    """
    h, kv, i, b = shape.hidden, shape.key_value, shape.intermediate, how.bytes
    norms = 2 * 4 * h + 2 * 4  # their inputs in float32, and one over the root mean square
    attention = b * (2 * h + 2 * kv) + 4 * shape.heads  # queries, keys, values, result, log-sum
    mlp = b * 3 * i  # gate, its SiLU, up
    inputs = sum(inputs for inputs, _ in shape.linears.values())
    # Without dropout q, k, v share one input and gate, up another; o's is attention's.
    adapter = (b + how.mask_bytes) * inputs if how.dropout else b * (2 * h + i)
    return norms + attention + mlp + adapter + b * len(shape.linears) * how.rank


def activation_bytes(shape: Shape, rows: Sequence[Row], how: Training) -> int:
    """The most that is kept for the backward of one forward over these rows.

    With checkpointing every layer's input, and one layer whole while it is computed again. During
    the backward two gradients of the widest activation are there as well.
    """
    tokens, one = sum(row.tokens for row in rows), layer_bytes(shape, how)
    layers = (shape.layers * how.bytes * shape.hidden + one if how.checkpointing
              else shape.layers * one)
    return tokens * (layers + 2 * how.bytes * shape.intermediate)


def logit_bytes(shape: Shape, targets: int, bytes: int = 2) -> int:
    """Logits and their gradient, and in float32 a copy, its log-softmax and their gradient."""
    return targets * shape.vocabulary * (2 * bytes + 3 * 4)


def training_bytes(shape: Shape, rows: Sequence[Row], how: Training) -> int:
    """The peak of a training step whose largest forward is over these rows."""
    return (weight_bytes(shape, how.bytes, how.four_bit)
            + optimizer_bytes(shape, how.rank, how.bytes) + activation_bytes(shape, rows, how)
            + logit_bytes(shape, sum(row.targets for row in rows), how.bytes))


def cache_bytes(shape: Shape, tokens: int, bytes: int = 2) -> int:
    """Keys and values of so many tokens."""
    return 2 * bytes * shape.layers * shape.key_value * tokens


def generation_bytes(shape: Shape, batch: int, prompt: int, new: int, bytes: int = 2,
                     four_bit: bool = False) -> int:
    """The peak of `batch` answers at once: weights, cache, and the larger of two passing peaks.

    One passes when the prompts are read (a layer's widest activations), the other when a layer's
    cache grows and its old copy is still there.
    """
    reading = batch * prompt * bytes * (4 * shape.hidden + 3 * shape.intermediate)
    growing = cache_bytes(shape, batch * (prompt + new), bytes) // shape.layers
    return (weight_bytes(shape, bytes, four_bit) + cache_bytes(shape, batch * (prompt + new), bytes)
            + max(reading, growing) + batch * shape.vocabulary * 3 * 4)


def answers_at_once(shape: Shape, room: float, prompt: int, new: int, bytes: int = 2) -> int:
    """The most answers, at least 1 and at most MOST_ANSWERS, that `room` bytes beside the weights
    hold: `prompt` tokens each, and up to `new` new ones."""
    weights = weight_bytes(shape, bytes)
    fitting = bisect_right(range(1, MOST_ANSWERS + 1), room, key=lambda count: (
        generation_bytes(shape, count, prompt, new, bytes) - weights))
    return max(1, fitting)


# Bytes on the disk.


def feature_bytes(shape: Shape, pictures: int, bytes: int = 2) -> int:
    """The tower's features of so many pictures, as the projector takes them."""
    return bytes * pictures * shape.image_tokens * shape.tower_hidden


def checkpoint_bytes(shape: Shape, rank: int) -> int:
    """Weights and both moments in float32; twice, while a new one replaces an old one."""
    return 2 * 12 * trained(shape, rank)
