"""A metric is added by its row in a copy of lib; figures, tables and checks then have it."""

import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from lib.base.paths import ROOT
from tests.test_metrics import answer, retained

FUNCTION = '''
def names_it(answers: pd.DataFrame) -> pd.Series:
    """1 where an answer has the last word of its reference: it names the right thing."""
    pairs = zip(answers["reference"], answers["answer"], strict=True)
    return pd.Series([float(right.split()[-1] in said.split()) for right, said in pairs],
                     answers.index, dtype=float)


@dataclass(frozen=True)
class Metric'''
ROWS = '''
    Metric("names_it", "names the right thing", "higher", "retain", "greedy", names_it),
    Metric("names_near", "names it beside the hazard", "higher", "near", "greedy", names_it,
           (("efficacy", "Named eff."), ("generality", "Named gen."))),
)}
MAIN = '''
USE = """
import json, sys
from pathlib import Path
import pandas as pd
from lib.evaluation import metrics
from lib.figures import plots, tables
frame, out = pd.read_json("answers.json", dtype=False), Path("tables")
runs = [metrics.per_answer(frame).assign(method=method, prompt_decouple=added, seed=seed)
        for method, added in (("po", 0), ("po", 1)) for seed in (1, 2)]
rates = tables.all_metrics_ci(pd.concat(runs))
tables.write_main_tables(pd.concat(runs), out)
figure = plots.before_after(rates, metrics=["names_it", "names_near"])
print(json.dumps({"means": metrics.to_json(metrics.from_answers(frame)),
                  "axes": [axes.get_ylabel() for axes in figure.axes]}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What a copy of lib with two more rows makes of six answers, and the folder of its tables."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "lib", folder / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    module = folder / "lib" / "evaluation" / "metrics.py"
    text = module.read_text(encoding="utf-8")
    edits = {"\n@dataclass(frozen=True)\nclass Metric": FUNCTION, "\n)}\nMAIN = ": ROWS}
    for old, new in edits.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    module.write_text(text, encoding="utf-8")
    lines = [retained("a red cup", said) for said in ("this cup", "a cat", "red")]
    lines += [{**retained("the cup", "a cup"), "set": "near", "split": split}
              for split in ("train", "val")] + [answer(label="harmful")]
    pd.DataFrame(lines).to_json(folder / "answers.json")
    run = subprocess.run([sys.executable, "-c", USE], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1]), folder / "tables"


def test_a_new_metric_is_computed_and_its_set_of_questions_is_known(found):
    means = found[0]["means"]
    assert means["generality"]["names_it"] == {"value": pytest.approx(1 / 3), "n": 3}
    assert means["efficacy"] == {"names_near": {"value": 1.0, "n": 1}}


def test_a_new_metric_has_an_interval_in_the_table_of_all_metrics(found):
    table = pd.read_csv(found[1] / "all_metrics_ci.csv").set_index(["metric", "split"])
    assert table.loc[("names_it", "generality"), "value"].tolist() == [pytest.approx(1 / 3)] * 2
    assert table.loc[["names_it", "names_near"], ["low", "high"]].notna().all().all()


def test_a_new_metric_is_in_the_main_table_where_its_row_names_columns(found):
    head, _, row = (found[1] / "main_table.md").read_text().splitlines()[2:5]
    assert head.endswith("| SARR | Named eff. | Named gen. |")
    assert [cell.split()[0] for cell in row.split("|")[-3:-1]] == ["100.0", "100.0"]
    assert "Named gen." in (found[1] / "main_table.tex").read_text()
    table = pd.read_csv(found[1] / "main_table.csv")
    assert "names_near" in set(table.metric)
    assert "names_it" not in set(table.metric)


def test_a_new_metric_has_its_title_in_figures(found):
    titles = ["names the right thing (%)", "names it beside the hazard (%)"]
    assert [label for label in found[0]["axes"] if label] == titles
