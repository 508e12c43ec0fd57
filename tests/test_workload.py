"""`lib/scale/workload.py`."""

import json
from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest

from lib.data import dataset
from lib.evaluation.evaluate import questions
from lib.model.packing import Packer
from lib.running.experiments import main_runs, sweep_runs
from lib.running.profiles import LLAVA_7B
from lib.scale import workload
from lib.scale.workload import Assumed
from lib.unlearning import methods
from lib.unlearning import steps as lessons
from lib.unlearning.settings import Unlearning
from tests import tiny_llava


@pytest.mark.parametrize("method", methods.METHODS)
@pytest.mark.parametrize("added", [False, True], ids=["", "with PD"])
@pytest.mark.parametrize("queries", [2, 4])
def test_a_step_has_the_rows_that_unlearning_makes(method, added, queries, llava, world):
    row, (model, processor) = methods.weights(method, added), llava
    records = lessons.chosen(world.train, 3, 0, 0)
    groups = lessons.groups(records, world.refusals, row, np.random.default_rng(0), queries)
    batch = Packer(model, processor).pack(groups)
    real = workload.rows_of(batch, model.config.image_token_id)
    ours = workload.step_rows(row, 3, queries, 5, Assumed())
    # With two of four retain pairs drawn, how many are texts is chance; together they are as many.
    assert sum(len(r.questions) for r in ours) == sum(len(r.questions) for r in real)
    if queries == 4:
        assert Counter((len(r.questions), r.has_image) for r in ours) == Counter(
            (len(r.questions), r.has_image) for r in real)


def test_a_row_s_tokens_are_those_of_the_packer_when_its_lengths_are_known(llava, world):
    row, (model, processor) = methods.weights("po", True), llava
    records = lessons.chosen(world.train, 2, 0, 0)
    groups = lessons.groups(records, world.refusals, row, np.random.default_rng(0), 4)
    batch = Packer(model, processor).pack(groups)
    rows = workload.rows_of(batch, model.config.image_token_id)
    assert sum(r.tokens for r in rows) == int((batch.segments >= 0).sum())
    assert sum(r.targets for r in rows) == len(batch.targets)
    assert [r.has_image for r in rows] == [group.image is not None for group in groups]


def test_the_runs_are_those_of_the_experiments():
    expected = [[run.row for run in main_runs(LLAVA_7B, False)],
                [run.row for run in main_runs(LLAVA_7B, True)],
                [run.row for run in sweep_runs(LLAVA_7B)]]
    assert list(workload.run_rows(LLAVA_7B).values()) == expected


def test_the_benchmarks_are_asked_of_the_original_and_of_the_main_runs():
    models = 1 + len(main_runs(LLAVA_7B, False)) + len(main_runs(LLAVA_7B, True))
    asking = replace(LLAVA_7B, benchmarks="POPE,MM-Vet")
    assert workload.benchmarked(asking) == (9_218, models)
    assert workload.benchmarked(replace(asking, benchmarks="all"))[0] == 246_815
    assert workload.benchmarked(LLAVA_7B)[0] == 0


def test_as_many_answers_are_expected_as_an_evaluation_asks_for(world, tiny):
    asked = [q for q in questions(world, len(world.train)) if q.set != "specificity"]
    harmful = sum(q.set == "harmful" for q in asked)
    sizes = Assumed(train=len(world.train), val=len(world.val))
    assert workload.asked(LLAVA_7B, sizes) == len(asked) + 3 * harmful


def test_records_and_pictures_are_counted_in_the_data_folder(tmp_path):
    for split, count in (("train", 7), ("val", 3)):
        records = [{"image_id": f"{split}{i}.jpg", "SDImage_path": "cup.jpg"} for i in range(count)]
        (tmp_path / f"all_{split}.json").write_text(json.dumps(records))
    assert workload.measured(str(tmp_path)) == Assumed(train=7, val=3, pictures=11)


def test_safe_neighbours_are_asked_too(tmp_path):
    folder = tiny_llava.write_dataset(tmp_path, released=True)
    for path in folder.glob("all_*.json"):  # of all records, and not of half of them
        path.write_text(json.dumps([record for record in json.loads(path.read_text())
                                    if "safeNb_pairs" in record]))
    data, sizes = dataset.read(folder), workload.measured(str(folder))
    asked = questions(data, None)
    assert workload.asked(LLAVA_7B, sizes) == len(asked) + 3 * sum(
        q.set == "harmful" for q in asked)


def test_a_file_that_cannot_be_read_stops_no_plan(tmp_path):
    (tmp_path / "all_train.json").write_text('[{"image_id": "a.j')
    assert workload.measured(str(tmp_path)) == Assumed()


@pytest.mark.parametrize("data", [None, "somebody/data"])
def test_without_a_folder_the_paper_s_numbers_are_assumed(data):
    sizes = workload.measured(data)
    assert sizes == Assumed()
    assert (sizes.train + sizes.val) * 12 == 28_800, "the paper's pairs"
    assert sizes.pictures == 3_000, "the paper's images"


def test_every_assumption_says_what_it_is():
    assert all(len(field.metadata["why"]) > 10 for field in fields(Assumed))


def test_retain_pairs_appear_only_where_a_term_keeps_them():
    rows = workload.step_rows(methods.weights("ga", False), 8, 4, 576, Assumed())
    assert len(rows) == 8
    assert all(r.has_image and len(r.questions) == 4 for r in rows)
    assert Unlearning().queries == 2
