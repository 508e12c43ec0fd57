import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import get_cosine_schedule_with_warmup

from lib.data import dataset
from lib.model.finite import NotFinite
from lib.model.llava import load
from lib.model.packing import Packer
from lib.model.settings import Runtime
from lib.unlearning import methods, terms
from lib.unlearning import train as loop
from lib.unlearning.settings import Unlearning
from lib.unlearning.train import Task, chosen, groups, learning_rate, unlearn

REFUSALS = ("I cannot assist with this request.", "I must decline this request.")
SETTINGS = Unlearning(steps=4, images=2, lr=5e-3, lora_rank=4, lora_alpha=8, probe_every=2,
                      checkpoint_every=2)


def task(method, prompt_decouple=False, seed=1, **changes):
    return Task(methods.weights(method, prompt_decouple), seed, replace(SETTINGS, **changes))


def run(llava, world, wanted, folder, **watchers):
    model, processor = llava
    return unlearn(model, Packer(model, processor), world, wanted, folder, **watchers)


def weights_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def nll(model, packer, world, term):
    """The mean NLL of the world's training answers of one term."""
    rows = groups(world.train, REFUSALS, {term: 1.0}, np.random.default_rng(0))
    with torch.no_grad():
        return loop.said_of(model, packer, rows, ())[term].item()


# What a step sees.


ROWS = [
    ("GA: harmful answers only", {"forget": -1}, {"forget": 4}),
    ("GD: and what is to be kept", {"forget": -1, "retain": 1}, {"forget": 4, "retain": 4}),
    ("KL: the same answers", {"forget": -1, "kl": 1}, {"forget": 4, "retain": 4}),
    ("PO: no harmful answer is shown", {"refusal_and_retain": 1}, {"refusal": 4, "retain": 4}),
    ("PD: the safe picture's answers", {"forget": -1, "prompt_decouple": 1},
     {"forget": 4, "prompt_decouple": 4}),
    ("PO's parts as terms of their own", {"refusal": 1, "retain": 1}, {"refusal": 4, "retain": 4}),
]


@pytest.mark.parametrize(("reason", "row", "answers"), ROWS)
def test_a_step_holds_only_the_answers_that_its_row_asks_for(world, reason, row, answers):
    found = groups(world.train[:3], REFUSALS, row, np.random.default_rng(0))
    counted = Counter(example.term for group in found for example in group.examples)
    assert counted == {term: 3 * count for term, count in answers.items()}, reason


def test_every_picture_has_its_own_questions_and_answers(world):
    everything = dict.fromkeys(loop.WATCHED, 1.0)
    record = world.train[0]
    harmful, safe, texts = groups([record], REFUSALS, everything, np.random.default_rng(0))
    assert (harmful.image, safe.image, texts.image) == (record.image, record.safe_image, None)
    said = {term: {(e.question, e.answer) for e in harmful.examples if e.term == term}
            for term in ("forget", "refusal", "retain")}
    unsafe = record.unsafe_pairs
    assert said["forget"] == {(p.question, p.harmful_answer) for p in unsafe}
    assert {question for question, _ in said["refusal"]} == {p.question for p in unsafe}
    assert {answer for _, answer in said["refusal"]} <= set(REFUSALS)
    assert said["retain"] == {(p.question, p.answer) for p in record.image_pairs}
    assert {(e.term, e.question, e.answer) for e in safe.examples} == {
        ("prompt_decouple", p.question, p.safe_answer) for p in unsafe}
    assert {(e.term, e.question, e.answer) for e in texts.examples} == {
        ("retain", p.question, p.answer) for p in record.text_pairs}


def test_refusals_are_drawn_from_the_whole_list(world):
    found = groups(world.train, REFUSALS, {"refusal": 1.0}, np.random.default_rng(0))
    counted = Counter(e.answer for group in found for e in group.examples)
    assert set(counted) == set(REFUSALS)
    assert min(counted.values()) > 0.25 * sum(counted.values())


