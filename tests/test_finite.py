import math

import pytest
import torch

from lib.model import finite
from lib.model.finite import NotFinite, is_finite

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [NAN, INFINITE, -INFINITE])
def test_one_number_that_is_not_finite_is_found(dtype, value):
    numbers = torch.ones(3, 1000, dtype=dtype)
    assert is_finite(numbers)
    numbers[1, 500] = value
    assert not is_finite(numbers)


@pytest.mark.parametrize(("reason", "tensor"), [
    ("the largest numbers, whose sum is infinite", torch.full((9,), 3e38)),
    ("whole numbers", torch.arange(3)),
    ("nothing", torch.zeros(0)),
])
def test_what_is_finite_passes(reason, tensor):
    assert is_finite(tensor), reason


def test_the_message_names_what_is_wrong_and_what_to_try():
    with pytest.raises(NotFinite, match=r"Step 3: kl is nan, loss is -inf\. Try less\."):
        finite.check_numbers({"kl": NAN, "retain": 1.0, "loss": -INFINITE}, "Step 3", "Try less.")
    tensors = [("a", torch.ones(2)), ("b", torch.full((2,), NAN)), ("c", torch.full((2,), NAN))]
    with pytest.raises(NotFinite, match=r"The weights: 2 hold .* such as b\. Try less\."):
        finite.check_tensors(tensors, "The weights", "Try less.")


@pytest.mark.parametrize("rate", [0.0, -1e-3, NAN, math.inf])
def test_a_rate_with_which_nothing_is_learned_is_refused(rate):
    with pytest.raises(ValueError, match=r"lr is .* above 0 in lib"):
        finite.check_rates({"clip": 1.0, "lr": rate})
