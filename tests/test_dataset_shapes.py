"""Released data as they are: every shape is read, or refused in a screenful and read in part."""

import json
import os
import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib.data import dataset
from lib.data import report as dataset_report
from lib.data.export import excerpt, to_datasets
from lib.data.overlap import HARMFUL, QUESTIONS, SAFE, held_out, overlap
from lib.data.problems import LEFT_OUT
from lib.running import origins
from lib.running.profiles import LLAVA_7B
from lib.world import iconworld
from lib.world.settings import World
from tests import leaks, real_shapes

TRAIN, VAL = "all_train.json", "all_val.json"
SCREEN = 24  # lines


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> dict[str, Path]:
    """Each shape's folder; not to be changed."""
    root = tmp_path_factory.mktemp("shapes")
    return {shape: real_shapes.write(root / shape, shape) for shape in real_shapes.SHAPES}


@pytest.fixture
def folder(shapes, tmp_path) -> Path:
    """A copy of the released shape."""
    return shutil.copytree(shapes["released"], tmp_path / "data")


@pytest.fixture
def change(folder):
    """Changes the records of a file: change(function of the list)."""
    def change(function, name: str = TRAIN) -> None:
        records = json.loads((folder / name).read_text("utf-8"))
        function(records)
        real_shapes.save(folder / name, records)

    return change


def check(capsys, *arguments) -> tuple[int, str]:
    return dataset.main(["check", *map(str, arguments)]), capsys.readouterr().out


# The shapes.


@pytest.mark.parametrize("shape", ["released", "hub", "lines"])
def test_released_data_can_be_used(shapes, shape, capsys):
    status, said = check(capsys, shapes[shape])
    assert status == 0
    assert "36 train and 12 val records" in said
    assert "val records have a harmful picture of train" in said
    assert "192 retain pairs have Prediction and Answer: Prediction is trained on" in said
    assert "48 of 48 records have harmless questions about their harmful picture" in said


@pytest.mark.parametrize(("shape", "words", "left"), [
    ("gaps", ["record 3, UnharmPair_text2: is missing", "record 5, SDImage_path: names a missing",
              "record 7, image_id: names a picture that is damaged or cut off",
              "record 9, unsafe_pairs[1].model_response: is empty"], (33, 12)),
    ("lfs", ["all_val.json: is a Git LFS pointer in place of the file; type `git lfs pull`",
             "image_id: names a picture that is a Git LFS pointer"], (35, 0)),
])
def test_data_with_gaps_are_refused_and_go_on_without_them_on_request(
        shapes, shape, words, left, capsys, tmp_path):
    status, said = check(capsys, shapes[shape], "--list", tmp_path / "list.txt")
    assert status == 1
    assert all(word in said for word in words)
    assert f"--leave-out goes on without what cannot be used: with {left[0]} of 36 train" in said
    listed = (tmp_path / "list.txt").read_text()
    assert listed.splitlines() == [str(problem) for problem in dataset.check(shapes[shape])]
    status, said = check(capsys, shapes[shape], "--leave-out", "--list", tmp_path / "again.txt")
    assert status == 0
    assert f"{left[0]} train and {left[1]} val records" in said
    assert f"{left[0]} of 36" in said
    assert sorted((tmp_path / "again.txt").read_text().splitlines()) == sorted(listed.splitlines())


def test_a_record_keeps_its_other_pairs_where_one_cannot_be_used(shapes):
    read = dataset.read(shapes["gaps"], leave_out=True)
    assert sorted({len(record.unsafe_pairs) for record in read.train}) == [3, 4]
    table = dataset_report.left(read)
    assert table.loc["all", "forget"] == "179 of 192"  # three records, and one pair
    assert table.loc["all", "train"] == "33 of 36"
    assert table.loc["all", "val"] == "12 of 12"


def test_a_dataset_in_a_hubs_cache_is_the_same_as_outside(shapes):
    inside, outside = dataset.read(shapes["hub"]), dataset.read(shapes["released"])
    assert [replace(r, image="", safe_image="") for r in (*inside.train, *inside.val)] == [
        replace(r, image="", safe_image="") for r in (*outside.train, *outside.val)]
    assert all(r.image.is_relative_to(inside.root) for r in inside.train)


