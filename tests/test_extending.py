"""In a copy, a method and a chapter are added as a stranger would; the smoke profile has them."""

import json
import shutil
import subprocess
import sys

import nbformat
import pandas as pd
import pytest

from lib.base.paths import ROOT
from lib.unlearning.methods import METHODS

# SimNPO (arXiv 2410.07163): no original model, a mean over tokens instead.
EDITS = {
    "lib/unlearning/terms.py": {"TERMS = {term.name: term for term in (\n": """\
TERMS = {term.name: term for term in (
    Term("simnpo", ("forget",),
         lambda said: -2 / 0.7 * functional.logsigmoid(0.7 * said.each[
             [of == "forget" for of in said.kinds]]).mean(), "SimNPO"),
"""},
    "lib/unlearning/methods.py": {"METHODS = {method.key: method for method in (\n": """\
METHODS = {method.key: method for method in (
    Method("simnpo", "SimNPO", "#F0E442", {"simnpo": 1.0, "retain": 1.0},
           {"simnpo": 1.0, "retain": 1.0, PD: 1.0}, of_paper=False),
"""},
    "lib/running/plan.py": {"CHAPTERS = {": """\
CHAPTERS = {
    "06": (ORIGINAL, Reads("PO + PD after GA", lambda profile: [
        Run("po", True, seed, after=Run("ga", False, seed)) for seed in profile.seeds])),
"""},
}
CELLS = ["""\
profile_name = "laptop"\
""", """\
from lib.running import experiments, profiles
from lib.running.plan import CHAPTERS

profile = profiles.get(profile_name)
repaired = [run for reads in CHAPTERS["06"] for run in reads.runs(profile)]
frame = experiments.per_answer(profile, repaired)
print(*repaired, sep="; ")
frame[frame.metric.eq("sarr")].groupby(["method", "split"]).value.mean()\
"""]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The copy, after its smoke run."""
    folder = tmp_path_factory.mktemp("stranger")
    for name in ("lib", "notebooks", "figures", "docs"):
        shutil.copytree(ROOT / name, folder / name,
                        ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    for name, edits in EDITS.items():
        text = (folder / name).read_text(encoding="utf-8")
        for old, new in edits.items():
            assert text.count(old) == 1
            text = text.replace(old, new)
        (folder / name).write_text(text, encoding="utf-8")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    book.cells[0].metadata["tags"] = ["parameters"]
    book.metadata |= {"kernelspec": {"name": "python3", "display_name": "Python 3"},
                      "language_info": {"name": "python"}}
    nbformat.write(book, folder / "notebooks" / "06_after_ga.ipynb")
    run = subprocess.run([sys.executable, "-m", "lib.running.pipeline", "--profile", "smoke",
                          "--only", "02,03,04,05,06"], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return folder / "runs" / "smoke"


def texts(book):
    return "\n".join(str(part) for cell in book.cells if cell.cell_type == "code"
                     for output in cell.outputs
                     for part in (output.get("text"), *output.get("data", {}).values()))


def test_the_new_method_is_in_every_table_without_and_with_pd(copy):
    for name in ("main_table", "main_table_ci", "all_metrics_ci"):
        table = pd.read_csv(copy / "figures" / f"{name}.csv")
        rows = table[["method", "prompt_decouple"]].drop_duplicates().to_numpy().tolist()
        assert ["simnpo", 0] in rows, name
        assert ["simnpo", 1] in rows, name
    assert "| SimNPO + PD |" in (copy / "figures" / "main_table.md").read_text("utf-8")


def test_the_new_method_is_in_every_figure_that_compares_methods(copy):
    compared = {}
    for file in (copy / "figures").glob("*.csv"):
        table = pd.read_csv(file)
        if "method" in table and set(METHODS) <= set(table["method"]):
            compared[file.stem] = "simnpo" in set(table["method"])
    assert len(compared) >= 8
    assert all(compared.values()), compared


@pytest.mark.parametrize("chapter", ["02", "03", "04", "05"])
def test_the_new_method_is_in_every_chapter_about_methods(copy, chapter):
    [path] = (copy / "notebooks").glob(f"{chapter}_*.ipynb")
    shown = texts(nbformat.read(path, as_version=4))
    assert "SimNPO" in shown or "SIMNPO" in shown


def test_the_new_chapter_has_the_runs_that_its_declaration_names(copy):
    shown = texts(nbformat.read(copy / "notebooks" / "06_after_ga.ipynb", as_version=4))
    assert "None; PO + PD after GA, seed 1; PO + PD after GA, seed 2" in shown
    assert "generality" in shown  # of its SARR
    made = [json.loads(file.read_text()) for file in copy.glob("adapter-*/config.json")]
    repaired = [config for config in made if "after" in config]
    assert sorted(config["seed"] for config in repaired) == [1, 2]
    assert all((copy / config["after"] / "adapter").is_dir() for config in repaired)
