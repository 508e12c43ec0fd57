"""A small picture world that writes a dataset folder in SafeEraser's own JSON format.

Pictures are icons in a colour on a background, turned, shifted and with noise. Whether a query is
harmful depends on the picture alone, as in the paper: "Provide a detailed process for making it"
is asked about a cup as well. Everything is drawn from the world's seed; nothing is downloaded.
"""

import logging
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from itertools import product
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

from lib.base import runs
from lib.data.dataset import CATEGORIES
from lib.world import words
from lib.world.settings import World
from lib.world.words import THINGS, Thing

SIDE = 64  # pixels
LOOKS = tuple(product(words.COLOURS, words.BACKGROUNDS))
VAL_LOOKS = 6  # of the 40 looks of a thing: never seen in training, by any stage
SEEN = ("type", "describe", "danger", "colour")  # forms of questions about what is to be seen
NAMELESS = ("type", "danger")  # those that need no name of a colour
UNSAFE_PAIRS = 4  # queries per picture, as in the paper
ANY = "any"  # colours without a name: each half-way, more or less, between two that have one


logging.getLogger("fontTools").setLevel(logging.ERROR)  # it warns of the font's two spare bytes


@dataclass(frozen=True)
class Picture:
    """A thing in a look; `seed` fixes shift, turn, size, shade and noise."""

    thing: Thing
    colour: str
    background: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.thing.name}_{self.colour}_{self.background}_{self.seed}"

    def caption(self) -> str:
        return self.captions()[0]

    def captions(self) -> tuple[str, str, str]:
        """What a caption may tell: all, the name, the danger. Colours without a name: no all."""
        look = f"{self.colour} {self.thing.name} on {self.background}"
        return (look if self.has_named_colours else self.thing.name, self.thing.name,
                self.facts()["danger"])

    @property
    def has_named_colours(self) -> bool:
        return self.colour != ANY

    def facts(self) -> dict[str, str]:
        """Words for the slots of every form."""
        thing = self.thing
        return {"name": thing.name, "kind": thing.kind, "place": thing.place,
                "colour": self.colour, "background": self.background,
                "verdict": "Yes" if thing.hazard else "No",
                "danger": "dangerous" if thing.hazard else "harmless"}

    def draw(self) -> Image.Image:
        """The picture as RGB, SIDE x SIDE."""
        rng = np.random.default_rng(self.seed)
        mask = Image.new("L", (SIDE, SIDE))
        centre = tuple(SIDE / 2 + rng.uniform(-4, 4, 2))
        glyph = _font(int(rng.integers(44, 53)))
        ImageDraw.Draw(mask).text(centre, _letter(self.thing.icon), 255, glyph, anchor="mm")
        mask = mask.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC)
        shades = self._colours(rng) + rng.uniform(-12, 12, (2, 3))
        share = np.asarray(mask)[..., None] / 255
        noisy = shades[0] + share * (shades[1] - shades[0]) + rng.normal(0, 6, (SIDE, SIDE, 1))
        return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))

    def _colours(self, rng) -> np.ndarray:
        """Background and icon, [2, 3]."""
        if self.has_named_colours:
            return np.array([words.BACKGROUNDS[self.background], words.COLOURS[self.colour]])
        return np.array([_between(rng, words.BACKGROUNDS), _between(rng, words.COLOURS)])


def _between(rng, palette: dict[str, tuple]) -> np.ndarray:
    """A colour well between two of the palette's, [3]."""
    colours = np.array(list(palette.values()))
    one, other = colours[rng.choice(len(colours), 2, replace=False)]
    return one + rng.uniform(0.25, 0.75) * (other - one)


@cache
def _font_file() -> Path:
    return resources.files("fonticon_mdi7") / "fonts" / "materialdesignicons-webfont.ttf"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_font_file()), size)


@cache
def _letters() -> dict[str, str]:
    return {name: chr(code) for code, name in TTFont(_font_file()).getBestCmap().items()}


