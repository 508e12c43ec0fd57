import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from lib.base.runs import read_json
from lib.data import dataset
from lib.data.dataset import CATEGORIES
from lib.model.llava import word_tokenizer
from lib.running.profiles import LAPTOP
from lib.world import iconworld, words
from lib.world.iconworld import LOOKS, Picture
from lib.world.settings import World
from lib.world.words import THINGS

SMALL = World(seed=3, train_per_category=4, val_per_category=3, specificity_pictures=6)
HAZARDS = [thing for thing in THINGS if thing.hazard]
SAFE = [thing for thing in THINGS if thing.category and not thing.hazard]
OTHERS = [thing for thing in THINGS if thing.category is None]
NOTHING = {"name": "", "kind": "", "place": "", "colour": "", "background": ""}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return iconworld.write(SMALL, tmp_path_factory.mktemp("world") / "iconworld")


@pytest.fixture(scope="module")
def read(folder):
    return dataset.read(folder)


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}


# The folder.


def test_a_seed_fixes_every_byte(folder, tmp_path):
    assert tree(iconworld.write(SMALL, tmp_path)) == tree(folder)


def test_another_seed_draws_another_world(folder, tmp_path):
    other = tree(iconworld.write(replace(SMALL, seed=4), tmp_path))
    same = [name for name in set(other) & set(tree(folder)) if name.endswith(".png")]
    assert same == []
    assert other["prompt.json"] == tree(folder)["prompt.json"]


def test_the_folder_has_no_problem(folder):
    assert dataset.check(folder) == []


def test_every_category_has_so_many_records_of_either_split(read):
    for records, count in ((read.train, 4), (read.val, 3)):
        assert Counter(record.category for record in records) == dict.fromkeys(CATEGORIES, count)


def test_a_record_has_four_unsafe_and_two_and_two_retain_pairs_and_one_safe_picture(folder, read):
    for record in (*read.train, *read.val):
        assert len({pair.question for pair in record.unsafe_pairs}) == 4
        assert len(record.text_pairs) == len(record.image_pairs) == 2
        assert record.image.parent == folder.resolve() / "images" / record.category
        assert record.safe_image.parent == folder.resolve() / "safe_images" / record.category


def test_the_files_have_the_official_names_and_fields(folder):
    record = read_json(folder / "all_train.json")[0]
    assert record.keys() == {"image_path", "category", "SDImage_path", "unsafe_pairs",
                             "UnharmPair_text1", "UnharmPair_text2", "UnharmPair_image1",
                             "UnharmPair_image2"}
    assert record["unsafe_pairs"][0].keys() == {"question", "model_response", "sd_response"}
    assert record["UnharmPair_text1"].keys() == {"Question", "Prediction"}
    assert read_json(folder / "prompt.json") == {"idk": list(words.REFUSALS)}


def shown(path):
    """(thing, colour, background) of a picture, from its file name."""
    name, colour, background, _ = path.stem.split("_")
    return name, colour, background


def test_a_harmful_picture_shows_a_hazard_and_a_safe_one_does_not(read):
    by_name = {thing.name: thing for thing in THINGS}
    for record in (*read.train, *read.val):
        harmful, safe = (by_name[shown(path)[0]] for path in (record.image, record.safe_image))
        assert (harmful.hazard, safe.hazard) == (True, False)
        assert harmful.category == safe.category == record.category
        assert {pair.harmful_answer for pair in record.unsafe_pairs} == {words.answer(harmful)}
        assert {pair.safe_answer for pair in record.unsafe_pairs} == {words.answer(safe)}


def test_retain_answers_are_about_the_record_s_own_thing_and_look(read):
    for record in (*read.train, *read.val):
        name, colour, background = shown(record.image)
        thing = next(thing for thing in THINGS if thing.name == name)
        said = [words.parse(pair.answer) for pair in (*record.text_pairs, *record.image_pairs)]
        assert said == [("what", (name, thing.kind)), ("where", (name, thing.place)),
                        ("type", (name,)), ("describe", (colour, name, background))]


# Train and val.


def pictures(records):
    return [path for record in records for path in (record.image, record.safe_image)]


def test_train_and_val_share_no_picture_and_no_look_of_a_thing(read):
    train, val = (pictures(records) for records in (read.train, read.val))
    val += [item.image for item in read.specificity]
    assert not {shown(path) for path in train} & {shown(path) for path in val}
    assert not {path.read_bytes() for path in train} & {path.read_bytes() for path in val}


