"""NaN and infinity: found where they first appear, and said with what may help."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


class NotFinite(RuntimeError):
    """A number that is NaN or infinite; the message says which, where, and what to try."""


def is_finite(tensor: Tensor) -> bool:
    """Whether every number of a tensor is finite: one pass over it, without a copy."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return bool(torch.stack(tensor.detach().aminmax()).isfinite().all())  # NaN is passed on


def check_tensors(tensors: Iterable[tuple[str, Tensor]], what: str, advice: str) -> None:
    """Raise NotFinite, with how many and the first name, unless all of the tensors are finite."""
    wrong = [name for name, tensor in tensors if not is_finite(tensor)]
    if wrong:
        raise NotFinite(f"{what}: {len(wrong)} hold numbers that are not finite, such as "
                        f"{wrong[0]}. {advice}")


def check_numbers(numbers: Mapping[str, float], what: str, advice: str) -> None:
    """Raise NotFinite, with each number's name, unless all of them are finite."""
    wrong = [f"{name} is {number}" for name, number in numbers.items()
             if not math.isfinite(number)]
    if wrong:
        raise NotFinite(f"{what}: {', '.join(wrong)}. {advice}")


def check_rates(rates: Mapping[str, float]) -> None:
    """Raise ValueError unless each of these settings is a finite number above 0."""
    for name, rate in rates.items():
        if not 0 < rate < math.inf:
            raise ValueError(f"{name} is {rate}, and nothing can be learned with it: set a number "
                             "above 0 in lib/running/profiles.py.")