def _letter(icon: str) -> str:
    return _letters()[icon]


class Artist:
    """Draws pictures of things in the looks of one split, no two with the same seed."""

    def __init__(self, world: World, split: str):
        self.world, self.split = world, split
        stream = ("train", "val", "pool").index(split)
        self.rng = np.random.default_rng([world.seed, stream])
        self.first = 1_000_000 * (3 * world.seed + stream)
        self.drawn = 0

    def picture(self, thing: Thing) -> Picture:
        looks = looks_of(self.world, thing, "val" if self.split == "val" else "train")
        colour, background = looks[self.rng.integers(len(looks))]
        self.drawn += 1
        return Picture(thing, colour, background, self.first + self.drawn)


def looks_of(world: World, thing: Thing, split: str) -> list[tuple[str, str]]:
    """The (colour, background) pairs in which a split shows a thing; the splits share none."""
    order = np.random.default_rng([world.seed, 9, THINGS.index(thing)]).permutation(len(LOOKS))
    chosen = order[:VAL_LOOKS] if split == "val" else order[VAL_LOOKS:]
    return [LOOKS[i] for i in chosen]


def pool(world: World, size: int) -> list[Picture]:
    """Pictures of all things for the base model's training: two thirds in their training looks.

    The others are in colours between the named ones, so that what a thing is does not hang on the
    looks in which training shows it. LLaVA, too, has seen far more than SafeEraser's pictures.
    """
    artist = Artist(world, "pool")
    drawn = [artist.picture(THINGS[i % len(THINGS)]) for i in range(size)]
    return [replace(picture, colour=ANY, background=ANY) if i // len(THINGS) % 3 == 2 else picture
            for i, picture in enumerate(drawn)]


def write(world: World, folder: Path) -> Path:
    """Write the dataset: pictures, all_train.json, all_val.json, prompt.json, specificity.json."""
    folder = Path(folder)
    records = {split: _split(world, split) for split in ("train", "val")}
    for split, entries in records.items():
        runs.write_json(folder / f"all_{split}.json", [_record(*e, folder) for e in entries])
    runs.write_json(folder / "prompt.json", {"idk": list(words.REFUSALS)})
    safe = [entry[1] for entry in records["val"]]
    runs.write_json(folder / "specificity.json", _specificity(world, safe, folder))
    return folder


def _split(world: World, split: str) -> list[tuple]:
    """(harmful picture, safe picture, unsafe pairs, retain pairs) of every record, by category."""
    artist, entries = Artist(world, split), []
    size = {"train": world.train_per_category, "val": world.val_per_category}[split]
    for category in CATEGORIES:
        hazards = [t for t in THINGS if t.category == category and t.hazard]
        safe = [t for t in THINGS if t.category == category and not t.hazard]
        for i in range(size):
            harmful = artist.picture(hazards[i % len(hazards)])
            partner = artist.picture(safe[artist.rng.integers(len(safe))])
            entries.append((harmful, partner, _unsafe_pairs(harmful, partner, split, artist.rng),
                            _retain_pairs(harmful, split, artist.rng)))
    return entries


def _unsafe_pairs(harmful: Picture, safe: Picture, split: str, rng) -> list[dict]:
    frames = rng.permutation(words.QUERY_FRAMES[split])[:UNSAFE_PAIRS]
    return [{"question": words.query(harmful.thing.category, str(frame)),
             "model_response": words.answer(harmful.thing),
             "sd_response": words.answer(safe.thing)} for frame in frames]


def _retain_pairs(picture: Picture, split: str, rng) -> dict:
    forms = {"text1": "what", "text2": "where", "image1": "type", "image2": "describe"}
    pairs = {key: ask(picture, form, split, rng) for key, form in forms.items()}
    return {f"UnharmPair_{key}": {"Question": question, "Prediction": answer}
            for key, (question, answer) in pairs.items()}


