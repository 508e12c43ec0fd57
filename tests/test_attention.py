import random
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from test_packing import groups, packed_terms, pictures, small_llava  # noqa: F401
from torch.nn.attention.flex_attention import create_mask

from lib.model import likelihood
from lib.model.llava import llava
from lib.model.packing import Batch, answer_logits, skips_blocks
from lib.scale import attention


def random_batch(seed):
    """Rows of a prefix and questions of random lengths, as `Packer.pack` lays them out."""
    draw = random.Random(seed)
    rows = [[draw.randint(1, 70), *(draw.randint(1, 40) for _ in range(draw.randint(1, 6)))]
            for _ in range(draw.randint(1, 5))]
    length = max(map(sum, rows))
    segments = torch.full((len(rows), length), -1)
    for row, sizes in enumerate(rows):
        numbers = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        segments[row, : sum(sizes)] = numbers
    ids = torch.arange(segments.numel()).view_as(segments)  # each token another: it can be found
    places = (segments > 0).flatten().nonzero()[:, 0]
    return Batch(ids, ids, segments, None, ids.flatten()[places], places, places * 0, ())


def dense(batch):
    """The BlockMask of a joined batch, written out token by token: [length, length]."""
    mask = attention.block_mask(batch.segments, batch.documents)
    rows, length = batch.segments.shape
    return mask, create_mask(mask.mask_mod, rows, 1, length, length, device="cpu")


@pytest.mark.parametrize("seed", range(40))
def test_the_blocks_rule_is_the_dense_mask_s(seed):
    batch = random_batch(seed).joined()
    _, written_out = dense(batch)
    assert torch.equal(written_out, batch.mask())


@pytest.mark.parametrize("seed", range(10))
def test_a_block_is_skipped_exactly_when_none_of_its_tokens_see_each_other(seed):
    batch = random_batch(seed).joined()
    mask, written_out = dense(batch)
    count, side = batch.segments.shape[1] // attention.BLOCK, attention.BLOCK
    visible = written_out.view(count, side, count, side).any(3).any(1)
    assert torch.equal(mask.to_dense()[0, 0].bool(), visible)


@pytest.mark.parametrize("seed", range(40))
def test_a_joined_row_holds_every_row_and_no_token_sees_another_row(seed):
    batch = random_batch(seed)
    joined, kept = batch.joined(), batch.segments >= 0
    total = int(kept.sum())
    expected = torch.block_diag(*(mask[row][:, row] for mask, row in
                                  zip(batch.mask()[:, 0].int(), kept, strict=True))).bool()
    assert joined.input_ids[0, :total].tolist() == batch.input_ids[kept].tolist()
    assert torch.equal(joined.mask()[0, 0, :total, :total], expected)
    assert not joined.mask()[0, 0, :total, total:].any(), "the filler at the end is seen by none"
    assert joined.segments.shape[1] % attention.BLOCK == 0
    assert joined.segments.shape[1] - total < attention.BLOCK


@pytest.mark.parametrize("seed", range(40))
def test_a_joined_row_predicts_from_the_same_tokens(seed):
    batch = random_batch(seed)
    joined = batch.joined()
    assert torch.equal(joined.input_ids.flatten()[joined.places],
                       batch.input_ids.flatten()[batch.places])


def test_losses_through_blocks_are_those_of_the_dense_mask(groups):  # noqa: F811
    adapted, processor = small_llava("LLaVA-1.5's features", torch.float32)
    # A CPU takes no gradients through FlexAttention, and to compile it takes minutes there.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        batch, expected = packed_terms(adapted, processor, groups)
        attention.skip_blocks(adapted)
        found = answer_logits(adapted, batch)
    nll, wanted = (likelihood.token_nll(logits, batch.targets) for logits in (found, expected))
    torch.testing.assert_close(nll, wanted, rtol=0, atol=1e-5)