def test_train_and_val_share_no_wording(read):
    def asked(records):
        return {(r.category, p.question) for r in records for p in r.unsafe_pairs}, {
            p.question for r in records for p in (*r.text_pairs, *r.image_pairs)}

    for train, val in zip(asked(read.train), asked(read.val), strict=True):
        assert train
        assert val
        assert not train & val


@pytest.mark.parametrize("form", words.RETAIN)
def test_no_retain_wording_is_in_both_splits(form):
    train, val = (set(words.RETAIN[form][1][split]) for split in ("train", "val"))
    assert train
    assert val
    assert not train & val


def test_a_thing_s_looks_are_parted_between_the_splits():
    for thing in THINGS:
        train, val = (iconworld.looks_of(SMALL, thing, split) for split in ("train", "val"))
        assert sorted(train + val) == sorted(LOOKS)
        assert len(val) == iconworld.VAL_LOOKS
    parted = {tuple(iconworld.looks_of(SMALL, thing, "val")) for thing in THINGS}
    assert len(parted) > len(THINGS) / 2, "held-out looks are not the same for all things"


def test_the_base_model_sees_every_thing_and_no_look_of_val():
    seen = iconworld.pool(SMALL, 3 * len(THINGS))
    assert Counter(picture.thing for picture in seen) == dict.fromkeys(THINGS, 3)
    for picture in seen:
        held_out = iconworld.looks_of(SMALL, picture.thing, "val")
        assert (picture.colour, picture.background) not in held_out
    assert len({picture.seed for picture in seen}) == len(seen)
    assert sum(picture.has_named_colours for picture in seen) == 2 * len(THINGS)


@pytest.mark.parametrize("palette", [words.BACKGROUNDS, words.COLOURS])
def test_a_colour_without_a_name_lies_well_between_two_that_have_one(palette):
    rng, named = np.random.default_rng(0), np.array(list(palette.values()))
    for drawn in (iconworld._between(rng, palette) for _ in range(500)):
        ways = ((one, other - one) for one in named for other in named if (one != other).any())
        shares = [((drawn - one) @ way / (way @ way), one, way) for one, way in ways]
        assert any(0.25 <= share <= 0.75 and np.allclose(one + share * way, drawn)
                   for share, one, way in shares)


def test_a_picture_in_colours_without_a_name_is_never_asked_for_them():
    nameless = Picture(THINGS[0], iconworld.ANY, iconworld.ANY, 1)
    texts = [*nameless.captions(), *(text for pair in
                                     iconworld.lessons(nameless, np.random.default_rng(0))
                                     for text in pair)]
    colours = {*words.COLOURS, *words.BACKGROUNDS, iconworld.ANY, "colour"}
    assert not colours & set(re.findall(r"\w+", " ".join(texts)))
    assert nameless.captions()[:2] == (THINGS[0].name, THINGS[0].name)


def test_no_two_pictures_of_a_world_have_the_same_seed(folder):
    seeds = [path.stem.rpartition("_")[2] for path in folder.rglob("*.png")]
    seeds += [str(picture.seed) for picture in iconworld.pool(SMALL, 1000)]
    assert len(set(seeds)) == len(seeds)


def test_specificity_asks_about_safe_pictures_of_val_and_about_things_outside(read):
    by_name = {thing.name: thing for thing in THINGS}
    things = [by_name[shown(path)[0]] for path in dict.fromkeys(q.image for q in read.specificity)]
    assert len(things) == SMALL.specificity_pictures
    assert sum(thing.category is None for thing in things) == 3
    assert not any(thing.hazard for thing in things)
    assert len(read.specificity) == len(iconworld.SEEN) * len(things)
    for item in read.specificity:
        name, colour, background = shown(item.image)
        assert words.parse(item.answer) in (("type", (name,)), ("colour", (colour,)),
                                            ("describe", (colour, name, background)),
                                            ("danger", ("No", "harmless")))


# What the world is made of.


def test_there_are_at_least_24_hazards_and_48_safe_things():
    assert len(HAZARDS) >= 24
    assert len(SAFE) >= 48
    assert len(OTHERS) >= 8
    assert {c: len([t for t in HAZARDS if t.category == c]) >= 4 for c in CATEGORIES} == (
        dict.fromkeys(CATEGORIES, True))
    assert {c: len([t for t in SAFE if t.category == c]) >= 8 for c in CATEGORIES} == (
        dict.fromkeys(CATEGORIES, True))


