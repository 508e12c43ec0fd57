"""The committed notebooks, as people read them where they are stored, and at a real profile."""

import ast
import json
import re

import pandas as pd
import pytest
from papermill.exceptions import PapermillExecutionError

from lib.base.paths import PUBLISHED_FIGURES, ROOT
from lib.running import chapters
from tests import leaks
from tests.tiny_profiles import TINY_REAL

NOTEBOOKS = {path.stem: path for path in chapters.find()}
CHAPTERS = ["00_a_small_llava", "01_data_construction", "02_baseline_unlearning",
            "03_over_forgetting", "04_prompt_decouple_loss", "05_sarr_evaluation"]
TITLE_BOX = ("Question", "Paper", "Cost", "Reads", "Writes")
PRIVATE_PATH = re.compile(r"(?<![\w.])/(?:root|home|Users|tmp|var|opt|mnt|work)/[\w.-]+")


@pytest.fixture(params=NOTEBOOKS)
def book(request):
    return chapters.read(NOTEBOOKS[request.param])


def code(book):
    return [cell for cell in book.cells if cell.cell_type == "code" and cell.source.strip()]


def prose(book):
    return [cell for cell in book.cells if cell.cell_type == "markdown"]


def tree(cell):
    return chapters.parsed(cell.source)


def words(cells):
    return sum(len(cell.source.split()) for cell in cells)


def test_the_chapters_are_those_of_the_table_of_contents():
    assert list(NOTEBOOKS) == CHAPTERS


def test_the_outputs_belong_to_the_sources(book):
    published = book.metadata.get("companion", {}).get("source_sha256")
    assert published == chapters.source_sha256(book), "run ./reproduce.sh --publish"


def test_the_cells_ran_in_order_and_every_one_of_them(book):
    counts = [cell.execution_count for cell in code(book)]
    assert counts == list(range(1, len(counts) + 1))


def test_no_output_is_an_error_or_a_warning(book):
    for cell in code(book):
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", output.text


def test_a_reader_sees_pictures_and_numbers_without_running_anything(book):
    kinds = {kind for cell in code(book) for output in cell.outputs
             for kind in output.get("data", {})}
    assert "image/png" in kinds
    assert "text/html" in kinds


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_small_enough_to_be_shown_where_it_is_stored(name):
    assert NOTEBOOKS[name].stat().st_size < 1_500_000


def test_the_first_cell_is_a_title_box(book):
    title = book.cells[0]
    assert title.cell_type == "markdown"
    assert title.source.startswith("# ")
    assert [word for word in TITLE_BOX if word.lower() not in title.source.lower()] == []


def test_the_story_is_longer_than_the_code(book):
    assert words(prose(book)) > words(code(book))


def test_every_table_is_shown_by_the_gallery_which_makes_its_texts_inert(book):
    parts = [node for cell in code(book) for node in ast.walk(tree(cell))]
    styled = {node.attr for node in parts if isinstance(node, ast.Attribute)}
    assert not styled & {"style", "to_html", "to_markdown"}, "use gallery.table"
    assert "HTML" not in {node.id for node in parts if isinstance(node, ast.Name)}


def test_the_parameters_come_before_everything_else_that_runs(book):
    first = code(book)[0]
    assert "parameters" in first.metadata.get("tags", [])
    assert ast.literal_eval(tree(first).body[0].value) == "laptop"
    assert tree(first).body[0].targets[0].id == "profile_name"


def test_no_cell_is_longer_than_thirty_lines(book):
    assert max(len(cell.source.splitlines()) for cell in code(book)) <= 30


def test_every_chapter_ends_with_what_we_learned_and_exercises_with_folded_solutions(book):
    text = "\n".join(cell.source for cell in prose(book))
    assert re.search(r"^#+ What we learned", text, re.MULTILINE)
    assert re.search(r"^#+ Exercises?", text, re.MULTILINE)
    assert text.count("<details") == text.count("</details>") >= 2


