"""The chapters' notebooks: found, told apart by what determines their outputs, and executed.

Executed copies go to runs/<profile>/notebooks/; the notebooks themselves are only read.
"""

import ast
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from pathlib import Path

import nbformat
import papermill
import psutil
from IPython.core.inputtransformer2 import TransformerManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import strip_color

from lib.base import disk, paths
from lib.base.missing import Missing
from lib.figures import claims

CELL_MAGIC = re.compile(r"\A\s*%%.*\n?")
INLINE = "module://matplotlib_inline.backend_inline"  # shows a notebook's figures
LIBRARY = (".py", ".csv", ".toml")  # files of lib
KERNEL_STARTS = 3  # kernels that start at the same moment can collide on a port
START_SECONDS = 180  # a loaded machine is slow, not broken


def find() -> list[Path]:
    """Return the chapters' notebooks in reading order: notebooks/NN_name.ipynb."""
    return sorted(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def number(notebook: Path) -> str:
    """Return a chapter's number: "04" for 04_prompt_decouple_loss.ipynb."""
    return notebook.stem[:2]


def choose(only: str | None) -> list[Path]:
    """Return the notebooks of "NN[,NN]", or all; ValueError names the known ones."""
    known = {number(notebook): notebook for notebook in find()}
    wanted = sorted({part.strip().zfill(2) for part in only.split(",")}) if only else list(known)
    unknown = [part for part in wanted if part not in known]
    if not known:
        raise ValueError(f"There is no notebook NN_name.ipynb in {paths.NOTEBOOKS}.")
    if unknown:
        raise ValueError(f"No chapter {', '.join(map(repr, unknown))}; "
                         f"known: {', '.join(path.stem for path in known.values())}.")
    return [known[part] for part in wanted]


def check_parameters(notebook: Path, names: Iterable[str]) -> None:
    """Raise ValueError unless the notebook's cell tagged `parameters` sets every one of `names`."""
    known = papermill.inspect_notebook(_as_it_is(notebook))  # papermill only logs a warning
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"{notebook.name} has no parameter {', '.join(unknown)}; the cell tagged "
                         f"'parameters' sets: {', '.join(known) or 'nothing'}.")


def read(path: Path) -> nbformat.NotebookNode:
    """Return a notebook, brought to version 4 of the format."""
    return nbformat.read(path, as_version=4)


def own_cells(book: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Return the cells without the one that papermill puts in."""
    return [cell for cell in book.cells
            if "injected-parameters" not in cell.metadata.get("tags", [])]


def source_sha256(book: nbformat.NotebookNode) -> str:
    """Return the hash of what a reader can edit: kinds and sources of the cells, not outputs."""
    sources = [[cell.cell_type, cell.source] for cell in own_cells(book)]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def parsed(source: str) -> ast.Module:
    """A cell as Python, whatever IPython makes of `%`, `!`, `?` and their like in it.

    Nothing is left of what is no Python: a cell for another program (`%%html`), a mistake.
    """
    try:
        return ast.parse(TransformerManager().transform_cell(CELL_MAGIC.sub("", source)))
    except SyntaxError:
        return ast.Module([], [])


def figure_names(book: nbformat.NotebookNode) -> list[str]:
    """Return the names that the notebook passes to `plots.save(figure, frame, name, ...)`.

    A name that is not written out there, but computed, is left out.
    """
    calls = [node for cell in book.cells if cell.cell_type == "code"
             for node in ast.walk(parsed(cell.source))
             if isinstance(node, ast.Call) and ast.unparse(node.func) == "plots.save"]
    named = [(*call.args[2:3], *(k.value for k in call.keywords if k.arg == "name"))
             for call in calls]
    return [name.value for names in named for name in names if isinstance(name, ast.Constant)]


def fingerprint(notebook: Path, profile_name: str, step_ids: Iterable[str]) -> str:
    """Return the hash of all that an executed copy depends on: sources, lib, profile, results."""
    files = sorted(path for path in (paths.ROOT / "lib").rglob("*") if path.suffix in LIBRARY)
    library = [_bare(path.suffix, path.read_text(encoding="utf-8")) for path in files]
    parts = [source_sha256(read(notebook)), profile_name, sorted(step_ids), library]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@cache
def _bare(suffix: str, source: str) -> str:
    """Code without comments and formatting, which change nothing; data as they are."""
    return ast.unparse(ast.parse(source)) if suffix == ".py" else source


def executed_copy(notebook: Path, profile_name: str) -> Path:
    """Return where the notebook's executed copy is, or will be."""
    return paths.notebooks_dir(profile_name) / notebook.name


def is_current(notebook: Path, profile_name: str, mark: str) -> bool:
    """Tell whether the executed copy has this fingerprint and all that it wrote is still there."""
    book = _read_copy(notebook, profile_name)
    companion = book.metadata.get("companion", {})  # a profile need not draw every figure
    return (companion.get("fingerprint") == mark and has_its_claims(notebook, profile_name)
            and all(_figure(profile_name, name).exists() for name in companion["figures"]))


def has_its_claims(notebook: Path, profile_name: str) -> bool:
    """Tell whether the chapter's list of claims is what its executed copy recorded.

    It is not when someone runs the chapter elsewhere, say in JupyterLab, or has removed the list.
    """
    book = _read_copy(notebook, profile_name)
    begun = any("claims.start(" in cell.source for cell in book.cells)
    found = claims.recorded(profile_name, number(notebook))
    return found == book.metadata.get("companion", {}).get("claims") and bool(found or not begun)


def lost_claims(notebooks: Iterable[Path], profile_name: str) -> list[str]:
    """Return an account for each of these chapters that ran and has other claims now."""
    return [f"{notebook.stem}: its claims are not those of its run, so they prove nothing. Close "
            "it where else it is open, say in JupyterLab, and run this again."
            for notebook in notebooks if not has_its_claims(notebook, profile_name)]


def _read_copy(notebook: Path, profile_name: str) -> nbformat.NotebookNode:
    """The executed copy; an empty notebook if there is none, or one that was cut off."""
    try:
        return read(executed_copy(notebook, profile_name))
    except (FileNotFoundError, ValueError, nbformat.ValidationError):
        return nbformat.v4.new_notebook()


def _figure(profile_name: str, name: str) -> Path:
    return paths.figures_dir(profile_name) / f"{name}.png"


@contextmanager
def kernels(threads: int) -> Iterator[None]:
    """Let `python3` be a kernel of the running interpreter while this lasts.

    A kernelspec that the user has installed may point to another Python; one in JUPYTER_PATH comes
    first. Startup files of the user's IPython stay out, too. `threads`: for each kernel. Whoever
    stops the run stops its kernels, which would else look for their folder and complain.
    """
    before = os.environ.get("JUPYTER_PATH")
    with tempfile.TemporaryDirectory(prefix="safeeraser-") as folder:
        spec = Path(folder, "kernels", "python3", "kernel.json")
        spec.parent.mkdir(parents=True)
        environment = {"SAFEERASER_HEADLESS": "1", "OMP_NUM_THREADS": str(threads),
                       "IPYTHONDIR": str(Path(folder, "ipython")), "MPLBACKEND": INLINE}
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}",
                   "--log-level=ERROR"]  # it would warn, after our last line, that we are gone
        spec.write_text(json.dumps({"argv": command, "display_name": "Python 3 (ipykernel)",
                                    "language": "python", "env": environment}))
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [folder, before]))
        try:
            yield
        except KeyboardInterrupt:
            for kernel in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    kernel.kill()
            raise
        finally:
            os.environ.pop("JUPYTER_PATH")
            if before is not None:
                os.environ["JUPYTER_PATH"] = before


