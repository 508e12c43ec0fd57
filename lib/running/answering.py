"""A model's answers to all questions of the evaluation, kept one by one."""

from contextlib import nullcontext
from pathlib import Path

import torch

from lib.base import runs
from lib.base.extras import scale
from lib.evaluation.answers import answered
from lib.evaluation.questions import questions
from lib.model import llava as models
from lib.model.merged import merge_if_exact
from lib.running import origins
from lib.running.profiles import Profile
from lib.running.results import Report, Result


def answer(profile: Profile, adapter: Result | None, at_hand: dict, folder: Path,
           report: Report) -> None:
    """Write the answers of the original model, or with this adapter, into `folder`.

    The model is that which is `at_hand` after training, if it was in this process. What was
    answered before a break is not asked again.
    """
    if adapter is None and not profile.real:
        torch.set_num_threads(origins.BASE_THREADS)
    model, processor, seen = at_hand.pop("model", None) or _loaded(profile, adapter)
    if adapter is not None:
        merge_if_exact(model)
    read, checkpoint = origins.read_dataset(profile), folder / "checkpoint"
    asked = questions(read, profile.evaluation.train_records)
    with generator(profile, model, processor, checkpoint) as say:
        frame = answered(model, processor, seen, asked, profile.evaluation, read.root, report,
                         checkpoint / "answers.jsonl", say)
    runs.write_jsonl(folder / "answers.jsonl", frame.to_dict("records"))


def _loaded(profile: Profile, adapter: Result | None) -> tuple:
    model, processor = origins.load(profile)
    seen = origins.tower_features(profile, model, processor)
    if adapter is not None:
        model = models.load_adapter(model, adapter.done() / "adapter")
    return model, processor, seen


def generator(profile: Profile, model, processor, scratch: Path):
    """A context that gives what answers; None is transformers."""
    known = {"transformers": nullcontext,
             "vllm": lambda: scale("vllm").answerer(model, processor, scratch)}
    if profile.generator not in known:
        raise ValueError(f"There is no generator {profile.generator!r}; known: {', '.join(known)}.")
    return known[profile.generator]()
