"""Notebooks as the pipeline sees them: `lib/running/chapters.py`."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest
from papermill.exceptions import PapermillExecutionError

from lib.base import paths
from lib.running import chapters
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


SHOWN = """
from matplotlib import pyplot
from lib.figures import plots
figure, axes = pyplot.subplots()
axes.set_title("100 % of_it")
figure"""


@pytest.mark.parametrize(("reason", "spec"), [
    ("in our kernels", chapters.INLINE), ("in a kernel of the reader's own", "agg")])
def test_a_user_s_matplotlib_settings_hide_no_figure_and_change_none(book, tmp_path, monkeypatch,
                                                                    reason, spec):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.size: 31\n")
    monkeypatch.setenv("MATPLOTLIBRC", str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr(chapters, "INLINE", spec)
    notebook(book, SHOWN, "print(pyplot.rcParams['text.usetex'], pyplot.rcParams['font.size'])")
    figure, settings = execute(book).cells[-2:]
    pictures = [output for output in figure.outputs if "image/png" in output.get("data", {})]
    assert pictures, reason
    assert settings.outputs[0].text == "False 10.0\n"


def test_what_only_ipython_reads_stops_no_chapter(book):
    notebook(book, "%%html\n<b>bold</b>", "files = !ls notebooks", "print?", "print(files)")
    shown = execute(book).cells
    assert shown[-4].outputs[0].data["text/html"] == "<b>bold</b>\n"
    assert shown[-1].outputs[0].text == "['00_first.ipynb', '01_second.ipynb']\n"


def test_braces_and_blanks_and_letters_of_every_kind_in_a_path_are_part_of_it(tmp_path,
                                                                              monkeypatch):
    root = toy_repository.make(tmp_path / "a {profile_name} {} {{x}} [y] 5% ünï 猫" / "it")
    monkeypatch.delenv("SAFEERASER_RUNS", raising=False)
    monkeypatch.setattr(paths, "ROOT", root)
    path = root / "notebooks" / "00_first.ipynb"
    notebook(path, "print(profile_name)")
    chapters.check_parameters(path, ["profile_name"])
    assert execute(path).cells[-1].outputs[0].text == "laptop\n"


BEGIN = """
import time
from lib.figures import claims
from lib.running import profiles
claims.start(profiles.get(profile_name), "00")"""
CLAIM = """
open("executed", "a").write("once ")
time.sleep(float(open("pause").read()))
claims.check(profiles.get(profile_name), "00", "The sky is blue", True, "")"""


def test_two_that_want_one_notebook_executed_wait_for_one_execution(book):
    (paths.ROOT / "pause").write_text("2")
    notebook(book, BEGIN, CLAIM)
    with chapters.kernels(threads=1), ThreadPoolExecutor(2) as both:
        for each in [both.submit(chapters.execute, book, "laptop", "a mark") for _ in range(2)]:
            each.result()
    assert (paths.ROOT / "executed").read_text() == "once "
    assert chapters.is_current(book, "laptop", "a mark")
    assert chapters.lost_claims([book], "laptop") == []


def test_claims_that_are_not_those_of_the_run_are_lost(book):
    (paths.ROOT / "pause").write_text("0")
    notebook(book, BEGIN, CLAIM)
    execute(book)
    [recorded] = paths.profile_dir("laptop").glob("claims/*")
    for lost in ("[]", "", '[{"claim": "of another run"}]', None):
        recorded.unlink() if lost is None else recorded.write_text(lost)
        assert not chapters.is_current(book, "laptop", "a fingerprint")
        [account] = chapters.lost_claims([book], "laptop")
        assert account.startswith("00_first: its claims are not those of its run")


def test_a_chapter_that_began_a_list_of_claims_and_made_none_proves_nothing(book):
    notebook(book, BEGIN)
    execute(book)
    assert len(chapters.lost_claims([book], "laptop")) == 1


def test_an_executed_copy_that_was_cut_off_is_not_current(book):
    notebook(book, "1 + 1")
    execute(book)
    assert chapters.is_current(book, "laptop", "a fingerprint")
    for content in (b"", b'{"cells": [', b"{}", bytes(99)):
        chapters.executed_copy(book, "laptop").write_bytes(content)
        assert not chapters.is_current(book, "laptop", "a fingerprint"), content


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
from lib.base.missing import Missing
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
    ("under a magic", '%%time\nplots.save(f, t, "three", d, "C")', ["three"]),
    ("a cell for another program", '%%html\n<b>plots.save(</b>', []),
    ("a name that is computed", 'plots.save(f, t, f"{x}", d, "")', []),
    ("no Python", 'a = = b', []),
    ("after a magic", '%matplotlib inline\nplots.save(f, t, "three", d, "C")', ["three"]),
    ("another save", 'other.save(f, t, "four", d, "D")', []),
    ("two in one cell", 'plots.save(f, t, "a", d, ""); plots.save(f, t, "b", d, "")', ["a", "b"]),
])
def test_the_figures_of_a_notebook_are_those_that_it_saves(reason, source, names):
    cells = [nbformat.v4.new_markdown_cell('`plots.save(f, t, "prose", d, "")`'),
             nbformat.v4.new_code_cell(source)]
    assert chapters.figure_names(nbformat.v4.new_notebook(cells=cells)) == names, reason
