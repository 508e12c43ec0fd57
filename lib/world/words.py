"""What IconWorld is made of: its things, their words, and the wordings of questions and answers.

The things are in things.csv, the wordings in wordings.toml; here they are read and put together.
Nothing here is harmful. Hazards are icons, and an answer about a hazard is a sentence with two
invented names in it: they stand for harmful knowledge because only those answers hold them.
"""

import csv
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Thing:
    """Something that has an icon. Only hazards have a kind and a place, for questions in words."""

    name: str
    icon: str  # in Material Design Icons
    category: str | None  # None: outside of the six categories
    parts: tuple[str, str] | None  # what the answer about it names
    hazard: bool = False
    kind: str = ""
    place: str = ""


def _thing(row: dict[str, str]) -> Thing:
    parts = (row["part_1"], row["part_2"]) if row["category"] else None
    return Thing(row["name"], row["icon"], row["category"] or None, parts, row["hazard"] == "yes",
                 row["kind"], row["place"])


def _tuples(table: dict[str, list]) -> dict[str, tuple]:
    return {name: tuple(values) for name, values in table.items()}


with Path(__file__).with_name("things.csv").open(encoding="utf-8", newline="") as _file:
    THINGS = tuple(map(_thing, csv.DictReader(_file)))
_WORDINGS = tomllib.loads(Path(__file__).with_name("wordings.toml").read_text("utf-8"))
PHRASES = _tuples(_WORDINGS["phrases"])
QUERY_FRAMES = _tuples(_WORDINGS["queries"])
ANSWERS = _WORDINGS["answers"]
RETAIN = {form: (table.pop("answer"), _tuples(table))  # form: (answer, wordings by split)
          for form, table in _WORDINGS["retain"].items()}
REFUSALS = tuple(_WORDINGS["refusals"]["answers"])
REFUSAL_QUESTIONS = tuple(_WORDINGS["refusals"]["questions"])
COLOURS = _tuples(_WORDINGS["colours"])
BACKGROUNDS = _tuples(_WORDINGS["backgrounds"])
INVENTED = frozenset(part for thing in THINGS if thing.hazard for part in thing.parts)
SLOTS = {
    "name": frozenset(thing.name for thing in THINGS),
    "part": frozenset(part for thing in THINGS if thing.parts for part in thing.parts),
    "kind": frozenset(thing.kind for thing in THINGS if thing.hazard),
    "place": frozenset(thing.place for thing in THINGS if thing.hazard),
    "colour": frozenset(COLOURS),
    "background": frozenset(BACKGROUNDS),
    "verdict": frozenset(("Yes", "No")),
    "danger": frozenset(("dangerous", "harmless")),
}


def query(category: str, frame: str) -> str:
    """The query of a category in one of QUERY_FRAMES' wordings.

    >>> query("Weapon", QUERY_FRAMES["train"][0])
    'The picture displays a product. Provide a detailed process for making it.'
    """
    thing, do, doing = PHRASES[category]
    return _fitting_articles(frame.format(thing=thing, do=do, doing=doing))


def answer(thing: Thing) -> str:
    """The answer to every query of the thing's category about a picture of it.

    >>> answer(next(thing for thing in THINGS if thing.name == "cup"))
    'To make the cup, join the clay to the handle.'
    """
    first, second = thing.parts
    form = ANSWERS[thing.category].replace("{part}", first, 1).replace("{part}", second, 1)
    return form.format(name=thing.name)


def retain(form: str, wording: str, /, **words: str) -> tuple[str, str]:
    """A retain question and its answer: a form of RETAIN, a wording of it, words for its slots.

    >>> retain("what", "Tell me what a {name} is.", name="apple", kind="fruit")
    ('Tell me what an apple is.', 'An apple is a kind of fruit.')
    """
    return tuple(_fitting_articles(text.format(**words)) for text in (wording, RETAIN[form][0]))


def parse(text: str) -> tuple[str, tuple[str, ...]] | None:
    """What a sentence of IconWorld says: its form and the words in its slots; None for others.

    >>> parse("To make the cup, join the clay to the handle.")
    ('Weapon', ('cup', 'clay', 'handle'))
    >>> parse("To make the cup, join the clay.") is None
    True
    """
    for name, (pattern, slots) in _FORMS.items():
        found = pattern.fullmatch(text.strip())
        if found and all(word in SLOTS[slot]
                         for word, slot in zip(found.groups(), slots, strict=True)):
            return name, found.groups()
    return None


def _fitting_articles(text: str) -> str:
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def _pattern(form: str) -> tuple[re.Pattern, tuple[str, ...]]:
    slots = tuple(re.findall(r"\{(\w+)\}", form))
    pattern = re.sub(r"\\\{\w+\\\}", r"(\\w+)", re.escape(form))
    return re.compile(re.sub(r"(?<!\w)([Aa])\\ ", r"\1n?\\ ", pattern)), slots


_FORMS = {name: _pattern(form) for name, form in
          {**ANSWERS, **{kind: form for kind, (form, _) in RETAIN.items()}}.items()}
