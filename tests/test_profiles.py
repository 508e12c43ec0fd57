import json
import pickle
from dataclasses import FrozenInstanceError, asdict, fields, is_dataclass, replace

import pytest

from lib.running import profiles
from lib.running.options import hand_down, parse
from lib.running.profiles import LAPTOP, LLAVA_7B, LLAVA_13B, PROFILES, SMOKE
from lib.unlearning.settings import Unlearning

SMALL, REAL = (SMOKE, LAPTOP), (LLAVA_7B, LLAVA_13B)


@pytest.fixture(autouse=True)
def no_overrides(monkeypatch):
    for setting in profiles.GIVEN:
        monkeypatch.delenv(profiles.variable(setting), raising=False)


@pytest.mark.parametrize("name", ["smoke", "laptop"])
def test_a_profile_is_found_by_its_name(name):
    assert profiles.get(name).name == name
    assert profiles.get(name) is PROFILES[name]


@pytest.mark.parametrize("name", ["", "Laptop", "lap top", "gpu"])
def test_an_unknown_profile_is_answered_with_the_known_ones(name):
    with pytest.raises(ValueError, match="smoke, laptop") as refused:
        profiles.get(name)
    assert repr(name) in str(refused.value)


def parts(profile):
    return [profile, *(getattr(profile, f.name) for f in fields(profile)
                       if is_dataclass(getattr(profile, f.name)))]


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_no_setting_can_be_changed_by_accident(profile):
    for part in parts(profile):
        with pytest.raises(FrozenInstanceError):
            setattr(part, fields(part)[0].name, None)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_a_profile_goes_to_other_processes_and_into_json(profile):
    assert pickle.loads(pickle.dumps(profile)) == profile
    assert hash(profile) == hash(replace(profile))
    assert json.loads(json.dumps(asdict(profile)))["unlearning"]["steps"] == (
        profile.unlearning.steps)


def test_only_the_laptop_s_results_are_judged_as_the_bounds_were_found_there():
    assert [name for name, profile in PROFILES.items() if profile.strict] == ["laptop"]


def test_every_judged_profile_has_at_least_three_seeds_and_three_samples():
    for profile in PROFILES.values():
        assert len(set(profile.seeds)) == len(profile.seeds)
        if profile.strict:
            assert len(profile.seeds) >= 3
            assert profile.evaluation.samples == 3


def test_the_gate_is_what_the_readme_promises():
    assert asdict(LAPTOP.gate) == {"asr": 0.95, "exact_match": 0.95, "sarr": 0.03,
                                   "specificity": 0.95}


OFFICIAL = [
    ("rank of LoRA", LAPTOP.unlearning.lora_rank, 32),
    ("share of warm-up", LAPTOP.unlearning.warmup, 0.06),
    ("weight decay", LAPTOP.unlearning.weight_decay, 0.01),
    ("gradient's norm", LAPTOP.unlearning.clip, 1.0),
    ("temperature", LAPTOP.evaluation.temperature, 1.0),
    ("nucleus", LAPTOP.evaluation.top_p, 0.9),
    *((f"{name} of {profile.name}", getattr(profile.unlearning, name), value)
      for profile in REAL for name, value in {
          "epochs": 10, "lr": 1e-4, "warmup": 0.06, "weight_decay": 0.01, "clip": 1.0,
          "lora_rank": 32, "lora_alpha": 256, "lora_dropout": 0.05}.items()),
    *((f"{name} of {profile.name}", getattr(profile.evaluation, name), value)
      for profile in REAL for name, value in {
          "samples": 3, "temperature": 1.0, "top_p": 0.9, "max_new_tokens": 512}.items()),
    ("pairs per step", LLAVA_7B.unlearning.images * LLAVA_7B.unlearning.queries, 1 * 2 * 16),
    ("seed", LLAVA_7B.seeds, (233,)),
    ("7B", LLAVA_7B.model, "llava-hf/llava-1.5-7b-hf"),
]


@pytest.mark.parametrize(("reason", "ours", "official"), OFFICIAL)
def test_what_carries_over_has_the_official_value(reason, ours, official):
    assert ours == official, reason


def test_smoke_walks_the_same_path_with_less_of_everything():
    def sizes(profile):
        return {(part, name): value for part, values in asdict(profile).items()
                if part in ("world", "pretraining", "unlearning", "evaluation")
                for name, value in values.items() if isinstance(value, int) and name != "seed"}

    smoke, laptop = sizes(SMOKE), sizes(LAPTOP)
    assert all(smoke[name] <= laptop[name] for name in laptop)
    assert sum(smoke[name] < laptop[name] for name in laptop) > len(laptop) / 2
    assert SMOKE.gate == LAPTOP.gate


