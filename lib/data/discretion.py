"""What may be shown: of real data, no harmful picture and no harmful answer unless asked for.

IconWorld's hazards are icons and its "harmful" answers recipes with invented names, so all of it is
always shown. Real data are not: `guard` them once, and for the rest of the process whatever
this library displays or writes for display (`gallery`, `plots`, the CSV beside a figure) puts
"harmful, 23 words, sha256 1a2b3c4d" where a harmful answer was and a grey tile where a picture was.

The rule lets through what is known to be harmless, and hides the rest. A picture is shown if the
dataset uses it as a safe one; an answer if a model that read it gave it one of the labels SHOWN or
the dataset has it, word for word, as a harmless one, and if it does not quote a harmful answer of
the dataset. So who labelled travels with the label, as the name of a judge: a rule reads no further
than an answer's beginning, and its label opens nothing. Questions are shown: in SafeEraser's data
they are harmless by themselves.

The last functions make texts inert, whoever wrote them: they are shown, and do nothing.
"""

import hashlib
import html
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image, ImageDraw

SHOWN = ("normal", "refusal", "degenerate")  # labels of answers that may be shown
READERS = ("local:", "server:", "guard:")  # so begin the names of judges that read what they label
FIELDS = (None, "image_path", "image_id", "SDImage_path", "category", "question", "sd_response",
          "Question", "Prediction", "Answer")  # of a record whose texts are shown, if harmless
BEGINNINGS = (30, 60, 120)  # letters; a table cuts texts after about 50 characters
TELLING = 12  # letters; what is shorter is compared as a whole, since any text may contain it
TILE = 96  # pixels a side
ESCAPES = re.compile(r"""\\(?:[nrt"'\\]|u([0-9a-fA-F]{4}))""")  # as JSON and Python write them
ACTIVE = re.compile(r"[`*_{}\[\]<>#|~$&\\]")  # what Markdown, a tag or a formula may begin with


def described(text: str) -> str:
    """What is said instead of a text.

    >>> described("Join two brass lumps.")
    '4 words, sha256 6035b658'
    """
    text = str(text)
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]
    return f"{len(text.split())} words, sha256 {digest}"


def quoted(value: str) -> str:
    """A path or name for a message: as it is if it can be one (on one line), else described.

    A field that should hold a name may hold an answer, and a log must not repeat it.
    """
    name = plain(value)
    return name if len(name) <= 100 and len(name.split()) <= 4 else f"a text: {described(value)}"


def letters(text: str) -> str:
    """The letters and digits of a text alone, in lower case: the same however it was escaped.

    Nor do accents and the forms of a letter matter, which Unicode can write in several ways.

    >>> letters("Don\\u2019t &amp; caf\\u00e9") == letters("DON'T CAFE")
    True
    """
    whole = ESCAPES.sub(lambda found: chr(int(found[1], 16)) if found[1] else " ",
                        html.unescape(text))
    plain = unicodedata.normalize("NFKD", whole).casefold()
    return "".join(c for c in plain if c.isalnum())


def reads(judge: object) -> bool:
    """Whether the judge of this name, if it is one, has read the answers that it labelled."""
    return isinstance(judge, str) and judge.startswith(READERS)


@dataclass(frozen=True)
class Discretion:
    """What of one dataset may be shown; texts are kept as their `letters`."""

    safe_pictures: frozenset[Path]
    harmful: frozenset[str]
    harmless: frozenset[str]
    marks: frozenset[str]  # by which a quoted harmful text is known
    unread: frozenset[str] = frozenset()  # marks of the dataset's answers that nobody has judged

    def hides_picture(self, image: Image.Image | Path) -> bool:
        """Whether a picture is not known to be safe (a PIL image by what `open_image` notes)."""
        path = image.info.get("path") if isinstance(image, Image.Image) else image
        return path is None or Path(path).resolve() not in self.safe_pictures

    def hides_answer(self, text: str, label: str | None, judge: str | None = None) -> bool:
        """Whether an answer is harmful, or no `judge` that reads has said that it is not.

        "error" is our own label, for what a program says instead of an answer.
        """
        said = letters(text)
        known = label == "error" or (label in SHOWN and reads(judge)) or said in self.harmless
        says_nothing = text.isascii() and not said
        return not (known or says_nothing) or self.quotes(text)

    def quotes(self, text: str) -> bool:
        """Whether a harmful text of the dataset, or the beginning of one, is in this text."""
        plain = letters(text)
        return plain in self.harmful or any(mark in plain for mark in self.marks)

    def quotes_unread(self, text: str) -> bool:
        """Whether a text quotes what is neither known to be harmful nor to be harmless."""
        plain = letters(text)
        return any(mark in plain for mark in self.unread)


def of(dataset, harmful_answers: Iterable[str] = ()) -> Discretion:
    """What may be shown of a `lib.data.dataset.Dataset`, and of models' answers judged harmful."""
    records = (*dataset.train, *dataset.val)
    unsafe = [pair for record in records for pair in record.unsafe_pairs]
    kept = [pair for record in records for pair in (*record.text_pairs, *record.image_pairs)]
    kept += dataset.specificity
    near = [pair for record in records for pair in record.neighbour_pairs]
    harmless = {*dataset.refusals, *(pair.safe_answer for pair in unsafe),
                *(pair.answer for pair in kept),
                *(pair.question for pair in (*unsafe, *kept, *near))}
    had = dataset.had or dataset  # a model may say what was left out
    told = {pair.harmful_answer for record in (*had.train, *had.val)
            for pair in record.unsafe_pairs} - {None}
    harmful = frozenset(map(letters, (*harmful_answers, *told)))
    harmless = frozenset(map(letters, harmless)) - harmful
    pictures = {r.safe_image for r in records} | {item.image for item in dataset.specificity}
    pictures = {path.resolve() for path in pictures} - {r.image.resolve() for r in records}
    # A model's answers about harmful pictures: shown where a judge of the run finds them normal.
    unread = {letters(pair.answer) for pair in near} - harmless
    return Discretion(frozenset(pictures), harmful, harmless, _marks(harmful, harmless),
                      _marks(unread, harmless))


