"""Profiles far below `smoke`, for tests: one of our own small world, one of a released model.

`tests/kernel_start/sitecustomize.py` makes the second one known to processes that a test starts.
"""

from dataclasses import replace

from lib.model.settings import Architecture
from lib.running.profiles import LLAVA_7B, SMOKE
from lib.world.settings import World

TINY = replace(
    SMOKE,
    name="tiny",
    seeds=(1,),
    world=World(train_per_category=2, val_per_category=1, specificity_pictures=4),
    architecture=Architecture(patch_size=32, hidden=32, tower_layers=2, language_layers=2,
                              heads=2, intermediate=64),
    pretraining=replace(SMOKE.pretraining, pictures=168, contrastive_steps=30, language_steps=40,
                        alignment_steps=20, instruction_steps=160, batch=8, lr=5e-3),
    unlearning=replace(SMOKE.unlearning, steps=6, images=2, probe_every=3, checkpoint_every=2),
    evaluation=replace(SMOKE.evaluation, train_records=1, samples=2, batch=16),
)

# The llava-7b profile with less of everything, for the tiny model of tests/tiny_llava.py.
TINY_REAL = replace(
    LLAVA_7B,
    name="tiny-real",
    seeds=(1,),
    sweep_weights=(0.3,),
    unlearning=replace(LLAVA_7B.unlearning, epochs=1, images=2, queries=2, lora_rank=4,
                       lora_alpha=8, lr=1e-2, probe_every=2, checkpoint_every=1),
    evaluation=replace(LLAVA_7B.evaluation, train_records=None, max_new_tokens=4, batch=16,
                       samples=1),
)
