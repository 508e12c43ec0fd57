"""Executed notebooks, figures and README.md of a run, brought to where readers find them."""

import shutil
from pathlib import Path

import nbformat

from lib.base import paths
from lib.running import chapters

OF_A_RUN = ("papermill", "execution")  # metadata that changes with every run: timings, paths
TABLES = (".csv", ".md", ".tex")


def publish(notebooks: list[Path], profile_name: str) -> None:
    """Copy executed notebooks to notebooks/; figures/ becomes what the run's figures folder holds.

    The tables at the top of the run's folder (main_table.csv and its kin) go to figures/ as well,
    after what the run cost and claimed has been put beside them. README.md then shows all this.
    The command publishes runs on IconWorld only, in which nothing is harmful.
    """
    from lib.running import readme  # takes seconds: not before there is need for it

    readme.write_records(profile_name)
    for notebook in notebooks:
        copy = chapters.executed_copy(notebook, profile_name)
        nbformat.write(clean(chapters.read(copy)), notebook)
    _replace(paths.PUBLISHED_FIGURES, _figures_and_tables(profile_name))
    readme.refresh()


def _figures_and_tables(profile_name: str) -> list[Path]:
    tables = [p for p in paths.profile_dir(profile_name).iterdir() if p.suffix in TABLES]
    return [p for p in paths.figures_dir(profile_name).glob("*") if p.is_file()] + tables


def clean(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return an executed notebook as a reader gets it, with the hash of its sources.

    Without papermill's cell and all that changes from run to run; code cells are numbered 1..n.
    """
    book.cells = chapters.own_cells(book)
    for part in [book, *book.cells]:
        part.metadata = {k: v for k, v in part.metadata.items() if k not in OF_A_RUN and v != []}
    book.metadata.pop("widgets", None)  # a widget without a kernel shows nothing
    code = [cell for cell in book.cells if cell.cell_type == "code" and cell.source.strip()]
    for count, cell in enumerate(code, start=1):
        cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    book.metadata["companion"] = {"source_sha256": chapters.source_sha256(book)}
    return book


def _replace(folder: Path, files: list[Path]) -> None:
    """Make a folder hold copies of these files and no others."""
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        if old.name not in {file.name for file in files}:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    for file in files:
        shutil.copyfile(file, folder / file.name)