def test_reading_without_opening_pictures_gives_the_same(shapes):
    for shape in ("released", "hub"):
        assert dataset.read(shapes[shape], pictures=False) == dataset.read(shapes[shape])
    gaps = dataset.read(shapes["gaps"], leave_out=True)
    again = dataset.read(shapes["gaps"], pictures=False, leave_out=True, known=gaps.left_out)
    assert again == gaps


# What train and val share.


def test_a_val_record_says_what_train_has_of_it(shapes):
    read = dataset.read(shapes["released"])
    asked = {(r.image.read_bytes(), p.question) for r in read.train for p in r.unsafe_pairs}
    shown = {r.image.read_bytes() for r in read.train}
    for record in read.val:
        assert (HARMFUL in record.seen) == (record.image.read_bytes() in shown)
        assert (QUESTIONS in record.seen) == all(
            (record.image.read_bytes(), pair.question) in asked for pair in record.unsafe_pairs)
    assert all(record.seen == frozenset() for record in read.train)
    assert 0 < len(held_out(read.val)) < len(read.val)


def test_the_same_picture_is_found_under_another_name_and_a_safe_one_too(folder, change):
    read = dataset.read(folder)
    record = next(record for record in read.val if not record.seen)
    other = next(other for other in read.train if HARMFUL not in record.seen)
    shutil.copy(other.image, record.image)
    shutil.copy(other.safe_image, record.safe_image)
    (again,) = [each for each in dataset.read(folder).val if each.id == record.id]
    assert again.seen == {HARMFUL, SAFE}


def test_the_overlap_is_counted_per_category(folder, change):
    read = dataset.read(folder)
    table = overlap(read)
    assert list(table.index) == [*dataset.CATEGORIES, "all"]
    assert table.loc["all"].to_list() == table.iloc[:-1].sum().to_list()
    for category, row in table.iloc[:-1].iterrows():
        val = [record for record in read.val if record.category == category]
        seen = [record for record in val if HARMFUL in record.seen]
        assert row.to_dict() == {"val records": 2, "held out": 2 - len(seen), "seen": len(seen),
                                 "harmful pictures": len({r.image for r in seen}),
                                 "safe pictures": 0, "questions": 4 * len(seen)}


def test_a_record_of_which_train_lacks_a_question_has_not_all_of_them_in_train(folder, change):
    before = dataset.read(folder)
    record = next(record for record in before.val if QUESTIONS in record.seen)
    name = record.image.relative_to(folder.resolve()).as_posix()

    def ask_otherwise(records):
        (same,) = [each for each in records if each["image_id"] == name]
        same["unsafe_pairs"][2]["question"] += " Please."

    change(ask_otherwise)
    after = dataset.read(folder)
    (again,) = [each for each in after.val if each.id == record.id]
    assert again.seen == record.seen - {QUESTIONS}
    assert overlap(after).loc["all", "questions"] == overlap(before).loc["all", "questions"] - 1


def test_nothing_of_iconworld_is_in_train(tmp_path):
    size = World(train_per_category=3, val_per_category=2, specificity_pictures=6)
    world = dataset.read(iconworld.write(size, tmp_path / "world"))
    assert {record.seen for record in world.val} == {frozenset()}


def test_records_with_the_same_picture_are_a_remark_and_have_names_of_their_own(folder, change):
    change(lambda records: records.append(records[0]))
    read = dataset.read(folder)
    assert read.train[-1].id == f"{read.train[0].id}~2"
    assert len({record.id for record in read.train}) == 37
    assert any("1 train record(s) have the same harmful picture" in remark
               for remark in dataset_report.remarks(read))


def test_a_picture_that_is_harmful_anywhere_is_left_out_where_it_is_safe(folder, change):
    read = dataset.read(folder)
    partner = read.train[0].safe_image
    shutil.copy(read.val[0].image, partner)
    users = [number for number, r in enumerate(read.train) if r.safe_image == partner]
    problems = dataset.check(folder)
    assert [problem.record for problem in problems] == users
    assert {problem.field for problem in problems} == {"SDImage_path"}
    left = dataset.read(folder, leave_out=True)
    assert len(left.train) == 36 - len(users)
    assert len(left.val) == 12


