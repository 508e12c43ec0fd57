"""The sizes of a LLaVA and what follows from them: how many parameters are where.

The two released models' sizes are written down here, so that a plan needs no download; those of any
other model are read from its config.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Shape:
    """Sizes of language model (Llama), projector and vision tower (CLIP), in their configs' words.

    Every count is of parameters unless it says otherwise.
    """

    name: str
    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    intermediate: int
    vocabulary: int
    tower_hidden: int
    tower_layers: int
    tower_intermediate: int
    image_size: int
    patch_size: int
    drops_cls: bool  # "default" selection: the CLS token goes no further than the tower

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def image_tokens(self) -> int:
        """Tokens that a picture takes in the language model."""
        return self.patches + (not self.drops_cls)

    @property
    def key_value(self) -> int:
        """Width of a token's keys, and of its values."""
        return self.hidden // self.heads * self.key_value_heads

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(input, output) width of each linear of one language layer; LoRA is on all of them."""
        h, kv, i = self.hidden, self.key_value, self.intermediate
        return {"q": (h, h), "k": (h, kv), "v": (h, kv), "o": (h, h),
                "gate": (h, i), "up": (h, i), "down": (i, h)}

    @property
    def layer_linears(self) -> int:
        """The weights of one language layer that multiply every token."""
        return sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def language(self) -> int:
        """The language model with embeddings, without lm_head."""
        norms = 2 * self.hidden * self.layers + self.hidden
        return self.layers * self.layer_linears + norms + self.vocabulary * self.hidden

    @property
    def head(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def projector_linears(self) -> tuple[int, int]:
        """The weights of the projector's two linears, without their biases."""
        return self.tower_hidden * self.hidden, self.hidden**2

    @property
    def projector(self) -> int:
        return sum(self.projector_linears) + 2 * self.hidden

    @property
    def tower_linears(self) -> int:
        """The weights of the tower's layers that multiply every patch, without biases."""
        return self.tower_layers * self.tower_hidden * (
            4 * self.tower_hidden + 2 * self.tower_intermediate)

    @property
    def tower(self) -> int:
        width, inner = self.tower_hidden, self.tower_intermediate
        biases_and_norms = self.tower_layers * (4 * width + inner + width + 4 * width)
        embeddings = 3 * self.patch_size**2 * width + (self.patches + 1) * width + width
        return self.tower_linears + biases_and_norms + embeddings + 4 * width  # two outer norms

    @property
    def parameters(self) -> int:
        """The whole model."""
        return self.language + self.head + self.projector + self.tower

    def lora(self, rank: int) -> int:
        """An adapter's matrices on all linears of the language model."""
        return self.layers * rank * sum(a + b for a, b in self.linears.values())


# What AutoConfig gives for llava-hf/llava-1.5-7b-hf and -13b-hf. The vocabulary is Vicuna's 32,000,
# the image token and padding to a multiple of 64.
_TOWER = {"tower_hidden": 1024, "tower_layers": 24, "tower_intermediate": 4096, "image_size": 336,
          "patch_size": 14, "drops_cls": True}
RELEASED = {
    "llava-1.5-7b": Shape("LLaVA-1.5-7B", 4096, 32, 32, 32, 11008, 32064, **_TOWER),
    "llava-1.5-13b": Shape("LLaVA-1.5-13B", 5120, 40, 40, 40, 13824, 32064, **_TOWER),
}


def of(model: str) -> Shape:
    """The sizes of a model, by its folder or hub name.

    Raises ValueError for a hub name that is not among those written down here.
    """
    if (Path(model) / "config.json").exists():
        from transformers import AutoConfig

        return from_config(AutoConfig.from_pretrained(model, trust_remote_code=False), str(model))
    for name, shape in RELEASED.items():
        if name in str(model).lower():
            return shape
    raise ValueError(f"The sizes of {model!r} are not known before it is downloaded: give the "
                     f"folder that it is in. Known without: {', '.join(RELEASED)}.")


def from_config(config, name: str = "") -> Shape:
    """The sizes in a LlavaConfig with a Llama and a CLIP tower."""
    text, vision = config.text_config, config.vision_config
    return Shape(name, text.hidden_size, text.num_hidden_layers, text.num_attention_heads,
                 text.num_key_value_heads, text.intermediate_size, text.vocab_size,
                 vision.hidden_size, vision.num_hidden_layers, vision.intermediate_size,
                 vision.image_size, vision.patch_size,
                 config.vision_feature_select_strategy == "default")