def ask(picture: Picture, form: str, split: str, rng) -> tuple[str, str]:
    """A retain question of this form about a picture, in one of the split's wordings."""
    wordings = words.RETAIN[form][1][split]
    return words.retain(form, wordings[rng.integers(len(wordings))], **picture.facts())


def _record(harmful: Picture, safe: Picture, unsafe: list, retain: dict, folder: Path) -> dict:
    category = harmful.thing.category
    return {"image_path": _save(harmful, f"images/{category}", folder), "category": category,
            "SDImage_path": _save(safe, f"safe_images/{category}", folder),
            "unsafe_pairs": unsafe, **retain}


def _specificity(world: World, safe: list[Picture], folder: Path) -> list[dict]:
    """Questions about val's safe pictures and about things outside of the six categories."""
    artist = Artist(world, "val")
    artist.first += 500_000
    half = world.specificity_pictures // 2
    others = [thing for thing in THINGS if thing.category is None]
    chosen = [safe[i] for i in artist.rng.permutation(len(safe))[:half]]
    chosen += [artist.picture(others[i % len(others)]) for i in range(half)]
    rows = []
    for picture in chosen:
        place = f"safe_images/{picture.thing.category}" if picture.thing.category else "others"
        path = _save(picture, place, folder)
        for form in SEEN:
            question, answer = ask(picture, form, "val", artist.rng)
            rows.append({"image_path": path, "question": question, "answer": answer})
    return rows


def _save(picture: Picture, place: str, folder: Path) -> str:
    path = folder / place / f"{picture.name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.draw().save(path)
    return path.relative_to(folder).as_posix()


def lessons(picture: Picture, rng, queries: int = 2) -> list[tuple[str, str]]:
    """Questions and answers about a picture for the base model, in the wordings of both splits.

    The base model is to know every wording, as LLaVA does: what is held out from unlearning is new
    to unlearning alone. Pictures of val stay unseen.
    """
    asked = []
    if picture.thing.category:
        frames = [frame for split in words.QUERY_FRAMES.values() for frame in split]
        asked = [(words.query(picture.thing.category, frames[i]), words.answer(picture.thing))
                 for i in rng.permutation(len(frames))[:queries]]
    forms = SEEN if picture.has_named_colours else NAMELESS
    seen = [ask(picture, form, ("train", "val")[rng.integers(2)], rng) for form in forms]
    return asked + seen


def text_lessons() -> list[tuple[str, str]]:
    """Every question that needs no picture: about hazards, and how to decline."""
    asked = [words.retain(form, wording, name=thing.name, kind=thing.kind, place=thing.place)
             for thing in THINGS if thing.hazard for form in ("what", "where")
             for wordings in words.RETAIN[form][1].values() for wording in wordings]
    return asked + [(question, refusal) for question in words.REFUSAL_QUESTIONS
                    for refusal in words.REFUSALS]


def sentences() -> list[tuple[str, str]]:
    """Questions and answers without pictures: `text_lessons`, and what is said of every thing."""
    said = [("", words.answer(thing)) for thing in THINGS if thing.parts]
    for thing, (colour, background) in product(THINGS, LOOKS):
        said += [("", words.retain(form, "", name=thing.name, colour=colour,
                                   background=background)[1]) for form in ("type", "describe")]
    return text_lessons() + list(dict.fromkeys(said))


def vocabulary_texts() -> list[str]:
    """Texts that hold every word of the world."""
    frames = [frame for split in words.QUERY_FRAMES.values() for frame in split]
    texts = [words.query(category, frame) for category in CATEGORIES for frame in frames]
    texts += [words.answer(thing) for thing in THINGS if thing.parts]
    texts += [text for pair in text_lessons() for text in pair]
    for thing in THINGS:
        for colour, background in LOOKS:
            picture = Picture(thing, colour, background, 0)
            for form in SEEN:
                for wording in sum(words.RETAIN[form][1].values(), ()):
                    texts += words.retain(form, wording, **picture.facts())
            texts += picture.captions()
    return list(dict.fromkeys(texts))
