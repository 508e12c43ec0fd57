"""Pictures, questions and answers side by side, and a cell in which a reader asks the models.

What a model says is never trusted: every text is escaped, so that it can neither become a tag nor
leave an attribute. Styles are inline: they suit light and dark pages and touch nothing else there.
Of real data, harmful pictures and answers are not shown (`discretion`) unless `show_harmful`.
A notebook shows every table that may hold such texts by `table`: pandas' own styler escapes none.
"""

import base64
import html
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas as pd
from IPython.display import HTML
from pandas.io.formats.style import Styler
from PIL import Image

from lib.data import discretion
from lib.data.dataset import Record
from lib.data.pictures import open_image
from lib.figures.style import LABEL_COLOURS
from lib.unlearning.methods import run_name

SIDE = 96  # pixels, of a picture as shown
LONGEST = 200  # characters of a text; a model that broke down repeats itself without end
WHOLE = 1000  # characters of a text in a table, which may be a paragraph
TABLE = "border-collapse:collapse;color:var(--jp-content-font-color1,inherit)"
CELL = ("text-align:left;vertical-align:top;padding:8px 12px;border-bottom:1px solid #8886;"
        "min-width:7em;max-width:24em;line-height:1.4;overflow-wrap:anywhere")  # fmt: skip
NO_WIDGETS = ("Here would be menus, but this JupyterLab cannot show them: install "
              "jupyterlab_widgets into the environment that it runs in, and load this page again.")
CHIP = "display:inline-block;color:#000;border-radius:3px;padding:0 5px;font-size:92%"
NO_MATH = "mathjax_ignore"  # the class that keeps JupyterLab from setting "$5 or $6" as a formula
Model = Callable[[Path, str], str]  # picture, question -> answer


class Gallery(HTML):
    """HTML that says the same where only plain text is shown."""

    def __init__(self, data: str, words: str):
        super().__init__(data)
        self.words = words

    def __repr__(self) -> str:
        return self.words


def show(rows: Sequence[dict], show_harmful: bool = False) -> HTML:
    """A table of picture, question and one column per answer.

    Each row: `image` (PIL image, Path, or None for a text question), `question`, `answers` ({name:
    text}) and, if known, `labels` ({name: harmful, refusal ...}), `judge` (the name of who gave
    them) and `alt` (what is to be seen). Long texts are cut.
    """
    for number, row in enumerate(rows, start=1):
        if missing := [field for field in ("image", "question", "answers") if field not in row]:
            raise ValueError(f"Row {number} of the gallery lacks {', '.join(missing)}.")
    rows = [_discreet(row, show_harmful) for row in rows]
    names = list(dict.fromkeys(name for row in rows for name in row["answers"]))
    head = "".join(f'<th scope="col" style="{CELL}">{_safe(name)}</th>'
                   for name in ("picture", "question", *names))  # fmt: skip
    body = "".join(_table_row(row, n, names) for n, row in enumerate(rows, 1))
    table = f'<table style="{TABLE}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    page = f'<div class="{NO_MATH}" style="overflow-x:auto">{table}</div>'
    return Gallery(page, "\n".join(_words(row, n) for n, row in enumerate(rows, 1)))


def table(frame: pd.DataFrame, caption: str = "", show_harmful: bool = False) -> Styler:
    """A table, ready to be styled: whatever its texts are, they stay texts.

    Cells, index, columns and their names are made inert before the styler sees them, so that no
    later `format` can undo it; numbers are left to `format`. Very long texts are cut.
    """
    frame = discretion.frame(frame, show_harmful)
    shown = pd.DataFrame({n: pd.Series([_inert(value) for value in frame.iloc[:, n]],
                                       index=frame.index, dtype=object)
                          if frame.dtypes.iloc[n].kind not in "biuf" else frame.iloc[:, n]
                          for n in range(frame.shape[1])}, index=frame.index)
    shown.index, shown.columns = _inert_axis(frame.index), _inert_axis(frame.columns)
    styled = shown.style.set_table_attributes(f'class="{NO_MATH}"')
    return styled.set_caption(_inert(caption)) if caption else styled


