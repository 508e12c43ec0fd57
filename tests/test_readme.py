"""README.md and docs/ say what is so: links, commands, paths, settings, and generated blocks.

The blocks are compared with figures/: before `./reproduce.sh --publish` there is nothing there.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import asdict, fields

import pandas as pd
import pytest

import lib
from lib.base import environment, paths
from lib.base import runs as run_store
from lib.evaluation import metrics
from lib.figures import claims, tables
from lib.running import experiments, profiles, readme, recipes
from lib.running.options import parse
from lib.unlearning.settings import Unlearning
from tests.test_packaging import tracked

PAGES = {page: page.read_text(encoding="utf-8") for page in readme.pages()}
README = PAGES[paths.ROOT / "README.md"]
TEXT = "\n".join(PAGES.values())
PROSE = re.sub(r"^```.*?^```$", "", TEXT, flags=re.DOTALL | re.MULTILINE)
COMMANDS = list(dict.fromkeys(
    line.split("  #")[0] for fence in
    re.findall(r"^```bash\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    for line in fence.splitlines()))
LINKS = sorted({(page.name, link) for page, text in PAGES.items()
                for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link})
A_PATH = re.compile(r"(lib|tests|notebooks|figures|\.ci)/|[\w-]+\.(sh|yml|toml|lock|cff|md)$")
NAMED = sorted(name for name in set(re.findall(r"`([^`\n]+)`", PROSE)) if A_PATH.match(name))
SETTINGS = [(found[2], found[0].split(" | ")[2].strip(" |"))
            for found in readme.SETTING.finditer(TEXT)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_generated_block_is_what_its_files_give_now(page):
    assert readme.refreshed(PAGES[page], page) == PAGES[page], "run python -m lib.running.readme"


def test_every_block_that_can_be_made_has_its_place():
    assert sorted(name for _, name, _ in readme.MARK.findall(TEXT)) == sorted(readme.BLOCKS)


def test_the_readme_is_a_few_screens_and_leads_to_every_page():
    assert len(README.splitlines()) <= 200
    assert all(f"](docs/{page.name})" in README for page in PAGES if page.parent.name == "docs")


def test_nothing_is_left_to_be_filled_in():
    assert "not measured yet" not in TEXT


@pytest.mark.parametrize(("name", "link"), LINKS)
def test_every_relative_link_and_picture_is_there(name, link):
    [page] = [page for page in PAGES if page.name == name]
    place, _, part = link.partition("#")
    target = (page.parent / place).resolve() if place else page
    assert target.exists()
    assert target.is_relative_to(paths.ROOT)
    if part:
        titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
        assert part in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", NAMED)
def test_every_path_that_the_text_names_is_there(name):
    assert (paths.ROOT / name).exists()


def test_every_picture_has_an_alternative_text():
    pictures = re.findall(r"!\[([^\]]*)\]\(", TEXT)
    assert pictures
    assert all(len(alt.split()) > 5 for alt in pictures)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one_that_is_there(command, capsys):
    words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
    program = words[0].removeprefix(".venv/bin/")
    assert program in (words[0], "python"), "after the folder was moved, no other runs"
    CHECKS[program](words[1:])


def _reproduce(options):
    parse(options)


def _python(options):
    if options[:2] == ["-m", "jupyterlab"]:
        _jupyter(["lab", *options[2:]])
    elif options[0] == "-m":
        run = subprocess.run([sys.executable, *options, "--help"], cwd=paths.ROOT,
                             capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr
    else:
        assert (paths.ROOT / options[0]).is_file()


def _jupyter(options):
    assert options[0] == "lab"
    assert any(line.startswith("jupyterlab") for line in environment.needed())
    assert all((paths.ROOT / path).exists() for path in options[1:])


def _conda(options):
    recipe = (paths.ROOT / "environment.yml").read_text()
    assert options in (["env", "create", "-f", "environment.yml"],
                       ["activate", re.search(r"^name: (.+)$", recipe, re.MULTILINE)[1]])


def _pip(options):
    assert options[:2] == ["install", "-e"]
    extras = re.fullmatch(r"\.(?:\[(.+)\])?", options[2])[1]
    known = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
    assert extras is None or set(extras.split(",")) <= set(known["optional-dependencies"])


CHECKS = {"./reproduce.sh": _reproduce, "python": _python, "jupyter": _jupyter, "conda": _conda,
          "pip": _pip}


@pytest.mark.parametrize(("name", "said"), SETTINGS)
def test_every_setting_is_that_of_the_laptop_profile(name, said):
    value = profiles.LAPTOP
    for part in name.split("."):
        value = getattr(value, part)
    assert tuple(float(number) for number in said.split(", ")) == (
        tuple(map(float, value)) if isinstance(value, tuple) else (float(value),))


def test_no_setting_of_unlearning_is_left_out():
    on = {name for name, value in asdict(profiles.LAPTOP.unlearning).items() if value}
    named = {f"unlearning.{field.name}" for field in fields(Unlearning)
             if field.name in on}
    assert named - {name for name, _ in SETTINGS} == {"unlearning.probe_every",
                                                      "unlearning.checkpoint_every"}


def test_what_is_at_the_top_of_the_repository_is_in_the_tree():
    tree = re.search(r"## Where things are\n\n```text\n(.*?)```", README, re.DOTALL)[1]
    named = {line.split()[0].rstrip("/") for line in tree.splitlines()}
    assert all((paths.ROOT / name).exists() for name in named)
    there = {path.relative_to(paths.ROOT).parts[0] for path in tracked()}
    assert there - {".ci", ".gitattributes", ".gitignore"} <= named


def test_the_lists_have_every_chapter_folder_and_file_with_a_word_on_each():
    def named(block):
        return re.findall(r"^    (\S+)  +\S", block, re.MULTILINE)

    modules = [path.relative_to(paths.ROOT / "lib") for path in
               sorted((paths.ROOT / "lib").glob("*/[a-z]*.py"))]
    assert named(readme.folders()) == [f"{folder}/" for folder in lib.FOLDERS]
    assert sorted(named(readme.tree())) == sorted(path.as_posix() for path in modules)
    listed = re.findall(r"^- \[\d\d .+\]\(notebooks/(.+)\): .+\?$", readme.chapter_list(),
                        re.MULTILINE)
    assert listed == [path.name for path in sorted(paths.NOTEBOOKS.glob("*.ipynb"))]


def test_the_paper_s_numbers_are_those_of_the_tables():
    paper = pd.DataFrame(tables.PAPER)
    chosen = paper[paper.model.eq("LLaVA-1.5-7B") & paper.method.eq("po") & paper.metric.eq("sarr")]
    without, with_pd = chosen.sort_values("prompt_decouple").percent
    assert f"from {without:g} to {with_pd:g}, which is {100 - 100 * with_pd / without:.1f} %" in (
        " ".join(TEXT.split()))
    assert f"{tables.PAPER_SARR_REDUCTION} %" in TEXT


def test_safety_and_the_stand_in_are_said():
    assert "Nothing in this repository is harmful" in TEXT
    assert "not a safety benchmark" in " ".join(TEXT.replace("**", "").split())
    assert "chosen on a tuning world" in TEXT


# lib/running/readme.py itself, on a run whose times are known.


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Results in a runs folder: (folder, part, run, start, end) in minutes."""
    monkeypatch.setenv("SAFEERASER_RUNS", str(tmp_path))
    for name, part, of, start, end in (
            ("a", "dataset", None, 0, 1), ("b", "small LLaVA, from nothing", None, 1, 5),
            ("c", recipes.WITHOUT, "PO, seed 1", 60, 62), ("d", recipes.WITHOUT, "PO, seed 1", 62,
                                                           63),
            ("e", recipes.WITHOUT, "PO, seed 2", 61, 64), ("f", recipes.WITH, "PO + PD", 64, 66),
            ("g", recipes.SWEEP, "PO + PD 0.3", 66, 68), ("of before", None, None, 70, 80)):
        facts = {"part": part, **({"run": of} if of else {})} if part else {}
        folder = tmp_path / "laptop" / name
        run_store.write_json(folder / "manifest.json", {
            "seconds": 60 * (end - start), "peak_memory_mb": 500 + end, "facts": facts})
        os.utime(folder / "manifest.json", (60 * end, 60 * end))
    (tmp_path / "laptop" / "h.partial").mkdir()
    run_store.write_json(tmp_path / "laptop" / "h.partial" / "manifest.json", {})
    return tmp_path


