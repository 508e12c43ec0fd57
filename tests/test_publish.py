"""What readers get of a run: `lib/running/publish.py`."""

import nbformat
import pytest

from lib.base import paths
from lib.figures import claims
from lib.running import chapters, profiles
from lib.running.publish import publish
from tests import toy_repository

CELLS = ('print("loss 0.5")', "%config InlineBackend.figure_format = 'png'", "", "6 * 7",
         "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with one executed chapter, and figures and tables of its run."""
    root = toy_repository.make(tmp_path / "a repository", *CELLS)
    monkeypatch.delenv("SAFEERASER_RUNS", raising=False)
    for name, folder in {"ROOT": root, "NOTEBOOKS": root / "notebooks",
                         "PUBLISHED_FIGURES": root / "figures"}.items():
        monkeypatch.setattr(paths, name, folder)
    _execute(root)
    claims.check(profiles.LAPTOP, "00_first", "it is so", True, "1 of 1")
    for name in ("figures/sarr.png", "figures/alt.json", "main_table.csv", "main_table.md",
                 "failure.txt"):
        file = paths.profile_dir("laptop") / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(name)
    return root


def _execute(root):
    with chapters.kernels(threads=1):
        chapters.execute(root / "notebooks" / "00_first.ipynb", "laptop", "a fingerprint")


def test_a_published_notebook_is_numbered_and_holds_only_what_a_reader_needs(root):
    path = root / "notebooks" / "00_first.ipynb"
    publish([path], "laptop")
    book = chapters.read(path)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.source for cell in code] == ['profile_name = "laptop"', *CELLS]
    assert [cell.execution_count for cell in code] == [1, 2, 3, None, 4, 5]
    assert [cell.metadata for cell in code] == [{"tags": ["parameters"]}] + [{}] * len(CELLS)
    assert code[4].outputs[0].execution_count == 4
    assert "image/png" in code[5].outputs[-1].data
    assert set(book.metadata) == {"companion", "kernelspec", "language_info"}
    assert book.metadata.companion == {"source_sha256": chapters.source_sha256(book)}


def test_publishing_another_run_of_the_same_sources_changes_no_byte(root):
    path = root / "notebooks" / "00_first.ipynb"
    publish([path], "laptop")
    first = path.read_bytes()
    chapters.executed_copy(path, "laptop").unlink()
    _execute(root)
    publish([path], "laptop")
    assert path.read_bytes() == first


def test_the_figures_folder_becomes_what_the_run_drew_with_its_tables_costs_and_claims(root):
    (root / "figures").mkdir()
    (root / "figures" / "of_a_removed_chapter.png").touch()
    publish([], "laptop")
    there = {path.name: path.read_text() for path in (root / "figures").iterdir()}
    assert there.pop("costs.csv").splitlines()[1].startswith("notebook 00_first,1,")
    assert there.pop("claims.csv").splitlines() == ["chapter,kind,claim,verdict,holds,shown",
                                                    "00_first,check,it is so,✓ holds,True,1 of 1"]
    assert there == {"sarr.png": "figures/sarr.png", "alt.json": "figures/alt.json",
                     "main_table.csv": "main_table.csv", "main_table.md": "main_table.md"}


def test_the_readme_is_refreshed_and_what_stands_outside_of_its_blocks_stays(root):
    readme = root / "README.md"
    readme.write_text("# Title\n<!-- claims: generated -->\nold\n<!-- end -->\nThe end.\n")
    publish([], "laptop")
    said = "Checks that hold: 1 of 1."
    assert readme.read_text() == (
        f"# Title\n<!-- claims: generated -->\n\n{said}\n\n<!-- end -->\nThe end.\n")