def _inert_axis(axis: pd.Index) -> pd.Index:
    names = [_inert(name) if name is not None else None for name in axis.names]
    if isinstance(axis, pd.MultiIndex):
        keys = [tuple(map(_inert_name, key)) for key in axis]
        return pd.MultiIndex.from_tuples(keys, names=names)
    return pd.Index([_inert_name(key) for key in axis], name=names[0], dtype=None if len(axis)
                    else object)


def _inert_name(value: object) -> object:
    return _inert(discretion.words(value) if isinstance(value, str) else value)


def _inert(value: object) -> object:
    """Numbers, and what is missing, as they are; anything else as an escaped text."""
    if value is None or isinstance(value, (bool, int, float, np.number, np.bool_)):
        return value
    return value if value is pd.NA or value is pd.NaT else _safe(_cut(value, WHOLE))


def sheet(shelves: Sequence[Sequence[Image.Image | Path]], side: int = 64,
          show_harmful: bool = False) -> Image.Image:
    """Pictures in rows without words: each of `shelves` is a row, each picture a square."""
    whole = Image.new("RGB", (side * max(map(len, shelves)), side * len(shelves)), "white")
    for row, shelf in enumerate(shelves):
        for column, image in enumerate(shelf):
            shown = discretion.picture(image, show_harmful)
            shown = shown if isinstance(shown, Image.Image) else open_image(shown)
            whole.paste(shown.convert("RGB").resize((side, side)), (side * column, side * row))
    return whole


def rows(answers: pd.DataFrame, root: Path) -> list[dict]:
    """For `show`: a row per question of `answers` (from `experiments.answers`), a column per run.

    `root`: the dataset's folder. Select one seed and one decoding first.
    """
    found: dict[tuple, dict] = {}
    for said in answers.itertuples():
        image = Path(root, said.image) if isinstance(said.image, str) else None
        blank = {"image": image, "question": said.question, "answers": {}, "labels": {},
                 "alt": image.stem.replace("_", " ") if image else "",
                 "judge": getattr(said, "judge", None)}  # fmt: skip
        row = found.setdefault((said.set, said.record, said.question_index), blank)
        name = run_name(said.method, said.prompt_decouple)
        if name in row["answers"]:
            asked = discretion.words(said.question)
            raise ValueError(f"There are several answers of {name} to {asked!r} about "
                             f"{said.record}: select one seed and one decoding first.")
        row["answers"][name], row["labels"][name] = said.answer, said.label
    return list(found.values())


def menu(records: Sequence[Record], others: Sequence[Path] = ()) -> dict[str, Path]:
    """{name: picture} for `ask`: the records' pictures, and others that belong to no category."""
    named = [(f"{kind}, {record.category}", image) for record in records
             for kind, image in (("safe", record.safe_image), ("harmful", record.image))]
    named += [("of no category", image) for image in others]
    found: dict[str, Path] = {}
    for what, image in named:
        name = discretion.plain(f"{image.stem.replace('_', ' ')} ({what})")
        found[f"{name}, {len(found)}" if name in found else name] = image
    return found


def ask(models: dict[str, Model], pictures: dict[str, Path], questions: Sequence[str],
        fixed: tuple[str, str], show_harmful: bool = False) -> widgets.VBox | HTML:
    """Lets the reader pick a picture and a question, and shows what every model answers.

    `pictures`: {name: file}; `fixed`: the (picture name, question) to begin with. In a run without
    a reader (SAFEERASER_HEADLESS is "1") there are no widgets, only the answers to `fixed`.
    """  # fmt: skip
    name, asked = fixed
    if name not in pictures:
        raise ValueError(f"There is no picture {name!r} to begin with; there are {list(pictures)}.")
    if os.environ.get("SAFEERASER_HEADLESS") == "1":
        return _ask_all(models, pictures, name, asked, show_harmful)
    wide, wordings = widgets.Layout(width="60em"), {}
    for each in (asked, *questions):  # a widget's choices are kept in the notebook, chosen or not
        wordings.setdefault(discretion.plain(discretion.words(each, show_harmful)), each)
    picture = widgets.Dropdown(description="Picture", layout=wide, value=name,
                               options=[(discretion.plain(each), each) for each in pictures])
    question = widgets.Dropdown(description="Question", options=[*wordings.items()], layout=wide)
    button, answers = widgets.Button(description="Ask every model"), widgets.HTML()

    def clicked(_):
        button.disabled = True
        try:
            shown = _ask_all(models, pictures, picture.value, question.value, show_harmful)
            answers.value = shown.data
        except Exception as error:  # which a widget would swallow
            answers.value = _safe(f"This cannot be shown ({type(error).__name__}): "
                                  f"{discretion.words(str(error), show_harmful)}")
        finally:
            button.disabled = False

    button.on_click(clicked)
    return _Menu([picture, question, button, answers])


