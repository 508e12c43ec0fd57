from dataclasses import replace

import numpy as np
import pytest
import torch

from lib.data import dataset
from lib.model import llava as model
from lib.model.packing import Example, Group, Packer, answer_logits
from lib.running.profiles import LLAVA_7B
from lib.scale import quirks
from lib.unlearning import methods, terms
from lib.unlearning import train as unlearn
from lib.unlearning.settings import Unlearning

QUIRKY = replace(LLAVA_7B, official_quirks=True)


@pytest.fixture(scope="module")
def data(tiny_real):
    return dataset.read(tiny_real.data)


def test_letters_after_the_first_become_small():
    rows = [Group(None, (Example("retain", "Who is Ada?", "She met Babbage in London. OK."),))]
    assert quirks.capitalized(rows) == [Group(None, (
        Example("retain", "Who is ada?", "She met babbage in london. ok."),))]


def test_partners_are_drawn_from_all_records_and_are_mostly_others(data):
    rng = np.random.default_rng(0)
    drawn = [partner for _ in range(50)
             for partner in quirks.partners(data.train[:2], data.train, rng)]
    assert set(drawn) == set(data.train)


SIDES = [
    (methods.weights("ga", True), {"forget"}, {"prompt_decouple"}),
    (methods.weights("gd", True), {"forget"}, {"retain", "prompt_decouple"}),
    (methods.weights("kl", False), {"forget"}, {"retain"}),
    (methods.weights("po", True), {"refusal"}, {"retain", "prompt_decouple"}),
    (methods.weights("po", False, rows="added"), {"refusal"}, {"retain"}),
]


@pytest.mark.parametrize(("row", "own", "others"), SIDES)
def test_a_row_s_terms_are_the_record_s_own_or_its_partner_s(row, own, others):
    assert tuple(set(side) for side in quirks.sides(row)) == (own, others)


# The KL over every position.


@pytest.fixture
def adapted(tiny_real):
    """(model whose adapter does something, processor)."""
    bare, processor = model.load(tiny_real.model)
    whole = model.add_lora(bare, Unlearning(lora_rank=4)).eval()
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return whole, processor


def rows_of(record):
    sets = record.sets()
    return [Group(record.image, tuple(Example("retain", p.question, p.answer)
                                      for p in sets["retain image"][1])),
            Group(None, tuple(Example("retain", p.question, p.answer)
                              for p in sets["retain text"][1]))]


def test_the_kl_everywhere_of_packed_rows_is_that_of_separate_rows(adapted, data):
    whole, processor = adapted
    packer, rows = Packer(whole, processor), rows_of(data.train[0])
    alone = [Group(row.image, (example,)) for row in rows for example in row.examples]
    values, positions = [], []
    for row in alone:
        batch, _ = quirks.everywhere(packer.pack([row]))
        with torch.no_grad():
            ours = answer_logits(whole, batch)
            with whole.disable_adapter():
                original = answer_logits(whole, batch)
        values.append(terms.token_kl(original, ours).sum())
        positions.append(len(ours))
        assert len(ours) == int((batch.segments >= 0).sum()) == batch.input_ids.numel()
    found = quirks.kl_everywhere(whole, packer.pack(rows))
    assert found.item() == pytest.approx(sum(values).item() / sum(positions), rel=1e-4)
    assert found.item() > 1e-4
    found.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in whole.parameters())


def test_the_loss_takes_it_only_with_the_switch(adapted, data):
    whole, processor = adapted
    packer, rows = Packer(whole, processor), rows_of(data.train[0])
    usual, quirky = (unlearn.said_of(whole, packer, rows, ("kl",), switch)["kl"].item()
                     for switch in (False, True))
    assert quirky == pytest.approx(quirks.kl_everywhere(whole, packer.pack(rows)).item(), rel=1e-5)
    assert usual != pytest.approx(quirky, rel=1e-2)


def test_without_an_end_no_answer_ends(adapted):
    whole, processor = adapted
    example = Example("retain", "What is this?", "It is a stew.")
    with_end, without = (Packer(whole, processor, end=end).segment(example, True).answer
                         for end in (True, False))
    assert with_end == [*without, processor.tokenizer.eos_token_id]


# What a step sees, and what is shown of it.


def test_a_step_with_the_switch_takes_retain_and_pd_of_other_records(data):
    def seen(switch):
        task = unlearn.Task(methods.weights("gd", True), 1,
                            Unlearning(images=2, queries=2, lora_rank=4), official_quirks=switch)
        pictures = {"forget": set(), "prompt_decouple": set()}
        for step in range(8):
            for group in unlearn.step_rows(data, task, step):
                for example in group.examples:
                    if example.term in pictures:
                        pictures[example.term].add((step, group.image.stem + str(
                            group.image.parent.name)))
                    assert not switch or example.answer == example.answer.capitalize()
        return pictures

    usual, quirky = seen(False), seen(True)
    assert usual["forget"] == usual["prompt_decouple"], "the same record's two pictures"
    assert quirky["forget"] == usual["forget"]
    assert quirky["prompt_decouple"] != quirky["forget"]


def test_what_is_shown_names_every_quirk_and_no_harmful_answer(data):
    table = quirks.shown(data)
    assert list(table.columns) == ["quirk", "by default", "with official_quirks"]
    assert len(table) == 7
    assert (table["by default"] != table["with official_quirks"]).sum() >= 6
    harmful = [pair.harmful_answer for record in data.train for pair in record.unsafe_pairs]
    assert not any(answer in table.to_string() for answer in harmful)