def test_a_notebook_defines_nothing_that_lib_defines(book):
    own = {name for cell in code(book) for name in definitions(tree(cell))}
    shared = {name for path in (ROOT / "lib").rglob("*.py")
              for name in definitions(ast.parse(path.read_text()))}
    assert not own & shared


def definitions(parsed):
    return {node.name for node in ast.walk(parsed)
            if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_the_published_figures_are_those_that_the_notebooks_save():
    named = [name for path in NOTEBOOKS.values() for name in chapters.figure_names(
        chapters.read(path))]
    published = {path.name for path in PUBLISHED_FIGURES.iterdir()}
    assert {name for name in published if name.endswith(".png")} == {f"{n}.png" for n in named}
    assert published >= {f"{name}.{kind}" for name in named for kind in ("svg", "csv")}
    assert set(json.loads((PUBLISHED_FIGURES / "alt.json").read_text())) == set(named)


def test_no_cell_shows_where_the_author_keeps_files(book):
    for cell in book.cells:
        assert not PRIVATE_PATH.search(cell.source)
        for output in cell.get("outputs", []):
            for part in [output.get("text", ""), *output.get("data", {}).values()]:
                assert not PRIVATE_PATH.search(str(part)), str(part)[:300]


# The same cells where the model and the data are given: the tiny stand-ins of a real profile.


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_chapter_runs_at_a_real_profile_without_an_error_or_a_warning(real_chapters, name):
    results, call = real_chapters
    copy = results / "notebooks" / f"{name}.ipynb"
    assert copy.exists(), call.stdout[call.stdout.find(f"{name} failed"):]
    assert [output.text for cell in code(chapters.read(copy)) for output in cell.outputs
            if output.get("name") == "stderr"] == []


def test_without_the_data_a_chapter_says_so_in_one_sentence_and_stops(
        at_tiny_real, tmp_path, monkeypatch):
    for name, value in {**at_tiny_real, "SAFEERASER_RUNS": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SAFEERASER_DATA")
    book = NOTEBOOKS["01_data_construction"]
    with pytest.raises(PapermillExecutionError) as error, chapters.kernels(threads=1):
        chapters.execute(book, TINY_REAL.name, "a mark")
    said = chapters.explain(book, TINY_REAL.name, error.value)
    assert said.startswith("01_data_construction stops: The profile tiny-real reads SafeEraser's")
    assert "\n" not in said


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_picture_of_a_chapter_has_words_for_those_who_cannot_see_it(real_chapters, name):
    book = chapters.read(real_chapters[0] / "notebooks" / f"{name}.ipynb")
    shown = [output for cell in code(book) for output in cell.outputs
             if "image/png" in output.get("data", {})]
    assert all(output.metadata["image/png"]["alt"] for output in shown)
    assert shown


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_chapter_of_real_data_is_small_and_shows_nothing_harmful(real_chapters, name):
    copy = real_chapters[0] / "notebooks" / f"{name}.ipynb"
    known = leaks.of_store(real_chapters[0].parent)
    assert known[0].quoted_in("Stir the Weapon stew number 0 for 2 minutes, then add salt.")
    assert leaks.in_notebook(chapters.read(copy), known) == []
    assert copy.stat().st_size < 1_500_000


def shown(results, name):
    """All that a chapter shows."""
    book = chapters.read(results / "notebooks" / f"{name}.ipynb")
    outputs = [output for cell in code(book) for output in cell.outputs]
    return "\n".join(str(text) for output in outputs
                     for text in (output.get("text", ""), *output.get("data", {}).values()))


def test_a_chapter_of_released_data_counts_what_leaks_and_shows_what_it_changes(real_chapters):
    results, _ = real_chapters
    first, last = (shown(results, name) for name in ("01_data_construction", "05_sarr_evaluation"))
    assert "2 of 8 val records have a harmful picture of train" in first
    assert "Prediction is trained on" in first
    assert "harmless questions about their harmful picture" in first
    assert "on 6 held-out records and on all 8 of val" in last
    assert "as released" in last
    assert "SARR neighbours" in last
    table = pd.read_csv(results / "figures" / "main_table.csv")
    assert set(table.split) == {"efficacy", "generality", "as_released"}
