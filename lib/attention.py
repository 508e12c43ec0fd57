"""Attention over packed rows in which what no token sees is not computed (FlexAttention).

A dense mask of a row holds length² entries, and all of them are computed, whether seen or not. A
GPU can skip them by blocks. `skip_blocks(model)` asks for that: from then on `answer_logits` hands
the language model a BlockMask, and all other forwards (generation, the tower) stay with sdpa. A CPU
cannot take gradients through FlexAttention, so there the dense form is the only one.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lib.model import llava

NAME = "sdpa_or_blocks"
BLOCK = 128  # tokens per side of a block, FlexAttention's default


def skip_blocks(model) -> None:
    """Let packed rows go through FlexAttention from now on."""
    llava(model).set_attn_implementation({"text_config": NAME})


def skips_blocks(model) -> bool:
    """Whether `skip_blocks` was called on the model."""
    return llava(model).config.text_config._attn_implementation == NAME


def block_mask(segments: Tensor, documents: Tensor) -> BlockMask:
    """Which token sees which, by blocks; the rule is that of `Batch.mask`.

    segments, documents: [rows, length] as in `batching.Batch`.
    """

    def sees(row: Tensor, head: Tensor, token: Tensor, other: Tensor) -> Tensor:
        mine, theirs = segments[row, token], segments[row, other]
        together = documents[row, token] == documents[row, other]
        return together & ((theirs == mine) | (theirs == 0) & (mine > 0)) & (other <= token)

    rows, length = segments.shape
    return create_block_mask(sees, rows, None, length, length, device=segments.device)


def attend(module, query: Tensor, key: Tensor, value: Tensor, attention_mask, scaling=None,
           dropout: float = 0.0, **options) -> tuple[Tensor, None]:
    """FlexAttention where the mask is a BlockMask, sdpa where it is anything else.

    query, key, value: [rows, heads, length, head size] -> [rows, length, heads, head size].
    """
    if not isinstance(attention_mask, BlockMask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout,
                                      scaling=scaling, **options)
    seen = _compiled()(query, key, value, block_mask=attention_mask, scale=scaling,
                       enable_gqa=key.shape[1] != query.shape[1])
    return seen.transpose(1, 2).contiguous(), None


@cache
def _compiled():
    """Uncompiled, it would write out every score."""
    return torch.compile(flex_attention)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)  # for forwards that bring no mask of their own
