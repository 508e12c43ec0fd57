import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from transformers import LlamaConfig, LlamaForCausalLM

from lib.model.likelihood import per_answer, token_nll
from lib.unlearning.terms import (
    NPO_BETA,
    TERMS,
    Said,
    Term,
    answer_nll,
    from_logits,
    kl,
    npo,
    reads,
    total,
)

LN2, LN3 = math.log(2), math.log(3)


def random_logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_token_s_nll_is_minus_the_log_of_its_probability():
    logits = torch.tensor([[0.0, LN3], [0.0, LN3]])  # 1/4 and 3/4
    expected = torch.tensor([math.log(4), math.log(4) - LN3])
    torch.testing.assert_close(token_nll(logits, torch.tensor([0, 1])), expected)


def test_an_answer_s_nll_is_the_mean_over_its_tokens_wherever_they_stand():
    values, answers = torch.tensor([1.0, 6.0, 3.0, 8.0]), torch.tensor([0, 1, 0, 2])
    assert per_answer(values, answers, 3).tolist() == [2, 6, 8]


def test_a_term_is_the_mean_over_its_answers_however_long_they_are():
    logits = torch.zeros(5, 4)  # every token costs ln 4 ...
    logits[0, 0] = LN3  # ... but the first: half of the probability, ln 2
    answers = torch.tensor([0, 1, 1, 1, 2])
    found = from_logits(Said(logits, torch.zeros(5, dtype=torch.long), answers,
                             ("forget", "forget", "prompt_decouple")), TERMS)
    assert set(found) == {"forget", "prompt_decouple"}
    assert found["forget"].item() == pytest.approx((LN2 + 2 * LN2) / 2)
    assert found["prompt_decouple"].item() == pytest.approx(2 * LN2)


def test_po_s_official_term_weighs_every_token_alike():
    logits = torch.zeros(4, 4)
    logits[0, 0] = LN3
    found = from_logits(Said(logits, torch.zeros(4, dtype=torch.long),
                             torch.tensor([0, 1, 1, 1]), ("refusal", "retain")), TERMS)
    assert found["refusal_and_retain"].item() == pytest.approx((LN2 + 3 * 2 * LN2) / 4)
    assert found["refusal"].item() == pytest.approx(LN2)
    assert found["retain"].item() == pytest.approx(2 * LN2)


@pytest.mark.parametrize(("reason", "names", "there"), [
    ("refusals alone", ("refusal", "forget"), True),
    ("retain answers alone", ("retain", "forget"), True),
    ("neither", ("forget", "prompt_decouple"), False),
])
def test_po_s_official_term_takes_refusals_and_retain_answers_only(reason, names, there):
    logits, targets = random_logits(3, 5), torch.tensor([1, 2, 3])
    found = from_logits(Said(logits, targets, torch.tensor([0, 0, 1]), names), TERMS)
    assert ("refusal_and_retain" in found) == there, reason
    if there:
        assert found["refusal_and_retain"] == found[names[0]], reason


