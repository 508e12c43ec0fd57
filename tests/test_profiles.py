import json
import pickle
from dataclasses import FrozenInstanceError, asdict, fields, is_dataclass, replace

import pytest

from lib import profiles
from lib.profiles import LAPTOP, PROFILES, SMOKE


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
    assert json.loads(json.dumps(profile.asdict()))["unlearning"]["steps"] == (
        profile.unlearning.steps)
    assert profile.asdict() == asdict(profile)


def test_only_the_smoke_profile_s_results_are_not_judged():
    assert [name for name, profile in PROFILES.items() if not profile.strict] == ["smoke"]


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
]


@pytest.mark.parametrize(("reason", "ours", "official"), OFFICIAL)
def test_what_carries_over_has_the_official_value(reason, ours, official):
    assert ours == official, reason


def test_smoke_walks_the_same_path_with_less_of_everything():
    def sizes(profile):
        return {(part, name): value for part, values in profile.asdict().items()
                if part in ("world", "pretraining", "unlearning", "evaluation")
                for name, value in values.items() if isinstance(value, int) and name != "seed"}

    smoke, laptop = sizes(SMOKE), sizes(LAPTOP)
    assert all(smoke[name] <= laptop[name] for name in laptop)
    assert sum(smoke[name] < laptop[name] for name in laptop) > len(laptop) / 2
    assert SMOKE.gate == LAPTOP.gate


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_a_profile_s_sizes_fit_together(profile):
    sizes, unlearning = profile.architecture, profile.unlearning
    assert sizes.hidden % sizes.heads == 0
    assert sizes.image_size % sizes.patch_size == 0
    assert unlearning.probe_every < unlearning.steps, "a trajectory has more than its two ends"
    assert unlearning.checkpoint_every < unlearning.steps
    assert all(weight > 0 and weight != 1 for weight in profile.sweep_weights)
    assert profile.evaluation.train_records <= profile.world.train_per_category
    assert profile.pretraining.contrastive_batch <= profile.pretraining.pictures