def test_every_thing_has_its_own_name_and_icon():
    assert len({thing.name for thing in THINGS}) == len(THINGS)
    assert len({thing.icon for thing in THINGS}) == len(THINGS)
    assert all(re.fullmatch("[a-z]+", thing.name) for thing in THINGS), "one word is one token"


def test_invented_parts_belong_to_one_hazard_each_and_to_no_other_text():
    parts = [part for thing in HAZARDS for part in thing.parts]
    assert len(set(parts)) == len(parts) == len(words.INVENTED) == 2 * len(HAZARDS)
    others = [words.answer(thing) for thing in SAFE]
    others += [text for pair in iconworld.text_lessons() for text in pair]
    others += [words.query(c, frame) for c in CATEGORIES for frame in frames("train", "val")]
    assert not words.INVENTED & {word for text in others for word in re.findall(r"\w+", text)}


def frames(*splits):
    return [frame for split in splits for frame in words.QUERY_FRAMES[split]]


def test_a_category_has_at_least_8_training_and_4_held_out_wordings_of_its_own():
    train, val = frames("train"), frames("val")
    assert len(set(train)) >= 8
    assert len(set(val)) >= 4
    assert not set(train) & set(val)
    asked = [words.query(c, frame) for c in CATEGORIES for frame in train + val]
    assert len(set(asked)) == len(CATEGORIES) * len(train + val)


def words_of(text):
    return set(re.findall(r"\w+", text.lower()))


def test_a_query_reveals_nothing_of_the_thing():
    named = {word for thing in THINGS for word in (thing.name, thing.kind, thing.place)} - {""}
    telling = named | words.INVENTED | set(words.COLOURS) | set(words.BACKGROUNDS)
    for category in CATEGORIES:
        for frame in frames("train", "val"):
            assert not words_of(words.query(category, frame)) & telling, (category, frame)


def test_what_a_query_owes_to_its_category_names_no_part_of_any_thing():
    parts = {part for thing in THINGS for part in thing.parts or ()}
    for category, phrases in words.PHRASES.items():
        assert not words_of(" ".join(phrases)) & parts, category


def test_questions_about_a_picture_reveal_nothing_of_it_either():
    for form in ("type", "describe", "colour"):
        for wordings in words.RETAIN[form][1].values():
            for wording in wordings:
                assert wording.format(**NOTHING) == wording


def test_the_laptop_s_world_shows_every_hazard_in_both_splits():
    for count in (LAPTOP.world.train_per_category, LAPTOP.world.val_per_category):
        assert count >= max(Counter(thing.category for thing in HAZARDS).values())


# Sentences.


ARTICLES = [
    ("a consonant", "cup", "tool", "Tell me what a cup is.", "A cup is a kind of tool."),
    ("a vowel", "owl", "animal", "Tell me what an owl is.", "An owl is a kind of animal."),
]


@pytest.mark.parametrize(("reason", "name", "kind", "question", "answer"), ARTICLES)
def test_articles_fit_what_follows(reason, name, kind, question, answer):
    said = words.retain("what", "Tell me what a {name} is.", name=name, kind=kind)
    assert said == (question, answer), reason


def test_every_sentence_says_what_it_was_made_from():
    for thing in THINGS:
        if thing.parts:
            assert words.parse(words.answer(thing)) == (thing.category, (thing.name, *thing.parts))
        slots = {**NOTHING, "name": thing.name, "kind": thing.kind, "place": thing.place}
        for colour, background in LOOKS:
            slots |= {"colour": colour, "background": background}
            said = {form: words.parse(words.retain(form, "", **slots)[1])
                    for form in ("type", "describe", "colour")}
            assert said == {"type": ("type", (thing.name,)), "colour": ("colour", (colour,)),
                            "describe": ("describe", (colour, thing.name, background))}
        if thing.hazard:
            for form, fact in (("what", thing.kind), ("where", thing.place)):
                said = words.parse(words.retain(form, "", **slots)[1])
                assert said == (form, (thing.name, fact))


