"""A saved figure is what it shows, byte for byte the same each time."""

import json
import multiprocessing
import os
import subprocess
import sys
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from PIL import Image

from lib.base import paths
from lib.figures import plots
from lib.running.publish import publish
from tests.figure_frames import (
    FRAMES,
    both_sources,
    by_category,
    draw,
    drawn,
    examples,
    rates,
)

ALT = 'PO + PD <refuses> & "explains" → SARR falls from 100 % to 17 %.'


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "new" / "figures"
    plots.save(drawn("before_after"), rates(), "before_after", folder, ALT)
    plots.save(drawn("category_examples"), examples(), "examples", folder, "Examples.")
    return folder


def visible_files(folder) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_a_saved_figure_is_a_png_an_svg_its_csv_and_an_alt_text(saved):
    files = {f"{name}.{kind}" for name in ("before_after", "examples")
             for kind in ("png", "svg", "csv")}  # fmt: skip
    assert visible_files(saved) == files | {"alt.json"}
    assert json.loads((saved / "alt.json").read_text("utf-8")) == {
        "before_after": ALT, "examples": "Examples."}  # fmt: skip
    with Image.open(saved / "before_after.png") as image:
        assert image.size == (1500, 1005)
        assert image.text["Description"] == ALT
    svg = ElementTree.parse(saved / "before_after.svg")
    assert ALT in [element.text for element in svg.iter()]


def test_the_csv_beside_a_figure_is_what_the_figure_shows(saved):
    read = pd.read_csv(saved / "before_after.csv")
    pd.testing.assert_frame_equal(read, rates(), check_dtype=False)
    read = pd.read_csv(saved / "examples.csv")
    pd.testing.assert_frame_equal(read, pd.DataFrame(examples()).drop(columns="image"))


def test_a_saved_figure_stays_open_and_is_saved_again_to_the_same_bytes(tmp_path):
    frame = both_sources()
    figure = plots.ours_beside_paper(frame)
    for folder in ("first", "second"):
        plots.save(figure, frame, "beside", tmp_path / folder, ALT)
        assert plt.fignum_exists(figure.number)
    plt.close(figure)
    for name in visible_files(tmp_path / "first"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


STILL = ("same_question_two_pictures", "weight_sweep", "ours_beside_paper")

SAVE = """
import sys
from pathlib import Path
from tests import test_saving as here
for name in here.STILL:
    here.plots.save(here.draw(name), here.FRAMES[name](), name, Path(sys.argv[1]), name)
"""


def test_another_run_of_a_notebook_publishes_the_same_bytes(tmp_path):
    other = tmp_path / "other"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", SAVE, other], cwd=paths.ROOT, env=environment, check=True)
    for name in STILL:
        plots.save(draw(name), FRAMES[name](), name, tmp_path / "this", name)
    assert visible_files(other) == visible_files(tmp_path / "this")
    for name in visible_files(other):
        assert (other / name).read_bytes() == (tmp_path / "this" / name).read_bytes(), name


class NoPicture:
    """A figure that is saved in no time, so that the processes meet at alt.json."""

    def savefig(self, *_, **__):
        pass

    set_layout_engine = savefig


def save_many(folder, process: int):
    for number in range(25):
        plots.save(NoPicture(), [], f"of_{process}_{number:02}", folder, f"text {number}")


def test_processes_that_save_at_the_same_time_lose_no_alt_text(tmp_path):
    start = multiprocessing.get_context("fork").Process
    processes = [start(target=save_many, args=(tmp_path, process)) for process in range(4)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        if (tmp_path / "alt.json").exists():  # whole at any moment
            json.loads((tmp_path / "alt.json").read_text("utf-8"))
    assert [process.exitcode for process in processes] == [0] * 4
    texts_ = json.loads((tmp_path / "alt.json").read_text("utf-8"))
    assert list(texts_) == [f"of_{process}_{number:02}" for process in range(4)
                            for number in range(25)]  # fmt: skip


def test_publishing_copies_the_figures_and_no_lock(tmp_path, monkeypatch):
    monkeypatch.delenv("SAFEERASER_RUNS", raising=False)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "PUBLISHED_FIGURES", tmp_path / "figures")
    plots.save(draw("sarr_by_category"), by_category(), "sarr", paths.figures_dir("laptop"), ALT)
    publish([], "laptop")
    published = {path.name for path in (tmp_path / "figures").iterdir()}
    assert published >= {"sarr.png", "sarr.svg", "sarr.csv", "alt.json"}
    assert not [name for name in published if "lock" in name]


@pytest.mark.parametrize("name", ["", "SARR", "a b", "../sarr", "sarr.png"])
def test_a_figure_is_named_in_small_letters_digits_and_underscores(name, tmp_path):
    with pytest.raises(ValueError, match="lower-case letters"):
        plots.save(NoPicture(), [], name, tmp_path, ALT)


def test_a_figure_without_an_alt_text_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="Figure sarr: write an alt text"):
        plots.save(NoPicture(), [], "sarr", tmp_path, " ")
    assert not list(tmp_path.iterdir())
