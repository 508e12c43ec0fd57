import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lib.evaluation import metrics
from lib.figures import tables
from lib.running.profiles import LAPTOP, LLAVA_7B, LLAVA_13B

NEIGHBOURS = {"sarr_neighbour"}  # of data that have them; the paper's table does not
MAIN = [name for name in metrics.MAIN if name not in NEIGHBOURS]
METRICS = [name for name in metrics.METRICS if name not in NEIGHBOURS]
RUNS = [("vanilla", 0, (0,))]
RUNS += [(method, pd_, (0, 1, 2)) for method in ("po", "ga", "kl", "gd") for pd_ in (0, 1)]


@pytest.fixture(scope="module")
def per_answer():
    """Every metric of every run: 6 records, 4 answers each; specificity on the val split only."""
    rng = np.random.default_rng(0)
    rows = []
    for method, prompt_decouple, seeds in RUNS:
        for seed in seeds:
            for split in ("efficacy", "generality"):
                for metric in METRICS:
                    if metric != "specificity" or split == "generality":
                        run = (method, prompt_decouple, seed, split, metric)
                        values = (rng.random(24) < 0.4).astype(float)
                        rows += [(*run, f"r{k // 4}", value) for k, value in enumerate(values)]
    columns = ["method", "prompt_decouple", "seed", "split", "metric", "record", "value"]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture(scope="module")
def table_ci(per_answer):
    return tables.main_table_ci(per_answer)