NO_SENTENCES = [
    ("nothing", ""),
    ("no end", "This thing is called cup"),
    ("more after the end", "This thing is called cup. This"),
    ("an unknown thing", "This thing is called zeppelin."),
    ("a colour where a thing goes", "This thing is called red."),
    ("a part too few", "To make the cup, join the clay."),
    ("a slip in the form", "To make a cup, join the clay to the handle."),
    ("a refusal", words.REFUSALS[0]),
]


@pytest.mark.parametrize(("reason", "text"), NO_SENTENCES)
def test_other_texts_are_no_sentences_of_the_world(reason, text):
    assert words.parse(text) is None, reason


def everything_said():
    """Every question with every answer that the world can give to it."""
    for thing in THINGS:
        if thing.category:
            for frame in frames("train", "val"):
                yield words.query(thing.category, frame), words.answer(thing)
        forms = ["type", "describe", "colour", *(["what", "where"] if thing.hazard else [])]
        for form in forms:
            for wording in sum(words.RETAIN[form][1].values(), ()):
                for colour, background in LOOKS:
                    yield words.retain(form, wording, name=thing.name, kind=thing.kind,
                                       place=thing.place, colour=colour, background=background)
    for question in words.REFUSAL_QUESTIONS:
        for refusal in words.REFUSALS:
            yield question, refusal


def test_every_sentence_is_made_of_known_tokens_and_comes_back_unchanged():
    tokenizer = word_tokenizer(iconworld.vocabulary_texts())
    texts = list(dict.fromkeys(f"USER: \n{question} ASSISTANT: {answer}</s>"
                               for question, answer in everything_said()))
    texts += [f"USER: {question} ASSISTANT:" for question, _ in iconworld.text_lessons()]
    texts += [f" {caption}</s>" for thing in THINGS for look in LOOKS
              for caption in Picture(thing, *look, 0).captions()]
    assert len(texts) > 10_000
    for text, ids in zip(texts, tokenizer(texts).input_ids, strict=True):
        assert tokenizer.unk_token_id not in ids, text
        assert tokenizer.decode(ids) == text


# Pictures and lessons.


def test_a_picture_is_small_rgb_and_always_the_same():
    picture = Picture(THINGS[0], "red", "white", 7)
    first = picture.draw()
    assert (first.mode, first.size) == ("RGB", (64, 64))
    assert first.tobytes() == picture.draw().tobytes()
    assert first.tobytes() != replace(picture, seed=8).draw().tobytes()


def test_a_picture_shows_its_thing_in_its_colours():
    for thing in THINGS:
        for colour, background in (("black", "white"), ("red", "cyan")):
            seen = np.asarray(Picture(thing, colour, background, 1).draw()).reshape(-1, 3)
            for share, name in ((0.04, words.COLOURS[colour]),
                                (0.2, words.BACKGROUNDS[background])):
                near = np.abs(seen - np.array(name, float)).max(axis=1) < 40
                assert near.mean() > share, (thing.name, name)


def test_no_two_things_look_alike():
    drawn = {thing: np.asarray(Picture(thing, "black", "white", 1).draw(), float)
             for thing in THINGS}
    for i, one in enumerate(THINGS):
        for other in THINGS[:i]:
            assert np.abs(drawn[one] - drawn[other]).mean() > 5, (one.name, other.name)


def test_lessons_ask_in_the_wordings_of_both_splits():
    rng, asked = np.random.default_rng(0), Counter()
    picture = Picture(HAZARDS[0], "red", "white", 0)
    category = picture.thing.category
    by_split = {split: {words.query(category, frame) for frame in frames(split)}
                for split in ("train", "val")}
    for _ in range(50):
        for question, answer in iconworld.lessons(picture, rng):
            assert words.parse(answer)
            asked.update(split for split, known in by_split.items() if question in known)
    assert asked["train"] > asked["val"] > 0


def test_lessons_about_things_outside_the_categories_have_no_query():
    rng = np.random.default_rng(0)
    said = {words.parse(answer)[0] for _ in range(20)
            for _, answer in iconworld.lessons(Picture(OTHERS[0], "red", "white", 0), rng)}
    assert said == {"type", "describe", "danger", "colour"}


def test_the_language_model_reads_every_answer_before_it_sees_a_picture():
    read = {answer for _, answer in iconworld.sentences()}
    assert {words.answer(thing) for thing in THINGS if thing.parts} <= read
    assert set(words.REFUSALS) <= read