def test_costs_are_by_the_clock_without_breaks_and_with_what_ran_side_by_side(run):
    table = readme.costs("laptop").set_index("part")
    assert list(table.index) == ["dataset", "small LLaVA, from nothing", recipes.WITHOUT,
                                 recipes.WITH, recipes.SWEEP, "all"]
    assert list(table.minutes) == [1, 4, 4, 2, 2, 13]
    assert list(table.results) == [1, 1, 2, 1, 1, 6]
    assert list(table.side_by_side) == [1, 1, 2, 1, 1, 2]
    assert table.peak_memory_mb["all"] == 568


def test_the_parts_of_a_run_are_the_steps_of_the_plan():
    for step in experiments.steps(profiles.LAPTOP, ["04"], jobs=1):
        assert {made.facts["part"] for made in step.results} == {step.name.split(":")[0]}


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A figures folder with invented numbers: PO with and without PD."""
    rows = [("po", added, split, metric, 0.5 + added / 4, 0.25, 0.8125, 96)
            for added in (0, 1) for metric, split in tables.COLUMNS]
    pd.DataFrame(rows, columns=tables.CI_COLUMNS).to_csv(tmp_path / "main_table_ci.csv")
    pd.DataFrame([("04_x", "finding", "it | is", "✗", False, "0 of 1"),
                  ("05_x", "check", "so", "✓", True, "1 of 1")],
                 columns=claims.COLUMNS).to_csv(
        tmp_path / "claims.csv")
    pd.DataFrame([("dataset", 1, 0.24, 1, 471.3), ("all", 1, 0.24, 1, 471.3)],
                 columns=["part", "results", "minutes", "side_by_side", "peak_memory_mb"]).to_csv(
        tmp_path / "costs.csv")
    (tmp_path / "alt.json").write_text(json.dumps({readme.KEY_FIGURE: "Bars [percent]."}))
    monkeypatch.setattr(paths, "PUBLISHED_FIGURES", tmp_path)
    return tmp_path


def test_the_main_table_shows_ours_with_interval_and_n_above_the_paper_s(published):
    table = readme.main_table()
    assert "stand-in world" in table.splitlines()[0]
    ours, paper = (line for line in table.splitlines() if line.startswith("| PO,"))
    assert ours.count("50.0<br><sub>25.0–81.2, n=96</sub>") == len(tables.COLUMNS)
    assert paper.startswith("| PO, paper (LLaVA-1.5-7B) | 0.1 | 100.0 |")
    assert set(metrics.MAIN) == {metric for metric, _ in tables.COLUMNS | tables.FURTHER}


def test_the_headline_names_rates_with_their_intervals(published):
    assert "refuses 50 % [25, 81] of the harmful" in readme.headline()
    assert "**75 % [25, 81]** get none" in readme.headline()


def test_claims_that_do_not_hold_are_listed(published):
    assert readme.claims_made().splitlines() == [
        "Checks that hold: 1 of 1; findings that hold: 0 of 1. Those that do not:", "",
        "- chapter 04, finding: it | is (0 of 1)"]


def test_the_cost_is_a_sentence_and_a_table(published):
    assert "**0 minutes**" in readme.cost_said()
    table = readme.cost().splitlines()
    assert table[0] == "| Part | results | minutes | side by side | largest process |"
    assert "| dataset | 1 | 0.2 | 1 | 0.5 GB |" in table


def test_settings_are_refreshed_where_they_stand():
    rows = "| `unlearning.lr` | 1e-4 | 7 | |\n| order | 7 | 7 | |\n"
    lr = profiles.LAPTOP.unlearning.lr
    found = readme.refreshed(rows, paths.ROOT / "README.md")
    assert found == rows.replace("1e-4 | 7", f"1e-4 | {lr:g}")


def test_links_of_a_block_lead_from_where_it_stands(published):
    text = "<!-- key figure: generated -->\n<!-- end -->\n"
    for page, link in (("README.md", "](figures/"), ("docs/a.md", "](../figures/")):
        assert link in readme.refreshed(text, paths.ROOT / page)


def test_the_key_figure_is_shown_with_its_alternative_text(published):
    assert readme.key_figure() == f"![Bars (percent).](figures/{readme.KEY_FIGURE}.png)"