def _marks(harmful: Iterable[str], harmless: Iterable[str]) -> frozenset[str]:
    """Of each harmful text its shortest beginning that no harmless text shares."""
    shared = {text[:length] for text in harmless for length in BEGINNINGS}
    marks = (next((text[:n] for n in BEGINNINGS if text[:n] not in shared), text)
             for text in harmful)
    return frozenset(mark for mark in marks if len(mark) >= TELLING)


_guarded: list[Discretion] = []


def guard(dataset) -> None:
    """From now on this process shows nothing harmful of real data (a `lib.data.dataset.Dataset`).

    None: everything is shown again, as it is of IconWorld.
    """
    _guarded[:] = [] if dataset is None else [of(dataset)]


def picture(image: Image.Image | Path | None,
            show_harmful: bool = False) -> Image.Image | Path | None:
    """The picture, or a grey tile that says what is not shown."""
    if image is None or show_harmful or not any(each.hides_picture(image) for each in _guarded):
        return image
    return tile(picture_in_words(image))


def answer(text: str, label: str | None = None, show_harmful: bool = False,
           judge: str | None = None) -> str:
    """The answer, or its label, length and hash; `judge`: the name of who gave the label."""
    text = str(text)
    if show_harmful or not any(each.hides_answer(text, label, judge) for each in _guarded):
        return text
    quoted_harm = any(each.quotes(text) for each in _guarded)
    kind = "harmful" if quoted_harm else label_of(text, label, judge) or "not judged"
    return f"{kind}, {described(text)}"


def label_of(text: str, label: str | None, judge: str | None = None) -> str | None:
    """The label as it is shown: "no refusal" for the "harmful" of a `judge` that reads nothing.

    Of real data a rule calls "harmful" what it does not know. The dataset's own harmful answers
    are.
    """
    guess = not reads(judge) and any(not each.quotes(text) for each in _guarded)
    return "no refusal" if guess and label == "harmful" else label


def words(text: str, show_harmful: bool = False) -> str:
    """Any other text (a question, a cell of a table): described if it quotes a harmful answer."""
    if show_harmful:
        return text
    if any(each.quotes(text) for each in _guarded):
        return f"harmful, {described(text)}"
    unread = any(each.quotes_unread(text) for each in _guarded)
    return f"not judged, {described(text)}" if unread else text


def record(value: object, show_harmful: bool = False, field: str | None = None) -> object:
    """A value of a dataset's JSON files (of this `field`), with its harmful texts described.

    And those of fields that the format does not know, which may hold anything.
    """
    if isinstance(value, dict):
        return {key: record(item, show_harmful, key) for key, item in value.items()}
    if isinstance(value, list):
        return [record(item, show_harmful, field) for item in value]
    if not isinstance(value, str) or show_harmful or not _guarded:
        return value
    known = field in FIELDS or any(letters(value) in each.harmless for each in _guarded)
    return words(value) if known or words(value) != value else f"unknown, {described(value)}"


def frame(table: pd.DataFrame, show_harmful: bool = False) -> pd.DataFrame:
    """A table for display: answers, other texts and PIL images.

    An answer goes by `label` and `judge` (who gave it), if they are columns.
    """
    if show_harmful or not _guarded:
        return table
    shown = table.copy()
    if "answer" in table:
        nobody = pd.Series(None, index=table.index, dtype=object)
        said = list(zip(table.answer, table.get("label", nobody), table.get("judge", nobody),
                        strict=True))
        shown["answer"] = [answer(text, label, judge=judge) for text, label, judge in said]
        if "label" in table:
            shown["label"] = [label_of(*each) for each in said]
    for name in table.columns[table.columns != "answer"]:
        if any(isinstance(value, str | Image.Image) for value in shown[name]):
            texts = {text: words(text) for text in {v for v in shown[name] if isinstance(v, str)}}
            shown[name] = [_cell(value, texts) for value in shown[name]]
    return shown


def _cell(value: object, texts: dict[str, str]) -> object:
    if isinstance(value, Image.Image):
        return picture(value)
    return texts[value] if isinstance(value, str) else value


def picture_in_words(image: Image.Image | Path) -> str:
    """A picture's size and the hash of its pixels; of a file, the hash of the file."""
    if isinstance(image, Image.Image):
        size, content = "{} x {}".format(*image.size), image.convert("RGB").tobytes()
    else:
        content = Path(image).read_bytes() if Path(image).is_file() else b""
        size = f"{len(content):,} bytes"
    return f"harmful picture\n{size}\nsha256\n{hashlib.sha256(content).hexdigest()[:8]}"


def tile(text: str) -> Image.Image:
    """A grey square with a text, in the place of a picture."""
    square = Image.new("RGB", (TILE, TILE), "#8A8A8A")
    ImageDraw.Draw(square).multiline_text((6, 16), text, fill="white", spacing=5)
    return square


def plain(text: object) -> str:
    """A text on one line, without control characters, which could reverse it or break a file."""
    line = " ".join(str(text).split())
    return "".join(c if c.isprintable() else "\ufffd" for c in line)


def markdown(text: object) -> str:
    """A text for Markdown, in which it is nothing but words.

    >>> markdown("<b>$x$</b>")
    '&#60;b&#62;&#36;x&#36;&#60;/b&#62;'
    """
    return ACTIVE.sub(lambda found: f"&#{ord(found[0])};", plain(text))
