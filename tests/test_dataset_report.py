import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest

from lib.data import overlap as dataset_overlap
from lib.data import report as dataset_report
from lib.data.dataset import CATEGORIES, read
from tests import tiny_llava


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return read(tiny_llava.write_dataset(tmp_path_factory.mktemp("data"), train=2, val=1))


def test_the_report_counts_pairs_and_pictures_of_every_category(given):
    table = dataset_report.report(given)
    assert list(table.index) == [*CATEGORIES, "all", "paper"]
    for category in CATEGORIES:  # three records each
        assert table.loc[category].to_dict() == {
            "forget": 12, "retain text": 6, "retain image": 6, "prompt decouple": 12,
            "pairs": 36, "pictures": 6}
    assert table.loc["all", "pairs"] == 6 * 36


def test_the_paper_s_numbers_stand_below_and_what_is_unknown_is_missing(given):
    table = dataset_report.report(given)
    assert (table.loc["paper", "pictures"], table.loc["paper", "pairs"]) == (3000, 28800)
    assert table.loc["paper", "forget"] is pd.NA


def test_the_spellings_are_counted(given):
    records = [record for name in ("all_train.json", "all_val.json")
               for record in json.loads((given.root / name).read_text())]
    found = dataset_report.spellings(given)
    assert found["image_path"] == sum("image_path" in record for record in records) > 0
    assert found["image_id"] == len(records) - found["image_path"] > 0
    assert found["Prediction"] == 4 * found["image_path"]
    assert found["Answer"] == 4 * found["image_id"]
    assert found["category given"] == found["image_id"]
    assert found["category from the folder"] == found["image_path"]


def test_the_text_says_all_of_it(given):
    said = dataset_report.text(given)
    assert "12 train and 6 val records, 2 refusals" in said
    assert "image_id 9" in said
    assert "unknown to us" in said
    assert all(category in said for category in CATEGORIES)


def test_the_lengths_of_answers_are_in_words(given):
    table = dataset_report.lengths(given).set_index("set")
    longest = max(len(pair.harmful_answer.split())
                  for record in given.train for pair in record.unsafe_pairs)
    assert table.loc["forget", "words of the longest"] == longest
    assert table.loc["retain image"].to_list() == [4.5, 7]  # "Mostly grey.", or the stew's name


# Data as they are released: some of val is train's.


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    return read(tiny_llava.write_dataset(tmp_path_factory.mktemp("data"), released=True))


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_every_record_is_found_as_it_stands_in_its_file(released, tmp_path, start):
    root = shutil.copytree(released.root, tmp_path / "data")
    records = json.loads((root / "all_val.json").read_text())
    if start:  # JSON lines of Windows, with a byte order mark
        lines = "\r\n".join(map(json.dumps, records))
        (root / "all_val.json").write_bytes(f"{start}{lines}".encode())
    data = read(root)
    assert [dataset_report.as_stored(data, record) for record in data.val] == records


def test_the_records_that_a_chapter_looks_at_are_held_out_as_far_as_any_are(released):
    held_out = {record.id for record in released.val if not record.seen}
    assert [record.id for record in dataset_overlap.examples(released)] == [
        record.id for record in released.val[:6]]
    assert held_out == {record.id for record in released.val[:6]}
    train = replace(released, val=())
    assert dataset_overlap.examples(train) == released.train
    seen = replace(released, val=released.val[6:])  # two categories, and both are train's
    assert {record.split for record in dataset_overlap.examples(seen)} == {"val", "train"}
    assert {record.category for record in dataset_overlap.examples(seen)} == set(CATEGORIES)


def test_the_order_of_a_val_that_is_held_out_whole_stays(given):
    assert dataset_overlap.examples(given) == given.val
