"""Running out of memory, turned into advice: what to change in lib/running/profiles.py."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lib.running.profiles import Profile


class OutOfMemory(RuntimeError):
    """A step needed more memory than there is; the message says what to do."""


@contextmanager
def advised(profile: Profile, doing: str) -> Iterator[None]:
    """Turn running out of memory into OutOfMemory, with what would need less; `doing` is a name."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise OutOfMemory(f"Out of memory while {doing}. {advice(profile)} What is "
                          "finished is kept: run the same command again to go on.") from error


def ran_out(error: Exception) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    return (isinstance(error, (torch.OutOfMemoryError, MemoryError))
            or "DefaultCPUAllocator: can't allocate memory" in str(error))


def advice(profile: Profile) -> str:
    """What would need less memory than this profile, the cheapest first."""
    runtime, batch = profile.runtime, profile.evaluation.batch or 1  # None follows the memory
    rows = runtime.micro_batch or 3 * profile.unlearning.images  # harmful, safe and text rows
    ways = {
        f"fewer pictures per forward (micro_batch={rows // 2}; the results stay the same)":
            rows > 1,
        f"fewer answers at once (batch={batch // 2} of the evaluation)":
            batch > 1,
        "gradient_checkpointing=True (a third more time)":
            not runtime.gradient_checkpointing,
        "four_bit=True (the frozen weights in a quarter of the memory; runs then start afresh, "
        "because the results differ)":
            not runtime.four_bit and runtime.device != "cpu",
    }
    if not any(ways.values()):
        return "There is nothing left to save: a machine with more memory is needed."
    helpful = "; or ".join(way for way, helps in ways.items() if helps)
    return f"In lib/running/profiles.py, profile {profile.name}: {helpful}."
