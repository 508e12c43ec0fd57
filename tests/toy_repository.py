"""A throw-away repository with the real lib, two tiny chapters and steps that take no time."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from nbformat import v4, write

from lib import running
from lib.base import paths
from lib.running import pipeline
from tests import toy_steps

IMPORTS = """
import os
import sys
from lib.base import paths
from lib.figures import claims
from lib.running import profiles
profile = profiles.get(profile_name)
claims.start(profile, "NN")
"""

FIGURE = """
import pandas as pd
from matplotlib import pyplot
from lib.figures import plots
frame = pd.DataFrame({"x": [1, 2], "y": [3, 4]})
figure, axes = pyplot.subplots()
axes.plot(frame.x, frame.y)
plots.save(figure, frame, "figure_NN", paths.figures_dir(profile_name), "A line that rises.")
figure
"""

CLAIM = """
blue = os.environ.get("TOY_SKY") != "grey"
claims.check(profile, "NN", "The sky is blue", blue, "1 of 1")
claims.finding(profile, "NN", "The sky is high", os.environ.get("TOY_SKY") != "low", "1 of 1")
"""


def notebook(path: Path, *sources: str, parameters: str = 'profile_name = "laptop"') -> None:
    """Write a chapter: title, parameters cell and one code cell for each of `sources`.

    NN in a source becomes the chapter's number.
    """
    cells = [v4.new_markdown_cell("# A toy"), v4.new_code_cell(parameters)]
    cells[1].metadata["tags"] = ["parameters"]
    cells += [v4.new_code_cell(source.strip().replace("NN", path.stem[:2])) for source in sources]
    for position, cell in enumerate(cells):
        cell.id = f"cell-{position}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    path.parent.mkdir(exist_ok=True)
    write(v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


def make(root: Path, *sources: str) -> Path:
    """Make the repository at `root`, both chapters with these sources."""
    shutil.copytree(paths.ROOT / "lib", root / "lib",
                    ignore=shutil.ignore_patterns("experiments.py", "__pycache__"))
    shutil.copy(toy_steps.__file__, root / "lib" / "running" / "experiments.py")
    for name in ("00_first", "01_second"):
        notebook(root / "notebooks" / f"{name}.ipynb", *sources)
    return root


def environment(**more: str) -> dict[str, str]:
    """Return the environment for a process in it: no SAFEERASER_RUNS, and what the test adds."""
    own = {name: value for name, value in os.environ.items() if name != "SAFEERASER_RUNS"}
    return {**own, "OMP_NUM_THREADS": "1", **more}


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


class Toy:
    """The pipeline of this process, at work in a toy repository (kernels use the toy's own lib)."""

    def __init__(self, monkeypatch, capsys):
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def enter(self, root: Path) -> Path:
        """Let the pipeline take `root` for its repository until the test ends."""
        self.monkeypatch.setattr(paths, "ROOT", root)
        self.monkeypatch.setattr(paths, "NOTEBOOKS", root / "notebooks")
        self.monkeypatch.setattr(paths, "PUBLISHED_FIGURES", root / "figures")
        self.monkeypatch.delenv("SAFEERASER_RUNS", raising=False)
        self.monkeypatch.setitem(sys.modules, "lib.running.experiments", toy_steps)
        self.monkeypatch.setattr(running, "experiments", toy_steps, raising=False)
        return root

    def run(self, *options: str) -> Result:
        """Run the pipeline and return what it printed."""
        self.capsys.readouterr()
        status = pipeline.main(list(options))
        return Result(status, *self.capsys.readouterr())
