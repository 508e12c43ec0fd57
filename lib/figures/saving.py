"""A figure is saved: picture, drawing, the plotted frame, and words for those who cannot see it."""

import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from IPython import get_ipython
from IPython.display import display

from lib.base import disk
from lib.base.runs import read_json, write_csv, write_json
from lib.data import discretion
from lib.figures.style import STYLE


def save(fig: plt.Figure, frame, name: str, folder: Path, alt: str,
         show_harmful: bool = False) -> None:
    """Writes name.png, name.svg and name.csv (what is plotted) and notes `alt` in alt.json.

    `frame`: the plotted frame or rows; pictures in it are left out of the CSV, and so is what
    `discretion` does not show. Two saves of one figure are byte-identical. Several processes may
    save into one folder at the same time. A notebook shows the figure, with `alt` for those who
    cannot see it; elsewhere it stays open.
    """
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"Figure name {name!r}: use lower-case letters, digits and _ only.")
    if not alt.strip():
        raise ValueError(f"Figure {name}: write an alt text that says what the figure shows.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        fig.savefig(folder / f"{name}.png", dpi=150, metadata={"Description": alt})
        fig.set_layout_engine("none")  # made again it would move by 1e-14 and change the SVG's ids
        fig.savefig(folder / f"{name}.svg", metadata={"Date": None, "Description": alt})
    table = pd.DataFrame(frame).drop(columns="image", errors="ignore")
    table = discretion.frame(table, show_harmful)
    write_csv(folder / f"{name}.csv", table, index=False, float_format="%.6g")
    _note_alt(folder / "alt.json", name, alt)
    if get_ipython() is not None:
        display(fig, metadata={"image/png": {"alt": alt}})
        plt.close(fig)


def _note_alt(texts: Path, name: str, alt: str) -> None:
    with disk.locked(texts.parent / disk.LOCKS / texts.name):  # publish copies what is beside it
        write_json(texts, (read_json(texts) if texts.exists() else {}) | {name: alt})