def execute(notebook: Path, profile_name: str, mark: str) -> None:
    """Execute a notebook inside `kernels()`; its copy gets its final name when it is whole.

    Of several processes that want the same one executed, one does it and the others wait. Raises
    what papermill raises; the cells up to there are then in NN_name.unfinished.ipynb.
    """
    with disk.locked(_lock(notebook, profile_name)):
        if not is_current(notebook, profile_name, mark):
            _execute(notebook, profile_name, mark)


@contextmanager
def at_rest(notebooks: Iterable[Path], profile_name: str) -> Iterator[None]:
    """Let no other process execute these notebooks until the end of the block."""
    with ExitStack() as stack:
        for notebook in notebooks:
            stack.enter_context(disk.locked(_lock(notebook, profile_name), shared=True))
        yield


def _lock(notebook: Path, profile_name: str) -> Path:
    return paths.profile_dir(profile_name) / disk.LOCKS / notebook.stem


def _execute(notebook: Path, profile_name: str, mark: str) -> None:
    copy = executed_copy(notebook, profile_name)
    unfinished = copy.with_suffix(".unfinished.ipynb")
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.unlink(missing_ok=True)
    book = _papermill(notebook, unfinished, {"profile_name": profile_name})
    drawn = [name for name in figure_names(book) if _figure(profile_name, name).exists()]
    book.metadata["companion"] = {"fingerprint": mark, "figures": drawn,
                                  "claims": claims.recorded(profile_name, number(notebook))}
    nbformat.write(book, unfinished)
    disk.flush(unfinished)
    os.replace(unfinished, copy)


def _papermill(notebook: Path, output: Path, parameters: dict) -> nbformat.NotebookNode:
    attempt = partial(papermill.execute_notebook, _as_it_is(notebook), _as_it_is(output),
                      parameters, kernel_name="python3", language="python",
                      cwd=paths.ROOT, progress_bar=False, start_timeout=START_SECONDS)
    for _ in range(KERNEL_STARTS - 1):
        try:
            return attempt()
        except DeadKernelError:  # died at work, and would again
            raise
        except RuntimeError:  # did not start
            continue
    return attempt()


def _as_it_is(path: Path) -> str:
    """A path for papermill, which would put parameters into its braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def explain(notebook: Path, profile_name: str, error: Exception) -> str:
    """Return what went wrong, where in the notebook, and where the cells up to there are.

    Of what is missing (`lib.base.missing`) only what it is: nothing is wrong with the notebook.
    """
    if getattr(error, "ename", None) == Missing.__name__:
        return f"{notebook.stem} stops: {strip_color(error.evalue)}"
    copy = executed_copy(notebook, profile_name).with_suffix(".unfinished.ipynb")
    if isinstance(error, papermill.PapermillExecutionError):
        where, what = _place(error), f"{error.ename}: {strip_color(error.evalue)}"
    else:
        where, what = "outside of its cells", f"{type(error).__name__}: {error}"
    if isinstance(error, DeadKernelError):
        what = "its kernel died, perhaps for want of memory: try --jobs 1"
    return f"{notebook.stem} failed {where}\n    {what}\n    The cells up to there: {copy}"


def _place(error: papermill.PapermillExecutionError) -> str:
    """Return the cell, the line and the line's source: the first frame of an IPython traceback."""
    frame = re.search(r"Cell In\[\d+\], line (\d+)", strip_color("\n".join(error.traceback)))
    line = int(frame[1]) if frame else 1
    source = [*error.source.splitlines(), ""][line - 1].strip()
    return f"in cell [{error.exec_count}], line {line}:\n    {source}"