def test_some_of_a_record_s_queries_are_drawn_the_same_for_both_pictures(world):
    row, seen = dict.fromkeys(("forget", "refusal", "prompt_decouple"), 1.0), set()
    for step in range(20):
        rng = np.random.default_rng(step)
        harmful, safe = groups([world.train[0]], REFUSALS, row, rng, queries=2)
        asked = [{e.question for e in group.examples} for group in (harmful, safe)]
        assert len(asked[0]) == 2
        assert asked[0] == asked[1]
        counted = Counter(e.term for group in (harmful, safe) for e in group.examples)
        assert counted == dict.fromkeys(row, 2)
        seen |= asked[0]
    assert seen == {pair.question for pair in world.train[0].unsafe_pairs}


def test_a_run_shows_as_many_queries_per_picture_as_its_settings_say(llava, world, tmp_path):
    shown = []

    class Watching(Packer):
        def pack(self, rows):
            shown.append(Counter(e.term for group in rows for e in group.examples))
            return super().pack(rows)

    wanted = task("gd", True, steps=1, queries=3, images=2, probe_every=9)
    unlearn(llava[0], Watching(*llava), world, wanted, tmp_path)
    assert shown[2] == dict.fromkeys(("forget", "retain", "prompt_decouple"), 6)  # 0, 1: a probe


def test_the_methods_see_the_same_pairs(world):
    def questions(row, term):
        found = groups(world.train[:4], REFUSALS, row, np.random.default_rng(5), queries=2)
        return [e.question for group in found for e in group.examples if e.term == term]

    po, gd = ({"refusal": 1, "retain": 1, "prompt_decouple": 1},
              {"forget": -1, "retain": 1, "prompt_decouple": 1})
    assert questions(po, "retain") == questions(gd, "retain")
    assert questions(po, "refusal") == questions(gd, "forget")
    assert questions(po, "prompt_decouple") == questions(gd, "prompt_decouple")
    assert len(questions(gd, "retain")) == len(questions(gd, "forget")) == 8


@pytest.mark.parametrize("size", [1, 5, 12, 15])  # less than, and more than the dozen records
def test_every_record_comes_once_per_epoch(world, size):
    records = world.train
    assert len(records) == 12
    drawn = [record.id for step in range(60) for record in chosen(records, size, 3, step)]
    for start in range(0, len(drawn) - 12, 12):
        assert sorted(drawn[start : start + 12]) == sorted(record.id for record in records)


def test_the_order_differs_by_epoch_and_by_seed_and_by_nothing_else(world):
    def order(seed, epoch):
        return [record.id for record in chosen(world.train, 12, seed, epoch)]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


# The terms and their gradients.