# Problems, grouped.


def test_a_field_that_all_records_lack_is_one_sentence(folder, change):
    def without_answers(records):
        for record in records:
            for pair in record["unsafe_pairs"]:
                del pair["sd_response"]

    change(without_answers)
    with pytest.raises(dataset.DatasetError) as caught:
        dataset.read(folder, leave_out=True)
    said = str(caught.value)
    assert ("unsafe_pairs[].sd_response is missing in 36 of 36 records "
            "(first: all_train.json, record 0: there: 'question', 'model_response'); add it."
            ) in said
    assert "Leaving out what cannot be used is not enough: no train record can be used" in said
    assert len(caught.value.problems) == 144
    assert len(said.splitlines()) == 3


def test_a_screenful_is_enough_however_broken_the_folder_is(folder, capsys, tmp_path):
    odd = [None, 7, [], {}, "", "\u200b", "</s>", "\ud800", True, "/a", "a\\b", "../a", "b" * 999]
    records = [{f"key{i}": 1, "image_id": odd[i % 13], "SDImage_path": odd[i // 13 % 13],
                "category": f"c{i}", "unsafe_pairs": [{"question": odd[i % 11]}] * 3,
                "UnharmPair_text1": odd[i % 7], "safeNb_pairs": odd[i % 6]} for i in range(1500)]
    (folder / TRAIN).write_text(json.dumps(records))
    (folder / VAL).write_text("{")
    status, said = check(capsys, folder, "--list", tmp_path / "list.txt")
    assert status == 1
    assert len(said.splitlines()) <= SCREEN
    assert max(map(len, said.splitlines())) < 500
    assert "all_val.json: is not valid JSON" in said.splitlines()[1]
    assert "other kinds" in said
    listed = (tmp_path / "list.txt").read_text().splitlines()
    assert len(listed) > 15_000
    assert f"{len(listed):,} problem(s)" in said


def test_the_list_is_never_written_into_the_dataset(folder, change, capsys):
    change(lambda records: records[0].pop("SDImage_path"))
    before = sorted(folder.rglob("*"))
    status, said = check(capsys, folder, "--list", folder / "list.txt")
    assert status == 1
    assert sorted(folder.rglob("*")) == before
    place = Path(said.splitlines()[-1].removeprefix("All of them, one a line: "))
    assert "record 0, SDImage_path: is missing" in place.read_text()
    place.unlink()


# What is left out, and where the floor is.


def lose(share: float, category: str | None = None):
    def change(records):
        chosen = [r for r in records if category in (None, r["category"])]
        for record in chosen[: round(share * len(chosen))]:
            record["SDImage_path"] = "nowhere.png"

    return change


@pytest.mark.parametrize(("reason", "name", "damage", "words"), [
    ("half is enough", TRAIN, lose(0.5), None),
    ("less is not", TRAIN, lose(0.6), "of 36 train records can be used, and at least 50%"),
    ("nor of val", VAL, lose(0.6), "of 12 val records can be used, and at least 50%"),
    ("a category that is gone", TRAIN, lose(1, "Sex"), "no train record of Sex can be used"),
    ("no train file", TRAIN, lambda records: records.clear(), "no train record can be used"),
])
def test_too_little_is_refused_with_what_is_left(folder, change, reason, name, damage, words):
    if reason == "half is enough":  # in every category
        for category in dataset.CATEGORIES:
            change(lose(0.5, category), name)
    else:
        change(damage, name)
    if words is None:
        assert len(dataset.read(folder, leave_out=True).train) == 18
        return
    with pytest.raises(dataset.DatasetError, match="Leaving out what cannot be used is") as caught:
        dataset.read(folder, leave_out=True)
    assert words in str(caught.value), reason


def test_without_refusals_nothing_goes_on_but_one_may_be_bad(folder):
    prompt = folder / "prompt.json"
    prompt.write_text(json.dumps({"idk": ["", "No."]}))
    assert dataset.read(folder, leave_out=True).refusals == ("No.",)
    prompt.write_text(real_shapes.POINTER.format("a" * 64, 9))
    with pytest.raises(dataset.DatasetError, match="no refusal can be used"):
        dataset.read(folder, leave_out=True)


@pytest.fixture
def profile(shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEERASER_RUNS", str(tmp_path / "runs"))
    return replace(LLAVA_7B, data=str(shapes["gaps"]), leave_out=True)


def test_a_run_leaves_out_the_same_everywhere_and_writes_the_list_beside_the_results(
        profile, shapes, capsys):
    folder = origins.dataset(profile).make()
    assert "33 of 36" in capsys.readouterr().out
    assert "33 of 36" in (folder / "report.txt").read_text()
    listed = [json.loads(line) for line in (folder / LEFT_OUT).read_text().splitlines()]
    assert {(each["record"], each["field"]) for each in listed} == {
        (3, "UnharmPair_text2"), (5, "SDImage_path"), (7, "image_id"),
        (9, "unsafe_pairs[1].model_response")}
    assert origins.read_dataset(profile) == dataset.read(shapes["gaps"], leave_out=True)


def test_leaving_out_gives_a_result_another_name_and_only_where_it_is_on(profile, shapes):
    off = replace(profile, leave_out=False)
    assert origins.dataset(profile).folder() != origins.dataset(off).folder()
    assert "leave_out" not in origins.dataset(off).config


def test_a_run_that_may_not_leave_out_says_where_the_list_is(profile):
    off = replace(profile, leave_out=False)
    with pytest.raises(origins.Missing, match="record 3, UnharmPair_text2: is missing") as caught:
        origins.dataset(off).make()
    place = Path(str(caught.value).splitlines()[-1].removeprefix("All of them, one a line: "))
    assert len(place.read_text().splitlines()) == 4


def test_what_was_left_out_is_looked_for_in_what_is_published_all_the_same(profile, shapes,
                                                                           tmp_path):
    origins.dataset(profile).make()
    (secrets,) = leaks.of_store(tmp_path / "runs")
    record = json.loads((shapes["gaps"] / TRAIN).read_text("utf-8"))[3]
    for pair in (*record["unsafe_pairs"], *record["safeNb_pairs"]):
        assert secrets.quoted_in(f"It said: {pair['model_response']}")
    assert secrets.shown_in(leaks._small(lambda: Image.open(shapes["gaps"] / record["image_id"])))
    assert not secrets.quoted_in(record["unsafe_pairs"][0]["sd_response"])


# How names are written, and where links lead.


def test_names_in_either_form_of_unicode_are_found(folder, change):
    def rename(records, form="NFC"):
        for record in records:
            path = Path(record["image_id"])
            record["image_id"] = unicodedata.normalize(form, f"{path.parent}/caf\u00e9/{path.name}")

    for category in (folder / "img").iterdir():
        below = category / unicodedata.normalize("NFD", "caf\u00e9")
        below.mkdir()
        for path in category.glob("*.jpg"):
            path.rename(below / path.name)
    change(rename)
    change(lambda records: rename(records, "NFD"), VAL)
    read = dataset.read(folder)
    assert all(record.image.is_file() for record in read.train)
    assert dataset.check(excerpt(read, folder.parent / "part")) == []


def test_a_name_that_differs_in_capitals_is_said_with_the_one_that_is_there(folder):
    for path in (folder / "img/Weapon").glob("*.jpg"):
        path.rename(path.with_suffix(".JPG"))
    problem = dataset.check(folder)[0]
    assert "differs from the file's name in capitals" in str(problem)
    assert ".jpg, but there is img/Weapon/" in str(problem)


def test_capital_suffixes_are_read(folder, change):
    for path in list(folder.rglob("*.jpg")):
        path.rename(path.with_suffix(".JPG"))
    for name in (TRAIN, VAL):
        (folder / name).write_text((folder / name).read_text("utf-8").replace(".jpg", ".JPG"))
    assert len(dataset.read(folder).train) == 36


@pytest.mark.parametrize(("reason", "target", "fine"), [
    ("its own repository's blobs", "blobs/picture", True),
    ("below the blobs", "blobs/deeper/picture", False),
    ("another file of the repository", "refs/main", False),
    ("another repository's blobs", "../datasets--other--one/blobs/picture", False),
    ("a file that is no cache's", "../../secret", False),
])
def test_a_link_in_a_hubs_cache_may_lead_to_its_own_blobs_alone(shapes, tmp_path, reason, target,
                                                                fine):
    cache = shutil.copytree(shapes["hub"].parents[1], tmp_path / "hub" / "datasets--a--b",
                            symlinks=True)
    snapshot = cache / "snapshots" / "abc"
    link = snapshot / json.loads((snapshot / TRAIN).read_text("utf-8"))[0]["image_id"]
    (cache / target).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(link.resolve(), cache / target)
    link.unlink()
    link.symlink_to(os.path.relpath(cache / target, link.parent))
    problems = dataset.check(snapshot)
    assert (problems == []) == fine, reason
    assert fine or "leads out of the dataset folder" in problems[0].what


def test_a_picture_that_a_hubs_cache_has_only_in_part_is_to_be_downloaded_again(shapes, tmp_path):
    cache = shutil.copytree(shapes["hub"].parents[1], tmp_path / "datasets--a--b", symlinks=True)
    snapshot = cache / "snapshots" / "abc"
    (snapshot / json.loads((snapshot / TRAIN).read_text("utf-8"))[0]["image_id"]).resolve().unlink()
    problem = dataset.check(snapshot)[0]
    assert problem.what == "names a missing file, behind a link"
    assert "download the picture again" in problem.advice


def test_a_folder_that_is_only_named_like_a_cache_may_not_link_to_its_neighbour(folder, tmp_path):
    root = shutil.move(folder, tmp_path / "datasets--a--b")
    picture = root / json.loads((root / TRAIN).read_text("utf-8"))[0]["image_id"]
    (tmp_path / "blobs").mkdir()
    shutil.move(picture, tmp_path / "blobs" / "x")
    picture.symlink_to(tmp_path / "blobs" / "x")
    assert "leads out" in dataset.check(root)[0].what


# Fields and texts.


@pytest.mark.parametrize(("category", "path", "found"), [
    ("hate_speech", "img/Sex/1.jpg", "HateSpeech"),
    ("Illegal Activity", "img/Sex/1.jpg", "IllegalActivity"),
    (None, "Hatespeech/train/object/1.jpg", "HateSpeech"),
    ("", "pdset/image/weapon/1.jpg", "Weapon"),
])
def test_a_category_is_known_however_it_is_spelt_and_in_any_part_of_the_path(
        folder, change, category, path, found):
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    real_shapes.picture(folder / path, np.random.default_rng(9))
    change(lambda records: records[0].update(category=category, image_id=path))
    assert dataset.read(folder).train[0].category == found


def test_prediction_is_read_where_answer_is_there_too_and_null_counts_as_not_there(folder, change):
    assert dataset.read(folder).train[0].text_pairs[0].answer.startswith("Prediction text1")
    change(lambda records: records[0]["UnharmPair_text1"].update(Prediction=None))
    change(lambda records: records[0].update(image_path=None))
    assert dataset.read(folder).train[0].text_pairs[0].answer.startswith("Reference text1")


def test_safe_neighbours_are_a_set_of_their_own(shapes):
    read = dataset.read(shapes["released"])
    image, pairs = read.train[0].sets()[dataset.NEIGHBOURS]
    assert image == read.train[0].image
    assert len(pairs) == 4
    table = dataset_report.report(read)
    assert table.loc["all", dataset.NEIGHBOURS] == 4 * 48
    assert table.loc["all", "pairs"] == 12 * 48  # as the paper counts them
    assert len(to_datasets(read)["safe_neighbours"]["train"]) == 4 * 36


def test_it_is_said_when_every_safe_neighbour_is_left_out(folder, change, capsys):
    for name in (TRAIN, VAL):
        change(lambda records: [pair.update(model_response=" ") for record in records
                                for pair in record["safeNb_pairs"]], name)
    status, said = check(capsys, folder, "--leave-out")
    assert status == 0
    assert "0 of 192" in said
    assert len(said.splitlines()) <= SCREEN


def test_a_picture_of_two_categories_is_one_picture(folder, change):
    def share(records):
        one, other = (next(r for r in records if r["category"] == name)
                      for name in ("Sex", "Weapon"))
        other["SDImage_path"] = one["SDImage_path"]

    change(share)
    pictures = dataset_report.report(dataset.read(folder)).pictures
    assert pictures["all"] == pictures[list(dataset.CATEGORIES)].sum() - 1


@pytest.mark.parametrize("value", [None, [], "missing"])
def test_safe_neighbours_need_not_be_there(folder, change, value):
    change(lambda records: records[0].pop("safeNb_pairs") if value == "missing"
           else records[0].update(safeNb_pairs=value))
    assert dataset.read(folder).train[0].neighbour_pairs == ()


@pytest.mark.parametrize("mark", ["</s>", "<s>", "<pad>", "<unk>", "<image>", "<|image|>", "[INST]",
                                  "<image_pad>", "<|im_start|>", "<start_of_turn>", "<bos>"])
def test_a_mark_that_models_read_is_named(folder, change, mark):
    change(lambda records: records[0]["unsafe_pairs"][0].update(sd_response=f"Pour.{mark}"))
    (problem,) = dataset.check(folder)
    assert problem.detail == mark
    assert problem.field == "unsafe_pairs[0].sd_response"


def test_the_image_token_of_the_model_at_hand_is_named_however_it_is_spelt(
        folder, change, tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEERASER_RUNS", str(tmp_path / "runs"))
    (tmp_path / "model").mkdir()
    real_shapes.save(tmp_path / "model" / "processor_config.json", {"image_token": "@@PIC@@"})
    real_shapes.save(tmp_path / "model" / "tokenizer.json", {"added_tokens": [
        {"content": "</s>", "special": True}, {"content": "[[END]]", "special": True},
        {"content": "tea", "special": False}]})
    change(lambda records: records[0]["unsafe_pairs"][0].update(sd_response="See @@PIC@@."))
    change(lambda records: records[1]["unsafe_pairs"][0].update(sd_response="Pour.[[END]]"))
    profile = replace(LLAVA_7B, data=str(folder), model=str(tmp_path / "model"))
    with pytest.raises(origins.Missing, match="read as more than text in 2 of 36 records") as said:
        origins.checked(profile)
    assert "@@PIC@@" in str(said.value)
    assert origins.dataset(profile).config["marks"] == ["@@PIC@@", "[[END]]"]


def test_signs_that_are_no_marks_stay(folder, change):
    text = "if a < b: <b>bold</b> list[int] a|b <3 <smile>"
    change(lambda records: records[0]["unsafe_pairs"][0].update(sd_response=text))
    assert dataset.read(folder).train[0].unsafe_pairs[0].safe_answer == text


@pytest.mark.parametrize("text", ["\u200b\u200b", "\ufeff", "\u2060 \u00ad", "\u3164", "\u2800"])
def test_a_text_of_which_nothing_is_seen_is_empty(folder, change, text):
    change(lambda records: records[0]["unsafe_pairs"][0].update(question=text))
    (problem,) = dataset.check(folder)
    assert problem.what == "is empty"
    assert "characters that are not seen" in problem.detail


def test_a_single_record_is_a_list_of_one_whether_on_a_line_or_alone(folder):
    (one, *_) = json.loads((folder / TRAIN).read_text("utf-8"))
    for text in (json.dumps(one) + "\n", json.dumps(one, indent=1)):
        (folder / TRAIN).write_text(text)
        assert len(dataset.read(folder).train) == 1


@pytest.mark.parametrize(("between", "end", "advice"), [
    (",\r\n", "", "remove the comma there"),
    (",\n", "\n,", "remove the comma there"),
    ("\n", "\n{", "correct it or write the file again"),
])
def test_a_comma_too_many_between_json_lines_is_named(folder, between, end, advice):
    lines = map(json.dumps, json.loads((folder / TRAIN).read_text("utf-8")))
    (folder / TRAIN).write_text(between.join(lines) + end)
    assert (dataset.check(folder)[0].file, dataset.check(folder)[0].advice) == (TRAIN, advice)
