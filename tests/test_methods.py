import pytest

from lib.unlearning.methods import METHODS, ROWS, main, table, weights
from lib.unlearning.terms import TERMS

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
    assert weights(method, prompt_decouple) == row, reason


@pytest.mark.parametrize("method", METHODS)
def test_in_the_added_rows_pd_changes_nothing_else(method):
    with_pd = weights(method, True, rows="added")
    assert with_pd.pop("prompt_decouple") == 1
    assert with_pd == weights(method, False, rows="added")


def test_every_term_of_every_row_is_explained():
    used = {term for method in METHODS for added in (False, True) for rows in ROWS
            for term in weights(method, added, rows=rows)}
    assert used == set(TERMS)


def test_a_weight_for_pd_replaces_that_one_only():
    assert weights("gd", True, 3) == {"forget": -1, "retain": 0.5, "prompt_decouple": 3}
    assert weights("gd", True)["prompt_decouple"] == 0.5, "the table itself must not change"


def test_a_row_that_was_handed_out_can_be_changed_without_changing_the_table():
    weights("po", True)["prompt_decouple"] = 9
    assert weights("po", True)["prompt_decouple"] == 1


@pytest.mark.parametrize(("reason", "arguments", "named"), [
    ("unknown method", ("dpo", True), "ga, gd, kl, po, npo"),
    ("unknown rows", ("po", True, None, "paper"), "official, added"),
    ("a weight without its term", ("po", False, 0.3), "prompt_decouple=True"),
])
def test_a_row_that_does_not_exist_is_refused_by_name(reason, arguments, named):
    with pytest.raises(ValueError, match=named):
        weights(*arguments)


def test_the_table_has_a_line_per_method_and_a_column_per_term():
    shown_table = table()
    assert list(shown_table.index)[:8] == ["GA", "GA + PD", "GD", "GD + PD", "KL", "KL + PD", "PO",
                                           "PO + PD"]
    shown = {line: row.dropna().to_dict() for line, row in shown_table.iterrows()}
    assert list(shown.values()) == [weights(method, added) for method in METHODS
                                    for added in (False, True)]


def test_the_command_prints_both_tables_and_what_the_terms_mean(capsys):
    main()
    printed = capsys.readouterr().out
    for text in ("Official code", "PD simply added", "GD + PD",
                 *(term.meaning for term in TERMS.values())):
        assert text in printed
    assert "-1.0" in printed
    assert "nan" not in printed.lower()


def test_colours_and_titles_are_each_a_method_s_own():
    for field in ("key", "title", "colour"):
        values = [getattr(method, field) for method in METHODS.values()]
        assert len(set(values)) == len(values), field
    assert all(key == method.key for key, method in METHODS.items())