def with_lora(llava):
    """A model whose LoRA already does something, so that every parameter can have a gradient."""
    model = loop.add_lora(llava[0], SETTINGS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model, Packer(*llava)


@pytest.mark.parametrize("method", methods.METHODS)
@pytest.mark.parametrize("prompt_decouple", [False, True])
def test_only_the_row_s_terms_have_a_gradient(llava, world, method, prompt_decouple):
    model, packer = with_lora(llava)
    row = methods.weights(method, prompt_decouple)
    everything = groups(world.train[:2], REFUSALS,
                        {**dict.fromkeys(loop.WATCHED, 1.0), **row}, np.random.default_rng(0))
    found = loop.said_of(model, packer, everything, (*row, "kl"))
    for term in found.values():
        term.retain_grad()
    terms.total(found, row).backward()
    grads = {name: term.grad.item() for name, term in found.items() if term.grad is not None}
    assert grads == pytest.approx(row)


def test_the_gradient_of_a_step_is_that_of_its_terms_weighted(llava, world):
    model, packer = with_lora(llava)
    row = methods.weights("gd", True)
    rows = groups(world.train[:2], REFUSALS, row, np.random.default_rng(0))

    def gradient(weights):
        model.zero_grad()
        terms.total(loop.said_of(model, packer, rows, ()), weights).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    parts = [(weight, gradient({term: 1.0})) for term, weight in row.items()]
    for name, whole in gradient(row).items():
        torch.testing.assert_close(sum(weight * part[name] for weight, part in parts), whole,
                                   rtol=1e-3, atol=1e-5)


def test_a_term_does_not_depend_on_the_other_terms_of_its_step(llava, world):
    model, packer = with_lora(llava)
    alone = groups(world.train[:2], REFUSALS, {"forget": 1.0}, np.random.default_rng(0))
    together = groups(world.train[:2], REFUSALS, dict.fromkeys(loop.WATCHED, 1.0),
                      np.random.default_rng(0))
    first, second = (loop.said_of(model, packer, rows, ())["forget"].item()
                     for rows in (alone, together))
    assert first == pytest.approx(second, abs=1e-5)


def test_kl_is_zero_before_the_first_step_and_measures_the_way_from_the_original(llava, world):
    model, packer = llava[0], Packer(*llava)
    model = loop.add_lora(model, SETTINGS)
    rows = groups(world.train[:2], REFUSALS, {"kl": 1.0}, np.random.default_rng(0))
    assert loop.said_of(model, packer, rows, ("kl",))["kl"].item() == pytest.approx(0, abs=1e-6)
    projector = model.base_model.model.model.multi_modal_projector.modules_to_save["default"]
    with torch.no_grad():
        projector.linear_2.weight.normal_()  # no LoRA: the projector is what has to go back
    assert loop.said_of(model, packer, rows, ("kl",))["kl"].item() > 1e-3


@pytest.mark.parametrize("name", [name for name, term in terms.TERMS.items()
                                  if term.needs_original])
def test_a_term_that_looks_back_compares_with_a_second_model(llava, world, base_folder, name):
    model, packer = with_lora(llava)
    term = terms.TERMS[name]
    rows = groups(world.train[:2], REFUSALS, {name: 1.0}, np.random.default_rng(0))
    kept = [loop.Group(row.image, tuple(e for e in row.examples if e.term in term.reads))
            for row in rows]
    batch = packer.pack([row for row in kept if row.examples])
    original = loop.answer_logits(load(base_folder)[0], batch)
    now = loop.answer_logits(model, batch)
    said = terms.Said(now, batch.targets, batch.answers, batch.terms, original)
    unmoved = terms.Said(original, batch.targets, batch.answers, batch.terms, original)
    found = loop.said_of(model, packer, rows, (name,))[name]
    assert abs(found.item() - term.value(unmoved).item()) > 1e-3
    torch.testing.assert_close(found, term.value(said), rtol=1e-4, atol=1e-6)


# What a few real steps do.


def test_ga_raises_the_nll_of_what_is_to_be_forgotten(llava, world, tmp_path):
    packer = Packer(*llava)
    before = nll(llava[0], packer, world, "forget")
    model, history, _ = run(llava, world, task("ga", steps=8), tmp_path)
    assert nll(model, packer, world, "forget") > before + 0.5
    assert history[-1]["loss"] == -history[-1]["forget"]


def test_gd_forgets_and_keeps_the_rest_where_ga_does_not(world, tmp_path, base_folder):
    rise = {}
    for method in ("gd", "ga"):
        llava = load(base_folder)
        packer = Packer(*llava)
        before = {term: nll(llava[0], packer, world, term) for term in ("forget", "retain")}
        wanted = task(method, steps=12, lr=3e-3)
        model, _, _ = run(llava, world, wanted, tmp_path / method)
        rise[method] = {term: nll(model, packer, world, term) - before[term] for term in before}
    assert rise["gd"]["forget"] > 0.3
    assert rise["gd"]["retain"] < 0.1
    assert rise["ga"]["retain"] > 2 * rise["gd"]["retain"]


def test_po_teaches_refusals_and_keeps_the_rest(llava, world, tmp_path):
    packer = Packer(*llava)
    before = {term: nll(llava[0], packer, world, term) for term in ("refusal", "retain")}
    model, _, _ = run(llava, world, task("po", steps=12, lr=3e-3), tmp_path)
    assert nll(model, packer, world, "refusal") < before["refusal"] - 1
    assert nll(model, packer, world, "retain") < before["retain"] + 0.15


def test_pd_keeps_the_safe_picture_s_answer_likelier_than_it_is_without(world, tmp_path,
                                                                        base_folder):
    found = {}
    for with_pd in (False, True):
        llava = load(base_folder)
        model, _, _ = run(llava, world, task("po", with_pd, steps=16), tmp_path / str(with_pd))
        found[with_pd] = nll(model, Packer(*llava), world, "prompt_decouple")
    assert found[True] < found[False] - 0.3


def test_a_term_can_be_trained_alone(llava, world, tmp_path):
    packer = Packer(*llava)
    before = nll(llava[0], packer, world, "prompt_decouple")
    alone = Task({"prompt_decouple": 1.0}, 1, replace(SETTINGS, steps=12))
    model, _, _ = run(llava, world, alone, tmp_path)
    assert nll(model, packer, world, "prompt_decouple") < before


def test_npo_stays_finite_where_gradient_ascent_goes_on(world, tmp_path, base_folder):
    loss = {}
    for method in ("ga", "npo"):
        llava = load(base_folder)
        _, history, _ = run(llava, world, task(method, steps=16), tmp_path / method)
        loss[method] = [row["npo" if method == "npo" else "loss"] for row in history]
    assert loss["npo"][0] == pytest.approx(2 / terms.NPO_BETA * np.log(2), rel=1e-3)
    assert 0 < loss["npo"][-1] < loss["npo"][0]
    assert loss["ga"][-1] < 0


def test_a_run_goes_on_from_the_adapter_of_another(world, tmp_path, base_folder):
    first, _, _ = run(load(base_folder), world, task("ga", steps=4), tmp_path / "first")
    first.save_pretrained(tmp_path / "adapter")
    further = replace(task("po", True, seed=2, steps=4), start=tmp_path / "adapter")
    second, history, _ = run(load(base_folder), world, further, tmp_path / "second")
    packer = Packer(*load(base_folder))
    began = loop.measured(first.train(), packer, loop.step_rows(world, further, 0), further.row,
                          further)
    for name, weight in further.row.items():
        assert history[0][name] == pytest.approx(began[name].item(), rel=1e-5), (name, weight)
    assert history[-1]["loss"] < history[0]["loss"]
    assert set(get_peft_model_state_dict(second)) == set(get_peft_model_state_dict(first))


def test_an_adapter_of_another_shape_is_not_taken(llava, world, tmp_path):
    first, _, _ = run(llava, world, task("ga", steps=1), tmp_path / "first")
    first.save_pretrained(tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    stored.pop(min(stored))
    save_file(stored, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="has other parts than this run trains"):
        loop.take_adapter(first, tmp_path / "adapter")


def test_the_tower_and_the_original_weights_do_not_move(llava, world, tmp_path, base_folder):
    model, _, _ = run(llava, world, task("gd", True), tmp_path)
    with model.disable_adapter():
        now = model.base_model.model.state_dict()
    for name, value in load(base_folder)[0].state_dict().items():
        kept = [key for key in now if key.replace("base_layer.", "").replace(
            "original_module.", "") == name]
        assert len(kept) == 1, name
        assert torch.equal(now[kept[0]], value), name


# Memory: lots, checkpointing, numbers, dropout.


@pytest.mark.parametrize("method", methods.METHODS)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_step_in_lots_has_the_gradient_and_the_terms_of_the_whole_step(
        world, base_folder, method, size):
    def step(micro_batch):
        torch.manual_seed(0)
        llava = load(base_folder)
        model, packer = with_lora(llava)
        wanted = replace(task(method, True), runtime=Runtime(micro_batch=micro_batch))
        training = loop._Run(model, wanted)
        found = training.collect(packer, world)
        return found, {name: p.grad for name, p in training.trained.items()}

    whole, lots = step(None), step(size)
    assert lots[0] == pytest.approx(whole[0], rel=1e-4, abs=1e-5)
    for name, gradient in whole[1].items():
        torch.testing.assert_close(lots[1][name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("size", [None, 1, 2])
def test_terms_measured_in_lots_are_those_of_all_rows_at_once(llava, world, size):
    model, packer = with_lora(llava)
    wanted = replace(task("gd", True), runtime=Runtime(micro_batch=size))
    rows = loop.step_rows(world, replace(wanted, row=dict.fromkeys(loop.WATCHED, 1.0)), 0)
    with torch.no_grad():
        whole = loop.said_of(model, packer, rows, ("kl",))
    found = loop.measured(model, packer, rows, ("kl",), wanted)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {name: value.item() for name, value in whole.items()}, rel=1e-4, abs=1e-5)


def test_the_loss_of_the_first_step_can_be_computed_again_from_outside(world, tmp_path,
                                                                       base_folder):
    wanted, (bare, processor) = task("kl", True), load(base_folder)
    student = loop.prepared(bare, wanted)
    packer = Packer(student, processor)
    found = loop.measured(student, packer, loop.step_rows(world, wanted, 0), ("kl",), wanted)
    _, history, _ = run(load(base_folder), world, wanted, tmp_path)
    assert terms.total(found, wanted.row).item() == pytest.approx(history[0]["loss"], abs=1e-6)


def test_checkpointed_layers_change_no_number(world, tmp_path, base_folder):
    results = []
    for on in (False, True):
        wanted = replace(task("gd", True), runtime=Runtime(gradient_checkpointing=on))
        results.append(run(load(base_folder), world, wanted, tmp_path / str(on)))
    (plain, history, _), (saving, other, _) = results
    assert all(torch.allclose(value, weights_of(saving)[name], atol=1e-5)
               for name, value in weights_of(plain).items())
    assert [row["loss"] for row in other] == pytest.approx([row["loss"] for row in history],
                                                           rel=1e-4)


def test_in_bfloat16_steps_too_small_for_it_still_add_up(world, base_folder):
    llava = load(base_folder, Runtime(dtype="bfloat16"))
    wanted = task("gd", lr=1e-5, steps=6, warmup=0.0)
    model, packer = loop.add_lora(llava[0], wanted.settings), Packer(*llava)
    training = loop._Run(model, wanted)
    name = next(name for name in training.trained if "linear_2.weight" in name)
    before = training.trained[name].clone()
    for _ in range(6):
        training.update(training.collect(packer, world))
    moved = (training.trained[name] - before).abs().max()
    assert training.trained[name].dtype == torch.float32
    assert 2e-5 < moved < 1e-4, "six steps of about 1e-5, none of them lost"
    assert model.get_parameter(name).dtype == torch.bfloat16
    assert torch.equal(model.get_parameter(name), training.trained[name].bfloat16())


def test_dropout_is_drawn_afresh_at_each_step_and_alike_after_a_break(world, tmp_path,
                                                                      base_folder):
    wanted = task("gd", lora_dropout=0.5, steps=5)
    whole, history, _ = run(load(base_folder), world, wanted, tmp_path / "whole")
    with pytest.raises(Killed):
        run(load(base_folder), world, wanted, tmp_path / "killed", report=kill_at(3))
    again, same, _ = run(load(base_folder), world, wanted, tmp_path / "killed")
    assert history == same
    assert all(torch.equal(value, weights_of(again)[n]) for n, value in weights_of(whole).items())
    _, other, _ = run(load(base_folder), world, task("gd", steps=5), tmp_path / "without")
    assert other[-1]["loss"] != history[-1]["loss"]


def test_a_run_that_ran_out_of_memory_goes_on_from_that_step_with_smaller_lots(
        uninterrupted, world, tmp_path, base_folder, monkeypatch):
    honest, calls = loop.answer_logits, []

    def greedy_of_memory(model, batch):
        """The machine has room for all at first, and in the fourth step no more."""
        calls.append(torch.is_grad_enabled())
        if sum(calls) > 3 and torch.is_grad_enabled() and len(batch.input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return honest(model, batch)

    wanted = task("gd", True, steps=7, checkpoint_every=100)
    monkeypatch.setattr(loop, "answer_logits", greedy_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        run(load(base_folder), world, wanted, tmp_path)
    said = []
    smaller = replace(wanted, runtime=Runtime(micro_batch=2))
    _, history, _ = run(load(base_folder), world, smaller, tmp_path, report=said.append)
    assert said[0] == "step 4 of 7", "the three steps before are kept"
    assert [row["loss"] for row in history] == pytest.approx(
        [row["loss"] for row in uninterrupted[1]], rel=1e-2)


def test_epochs_are_turned_into_steps(llava, world, tmp_path):
    _, history, _ = run(llava, world, task("ga", epochs=0.5), tmp_path)
    assert len(history) == 3  # half of twelve records, two at a time


# The schedule.


@pytest.mark.parametrize(("steps", "warmup"), [(12, 0.06), (100, 0.06), (600, 0.06), (50, 0.5),
                                               (3, 0.0)])
def test_the_learning_rate_is_that_of_transformers(steps, warmup):
    settings = Unlearning(steps=steps, warmup=warmup, lr=0.003)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.003)
    schedule = get_cosine_schedule_with_warmup(optimizer, max(1, round(warmup * steps)), steps)
    for step in range(steps):
        assert learning_rate(step, settings) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()


def test_a_step_uses_its_learning_rate(llava, world, tmp_path):
    """The first step of a warm-up has the rate 0: nothing may move in it, then all has to."""
    model, _, _ = run(llava, world, task("ga", steps=1), tmp_path)
    fresh = {name: p for name, p in weights_of(model).items() if "lora_B" in name}
    assert all(not value.any() for value in fresh.values())
    assert learning_rate(1, SETTINGS) == SETTINGS.lr


# History, probes, resumption.


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_term_of_the_loss_is_logged_at_every_step(llava, world, tmp_path, method):
    wanted = task(method, True)
    _, history, _ = run(llava, world, wanted, tmp_path)
    assert [row["step"] for row in history] == [1, 2, 3, 4]
    for row in history:
        assert wanted.row.keys() | {"step", "loss", "gradient_norm"} <= row.keys()
        assert row["loss"] == pytest.approx(
            sum(weight * row[term] for term, weight in wanted.row.items()), rel=1e-5)
        assert row["gradient_norm"] > 0


def test_probes_look_at_every_term_before_between_and_after(llava, world, tmp_path):
    seen = []

    def ask(model):
        seen.append(torch.is_grad_enabled())
        return {"rr": len(seen)}

    _, _, probes = run(llava, world, task("ga", steps=5), tmp_path, probe=ask)
    assert [row["step"] for row in probes] == [0, 2, 4, 5]
    assert [row["rr"] for row in probes] == [1, 2, 3, 4]
    assert not any(seen)
    assert all(set(loop.WATCHED) <= row.keys() for row in probes)
    assert probes[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert probes[-1]["forget"] > probes[0]["forget"]


def test_a_probe_does_not_change_the_run(llava, world, tmp_path, base_folder):
    often, _, _ = run(llava, world, task("gd", probe_every=1), tmp_path / "often")
    never, _, _ = run(load(base_folder), world, task("gd", probe_every=9), tmp_path / "never")
    first, second = weights_of(often), weights_of(never)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_progress_is_reported_after_every_step(llava, world, tmp_path):
    said = []
    run(llava, world, task("ga"), tmp_path, report=said.append)
    assert said == [f"step {n} of 4" for n in (1, 2, 3, 4)]


class Killed(BaseException):
    """What stops a run in a test, as a signal would: nothing of the run may catch it."""


def kill_at(step):
    def report(text):
        if text.startswith(f"step {step} "):
            raise Killed
    return report


@pytest.fixture
def uninterrupted(llava, world, tmp_path):
    """What the run of `gd` with PD gives when nothing disturbs it."""
    model, history, probes = run(llava, world, task("gd", True, steps=7), tmp_path / "whole")
    return weights_of(model), history, probes


@pytest.mark.parametrize("kills", [(1,), (2,), (3,), (5,), (6,), (3, 5), (2, 6)])
def test_a_killed_run_goes_on_to_the_same_bits(uninterrupted, world, tmp_path, base_folder, kills):
    wanted, folder = task("gd", True, steps=7), tmp_path / "killed"
    for step in kills:
        with pytest.raises(Killed):
            run(load(base_folder), world, wanted, folder, report=kill_at(step))
    said = []
    model, history, probes = run(load(base_folder), world, wanted, folder, report=said.append)
    saved = (max(kills) - 1) // 2 * 2 if max(kills) % 2 else max(kills)
    assert said[0] == f"step {saved + 1} of 7", "a checkpoint has to be used"
    weights, same_history, same_probes = uninterrupted
    assert all(torch.equal(value, weights[name])
               for name, value in weights_of(model).items())
    assert (history, probes) == (same_history, same_probes)


def test_one_seed_gives_the_same_bits_and_another_one_others(uninterrupted, world, tmp_path,
                                                             base_folder):
    weights, _, _ = uninterrupted
    for seed, same in ((1, True), (2, False)):
        model, _, _ = run(load(base_folder), world, task("gd", True, seed, steps=7),
                          tmp_path / str(seed))
        equal = [torch.equal(value, weights[name]) for name, value in weights_of(model).items()]
        assert all(equal) if same else not any(equal)


def test_a_checkpoint_is_whole_or_not_there_and_the_one_before_it_is_kept(llava, world, tmp_path):
    with pytest.raises(Killed):
        run(llava, world, task("ga", steps=9), tmp_path, report=kill_at(7))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000006"]
    kinds = {path.suffix for path in (tmp_path / "step-00000006").iterdir()}
    assert kinds == {".safetensors", ".json"}
    assert json.loads((tmp_path / "step-00000006/state.json").read_text())["step"] == 6


@pytest.mark.parametrize(("name", "damage"), [
    ("weights.safetensors", lambda file: file.write_bytes(b"")),
    ("optimizer.safetensors", Path.unlink),
    ("optimizer.safetensors", lambda file: file.write_bytes(file.read_bytes()[:99])),
    ("state.json", lambda file: file.write_bytes(b""))], ids=["empty", "gone", "cut off", "state"])
def test_after_a_damaged_checkpoint_the_one_before_it_gives_the_same_bits(
        uninterrupted, world, tmp_path, base_folder, name, damage):
    wanted, folder, said = task("gd", True, steps=7), tmp_path / "killed", []
    with pytest.raises(Killed):
        run(load(base_folder), world, wanted, folder, report=kill_at(5))
    damage(folder / "step-00000004" / name)
    model, history, probes = run(load(base_folder), world, wanted, folder, report=said.append)
    assert said[0] == "step 3 of 7"
    weights, same_history, same_probes = uninterrupted
    assert all(torch.equal(value, weights[name]) for name, value in weights_of(model).items())
    assert (history, probes) == (same_history, same_probes)


def test_where_every_checkpoint_is_damaged_the_run_begins_again(llava, world, tmp_path,
                                                                base_folder):
    with pytest.raises(Killed):
        run(llava, world, task("ga", steps=3), tmp_path, report=kill_at(3))
    (tmp_path / "step-00000002" / "weights.safetensors").write_bytes(b"")
    said = []
    run(load(base_folder), world, task("ga", steps=3), tmp_path, report=said.append)
    assert said[0] == "step 1 of 3"


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(llava, world, tmp_path, monkeypatch):
    flushed, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (
        flushed.append(Path(os.readlink(f"/proc/self/fd/{handle}"))), sync(handle)))
    run(llava, world, task("ga", steps=3), tmp_path)
    files = ("weights.safetensors", "optimizer.safetensors", "state.json", "")
    assert {tmp_path / "next" / name for name in files} <= set(flushed)
    assert flushed[-1] == tmp_path


def test_a_half_written_checkpoint_is_not_used(llava, world, tmp_path, base_folder):
    with pytest.raises(Killed):
        run(llava, world, task("ga", steps=7), tmp_path, report=kill_at(3))
    half = tmp_path / "next"
    shutil.copytree(tmp_path / "step-00000002", half)
    (half / "weights.safetensors").write_bytes(b"cut off")
    said = []
    run(load(base_folder), world, task("ga", steps=7), tmp_path, report=said.append)
    assert said[0] == "step 3 of 7"


# Numbers that are not finite.


@pytest.fixture
def real(tiny_real):
    """((model, processor), dataset) of a tiny LLaVA-1.5, loaded afresh."""
    return load(tiny_real.model), dataset.read(tiny_real.data)


def saved_in(folder):
    """The steps of the checkpoints in a folder, all of whose weights are finite."""
    saved = sorted(folder.glob("step-*"))
    for path in saved:
        assert all(value.isfinite().all() for file in path.glob("*.safetensors")
                   for value in load_file(file).values())
    return [int(path.name.removeprefix("step-")) for path in saved]


FAST = {"probe_every": 9, "checkpoint_every": 1}


@pytest.mark.parametrize(("reason", "decay", "steps", "said", "kept"), [
    ("the loss of the next step", 0.0, 4, "Step 3 of 4, on training records: .*forget is", [1, 2]),
    ("the weights", 1e10, 4, "weights after step 2 of 4: .*not finite", [1]),
    ("the weights, at the end", 1e10, 2, "weights after step 2 of 2: .*not finite", [1]),
])
def test_a_run_stops_at_the_step_at_which_its_numbers_are_not_finite(
        real, tmp_path, reason, decay, steps, said, kept):
    wanted = task("gd", lr=1e30, weight_decay=decay, steps=steps, warmup=0.0, **FAST)
    with pytest.raises(NotFinite, match=said) as caught:
        run(*real, wanted, tmp_path)
    assert "Try a lower lr than 1e+30" in str(caught.value)
    assert saved_in(tmp_path) == kept


def test_weights_that_are_not_finite_are_said_at_their_step_though_nothing_is_saved(real, tmp_path):
    wanted = task("gd", lr=1e30, weight_decay=1e10, steps=9, warmup=0.0, probe_every=9)
    with pytest.raises(NotFinite, match=r"weights after step 2 of 9: .*not finite"):
        run(*real, wanted, tmp_path)
    assert saved_in(tmp_path) == []


def test_a_gradient_that_is_not_finite_moves_nothing(real, tmp_path):
    model, packer = loop.add_lora(real[0][0], SETTINGS), Packer(*real[0])
    training = loop._Run(model, task("gd"))
    before = weights_of(model)
    next(iter(training.trained.values())).register_hook(lambda grad: grad * float("inf"))
    found = training.collect(packer, real[1])
    with pytest.raises(NotFinite, match=r"Step 1 of 4.* the gradient's norm is (nan|inf)\. "):
        training.update(found)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(model).items())
    assert (training.step, training.history) == (0, [])


def test_a_probe_of_what_is_not_finite_stops_the_run(real):
    training = loop._Run(loop.add_lora(real[0][0], SETTINGS), task("gd"))
    real[0][0].lm_head.weight.data[:] = float("nan")
    with pytest.raises(NotFinite, match=r"After 0 steps, on records of val: forget is nan"):
        training.probe(Packer(*real[0]), real[1], lambda model: {})
    assert training.probes == []


@pytest.mark.parametrize(("name", "value"), [("lr", 0.0), ("lr", float("nan")), ("clip", 0.0)])
def test_settings_with_which_nothing_is_learned_are_refused(real, tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}, and nothing can be learned"):
        run(*real, task("gd", **{name: value}), tmp_path)


def test_numbers_that_float16_cannot_hold_are_found_where_they_are_handed_out(tiny_real):
    model, _ = load(tiny_real.model, Runtime(dtype="float16"))
    training = loop._Run(loop.add_lora(model, SETTINGS), task("gd"))
    name = next(iter(training.trained))
    with torch.no_grad():
        training.trained[name].fill_(1e6)
    training._hand_out()
    with pytest.raises(NotFinite, match=r"1 hold .*bfloat16 instead of float16"):
        training.check_weights()
