"""`lib/scale/gpus.py`."""

import math

import pytest
import torch

from lib.scale import gpus


@pytest.mark.parametrize(("driver", "memory", "key"), [
    ("NVIDIA H200", 139.8, "h200"),
    ("NVIDIA H100 80GB HBM3", 79.1, "h100"),
    ("NVIDIA H100 PCIe", 79.1, "h100-pcie"),
    ("NVIDIA A100-SXM4-80GB", 79.2, "a100-80"),
    ("NVIDIA A100 80GB PCIe", 79.2, "a100-80"),
    ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40"),
    ("NVIDIA A100-PCIE-40GB", 39.4, "a100-40"),
    ("NVIDIA L40S", 44.4, "l40s"),
    ("NVIDIA L4", 22.0, "l4"),
    ("NVIDIA RTX A6000", 47.4, "a6000"),
    ("NVIDIA GeForce RTX 4090", 23.5, "rtx-4090"),
])
def test_a_gpu_is_recognised_by_what_its_driver_calls_it(driver, memory, key):
    assert gpus.recognised(driver, memory) == gpus.KNOWN[key]


@pytest.mark.parametrize("driver", ["Tesla V100-SXM2-32GB", "NVIDIA L40", "NVIDIA H100 NVL",
                                    "NVIDIA GeForce RTX 4090 Laptop GPU"])
def test_the_speed_of_an_unknown_gpu_is_not_guessed(driver):
    found = gpus.recognised(driver, 32.0)
    assert (found.name, found.memory) == (driver, 32.0)
    assert math.isnan(found.tflops)
    assert math.isnan(found.bandwidth)


@pytest.mark.parametrize(("name", "key"), [
    ("h100", "h100"), ("H100", "h100"), ("a100-80gb", "a100-80"), ("A100 40", "a100-40"),
    ("rtx4090", "rtx-4090"), ("L40s", "l40s")])
def test_a_gpu_s_name_may_be_written_in_any_way(name, key):
    assert gpus.named(name) == gpus.KNOWN[key]


@pytest.mark.parametrize("name", ["a100", "tpu", ""])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=r"known: b200, h200, h100, .*rtx-4090"):
        gpus.named(name)


def test_without_a_gpu_none_is_found():
    assert (gpus.found() is None) == (not torch.cuda.is_available())
