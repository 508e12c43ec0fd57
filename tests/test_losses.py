import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from transformers import LlamaConfig, LlamaForCausalLM

from lib import losses

LN2, LN3 = math.log(2), math.log(3)


def random_logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_token_s_nll_is_minus_the_log_of_its_probability():
    logits = torch.tensor([[0.0, LN3], [0.0, LN3]])  # 1/4 and 3/4
    expected = torch.tensor([math.log(4), math.log(4) - LN3])
    torch.testing.assert_close(losses.token_nll(logits, torch.tensor([0, 1])), expected)


def test_an_answer_s_nll_is_the_mean_over_its_tokens_wherever_they_stand():
    values, answers = torch.tensor([1.0, 6.0, 3.0, 8.0]), torch.tensor([0, 1, 0, 2])
    assert losses.per_answer(values, answers, 3).tolist() == [2, 6, 8]


def test_a_term_is_the_mean_over_its_answers_however_long_they_are():
    logits = torch.zeros(5, 4)  # every token costs ln 4 ...
    logits[0, 0] = LN3  # ... but the first: half of the probability, ln 2
    answers = torch.tensor([0, 1, 1, 1, 2])
    found = losses.nll_terms(logits, torch.zeros(5, dtype=torch.long), answers,
                             ("forget", "forget", "prompt_decouple"))
    assert set(found) == {"forget", "prompt_decouple"}
    assert found["forget"].item() == pytest.approx((LN2 + 2 * LN2) / 2)
    assert found["prompt_decouple"].item() == pytest.approx(2 * LN2)


def test_po_s_official_term_weighs_every_token_alike():
    logits = torch.zeros(4, 4)
    logits[0, 0] = LN3
    found = losses.nll_terms(logits, torch.zeros(4, dtype=torch.long),
                             torch.tensor([0, 1, 1, 1]), ("refusal", "retain"))
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
    found = losses.nll_terms(logits, targets, torch.tensor([0, 0, 1]), names)
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
    """(logits, targets, answers) at the labelled tokens, as `losses` takes them."""
    logits, labels = model(input_ids=ids).logits[:, :-1], labels[:, 1:]
    row, place = (labels != -100).nonzero(as_tuple=True)
    return logits[row, place], labels[row, place], row


def test_a_term_equals_the_loss_of_transformers_one_answer_at_a_time(rows):
    model, ids, labels = rows
    one = [model(input_ids=ids[i : i + 1], labels=labels[i : i + 1]).loss for i in range(3)]
    logits, targets, answers = flat(model, ids, labels)
    found = losses.nll_terms(logits, targets, answers, ("forget", "retain", "forget"))
    torch.testing.assert_close(found["retain"], one[1])
    torch.testing.assert_close(found["forget"], (one[0] + one[2]) / 2)


def test_po_s_official_term_equals_the_loss_of_transformers_on_one_batch(rows):
    model, ids, labels = rows
    logits, targets, answers = flat(model, ids, labels)
    found = losses.nll_terms(logits, targets, answers, ("refusal", "retain", "refusal"))
    torch.testing.assert_close(found["refusal_and_retain"],
                               model(input_ids=ids, labels=labels).loss)
    assert not torch.isclose(found["refusal_and_retain"],
                             (2 * found["refusal"] + found["retain"]) / 3)


def test_kl_equals_that_of_torch_distributions():
    original, current = random_logits(5, 7, seed=1), random_logits(5, 7, seed=2)
    each = kl_divergence(Categorical(logits=original), Categorical(logits=current))
    answers = torch.tensor([0, 0, 0, 1, 1])
    expected = (each[:3].mean() + each[3:].mean()) / 2
    found = losses.kl(original, current, answers, 2)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)  # taken in float32
    other = losses.kl(current, original, answers, 2)
    assert abs(found - other) > 0.01, "the two directions have to differ, or this proves too little"


def test_kl_by_hand_counts_an_answer_once_however_long_it_is():
    even, sure = torch.zeros(3, 2), torch.tensor([[0.0, LN3]] * 3)
    one = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)  # of 1/2, 1/2 from 1/4, 3/4
    mixed = torch.cat([sure[:1], even[:2]])  # the long answer has not moved
    assert losses.kl(even, sure, torch.tensor([0, 1, 1]), 2).item() == pytest.approx(one)
    assert losses.kl(even, mixed, torch.tensor([0, 1, 1]), 2).item() == pytest.approx(one / 2)


def test_kl_is_zero_with_zero_gradient_where_nothing_has_changed():
    logits = random_logits(4, 6)
    current = logits.clone().requires_grad_(True)
    found = losses.kl(logits, current, torch.tensor([0, 0, 1, 1]), 2)
    found.backward()
    assert found.item() == pytest.approx(0, abs=1e-6)
    assert current.grad.abs().max() < 1e-6


