"""Attention over packed rows in which what no token sees is not computed (FlexAttention).

A dense mask of a row holds length² entries, and all of them are computed, whether seen or not. A
GPU can skip them by blocks. `skip_blocks(model)` asks for that: from then on `answer_logits` hands
the language model a BlockMask, and all other forwards (generation, the tower) stay with sdpa. A CPU
cannot take gradients through FlexAttention, so there the dense form is the only one.
`choose(model)` asks for it where a small trial on this machine gives what the dense form gives.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lib.model.llava import llava
from lib.model.packing import BLOCK, BY_BLOCKS

CLOSE = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 5e-3}  # of the norm, in a trial


def skip_blocks(model) -> None:
    """Let packed rows go through FlexAttention from now on."""
    llava(model).set_attn_implementation({"text_config": BY_BLOCKS})


def choose(model) -> str:
    """Let packed rows go through FlexAttention if it works here; says which it is, and why."""
    text = llava(model).config.text_config
    device, dtype = llava(model).device, llava(model).dtype
    if device.type != "cuda":
        return f"attention with a dense mask (FlexAttention takes no gradients on {device.type})"
    try:
        worst = deviation(text.hidden_size // text.num_attention_heads, device, dtype)
    except Exception as error:  # a compiler's, of which there are many kinds
        return ("attention with a dense mask (FlexAttention does not work here: "
                f"{type(error).__name__})")
    if not worst <= CLOSE[dtype]:
        return (f"attention with a dense mask (FlexAttention is off by {worst:.1e} here, more than "
                f"{CLOSE[dtype]:g})")
    skip_blocks(model)
    return f"FlexAttention for packed rows (within {worst:.0e} of the dense mask in a trial)"


def deviation(head_size: int, device: torch.device, dtype: torch.dtype) -> float:
    """How far blocks and dense mask are apart on one random packed row: output and gradients.

    The largest norm of a difference, as a share of the norm of the dense form in float32.
    """
    lengths = torch.tensor([[3 * BLOCK, 40, 90, BLOCK, 2 * BLOCK - 2]], device=device)
    segments = torch.arange(5, device=device).repeat_interleave(lengths[0])[None]
    blocks = block_mask(segments, torch.zeros_like(segments))
    places = torch.arange(segments.shape[1], device=device)
    dense = blocks.mask_mod(0, 0, places[:, None], places[None])
    draw = torch.Generator(device).manual_seed(0)
    sizes = (3, 1, 2, segments.shape[1], head_size)  # query, key and value
    states = torch.randn(sizes, generator=draw, device=device, dtype=torch.float32)
    wanted = _with_gradients(states, lambda q, k, v: (
        F.scaled_dot_product_attention(q, k, v, attn_mask=dense)))
    found = _with_gradients(states.to(dtype), lambda q, k, v: (
        attend(None, q, k, v, blocks)[0].transpose(1, 2)))
    return max(((a.float() - b).norm() / b.norm()).item() if a.isfinite().all() else math.inf
               for a, b in zip(found, wanted, strict=True))


def _with_gradients(states: Tensor, attention) -> list[Tensor]:
    """The output of `attention` on query, key and value, and the gradients of its squares' sum."""
    leaves = states.requires_grad_().unbind()
    output = attention(*leaves)
    return [output.detach(), *torch.autograd.grad(output.float().square().sum(), leaves)]


def block_mask(segments: Tensor, documents: Tensor) -> BlockMask:
    """Which token sees which, by blocks; the rule is that of `Batch.mask`.

    segments, documents: [rows, length] as in `packing.Batch`.
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


AttentionInterface.register(BY_BLOCKS, attend)
AttentionMaskInterface.register(BY_BLOCKS, sdpa_mask)  # for forwards without a mask of their own