@pytest.fixture(scope="module")
def rows():
    """Three rows of a random Llama: ids, labels as transformers wants them, the model."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2)
    ids, lengths = torch.randint(0, 50, (3, 9)), (2, 4, 7)  # answers at the rows' ends
    labels = torch.full_like(ids, -100)
    for row, length in enumerate(lengths):
        labels[row, -length:] = ids[row, -length:]
    return LlamaForCausalLM(config).eval(), ids, labels


def flat(model, ids, labels):
    """(logits, targets, answers) at the labelled tokens, as `Said` takes them."""
    logits, labels = model(input_ids=ids).logits[:, :-1], labels[:, 1:]
    row, place = (labels != -100).nonzero(as_tuple=True)
    return logits[row, place], labels[row, place], row


def test_a_term_equals_the_loss_of_transformers_one_answer_at_a_time(rows):
    model, ids, labels = rows
    one = [model(input_ids=ids[i : i + 1], labels=labels[i : i + 1]).loss for i in range(3)]
    logits, targets, answers = flat(model, ids, labels)
    found = from_logits(Said(logits, targets, answers, ("forget", "retain", "forget")), TERMS)
    torch.testing.assert_close(found["retain"], one[1])
    torch.testing.assert_close(found["forget"], (one[0] + one[2]) / 2)


def test_po_s_official_term_equals_the_loss_of_transformers_on_one_batch(rows):
    model, ids, labels = rows
    logits, targets, answers = flat(model, ids, labels)
    found = from_logits(Said(logits, targets, answers, ("refusal", "retain", "refusal")), TERMS)
    torch.testing.assert_close(found["refusal_and_retain"],
                               model(input_ids=ids, labels=labels).loss)
    assert not torch.isclose(found["refusal_and_retain"],
                             (2 * found["refusal"] + found["retain"]) / 3)


def test_kl_equals_that_of_torch_distributions():
    original, current = random_logits(5, 7, seed=1), random_logits(5, 7, seed=2)
    each = kl_divergence(Categorical(logits=original), Categorical(logits=current))
    answers = torch.tensor([0, 0, 0, 1, 1])
    expected = (each[:3].mean() + each[3:].mean()) / 2
    found = kl(original, current, answers, 2)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)  # taken in float32
    other = kl(current, original, answers, 2)
    assert abs(found - other) > 0.01, "the two directions have to differ, or this proves too little"


def test_kl_by_hand_counts_an_answer_once_however_long_it_is():
    even, sure = torch.zeros(3, 2), torch.tensor([[0.0, LN3]] * 3)
    one = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)  # of 1/2, 1/2 from 1/4, 3/4
    mixed = torch.cat([sure[:1], even[:2]])  # the long answer has not moved
    assert kl(even, sure, torch.tensor([0, 1, 1]), 2).item() == pytest.approx(one)
    assert kl(even, mixed, torch.tensor([0, 1, 1]), 2).item() == pytest.approx(one / 2)


def test_kl_is_zero_with_zero_gradient_where_nothing_has_changed():
    logits = random_logits(4, 6)
    current = logits.clone().requires_grad_(True)
    found = kl(logits, current, torch.tensor([0, 0, 1, 1]), 2)
    found.backward()
    assert found.item() == pytest.approx(0, abs=1e-6)
    assert current.grad.abs().max() < 1e-6


def test_kl_pulls_the_current_probabilities_to_the_original_ones():
    original = random_logits(1, 6, seed=1)
    current = random_logits(1, 6, seed=2).requires_grad_(True)
    kl(original, current, torch.tensor([0]), 1).backward()
    torch.testing.assert_close(current.grad, (current.softmax(-1) - original.softmax(-1)).detach(),
                               rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_weighted_sum_of_its_row_s_terms_and_of_no_others():
    values = {name: torch.tensor(value, requires_grad=True)
              for name, value in {"forget": 3.0, "retain": 2.0, "prompt_decouple": 5.0}.items()}
    loss = total(values, {"forget": -1.0, "prompt_decouple": 0.5})
    loss.backward()
    assert loss.item() == -0.5
    assert [term.grad and term.grad.item() for term in values.values()] == [-1, None, 0.5]


def test_a_term_of_the_row_that_is_not_there_is_an_error():
    with pytest.raises(KeyError, match="retain"):
        total({"forget": torch.tensor(1.0)}, {"forget": -1.0, "retain": 1.0})


def test_what_a_row_reads_follows_from_its_terms():
    assert reads({"forget": -1, "kl": 1}) == {"forget", "retain"}
    assert reads(["refusal_and_retain"]) == {"refusal", "retain"}
    assert reads([]) == set()


def test_a_term_with_the_original_is_given_the_original_s_logits():
    original, current = random_logits(2, 5, seed=1), random_logits(2, 5, seed=2)
    answers = torch.tensor([0, 0])
    said = Said(current, torch.tensor([1, 2]), answers, ("retain",), original)
    assert TERMS["kl"].value(said) == kl(original, current, answers, 1)
    assert "kl" not in from_logits(said, TERMS), "it takes a second forward"


def test_a_new_term_needs_one_line(monkeypatch):
    longest = Term("longest", ("forget",), lambda said: said.each.max(), "the dearest answer")
    monkeypatch.setitem(TERMS, "longest", longest)
    found = from_logits(Said(random_logits(4, 5), torch.tensor([1, 2, 3, 4]),
                             torch.tensor([0, 0, 1, 1]), ("forget", "forget")), ["longest"])
    assert found["longest"] >= found["forget"] == answer_nll("forget").value(
        Said(random_logits(4, 5), torch.tensor([1, 2, 3, 4]), torch.tensor([0, 0, 1, 1]),
             ("forget", "forget")))
    assert reads(["longest", "retain"]) == {"forget", "retain"}


def of_two_answers(logits, original):
    """An answer of three tokens and one of two, by a model and by the model that it was."""
    return Said(logits, torch.tensor([1, 2, 3, 4, 0]), torch.tensor([0, 0, 0, 1, 1]),
                ("forget", "forget"), original)


def test_npo_by_hand_is_over_whole_answers_and_begins_at_two_ln_two_by_beta():
    logits = random_logits(5, 6)
    assert npo(of_two_answers(logits, logits)).item() == pytest.approx(2 / NPO_BETA * LN2)
    original = random_logits(5, 6, seed=1)
    gained = [sum(math.log(logits[t].softmax(-1)[y] / original[t].softmax(-1)[y]) for t, y in one)
              for one in (((0, 1), (1, 2), (2, 3)), ((3, 4), (4, 0)))]  # log of the ratio, by hand
    expected = [2 / NPO_BETA * math.log(1 + math.exp(NPO_BETA * ratio)) for ratio in gained]
    assert npo(of_two_answers(logits, original)).item() == pytest.approx(sum(expected) / 2, 1e-5)


def test_npo_s_gradient_is_that_of_gradient_ascent_at_first_and_fades():
    logits = random_logits(5, 6).requires_grad_()
    original = logits.detach().clone()
    said = of_two_answers(logits, original)
    [of_npo] = torch.autograd.grad(npo(said), logits, retain_graph=True)
    [of_ascent] = torch.autograd.grad(-(3 * said.each[0] + 2 * said.each[1]) / 2, logits)
    torch.testing.assert_close(of_npo, of_ascent)
    unlikely = original.clone()
    unlikely[torch.arange(5), torch.tensor([1, 2, 3, 4, 0])] -= 100
    unlikely.requires_grad_()
    value = npo(of_two_answers(unlikely, original))
    [faded] = torch.autograd.grad(value, unlikely)
    assert faded.abs().max() < 1e-6
    assert value.item() == pytest.approx(0, abs=1e-6)  # a floor that gradient ascent lacks


def test_a_term_that_nobody_asks_for_is_not_computed():
    said = Said(random_logits(3, 5), torch.tensor([1, 2, 3]), torch.tensor([0, 0, 1]),
                ("refusal", "retain"))
    assert set(from_logits(said, [])) == {"refusal", "retain"}
    assert set(from_logits(said, ["refusal_and_retain"])) == {"refusal", "retain",
                                                             "refusal_and_retain"}