@pytest.mark.parametrize("profile", SMALL, ids=lambda profile: profile.name)
def test_a_profile_s_sizes_fit_together(profile):
    sizes, unlearning = profile.architecture, profile.unlearning
    assert sizes.hidden % sizes.heads == 0
    assert sizes.image_size % sizes.patch_size == 0
    assert unlearning.probe_every < unlearning.steps, "a trajectory has more than its two ends"
    assert unlearning.checkpoint_every < unlearning.steps
    assert all(weight > 0 and weight != 1 for weight in profile.sweep_weights)
    assert profile.evaluation.train_records <= profile.world.train_per_category
    assert profile.pretraining.contrastive_batch <= profile.pretraining.pictures


@pytest.mark.parametrize(("reason", "settings", "records", "steps"), [
    ("steps are steps, however many records there are", Unlearning(steps=7), 2400, 7),
    ("ten epochs of the paper's size", LLAVA_7B.unlearning, 2400, 3000),
    ("a last step that is not full begins the next epoch", LLAVA_7B.unlearning, 12, 15),
    ("half an epoch", Unlearning(epochs=0.5, images=2), 8, 2),
])
def test_epochs_say_how_many_steps_there_are(reason, settings, records, steps):
    assert settings.steps_for(records) == steps, reason


def test_a_real_profile_takes_the_model_and_data_that_are_given(monkeypatch):
    assert profiles.get("llava-7b") == LLAVA_7B
    monkeypatch.setenv("SAFEERASER_MODEL", "/from/environment")
    monkeypatch.setenv("SAFEERASER_DATA", "somebody/data")
    both = profiles.get("llava-13b")
    assert (both.model, both.data) == ("/from/environment", "somebody/data")
    given = profiles.get("llava-7b", model="/a/model", data="/a/folder")
    assert (given.model, given.data) == ("/a/model", "/a/folder")
    assert profiles.get("laptop") is LAPTOP, "what is set for the others is not for this one"


JUDGES = [("rules", "rules", "rules"), ("server:gpt-4o", "server:gpt-4o", "server:gpt-4o"),
          ("guard:a/b+rules", "guard:a/b+rules", "rules"),
          ("guard:a/b+local:c/d", "guard:a/b+local:c/d", "guard:a/b+local:c/d")]


@pytest.mark.parametrize(("judge", "of_harmful", "of_others"), JUDGES)
def test_who_labels_an_answer_is_a_model_only_where_it_reads_the_answer(judge, of_harmful,
                                                                        of_others):
    profile = replace(profiles.LLAVA_7B, judge=judge)
    assert profile.judge_of("harmful") == of_harmful
    assert {profile.judge_of(name) for name in ("safe", "retain", "anything")} == {of_others}


@pytest.mark.parametrize(("given", "on"), [("1", True), ("True", True), ("0", False),
                                           ("false", False), ("", False)])
def test_the_official_quirks_are_a_switch_in_the_environment(monkeypatch, given, on):
    monkeypatch.setenv("SAFEERASER_OFFICIAL_QUIRKS", given)
    assert profiles.get("llava-7b") == replace(LLAVA_7B, official_quirks=on)


@pytest.mark.parametrize("switch", profiles.SWITCHES)
def test_the_option_for_a_switch_reaches_the_kernels(monkeypatch, switch):
    chosen = parse(["--profile", "llava-7b", "--list", profiles.option(switch)]).profile
    assert chosen == replace(LLAVA_7B, **{switch: True})
    hand_down(chosen)
    assert profiles.get("llava-7b") == chosen
    hand_down(LLAVA_7B)
    assert profiles.get("llava-7b") == LLAVA_7B


def test_a_small_profile_refuses_a_model_and_names_those_that_take_one():
    with pytest.raises(ValueError, match=r"--official-quirks, --leave-out are for llava-7b"):
        profiles.get("laptop", data="/a/folder")


QUIRKY = replace(LLAVA_7B, official_quirks=True)


@pytest.mark.parametrize(("profile", "rows"), [(LAPTOP, "official"), (LLAVA_7B, "added"),
                                               (QUIRKY, "official")])
def test_the_switch_chooses_the_rows_of_a_real_profile(profile, rows):
    assert profile.rows == rows
