"""Notebooks as the pipeline sees them: `lib/chapters.py`."""

import json
import sys

import nbformat
import pytest
from papermill.exceptions import PapermillExecutionError

from lib import chapters, paths
from tests import toy_repository
from tests.toy_repository import notebook


@pytest.fixture
def book(tmp_path, monkeypatch):
    """Where a toy repository's first chapter is to be written."""
    monkeypatch.delenv("SAFEERASER_RUNS", raising=False)
    monkeypatch.setattr(paths, "ROOT", toy_repository.make(tmp_path / "a repository"))
    return paths.ROOT / "notebooks" / "00_first.ipynb"


def execute(path, profile="laptop"):
    with chapters.kernels(threads=1):
        chapters.execute(path, profile, "a fingerprint")
    return chapters.read(chapters.executed_copy(path, profile))


def test_the_profile_reaches_the_notebook_as_its_parameter(book):
    notebook(book, "print(profile_name)")
    assert execute(book, "smoke").cells[-1].outputs[0].text == "smoke\n"


def test_the_kernel_is_this_python_in_the_repository_whatever_the_user_has_installed(
        book, tmp_path, monkeypatch):
    spec = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["/no/such/python", "{connection_file}"],
                                "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    notebook(book, "import os, sys",
             "print(sys.executable, os.getcwd(), os.environ['SAFEERASER_HEADLESS'], sep='\\n')")
    shown = execute(book).cells[-1].outputs[0].text
    assert shown.splitlines() == [sys.executable, str(paths.ROOT), "1"]


def test_a_kernel_that_does_not_start_is_started_again(book, tmp_path, monkeypatch):
    python = tmp_path / "python that fails once"
    python.write_text(f'''#!/bin/sh
[ -e "{tmp_path}/failed" ] && exec "{sys.executable}" "$@"
touch "{tmp_path}/failed"; exit 1
''')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    notebook(book, "6 * 7")
    assert execute(book).cells[-1].outputs[0].data["text/plain"] == "42"
    assert (tmp_path / "failed").exists()


def test_a_kernel_that_never_starts_is_an_error_that_says_so(book, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    notebook(book, "6 * 7")
    with pytest.raises(RuntimeError, match="died before replying") as error:
        execute(book)
    assert "00_first failed outside of its cells" in chapters.explain(book, "laptop", error.value)


def test_a_kernel_that_dies_at_work_is_reported_as_such(book):
    notebook(book, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(RuntimeError) as died:
        execute(book)
    assert "its kernel died, perhaps for want of memory" in chapters.explain(
        book, "laptop", died.value)


@pytest.mark.parametrize(("reason", "source", "words"), [
    ("the line in the notebook, not the one in a library",
     "import json\nx = json.loads('{')\n", ["cell [3], line 2", "x = json.loads", "JSONDecode"]),
    ("the line in the cell, not the one in the function it calls",
     "def f():\n    return 1 / 0\n\nf()", ["line 4", "f()", "ZeroDivisionError: division"]),
    ("a cell that cannot be read", "a = 1\nb = = 2", ["line 2", "b = = 2", "SyntaxError"]),
])
def test_a_failure_is_explained_by_the_line_that_the_reader_wrote(book, reason, source, words):
    notebook(book, source)
    with pytest.raises(PapermillExecutionError) as failed:
        execute(book)
    text = chapters.explain(book, "laptop", failed.value)
    assert all(word in text for word in words), (reason, text)
    assert not chapters.executed_copy(book, "laptop").exists()


def test_a_mended_notebook_leaves_no_trace_of_its_failure(book):
    notebook(book, "1 / 0")
    with pytest.raises(PapermillExecutionError):
        execute(book)
    notebook(book, "1 / 1")
    execute(book)
    assert [path.name for path in paths.notebooks_dir("laptop").iterdir()] == ["00_first.ipynb"]


def test_what_is_missing_is_said_in_one_sentence_and_the_notebook_stops_there(book):
    said = "There is no model folder bread: check the path after --model."
    notebook(book, f"""
from lib.missing import Missing
raise Missing({said!r})""", "print('after it')")
    with pytest.raises(PapermillExecutionError) as error:
        execute(book)
    assert chapters.explain(book, "laptop", error.value) == f"00_first stops: {said}"
    copy = chapters.executed_copy(book, "laptop").with_suffix(".unfinished.ipynb")
    stopped, after = chapters.read(copy).cells[-2:]
    assert stopped.outputs[-1].traceback == [said]
    assert not after.outputs


def test_a_figure_that_a_profile_does_not_draw_is_not_waited_for(book):
    notebook(book, 'if profile_name == "smoke": plots.save(f, t, "one", d, "A")')
    execute(book)
    assert chapters.is_current(book, "laptop", "a fingerprint")


def test_the_hash_of_a_notebook_is_of_its_sources_and_not_of_its_outputs(book):
    notebook(book, "1 + 1")
    copy, original = execute(book), chapters.read(book)
    assert copy.cells[-1].outputs
    assert chapters.source_sha256(copy) == chapters.source_sha256(original)
    original.cells[0].source += " Changed."
    assert chapters.source_sha256(copy) != chapters.source_sha256(original)


@pytest.mark.parametrize(("reason", "source", "names"), [
    ("third argument", 'plots.save(f, t, "one", d, "A")', ["one"]),
    ("named argument", 'plots.save(f, t, folder=d, name="two", alt="B")', ["two"]),
    ("after a magic", '%matplotlib inline\nplots.save(f, t, "three", d, "C")', ["three"]),
    ("another save", 'other.save(f, t, "four", d, "D")', []),
    ("two in one cell", 'plots.save(f, t, "a", d, ""); plots.save(f, t, "b", d, "")', ["a", "b"]),
])
def test_the_figures_of_a_notebook_are_those_that_it_saves(reason, source, names):
    cells = [nbformat.v4.new_markdown_cell('`plots.save(f, t, "prose", d, "")`'),
             nbformat.v4.new_code_cell(source)]
    assert chapters.figure_names(nbformat.v4.new_notebook(cells=cells)) == names, reason