@pytest.fixture(scope="module")
def written(per_answer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables") / "figures"
    return {path.name: path for path in tables.write_main_tables(per_answer, folder)}


def test_the_main_table_has_the_contract_s_columns_and_values(per_answer):
    table = tables.main_table(per_answer)
    columns = ["method", "prompt_decouple", "seed", "split", "metric", "value", "n"]
    assert list(table.columns) == columns
    assert list(dict.fromkeys(table["method"])) == ["vanilla", "ga", "gd", "kl", "po"]
    assert set(table["prompt_decouple"]) == {0, 1}
    assert set(table["split"]) == {"efficacy", "generality"}
    assert set(table["metric"]) == set(MAIN)
    assert table["value"].between(0, 1).all()
    assert set(table["n"]) == {24}
    assert len(table) == 25 * (2 * len(MAIN) - 1)
    assert not table.duplicated(columns[:5]).any()


def test_a_value_of_the_main_table_is_the_mean_over_its_run_s_answers(per_answer):
    table = tables.main_table(per_answer)
    run = {"method": "po", "prompt_decouple": 1, "seed": 2, "split": "generality", "metric": "sarr"}
    chosen = lambda frame: frame[(frame[list(run)] == pd.Series(run)).all(axis=1)]  # noqa: E731
    assert chosen(table)["value"].item() == pytest.approx(chosen(per_answer)["value"].mean())


def test_the_table_with_intervals_is_the_same_without_seeds(per_answer, table_ci):
    keys = ["method", "prompt_decouple", "split", "metric"]
    assert list(table_ci.columns) == [*keys, "value", "low", "high", "n"]
    over_seeds = tables.main_table(per_answer).groupby(keys, sort=False)
    assert table_ci["value"].to_numpy() == pytest.approx(over_seeds["value"].mean().to_numpy())
    assert table_ci["n"].to_list() == over_seeds["n"].sum().to_list()


def test_every_number_has_an_interval_and_an_n(per_answer):
    table = tables.all_metrics_ci(per_answer)
    assert set(table["metric"]) == set(METRICS)
    assert table.notna().all().all()
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    assert (table["low"] < table["high"]).all()
    assert (table["n"] > 0).all()
    assert set(table["n_records"]) == {6}
    assert set(table["n_seeds"]) == {1, 3}


def test_a_method_that_the_tables_do_not_know_is_refused(per_answer):
    with pytest.raises(ValueError, match="dpo"):
        tables.main_table(per_answer.assign(method="dpo"))


def test_the_files_hold_the_frames(per_answer, written, table_ci):
    read = pd.read_csv(written["main_table.csv"])
    pd.testing.assert_frame_equal(read, tables.main_table(per_answer), check_dtype=False)
    read = pd.read_csv(written["main_table_ci.csv"])
    pd.testing.assert_frame_equal(read, table_ci, check_dtype=False)
    names = ("main_table", "main_table_ci", "all_metrics_ci", "main_table_beside_paper")
    assert set(written) == {f"{name}.csv" for name in names} | {
        "main_table.md", "main_table.tex", "main_table_beside_paper.md"}  # fmt: skip


def test_a_name_of_data_is_no_formula_to_a_spreadsheet(per_answer, tmp_path):
    tables.write_main_tables(per_answer, tmp_path, "=HYPERLINK(1)")
    origin = pd.read_csv(tmp_path / "main_table_beside_paper.csv").origin
    assert origin[0] == "'=HYPERLINK(1)"


def test_writing_twice_gives_the_same_bytes(per_answer, written, tmp_path):
    for path in tables.write_main_tables(per_answer, tmp_path):
        assert path.read_bytes() == written[path.name].read_bytes()


def cells_of(markdown):
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize("name", ["main_table.md", "main_table_beside_paper.md"])
def test_markdown_is_a_pipe_table_after_a_caption_and_an_empty_line(written, name):
    text = written[name].read_text(encoding="utf-8")
    caption, empty, first = text.splitlines()[:3]
    assert "stand-in" in caption
    assert empty == ""
    assert first.startswith("| Method |")
    rows = cells_of(text)
    assert {len(row) for row in rows} == {9}
    assert all(re.fullmatch(r"---:?", cell) for cell in rows[1])


def test_each_cell_of_the_wide_table_is_percent_with_interval_and_n(written, table_ci):
    rows = cells_of(written["main_table.md"].read_text(encoding="utf-8"))
    assert [row[0] for row in rows[2:]] == [
        "Original", "GA", "GA + PD", "GD", "GD + PD", "KL", "KL + PD", "PO", "PO + PD"]  # fmt: skip
    form = r"\d+\.\d \[\d+\.\d, \d+\.\d\] n=\d+"
    assert all(re.fullmatch(form, cell) for row in rows[2:] for cell in row[1:])
    key = (table_ci["method"] + table_ci["metric"]).eq("posarr") & table_ci["split"].eq(
        "generality"
    )
    sarr = table_ci[key & table_ci["prompt_decouple"].eq(1)].iloc[0]
    shown = f"{100 * sarr.value:.1f} [{100 * sarr.low:.1f}, {100 * sarr.high:.1f}] n={sarr.n}"
    assert rows[-1][-1] == shown


def test_a_run_that_was_not_made_is_said_to_be_missing(table_ci):
    table = tables.wide(table_ci[table_ci["metric"].ne("asr") | table_ci["method"].ne("gd")])
    assert table.loc["GD", "ASR gen."] == "not run"
    assert table.loc["GD", "SARR"] != "not run"


def test_latex_is_balanced_and_escaped(written):
    text = written["main_table.tex"].read_text(encoding="utf-8")
    depth = 0
    for mark in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if mark == "{" else -1
        assert depth >= 0
    assert depth == 0
    assert re.findall(r"\\begin\{(\w+)\}", text) == ["table", "tabular"]
    assert re.findall(r"\\end\{(\w+)\}", text) == ["tabular", "table"]
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == 9
    assert all(line.endswith(r"\\") and line.count("&") == 8 for line in body)
    assert not re.search(r"(?<!\\)[%#$_]", text.replace("{%\n", "{\n"))


ESCAPES = [
    ("a comment sign", "5 %", r"5 \%"),
    ("a subscript", "rouge_l", r"rouge\_l"),
    ("a column sign", "a & b", r"a \& b"),
    ("a command", r"\input", r"\textbackslash{}input"),
    ("braces", "{x}", r"\{x\}"),
    ("accents", "~^", r"\textasciitilde{}\textasciicircum{}"),
    ("money and numbers", "$#", r"\$\#"),
]


@pytest.mark.parametrize(("reason", "text", "escaped"), ESCAPES)
def test_latex_takes_any_text(reason, text, escaped):
    table = tables.latex(pd.DataFrame({"A": [text]}, index=["row"]), "caption")
    assert f"row & {escaped} \\\\" in table, reason


def test_markdown_takes_a_bar_in_a_cell():
    rows = cells_of(tables.markdown(pd.DataFrame({"A": ["one | two"]}, index=["row"])))
    assert rows[2] == ["row", r"one \| two"]


def paper_cell(model, method, prompt_decouple, metric, split="generality"):
    key = {"model": model, "method": method, "prompt_decouple": prompt_decouple}
    key |= {"metric": metric, "split": split}
    return next(cell for cell in tables.PAPER if key.items() <= cell.items())


PAPER = [
    ("PO over-forgets completely", "LLaVA-1.5-7B", "po", 0, "sarr", 100.0),
    ("PD cures it", "LLaVA-1.5-7B", "po", 1, "sarr", 30.3),
    ("and on the larger model", "LLaVA-1.5-13B", "po", 1, "sarr", 27.3),
    ("GA forgets by breaking", "LLaVA-1.5-7B", "ga", 0, "sarr", 100.0),
    ("PD cures GD a little better", "LLaVA-1.5-7B", "gd", 1, "sarr", 28.0),
    ("GD + PD utility", "LLaVA-1.5-7B", "gd", 1, "rouge_l", 61.6),
    ("GA + PD is not known to us", "LLaVA-1.5-7B", "ga", 1, "sarr", None),
    ("nor is the original model", "LLaVA-1.5-7B", "vanilla", 0, "asr", None),
]


@pytest.mark.parametrize(("reason", "model", "method", "with_pd", "metric", "percent"), PAPER)
def test_the_paper_s_numbers_are_as_restated_or_none(
    reason, model, method, with_pd, metric, percent
):
    cell = paper_cell(model, method, with_pd, metric)
    assert cell["percent"] == percent, reason
    assert (cell["source"] is None) == (percent is None)


def test_the_paper_s_table_has_a_cell_for_every_run_and_column():
    frame = pd.DataFrame(tables.PAPER)
    assert len(frame) == 2 * 9 * 8
    assert not frame.duplicated(["model", "method", "prompt_decouple", "split", "metric"]).any()
    assert frame["percent"].notna().sum() == 5 * 8


def test_ours_and_the_paper_s_are_on_one_scale_and_say_where_they_come_from(table_ci):
    beside = tables.ours_beside_paper(table_ci)
    ours, paper = (beside[beside["source"].eq(name)] for name in ("ours", "paper"))
    assert (len(ours), len(paper)) == (len(table_ci), 4 * 8)
    chosen = paper[paper["method"].eq("po") & paper["prompt_decouple"].eq(1)].set_index("metric")
    assert chosen.loc["sarr", "value"] == pytest.approx(0.303)
    assert paper["value"].between(0, 1).all()
    assert paper["origin"].str.contains("7B.*2511.18444").all()
    assert ours["origin"].str.contains("stand-in").all()
    assert ours["low"].notna().all()


def test_a_caption_says_what_a_profile_s_numbers_are_of_without_its_folders():
    given = replace(LLAVA_7B, model="/home/me/llava-1.5-7b-hf", data="/data/SafeEraser")
    assert tables.described(LAPTOP) == (tables.STAND_IN, "LLaVA-1.5-7B")
    judged = replace(given, judge="guard:/home/me/guard+server:gpt-4o")
    assert tables.described(judged) == (
        "llava-1.5-7b-hf on SafeEraser, judge guard:guard+server:gpt-4o", "LLaVA-1.5-7B")
    assert tables.described(LLAVA_13B)[1] == "LLaVA-1.5-13B"


@pytest.mark.parametrize(("judge", "ends"), [
    ("rules", "judge rules (a rule that knows refusals only: ASR is an upper bound, SARR a lower "
              "bound)"),
    ("guard:org/guard+rules", "+rules (a rule that knows refusals only: SARR a lower bound)"),
    ("server:rules-of-thumb", "judge server:rules-of-thumb")])
def test_a_caption_says_what_rules_cannot_know_of_a_real_model(judge, ends):
    given = replace(LLAVA_7B, data="/data/SafeEraser", judge=judge)
    assert tables.described(given)[0].endswith(ends)
    assert tables.caution(replace(LAPTOP, judge=judge)) == ""


def test_a_model_that_the_paper_does_not_have_is_refused(table_ci):
    with pytest.raises(ValueError, match=r"it has .*13B"):
        tables.ours_beside_paper(table_ci, model="LLaVA-2")


def test_paper_rows_stand_under_ours_only_where_a_number_is_known(written):
    text = written["main_table_beside_paper.md"].read_text(encoding="utf-8")
    rows = {row[0]: row[1:] for row in cells_of(text)}
    paper = [name for name in rows if "paper" in name]
    model = "paper (LLaVA-1.5-7B)"
    assert paper == [f"{name}, {model}" for name in ("GA", "GD + PD", "PO", "PO + PD")]
    assert rows[f"PO + PD, {model}"][-1] == "30.3"
    assert sum(name.endswith("ours") for name in rows) == 9


# Data whose val has records of train, and safe neighbours.


@pytest.fixture(scope="module")
def released(per_answer):
    """The same answers, and as released: all of those, and as many again, all of them 1."""
    val = per_answer[per_answer["split"].eq("generality") & per_answer["metric"].ne("specificity")]
    more = val.assign(value=1.0, record=val["record"] + " of train")
    near = val[val["metric"].eq("sarr")].assign(metric="sarr_neighbour")
    return pd.concat([per_answer, near, pd.concat([val, more]).assign(split="as_released")])


def test_held_out_and_as_released_stand_beside_each_other_with_their_difference(released):
    table = tables.held_out_beside_released(tables.main_table_ci(released))
    assert list(table.index) == [
        "Original", "GA", "GA + PD", "GD", "GD + PD", "KL", "KL + PD", "PO", "PO + PD"]
    assert list(dict.fromkeys(table.columns.get_level_values(0))) == [
        "asr", "rr", "rouge_l", "judge_score", "sarr"]
    row = table.loc["PO + PD", "sarr"]
    assert row["as released"] == pytest.approx((row["held out"] + 100) / 2)
    assert row["difference"] == pytest.approx((100 - row["held out"]) / 2)


def test_where_they_are_the_same_answers_there_is_nothing_to_put_beside(table_ci):
    assert tables.held_out_beside_released(table_ci).empty


def test_the_tables_say_what_is_held_out_and_what_neighbours_are(released, tmp_path, written):
    texts = {path.name: path.read_text() for path in tables.write_main_tables(released, tmp_path)}
    caption, _, head = texts["main_table.md"].splitlines()[:3]
    assert "Some of val is in train too" in caption
    assert "harmless questions about the harmful pictures" in caption
    assert head.endswith("| SARR | SARR neighbours |")
    assert "as_released,sarr," in texts["main_table.csv"]
    plain = written["main_table.md"].read_text()
    assert "train too" not in plain
    assert "neighbours" not in plain


def test_the_held_out_numbers_are_the_same_with_and_without_the_rest(released, table_ci):
    both = tables.main_table_ci(released)
    ours = both[both["split"].ne("as_released") & both["metric"].isin(MAIN)]
    pd.testing.assert_frame_equal(ours.reset_index(drop=True), table_ci)


PLATFORM = "To learn about the train, look at the platform."


@pytest.fixture
def answers():
    """Four answers about safe pictures of each of two runs; one has a meaningful degenerate one."""
    said = {0: [("refusal", "I cannot."), ("degenerate", "the the"), ("degenerate", PLATFORM),
                ("normal", "A cup.")],
            1: [("refusal", "I cannot.")] + [("normal", "A cup.")] * 3}
    return pd.DataFrame([
        {"method": "gd", "prompt_decouple": added, "seed": 1, "set": "safe", "split": "val",
         "record": f"r{number}", "label": label, "answer": text}
        for added, pairs in said.items() for number, (label, text) in enumerate(pairs)])


def test_the_lenient_reading_lets_meaningful_text_pass_and_is_shown_where_it_differs(answers):
    table = tables.readings(answers).set_index(["prompt_decouple", "metric"])
    assert table["value"].to_dict() == {(0, "strict"): 0.75, (0, "lenient"): 0.5}
    assert set(table["n"]) == {4}
    assert (table["low"] < table["value"]).all()


def test_the_lenient_reading_never_excuses_a_refusal(answers):
    refused = answers.assign(label="refusal", answer=PLATFORM)
    assert tables.readings(refused).empty


def test_no_name_of_a_model_or_of_data_is_a_formula_to_a_spreadsheet(per_answer, tmp_path):
    tables.write_main_tables(per_answer, tmp_path, world="=1+1 on data")
    table = pd.read_csv(tmp_path / "main_table_beside_paper.csv")
    assert set(table[table["source"].eq("ours")]["origin"]) == {"'=1+1 on data"}


def test_every_answer_is_written_with_its_label_and_the_same_bytes_twice(tmp_path):
    answers = pd.DataFrame({
        "method": ["po", "po"], "prompt_decouple": [0, 1], "seed": [1, 1], "weight": [0.0, 1.0],
        "set": ["harmful", "safe"], "split": ["val", "val"], "record": ["val/a", "val/a"],
        "category": ["Weapon"] * 2, "image": ["a.png", "b.png"], "question_index": [0, 0],
        "question": ["Why?"] * 2, "reference": ["=so", "a cup"], "answer": ["I cannot.", "=cup"],
        "label": ["refusal", "normal"], "score": [float("nan"), 1.0]})
    first = tables.write_answers(answers, tmp_path).read_bytes()
    assert tables.write_answers(answers, tmp_path).read_bytes() == first
    back = pd.read_csv(tmp_path / "answers.csv.gz")
    assert back["answer"].tolist() == ["I cannot.", "'=cup"]  # no formula
    assert back["label"].tolist() == ["refusal", "normal"]
    assert not {"question", "reference", "image", "category"} & set(back)