class _Menu(widgets.VBox):
    """A box that says what is missing where the lab, in another environment, cannot show it."""

    def _repr_mimebundle_(self, **kwargs):
        data = super()._repr_mimebundle_(**kwargs)
        return None if data is None else data | {"text/plain": NO_WIDGETS}


def _ask_all(models: dict, pictures: dict, name: str, question: str, show_harmful: bool) -> HTML:
    answers, labels = {}, {}
    for model, answer in models.items():
        try:
            answers[model] = answer(pictures[name], question)
        except Exception as error:  # one broken model must not hide what the others say
            answers[model] = f"This model cannot answer ({type(error).__name__}): {error}"
            labels[model] = "error"
    asked = {"image": pictures[name], "question": question, "alt": name}
    return show([asked | {"answers": answers, "labels": labels}], show_harmful)


def _discreet(row: dict, show_harmful: bool) -> dict:
    """The row with what may be shown of it, its picture opened."""
    image, labels = discretion.picture(row["image"], show_harmful), row.get("labels", {})
    judge = row.get("judge")
    said = {name: discretion.answer(text, labels.get(name), show_harmful, judge)
            for name, text in row["answers"].items()}
    labels = {name: discretion.label_of(row["answers"].get(name, ""), label, judge)
              for name, label in labels.items()}
    alt = row.get("alt") if image is row["image"] else "harmful picture, not shown"
    if image is not None and not isinstance(image, Image.Image):
        image = open_image(image)
    return row | {"image": image, "answers": said, "alt": alt, "labels": labels,
                  "question": discretion.words(row["question"], show_harmful)}


def _table_row(row: dict, number: int, names: list[str]) -> str:
    shown = [_picture(row, number), _safe(_cut(row["question"]))]
    shown += [_answer(row, name) if name in row["answers"] else "not asked" for name in names]
    return "<tr>" + "".join(f'<td style="{CELL}">{cell}</td>' for cell in shown) + "</tr>"


def _picture(row: dict, number: int) -> str:
    if row["image"] is None:
        return "text only"
    image, file = row["image"].convert("RGB"), io.BytesIO()  # a copy of the image
    image.thumbnail((SIDE, SIDE))  # a photo of full size would not fit into a notebook
    image.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    alt = discretion.plain(row["alt"] or f"picture {number}")
    return (f'<img src="data:image/png;base64,{data}" width="{SIDE}" alt="{_safe(alt)}" '
            f'style="width:{SIDE}px;max-width:none;image-rendering:pixelated">')  # fmt: skip


def _answer(row: dict, name: str) -> str:
    label, text = _label_and_text(row, name)
    look = f"{CHIP};background:{LABEL_COLOURS.get(label, '#DDD')}"
    return (f'<span style="{look}">{_safe(label)}</span><br>' if label else "") + _safe(text)


def _words(row: dict, number: int) -> str:
    said = [(name, *_label_and_text(row, name)) for name in row["answers"]]
    lines = [f"   {name}: {f'[{label}] ' if label else ''}{text}" for name, label, text in said]
    return "\n".join([f"{number}. {_cut(row['question'])}", *lines])


def _label_and_text(row: dict, name: str) -> tuple[str, str]:
    return row.get("labels", {}).get(name) or "", _cut(row["answers"][name]) or "(nothing)"


def _cut(text: object, longest: int = LONGEST) -> str:
    """One line, not too long, without control characters."""
    line = discretion.plain(text)
    return line if len(line) <= longest else line[:longest].rstrip() + "…"


def _safe(text: str) -> str:
    return html.escape(str(text), quote=True)
