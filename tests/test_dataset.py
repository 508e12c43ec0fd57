"""lib/data/dataset.py: good folders are read as they are, bad ones are described in full."""

import copy
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib.data import dataset
from lib.data import report as dataset_report
from lib.data.export import REAL, STAND_IN, excerpt, export, to_datasets
from lib.data.problems import Problem, write_list
from tests import tiny_llava

ROOT = Path(__file__).resolve().parent.parent
TRAIN, VAL, PROMPT, SPECIFICITY = FILES = (
    "all_train.json", "all_val.json", "prompt.json", "specificity.json")  # fmt: skip
LETTERS = str.maketrans("0123456789", "abcdefghij")


def draw(path: Path, mode: str = "RGB", side: int = 16, **options) -> None:
    """A picture of random pixels that depend on its name alone."""
    rng = np.random.default_rng(list(path.name.encode()))
    pixels = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if mode == "RGB" else pixels.convert(mode)).save(path, **options)


def make_record(folder: Path, split: str, index: int) -> dict:
    category = dataset.CATEGORIES[index % 6]
    name = f"{split}{index}".translate(LETTERS)
    draw(folder / f"images/{category}/{name}.png")
    draw(folder / f"images/safe/{name}-safe.png")
    pair = {"Question": f"What is {name}?", "Prediction": f"A {name}."}
    return {
        "image_path": f"images/{category}/{name}.png",
        "SDImage_path": f"images/safe/{name}-safe.png",
        "unsafe_pairs": [
            {"question": f"How, {k}?", "model_response": f"Mix {k}.", "sd_response": f"Pour {k}."}
            for k in ("first", "second")
        ],
        **{f"UnharmPair_{kind}{i}": dict(pair) for kind in ("text", "image") for i in (1, 2)},
    }


def make_folder(folder: Path, train: int = 3, val: int = 2) -> Path:
    folder.mkdir()
    save(folder, TRAIN, [make_record(folder, "train", i) for i in range(train)])
    save(folder, VAL, [make_record(folder, "val", i) for i in range(val)])
    save(folder, PROMPT, {"idk": ["I cannot help.", "No."]})
    draw(folder / "images/other/cup.png")
    cup = {"image_path": "images/other/cup.png", "question": "What is it?", "answer": "A cup."}
    save(folder, SPECIFICITY, [cup])
    return folder


def load(folder: Path, name: str):
    return json.loads((folder / name).read_text())


def save(folder: Path, name: str, value) -> None:
    (folder / name).write_text(json.dumps(value))


@pytest.fixture
def folder(tmp_path) -> Path:
    return make_folder(tmp_path / "world")


def put(*path, value, file=TRAIN):
    """Damage: another value at this place of a record (or of the file, when it has no records)."""

    def damage(folder, index=0):
        data = load(folder, file)
        *way, last = path if file == PROMPT else (index, *path)
        place = data
        for step in way:
            place = place[step]
        place[last] = value(folder) if callable(value) else value
        save(folder, file, data)

    return damage


def drop(*path, file=TRAIN):
    """Damage: a field, or a whole file's key, is taken away."""

    def damage(folder, index=0):
        data = load(folder, file)
        *way, last = path if file == PROMPT else (index, *path)
        place = data
        for step in way:
            place = place[step]
        del place[last]
        save(folder, file, data)

    return damage


def repaint(paint, key="image_path"):
    """Damage: the record's picture file is overwritten by paint(path)."""
    return lambda folder, index=0: paint(folder / load(folder, TRAIN)[index][key])


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(bytes(data))


def animate(kind: str):
    def paint(path):
        frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
        frames[0].save(path, kind, save_all=True, append_images=frames[1:])

    return paint


def flat(width: int, height: int, mode: str = "1", kind: str = "PNG"):
    return lambda path: Image.new(mode, (width, height)).save(path, kind)


def bomb(path: Path) -> None:
    """A GIF of a few bytes whose header claims 65,535 x 65,535 pixels."""
    Image.new("L", (16, 16)).save(path, "GIF")
    data = path.read_bytes()
    path.write_bytes(data[:6] + b"\xff" * 4 + data[10:])