def test_gradients_through_a_joined_row_are_those_of_the_rows(groups):  # noqa: F811
    adapted, processor = small_llava("LLaVA-1.5's features", torch.float64)
    batch, logits = packed_terms(adapted, processor, groups)
    found = []
    for each in (logits, answer_logits(adapted, batch.joined())):
        adapted.zero_grad()
        likelihood.token_nll(each, batch.targets).mean().backward()
        found.append([p.grad.clone() for p in adapted.parameters() if p.requires_grad])
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-8)


def test_generation_and_the_tower_stay_with_sdpa(groups):  # noqa: F811
    adapted, processor = small_llava("LLaVA-1.5's features", torch.float32)
    ids = processor.tokenizer(["What is this?", "Describe"], padding=True, return_tensors="pt")
    before = llava(adapted).generate(**ids, max_new_tokens=8, do_sample=False)
    attention.skip_blocks(adapted)
    after = llava(adapted).generate(**ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(before, after)
    assert llava(adapted).config.vision_config._attn_implementation == "sdpa"


def test_a_model_has_the_dense_mask_unless_asked():
    adapted, _ = small_llava("LLaVA-1.5's features", torch.float32)
    assert not skips_blocks(adapted)
    attention.skip_blocks(adapted)
    assert skips_blocks(adapted)


def reference(query, key, value, block_mask, scale, enable_gqa, blind=False):
    """What the compiled FlexAttention is to give, computed densely."""
    places = torch.arange(query.shape[2])
    seen = block_mask.mask_mod(0, 0, places[:, None], places[None])
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=None if blind else seen, scale=scale)


@pytest.mark.parametrize("dtype", attention.CLOSE)
def test_a_trial_tells_rounding_from_a_mask_that_is_not_kept(dtype, monkeypatch):
    monkeypatch.setattr(attention, "_compiled", lambda: reference)
    assert attention.deviation(32, torch.device("cpu"), dtype) < attention.CLOSE[dtype] / 2
    monkeypatch.setattr(attention, "_compiled", lambda: partial(reference, blind=True))
    assert attention.deviation(32, torch.device("cpu"), dtype) > 10 * attention.CLOSE[dtype]


def test_a_trial_that_gives_no_number_is_infinitely_far_off(monkeypatch):
    broken = lambda *states, **options: reference(*states, **options) * float("nan")  # noqa: E731
    monkeypatch.setattr(attention, "_compiled", lambda: broken)
    assert attention.deviation(32, torch.device("cpu"), torch.float32) == float("inf")


def on_a_gpu(model, monkeypatch):
    """The model as `choose` would see it on a GPU."""
    whole = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16,
                            config=llava(model).config)
    seen = [whole]  # `skip_blocks` asks for the model itself
    monkeypatch.setattr(attention, "llava", lambda _: seen[0])
    return lambda: seen.__setitem__(0, llava(model))


def test_blocks_are_chosen_on_a_gpu_where_the_trial_holds(monkeypatch):
    adapted, _ = small_llava("LLaVA-1.5's features", torch.float32)
    done = on_a_gpu(adapted, monkeypatch)

    def trial(head_size, device, dtype):
        done()
        return 0.004

    monkeypatch.setattr(attention, "deviation", trial)
    assert attention.choose(adapted).startswith("FlexAttention for packed rows (within 4e-03")
    assert skips_blocks(adapted)


@pytest.mark.parametrize(("found", "said"), [
    (0.3, "off by 3.0e-01"), (float("nan"), "off by nan"),
    (RuntimeError("no compiler"), "does not work here: RuntimeError")])
def test_the_dense_mask_stays_where_the_trial_fails(found, said, monkeypatch):
    adapted, _ = small_llava("LLaVA-1.5's features", torch.float32)
    on_a_gpu(adapted, monkeypatch)

    def trial(head_size, device, dtype):
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(attention, "deviation", trial)
    assert said in attention.choose(adapted)
    monkeypatch.setattr(attention, "llava", llava)
    assert not skips_blocks(adapted)


def test_a_cpu_keeps_the_dense_mask():
    adapted, _ = small_llava("LLaVA-1.5's features", torch.float32)
    assert "dense mask" in attention.choose(adapted)
    assert not skips_blocks(adapted)
