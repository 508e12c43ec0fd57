from dataclasses import replace

import pytest
import torch

from lib.model.settings import Runtime
from lib.running import memory
from lib.running.profiles import LAPTOP, LLAVA_7B


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
])
def test_running_out_of_memory_becomes_advice(error):
    with (pytest.raises(memory.OutOfMemory, match="making unlearn-po") as said,
          memory.advised(LLAVA_7B, "making unlearn-po")):
        raise error
    text = str(said.value)
    assert "micro_batch=2" in text
    assert "answers at once" not in text, "their number follows the memory"
    assert "four_bit=True" in text
    assert "gradient_checkpointing" not in text, "it is on already"
    assert "lib/running/profiles.py, profile llava-7b" in text
    assert "run the same command again to go on" in text


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("no memory")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error), match=str(error)), memory.advised(LAPTOP, "anything"):
        raise error


def test_an_allocation_that_cannot_be_is_recognised_as_such():
    with (pytest.raises(memory.OutOfMemory), memory.advised(LAPTOP, "anything")):
        torch.empty(1 << 60, dtype=torch.uint8)


def test_what_is_used_already_is_not_advised_again():
    frugal = replace(LLAVA_7B, runtime=Runtime("auto", gradient_checkpointing=True, four_bit=True,
                                               micro_batch=1),
                     evaluation=replace(LLAVA_7B.evaluation, batch=1))
    assert "more memory is needed" in memory.advice(frugal)


def test_four_bits_are_not_advised_where_there_is_no_gpu():
    assert "four_bit" not in memory.advice(LAPTOP)
