"""GPUs: their memory and speed, by name or as found in this machine.

Rates are those of the makers' data sheets: dense bf16 matrices (no sparsity) summed in fp32, at
boost clock. Memory is what torch reports as `total_memory`, a little less than what the name says.
"""

import math
import re
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Gpu:
    """One GPU. NaN: unknown to us."""

    name: str
    driver: str  # what the name that the driver gives it contains, as a regular expression
    memory: float  # GiB
    tflops: float  # 1e12 bf16 FLOP per second
    bandwidth: float  # GB (1e9 bytes) per second, to and from its memory


KNOWN = {
    "b200": Gpu("B200", r"B200", 178.0, 2250, 7700),
    "h200": Gpu("H200", r"\bH200", 139.8, 989, 4800),
    "h100": Gpu("H100 SXM", r"H100 80GB HBM3", 79.1, 989, 3350),
    "h100-pcie": Gpu("H100 PCIe", r"H100 PCIe", 79.1, 756, 2000),
    "a100-80": Gpu("A100 80 GB", r"A100.*80GB", 79.2, 312, 2039),
    "a100-40": Gpu("A100 40 GB", r"A100.*40GB", 39.4, 312, 1555),
    "l40s": Gpu("L40S", r"L40S", 44.4, 362, 864),
    "a6000": Gpu("RTX A6000", r"RTX A6000", 47.4, 155, 768),
    "l4": Gpu("L4", r"L4$", 22.0, 121, 300),
    "rtx-5090": Gpu("RTX 5090", r"RTX 5090$", 31.4, 210, 1792),
    "rtx-4090": Gpu("RTX 4090", r"RTX 4090$", 23.5, 165, 1008),
    "rtx-3090": Gpu("RTX 3090", r"RTX 3090$", 23.6, 71, 936),
}


def named(name: str) -> Gpu:
    """The GPU of this name, however it is written; ValueError lists the known ones.

    >>> named("RTX 4090").tflops
    165
    """
    found = {_plain(key): gpu for key, gpu in KNOWN.items()}.get(_plain(name).removesuffix("gb"))
    if found is None:
        raise ValueError(f"There is no GPU {name!r} in our table; known: {', '.join(KNOWN)}. For "
                         "another one name the known one that is nearest in memory and speed.")
    return found


def found() -> Gpu | None:
    """This machine's first GPU, with the memory that it reports; None if torch sees none."""
    import torch

    if not torch.cuda.is_available():
        return None
    device = torch.cuda.get_device_properties(0)
    return recognised(device.name, device.total_memory / 2**30)


def recognised(name: str, memory: float) -> Gpu:
    """The GPU that a driver calls so, with the memory that it has; speed NaN if we do not know it.

    name: such as "NVIDIA A100-SXM4-40GB"; memory: GiB.

    >>> recognised("NVIDIA A100-SXM4-40GB", 39.4).bandwidth
    1555
    """
    for gpu in KNOWN.values():
        if re.search(gpu.driver, name):
            return replace(gpu, memory=memory)
    return Gpu(name, re.escape(name), memory, math.nan, math.nan)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