def link_outside(path: Path) -> None:
    outside = path.parents[3] / path.name
    shutil.move(path, outside)
    path.symlink_to(outside)


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def twice(key: str):
    """Damage: the first unsafe pair has this key a second time (which no Python dict could)."""

    def damage(folder, index=0):
        put("unsafe_pairs", 0, "first", value="A?")(folder, index)
        written = (folder / TRAIN).read_text().replace('"first":', f'"{key}":')
        (folder / TRAIN).write_text(written)

    return damage


def text(name: str, change):
    """Damage: the file's text is changed."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def to_folder(name: str):
    def damage(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def copy_picture(source: tuple, target: tuple):
    """Damage: the picture of one place is copied, as a file, over that of another place."""

    def damage(folder):
        (name, index, key), (other_name, other, other_key) = source, target
        shutil.copy(folder / load(folder, name)[index][key],
                    folder / load(folder, other_name)[other][other_key])  # fmt: skip

    return damage


PAIR, TEXT, PICTURE = ("unsafe_pairs", 1), "UnharmPair_text1", "UnharmPair_image2"
ABSOLUTE = "/etc/picture.png"
IN_A_RECORD = [
    ("the record is text", put(value="a"), ["is text", "make it an object"]),
    ("the record is null", put(value=None), ["is null", "make it an object"]),
    ("there is no picture path", drop("image_path"), ["image_path or image_id", "missing", "add"]),
    ("the picture path is empty", put("image_path", value=""), ["image_path", "empty", "write"]),
    ("the picture path is a number", put("image_path", value=7), ["image_path", "text", "7"]),
    ("there is no safe picture", drop("SDImage_path"), ["SDImage_path", "missing", "safe picture"]),
    ("the safe picture is null", put("SDImage_path", value=None), ["SDImage_path", "null"]),
    ("the safe picture is blank", put("SDImage_path", value=" "), ["SDImage_path", "empty"]),
    ("the category is unknown", put("category", value="Drugs"), ["Drugs", "IllegalActivity"]),
    ("the category is misspelt", put("category", value="wepon"), ["'wepon'", "Weapon"]),
    ("the category is a number", put("category", value=3), ["is a number (3)", "make it text"]),
    ("the category is NaN, as pandas writes it", put("category", value=math.nan), ["NaN"]),
    ("the folder is no category",
     put("image_path", value=lambda folder: copied(folder, "images/Wepon")),
     ["'Wepon'", "no category's folder", "Weapon"]),
    ("the picture lies in no folder", put("image_path", value=lambda folder: copied(folder, ".")),
     ["no category is given"]),
    ("there are no unsafe pairs", drop("unsafe_pairs"), ["unsafe_pairs", "missing"]),
    ("the unsafe pairs are an empty list", put("unsafe_pairs", value=[]), ["empty list", "pair"]),
    ("the unsafe pairs are an object", put("unsafe_pairs", value={}),
     ["unsafe_pairs", "is an object", "make it a list"]),
    ("an unsafe pair is a list", put(*PAIR, value=["a"]), ["unsafe_pairs[1]", "make it an object"]),
    ("a query is missing", drop(*PAIR, "question"), ["unsafe_pairs[1].question", "model_response"]),
    ("a query is empty", put(*PAIR, "question", value="\n"), ["pairs[1].question", "is empty"]),
    ("a harmful answer is missing", drop(*PAIR, "model_response"), ["model_response", "missing"]),
    ("a harmful answer is empty", put(*PAIR, "model_response", value=""), ["model_response"]),
    ("a harmful answer is NaN", put(*PAIR, "model_response", value=math.nan), ["NaN", "text"]),
    ("a safe answer is missing", drop(*PAIR, "sd_response"), ["sd_response", "is missing"]),
    ("a safe answer is a list", put(*PAIR, "sd_response", value=["a"]), ["sd_response", "a list"]),
    ("a query holds the image marker", put(*PAIR, "question", value="<image>\nWhat?"),
     ["unsafe_pairs[1].question", "<image>", "chat template"]),
    ("an answer holds half a character", put(*PAIR, "sd_response", value="\ud83d"),
     ["sd_response", "surrogate"]),
    ("a retain pair is missing", drop(PICTURE), ["UnharmPair_image2", "is missing"]),
    ("a retain pair is text", put(TEXT, value="a"), [TEXT, "is text", "make it an object"]),
    ("a retain question is missing", drop(TEXT, "Question"), [TEXT + ".Question", "missing"]),
    ("a retain question is true", put(TEXT, "Question", value=True), [TEXT, "text", "true"]),
    ("a retain answer is missing", drop(TEXT, "Prediction"), ["Prediction or Answer", "missing"]),
    ("a retain answer is empty", put(PICTURE, "Prediction", value=""), [PICTURE, "is empty"]),
    ("a field is there twice", twice("question"),
     ["unsafe_pairs[0].question", "twice"]),
    ("the picture file is missing", repaint(Path.unlink), ["image_path", "missing file", ".png"]),
    ("the safe picture file is missing", repaint(Path.unlink, "SDImage_path"),
     ["SDImage_path", "missing file", "-safe.png", "put the picture there"]),
    ("the path is a folder", put("SDImage_path", value="images/safe"), ["missing file"]),
    ("the path is the dataset folder", put("image_path", value="."), ["leads out", "copy"]),
    ("the path is absolute, and in the folder",
     put("image_path", value=lambda folder: str(folder / "images/safe/traina-safe.png")),
     ["absolute", "relative"]),
    ("the path is absolute", put("image_path", value=ABSOLUTE), [ABSOLUTE, "relative"]),
    ("the path is absolute on Windows", put("SDImage_path", value="C:\\a.png"), ["absolute"]),
    ("the path has backslashes", put("SDImage_path", value="images\\a.png"), ["forward slashes"]),
    ("the path holds a zero character", put("SDImage_path", value="a\0.png"), ["zero character"]),
    ("the path is longer than a name can be", put("SDImage_path", value="a" * 300 + ".png"),
     ["missing file"]),
    ("the path leaves the folder", put("SDImage_path", value="../a.png"), ["leads out", "../a"]),
    ("the path leaves a folder of a like name", put("SDImage_path", value="../world2/a.png"),
     ["leads out"]),
    ("the path leaves the folder and comes back", put(
        "SDImage_path", value=lambda folder: f"../{folder.name}/images/safe/traina-safe.png"),
     ["leads out"]),
    ("the picture is a link to outside", repaint(link_outside), ["leads out", "copy the picture"]),
    ("the picture is a link to itself", repaint(link_to_itself), ["missing file"]),
    ("the picture file is empty", repaint(lambda path: path.write_bytes(b"")), ["not a picture"]),
    ("the picture is text", repaint(lambda path: path.write_text("x")), ["not a picture", "PNG"]),
    ("the picture is cut off", repaint(cut_in_half), ["damaged or cut off", "copy the file again"]),
    ("a cut-off JPEG",
     repaint(lambda path: (draw(path, side=64, format="JPEG"), cut_in_half(path))), ["cut off"]),
    ("the picture has a wrong byte", repaint(flip_middle), ["damaged"]),
    ("the picture has 16 bits", repaint(flat(16, 16, "I;16")), ["colour mode I;16", "8-bit RGB"]),
    ("the picture is an animated GIF", repaint(animate("GIF")), ["animated", "2 frames"]),
    ("the picture is an animated PNG", repaint(animate("PNG")), ["animated", "one frame"]),
    ("the picture has two pages", repaint(animate("TIFF")), ["pages", "2 frames"]),
    ("the picture is too small", repaint(flat(15, 40)), ["too small", "15 x 40", "16"]),
    ("the picture is huge", repaint(flat(50_000, 1_001)), ["huge", "50,000,000 pixels", "smaller"]),
    ("the picture is a decompression bomb", repaint(bomb), ["huge"]),
]  # fmt: skip

BETWEEN_RECORDS = [
    ("a test picture is a training picture",
     copy_picture((TRAIN, 1, "SDImage_path"), (SPECIFICITY, 0, "image_path")),
     ["specificity.json, record 0", "one of train", "record 1"]),
    ("a record's safe picture is its harmful one",
     copy_picture((VAL, 1, "image_path"), (VAL, 1, "SDImage_path")),
     ["all_val.json, record 1, SDImage_path", "is a safe picture here", "harmful"]),
    ("a safe picture is another record's harmful one",
     copy_picture((TRAIN, 2, "SDImage_path"), (TRAIN, 1, "image_path")),
     ["all_train.json, record 2, SDImage_path", "harmful", "record 1"]),
]  # fmt: skip

IN_A_FILE = [
    ("there is no train file", lambda folder: (folder / TRAIN).unlink(), [TRAIN, "missing", "add"]),
    ("there is no val file", lambda folder: (folder / VAL).unlink(), [VAL, "is missing"]),
    ("there are no refusals", lambda folder: (folder / PROMPT).unlink(), [PROMPT, "is missing"]),
    ("the file is empty", text(TRAIN, lambda data: b""), [TRAIN, "is empty", "write"]),
    ("the file is blank", text(VAL, lambda data: b" \n"), [VAL, "is empty"]),
    ("the file is cut off", text(TRAIN, lambda data: data[:-1]), [TRAIN, "not valid", "cut off"]),
    ("the file is cut off in a text", text(TRAIN, lambda data: data[: data.rindex(b'"')]),
     [TRAIN, "cut off"]),
    ("a comma is missing", text(VAL, lambda data: data.replace(b", ", b" ", 1)),
     [VAL, "not valid JSON", "line 1", "correct it"]),
    ("JSON lines are cut off", text(VAL, lambda data: b'{"a": 1}\n{"a": 2'), [VAL, "cut off"]),
    ("the list is followed by something", text(VAL, lambda data: data + b"\n]"),
     [VAL, "not valid JSON", "line 2"]),
    ("the file is in UTF-16", text(VAL, lambda data: data.decode().encode("utf-16")), ["UTF-8"]),
    ("the file is in Latin-1", text(PROMPT, lambda data: '{"idk": ["é"]}'.encode("latin-1")),
     [PROMPT, "UTF-8", "byte 10"]),
    ("the file nests too deep", text(VAL, lambda data: b"[" * 200_000), [VAL, "not usable JSON"]),
    ("a number has too many digits", text(VAL, lambda data: b"1" * 9_999), [VAL, "digits"]),
    ("the file is a folder", to_folder(VAL), [VAL, "cannot be read", "directory"]),
    ("the records are an object", text(VAL, lambda data: b'{"a": 1}'), [VAL, "make it a list"]),
    ("the records are null", text(VAL, lambda data: b"null"), [VAL, "make it a list", "null"]),
    ("there are no records", text(VAL, lambda data: b"[]"), [VAL, "empty list", "record"]),
    ("the refusals are a list", text(PROMPT, lambda data: b'["No."]'), [PROMPT, "an object"]),
    ("the refusals have another key", text(PROMPT, lambda data: b'{"no": ["No."]}'),
     [PROMPT, "idk", "missing", "there: 'no'", "refusals"]),
    ("the refusals are an empty list", put("idk", value=[], file=PROMPT), ["idk", "empty list"]),
    ("the refusals are one text", put("idk", value="No.", file=PROMPT), ["idk", "make it a list"]),
    ("a refusal is empty", put("idk", 1, value="", file=PROMPT), [PROMPT, "idk[1]", "is empty"]),
    ("a refusal is a number", put("idk", 1, value=2, file=PROMPT), ["idk[1]", "make it text"]),
    ("no specificity question", text(SPECIFICITY, lambda data: b"[]"), [SPECIFICITY, "empty list"]),
    ("a specificity answer is missing", drop("answer", file=SPECIFICITY),
     [SPECIFICITY, "record 0", "answer", "missing"]),
    ("a specificity question is empty", put("question", value="", file=SPECIFICITY),
     [SPECIFICITY, "question", "empty"]),
    ("a specificity picture is missing", put("image_path", value="a.png", file=SPECIFICITY),
     [SPECIFICITY, "image_path", "missing file"]),
    ("there is no folder", shutil.rmtree, ["is not there", "all_train.json"]),
    ("the folder is a file", lambda folder: (shutil.rmtree(folder), folder.write_text("zip")),
     ["is a file, not a folder"]),
]  # fmt: skip


def copied(folder: Path, below: str) -> str:
    """A picture of its own in the folder `below`."""
    draw(folder / below / "elsewhere-a.png" if below == "." else folder / below / "elsewhere-b.png")
    return "elsewhere-a.png" if below == "." else f"{below}/elsewhere-b.png"


@pytest.mark.parametrize(("reason", "damage", "words"), IN_A_RECORD + BETWEEN_RECORDS + IN_A_FILE)
def test_a_broken_folder_gets_one_sentence_with_place_and_advice(folder, reason, damage, words):
    damage(folder)
    (problem,) = dataset.check(folder)
    missing = [word for word in words if word not in str(problem)]
    assert not missing, f"{reason}: {problem}"
    assert str(problem).startswith(problem.file)
    assert f": {problem.what}" in str(problem)
    assert str(problem).endswith(f"; {problem.advice}.")


def test_all_problems_of_all_records_are_listed_at_once(tmp_path):
    folder = make_folder(tmp_path / "world", train=len(IN_A_RECORD))
    # A key that is there twice would not survive the other damages' loading and saving.
    rows = sorted(enumerate(IN_A_RECORD), key=lambda row: "twice" in row[1][0])
    for index, (_, damage, _) in rows:
        damage(folder, index)
    problems = dataset.check(folder)
    assert [problem.record for problem in problems] == list(range(len(IN_A_RECORD)))
    for problem, (reason, _, words) in zip(problems, IN_A_RECORD, strict=True):
        assert all(word in str(problem) for word in words), f"{reason}: {problem}"


def test_problems_of_all_files_and_between_records_are_listed_together(folder):
    (folder / VAL).write_text("[{")
    put("idk", 0, value="", file=PROMPT)(folder)
    put("answer", value=1, file=SPECIFICITY)(folder)
    drop("SDImage_path")(folder)
    listed = [(problem.file, problem.record) for problem in dataset.check(folder)]
    assert sorted(listed, key=str) == sorted(
        [(TRAIN, 0), (VAL, None), (PROMPT, None), (SPECIFICITY, 0)], key=str
    )


def places(value, way=()):
    """The way to every value inside a JSON value."""
    yield way
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in items if not isinstance(value, str) else ():
        yield from places(part, (*way, key))


def test_no_wrong_value_anywhere_passes_or_crashes(folder):
    records = load(folder, TRAIN)
    for way in places(records[1]):
        for wrong in (None, math.nan, "", [], {"a": 1}):
            put(*way, value=wrong)(folder, 1)
            problems = dataset.check(folder)
            assert {problem.record for problem in problems} == {1}, (way, wrong)
            save(folder, TRAIN, records)


def test_the_error_of_read_lists_every_problem_and_keeps_them(folder):
    drop("SDImage_path")(folder)
    put("idk", value=[], file=PROMPT)(folder)
    with pytest.raises(dataset.DatasetError) as caught:
        dataset.read(folder)
    assert [problem.file for problem in caught.value.problems] == [TRAIN, PROMPT]
    assert all(str(problem) in str(caught.value) for problem in caught.value.problems)


def test_a_good_folder_is_read_as_it_is_written(folder):
    data = dataset.read(folder)
    assert (len(data.train), len(data.val)) == (3, 2)
    assert data.refusals == ("I cannot help.", "No.")
    record = data.train[1]
    assert record == dataset.Record(
        id="train/images/Violence/trainb",
        split="train",
        category="Violence",
        image=folder / "images/Violence/trainb.png",
        safe_image=folder / "images/safe/trainb-safe.png",
        unsafe_pairs=(
            dataset.UnsafePair("How, first?", "Mix first.", "Pour first."),
            dataset.UnsafePair("How, second?", "Mix second.", "Pour second."),
        ),
        text_pairs=(dataset.Pair("What is trainb?", "A trainb."),) * 2,
        image_pairs=(dataset.Pair("What is trainb?", "A trainb."),) * 2,
    )
    cup = folder / "images/other/cup.png"
    assert data.specificity == (
        dataset.PictureQuestion("specificity/images/other/cup", cup, "What is it?", "A cup."),
    )


def test_both_spellings_mean_the_same(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    for name in (TRAIN, VAL, SPECIFICITY):
        spelt = (folder / name).read_text().replace("image_path", "image_id")
        (other / name).write_text(spelt.replace("Prediction", "Answer"))
    shutil.rmtree(folder)
    os.rename(other, folder)
    spelt = dataset.read(folder)
    shutil.rmtree(folder)
    assert spelt == dataset.read(make_folder(folder))


@pytest.mark.parametrize(
    ("reason", "damage", "category"),
    [
        ("a given category beats the folder", put("category", value="Sex"), "Sex"),
        ("however it is capitalised", put("category", value="Hatespeech"), "HateSpeech"),
        ("an empty one does not", put("category", value=""), "IllegalActivity"),
        ("nor does null", put("category", value=None), "IllegalActivity"),
        ("and none need be given", drop("UnharmPair_text1", "x"), "IllegalActivity"),
    ],
)
def test_the_category_is_the_field_or_else_the_folder(folder, reason, damage, category):
    put("UnharmPair_text1", "x", value="a field that nobody knows")(folder)
    damage(folder)
    assert dataset.read(folder).train[0].category == category, reason


def test_a_byte_order_mark_and_space_around_texts_are_no_problem(folder):
    put("idk", 0, value="  I cannot. \n", file=PROMPT)(folder)
    text(PROMPT, lambda data: b"\xef\xbb\xbf" + data)(folder)
    assert dataset.read(folder).refusals[0] == "I cannot."


def test_a_path_may_go_up_and_down_inside_the_folder(folder):
    put("image_path", value="images/safe/../IllegalActivity/traina.png")(folder)
    assert dataset.read(folder).train[0].id == "train/images/IllegalActivity/traina"


def test_a_folder_without_specificity_questions_is_good(folder):
    (folder / SPECIFICITY).unlink()
    assert dataset.read(folder).specificity == ()


def test_paths_may_start_at_the_folder_around_as_the_official_code_reads_them(folder, tmp_path):
    expected = dataset.read(folder)
    records = load(folder, TRAIN)
    for record, before in zip(records, ("dataset/", "./dataset/", "world/"), strict=True):
        for key in ("image_path", "SDImage_path"):
            record[key] = before + record[key]
    save(folder, TRAIN, records)
    assert dataset.read(folder) == expected
    assert dataset.check(excerpt(expected, tmp_path / "part")) == []


def test_json_lines_are_a_list_of_records(folder):
    expected = dataset.read(folder)
    lines = "\r\n".join(json.dumps(record) for record in load(folder, TRAIN))
    (folder / TRAIN).write_text(f"\ufeff{lines}\n\n", encoding="utf-8")
    assert dataset.read(folder) == expected
    assert dataset_report.spellings(expected)["image_path"] == 5


def test_safe_pictures_may_be_shared_by_train_and_val_and_inside_a_split(folder):
    copy_picture((TRAIN, 1, "SDImage_path"), (VAL, 0, "SDImage_path"))(folder)
    copy_picture((TRAIN, 1, "SDImage_path"), (TRAIN, 0, "SDImage_path"))(folder)
    assert dataset.check(folder) == []


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
def test_every_usual_kind_of_picture_opens_as_rgb(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    draw(path, mode)
    picture = dataset.open_image(path)
    assert picture.mode == "RGB"
    assert picture.tobytes() == Image.open(path).convert("RGB").tobytes()


def test_a_picture_that_was_taken_sideways_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise"
    sideways = Image.new("RGB", (32, 16), "red")
    sideways.paste("blue", (0, 0, 16, 16))
    sideways.save(tmp_path / "a.png", exif=exif)
    picture = dataset.open_image(tmp_path / "a.png")
    assert picture.size == (16, 32)
    assert [picture.getpixel((0, y)) for y in (0, 31)] == [(0, 0, 255), (255, 0, 0)]


def test_a_jpeg_with_a_preview_in_it_does_not_count_as_animated(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert dataset.open_image(tmp_path / "a.jpg").getpixel((8, 8))[0] > 250


def test_open_image_says_which_file_cannot_be_opened_and_why(tmp_path):
    with pytest.raises(dataset.PictureError, match=r"a\.png does not exist; put"):
        dataset.open_image(tmp_path / "a.png")


def test_counts_are_those_counted_by_hand(folder):
    copy_picture((TRAIN, 0, "SDImage_path"), (TRAIN, 1, "SDImage_path"))(folder)
    records = load(folder, TRAIN)
    records[1]["SDImage_path"] = records[0]["SDImage_path"]
    records[1]["category"] = "IllegalActivity"
    records[1]["unsafe_pairs"].pop()
    save(folder, TRAIN, records)
    table = dataset.counts(dataset.read(folder))
    assert len(table) == 2 * 6 * 4
    filled = table[table["pairs"] > 0].drop(columns="split").values.tolist()
    assert filled == [
        ["IllegalActivity", "forget", 3, 2],
        ["IllegalActivity", "retain text", 4, 2],
        ["IllegalActivity", "retain image", 4, 2],
        ["IllegalActivity", "prompt decouple", 3, 1],
        *[["Weapon", name, 2, 1] for name in dataset.SETS],
        *[["IllegalActivity", name, 2, 1] for name in dataset.SETS],
        *[["Violence", name, 2, 1] for name in dataset.SETS],
    ]


@pytest.fixture
def varied(folder) -> dataset.Dataset:
    """A dataset with pictures of several kinds."""
    paths = [folder / record["image_path"] for record in load(folder, TRAIN)]
    draw(paths[0], "L")
    draw(paths[1], "P")
    draw(paths[2], "RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6
    draw(folder / "images/safe/traina-safe.png", side=20, exif=exif)
    draw(folder / "images/safe/trainb-safe.png", side=20, format="JPEG")
    return dataset.read(folder)


def assert_same(splits, data: dataset.Dataset, config: str) -> None:
    """The table's rows are the dataset's pairs, in order, pixel by pixel."""
    sets = {"retain": ("retain text", "retain image")}.get(config, (config.replace("_", " "),))
    for split, records in (("train", data.train), ("val", data.val)):
        expected = [
            (record.id, record.category, name, image, pair.question, pair.answer)
            for record in records
            for name in sets
            for image, pairs in [record.sets()[name]]
            for pair in pairs
        ]
        assert len(splits[split]) == len(expected) > 0
        for row, (*texts, image, question, answer) in zip(splits[split], expected, strict=True):
            assert [row["record"], row["category"], row["set"]] == texts
            assert (row["question"], row["answer"]) == (question, answer)
            assert row["image"].tobytes() == dataset.open_image(image).tobytes()


@pytest.mark.parametrize("config", ["forget", "retain", "prompt_decouple"])
def test_the_tables_hold_every_pair_with_its_pixels(varied, config):
    assert_same(to_datasets(varied)[config], varied, config)


def test_an_excerpt_is_a_dataset_of_its_own_with_something_of_every_category(tmp_path):
    whole = dataset.read(tiny_llava.write_dataset(tmp_path / "whole", train=3, val=1))
    part = dataset.read(excerpt(whole, tmp_path / "part", most=6))
    assert [record.category for record in part.train] == list(dataset.CATEGORIES)
    assert {record.id for record in part.train} < {record.id for record in whole.train}
    assert part.refusals == whole.refusals
    assert len(list((tmp_path / "part").glob("*/*/*.png"))) == 2 * (6 + 6)


def test_an_excerpt_of_all_is_the_whole(varied, tmp_path):
    again = dataset.read(excerpt(varied, tmp_path / "again"))
    for ours, theirs in ((again.train, varied.train), (again.val, varied.val)):
        assert [record.id for record in ours] == [record.id for record in theirs]
    assert [q.id for q in again.specificity] == [q.id for q in varied.specificity] != []


def test_an_export_is_read_back_the_same_without_its_source(varied, tmp_path):
    import datasets

    folder = export(varied, tmp_path / "export", stand_in=True)
    assert str(tmp_path).encode() not in b"".join(p.read_bytes() for p in folder.iterdir())
    source = copy.copy(varied)
    for config in ("forget", "retain", "prompt_decouple"):
        splits = datasets.load_dataset(str(folder), config, cache_dir=str(tmp_path / "cache"))
        assert_same(splits, source, config)
    cup = datasets.load_dataset(str(folder), "specificity", cache_dir=str(tmp_path / "cache"))
    assert cup["val"]["answer"] == ["A cup."]
    assert load(folder, PROMPT) == {"idk": list(varied.refusals)}


def test_the_card_gives_the_counts_and_says_what_the_data_are(varied, tmp_path):
    stand_in = (export(varied, tmp_path / "a", stand_in=True) / "README.md").read_text()
    assert "| forget | train | 6 | 3 |" in stand_in
    assert "| retain image | val | 4 | 2 |" in stand_in
    assert STAND_IN in stand_in
    assert REAL not in stand_in
    real = (export(varied, tmp_path / "b") / "README.md").read_text()
    assert REAL in real
    assert STAND_IN not in real


def test_the_command_prints_the_counts_of_a_good_folder(folder, capsys):
    assert dataset.main(["check", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "3 train and 2 val records, 2 refusals, 1 specificity questions" in shown
    assert all(name in shown for name in (*dataset.SETS, "IllegalActivity", "HateSpeech"))


def test_the_command_prints_every_problem_and_fails_on_any_terminal(folder):
    folder = folder.rename(folder.with_name("wörld"))
    drop("SDImage_path")(folder)
    put("idk", value=[], file=PROMPT)(folder)
    command = [sys.executable, "-m", "lib.data", "check", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False,
                          env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (1, "")
    assert "w?rld cannot be used" in done.stdout
    assert all(str(problem) in done.stdout for problem in dataset.check(folder))


@pytest.mark.parametrize("arguments", [[], ["check"], ["chek", "."], ["check", "a", "b"]])
def test_wrong_usage_shows_the_right_one(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        dataset.main(arguments)
    assert stop.value.code == 2
    usage = "usage: python -m lib.data [-h] [--leave-out] [--list FILE] check PATH\n"
    assert usage in capsys.readouterr().err


@pytest.mark.parametrize("place", ["in the dataset", "below a file", "where it may be"])
def test_the_whole_list_is_written_somewhere_and_never_into_the_dataset(tmp_path, monkeypatch,
                                                                        place):
    root, spare = tmp_path / "data", tmp_path / "temporary"
    root.mkdir()
    spare.mkdir()
    (tmp_path / "a file").write_text("no folder")
    monkeypatch.setattr("tempfile.tempdir", str(spare))
    file = {"in the dataset": root / "list.txt", "below a file": tmp_path / "a file" / "list.txt",
            "where it may be": tmp_path / "fine" / "list.txt"}[place]
    said = write_list([Problem("all_train.json", 3, "category", "is unknown", "name it")], file,
                      root)
    written = Path(said.removeprefix("All of them, one a line: "))
    assert written == (file if place == "where it may be" else spare / "safeeraser-list.txt")
    assert written.read_text() == "all_train.json, record 3, category: is unknown; name it.\n"
    assert list(root.iterdir()) == []


def test_a_list_that_can_be_written_nowhere_is_said_with_the_reason(tmp_path, monkeypatch):
    (tmp_path / "a file").write_text("no folder")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "a file"))
    file = tmp_path / "a file" / "list.txt"
    said = write_list([Problem("all_train.json", 3, "", "is unknown", "name it")], file,
                      tmp_path / "data")
    assert said.startswith(f"The whole list cannot be written to {file} (")