def test_kl_pulls_the_current_probabilities_to_the_original_ones():
    original = random_logits(1, 6, seed=1)
    current = random_logits(1, 6, seed=2).requires_grad_(True)
    losses.kl(original, current, torch.tensor([0]), 1).backward()
    torch.testing.assert_close(current.grad, (current.softmax(-1) - original.softmax(-1)).detach(),
                               rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_weighted_sum_of_its_row_s_terms_and_of_no_others():
    terms = {name: torch.tensor(value, requires_grad=True)
             for name, value in {"forget": 3.0, "retain": 2.0, "prompt_decouple": 5.0}.items()}
    loss = losses.total(terms, {"forget": -1.0, "prompt_decouple": 0.5})
    loss.backward()
    assert loss.item() == -0.5
    assert [term.grad and term.grad.item() for term in terms.values()] == [-1, None, 0.5]


def test_a_term_of_the_row_that_is_not_there_is_an_error():
    with pytest.raises(KeyError, match="retain"):
        losses.total({"forget": torch.tensor(1.0)}, {"forget": -1.0, "retain": 1.0})


OFFICIAL = [
    ("ascent on what is to be forgotten, nothing else", "ga", False, {"forget": -1}),
    ("PD at half weight", "ga", True, {"forget": -1, "prompt_decouple": 0.5}),
    ("descent on the rest", "gd", False, {"forget": -1, "retain": 1}),
    ("PD halves the retain weight, too", "gd", True,
     {"forget": -1, "retain": 0.5, "prompt_decouple": 0.5}),
    ("distribution kept instead of answers", "kl", False, {"forget": -1, "kl": 1}),
    ("PD at full weight", "kl", True, {"forget": -1, "kl": 1, "prompt_decouple": 1}),
    ("no ascent: refusals are learned", "po", False, {"refusal_and_retain": 1}),
    ("PD at full weight", "po", True, {"refusal_and_retain": 1, "prompt_decouple": 1}),
]


@pytest.mark.parametrize(("reason", "method", "prompt_decouple", "row"), OFFICIAL)
def test_the_default_rows_are_those_of_the_official_code(reason, method, prompt_decouple, row):
    assert losses.weights(method, prompt_decouple) == row, reason


@pytest.mark.parametrize("method", losses.METHODS)
def test_in_the_added_rows_pd_changes_nothing_else(method):
    with_pd = losses.weights(method, True, rows="added")
    assert with_pd.pop("prompt_decouple") == 1
    assert with_pd == losses.weights(method, False, rows="added")


def test_every_term_of_every_row_is_explained():
    used = {term for rows in losses.ROWS.values() for row in rows.values() for term in row}
    assert used == set(losses.TERMS)


def test_a_weight_for_pd_replaces_that_one_only():
    assert losses.weights("gd", True, 3) == {"forget": -1, "retain": 0.5, "prompt_decouple": 3}
    assert losses.weights("gd", True)["prompt_decouple"] == 0.5, "the table itself must not change"


def test_a_row_that_was_handed_out_can_be_changed_without_changing_the_table():
    losses.weights("po", True)["prompt_decouple"] = 9
    assert losses.weights("po", True)["prompt_decouple"] == 1


@pytest.mark.parametrize(("reason", "arguments", "named"), [
    ("unknown method", ("npo", True), "ga, gd, kl, po"),
    ("unknown rows", ("po", True, None, "paper"), "official, added"),
    ("a weight without its term", ("po", False, 0.3), "prompt_decouple=True"),
])
def test_a_row_that_does_not_exist_is_refused_by_name(reason, arguments, named):
    with pytest.raises(ValueError, match=named):
        losses.weights(*arguments)


def test_the_table_has_a_line_per_method_and_a_column_per_term():
    table = losses.table()
    assert list(table.index) == ["GA", "GA + PD", "GD", "GD + PD", "KL", "KL + PD", "PO", "PO + PD"]
    shown = {line: row.dropna().to_dict() for line, row in table.iterrows()}
    assert list(shown.values()) == list(losses.OFFICIAL.values())


def test_the_command_prints_both_tables_and_what_the_terms_mean(capsys):
    assert losses.main(["--table"]) == 0
    printed = capsys.readouterr().out
    for text in ("Official code", "PD simply added", "GD + PD", *losses.TERMS.values()):
        assert text in printed
    assert "-1.0" in printed
    assert "nan" not in printed.lower()


def test_the_command_without_an_option_says_which_there_is(capsys):
    with pytest.raises(SystemExit) as stopped:
        losses.main([])
    assert stopped.value.code == 2
    assert "--table" in capsys.readouterr().err
