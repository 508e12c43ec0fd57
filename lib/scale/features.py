"""The tower's features of all of a dataset's pictures in one file, computed once for all runs.

The file is a safetensors file (`features`, [pictures, image tokens, hidden], in the model's own
numbers) and is read through a memory map, a picture at a time: LLaVA-1.5 takes 1.2 MB for each, so
SafeEraser's 6,000 pictures would fill 7 GB of every process. `packing.Features` is the way in
memory.
"""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from lib.data.dataset import Dataset
from lib.model.llava import feature_layers, llava
from lib.model.packing import Features, seen
from lib.model.prompts import image_tokens

FILE = "tower.safetensors"
NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class StoredFeatures:
    """`Features` from a file that `write` has made; another picture's are computed."""

    def __init__(self, file: Path, root: Path, others: Features):
        self.root, self.others, self.file = root, others, safe_open(file, "pt")
        self.rows = self.file.get_slice("features")
        names = json.loads(self.file.metadata()["pictures"])
        self.places = {name: place for place, name in enumerate(names)}

    def __call__(self, image: Path) -> Tensor:
        place = self._place(image)
        return self.others(image) if place is None else self.rows[place : place + 1][0]

    def add(self, images: Sequence[Path]) -> None:
        """Compute those that are not in the file."""
        self.others.add([image for image in images if self._place(image) is None])

    def _place(self, image: Path) -> int | None:
        return self.places.get(_name(image, self.root))


def pictures(dataset: Dataset) -> list[Path]:
    """Every picture of a dataset, each once."""
    shown = [path for record in (*dataset.train, *dataset.val)
             for path in (record.image, record.safe_image)]
    return list(dict.fromkeys([*shown, *(item.image for item in dataset.specificity)]))


def size(model, processor, count: int) -> int:
    """Bytes that the features of `count` pictures take."""
    return math.prod(_shape(model, processor, count)) * llava(model).dtype.itemsize


def write(file: Path, model, processor, images: Sequence[Path], root: Path, batch: int = 32,
          report: Callable[[str], None] = lambda text: None) -> None:
    """Compute the features of `images`, a batch at a time, into `file`.

    Raises OSError, before any work, when the disk has no room for them.
    """
    needed, free = size(model, processor, len(images)), shutil.disk_usage(file.parent).free
    if needed > free:
        raise OSError(f"The tower's features of {len(images)} pictures take {needed / 1e9:.1f} GB, "
                      f"and {file.parent} has {free / 1e9:.1f} GB left: free some, or move the "
                      "results with SAFEERASER_RUNS.")
    header = _header(model, processor, [_name(image, root) for image in images])
    with file.open("wb") as out:
        out.write(len(header).to_bytes(8, "little") + header)
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            found = seen(model, processor, part).to(llava(model).dtype)
            out.write(found.contiguous().view(torch.uint8).numpy().tobytes())
            report(f"{start + len(part)} of {len(images)} pictures")


def _header(model, processor, names: list[str]) -> bytes:
    """The format's header: https://github.com/huggingface/safetensors#format."""
    shape = _shape(model, processor, len(names))
    entry = {"dtype": NAMES[llava(model).dtype], "shape": shape,
             "data_offsets": [0, size(model, processor, len(names))]}
    text = json.dumps({"__metadata__": {"pictures": json.dumps(names)}, "features": entry}).encode()
    return text + b" " * (-len(text) % 8)  # numbers have to begin at a multiple of their size


def _shape(model, processor, count: int) -> tuple[int, int, int]:
    config = llava(model).config
    hidden = config.vision_config.hidden_size * len(feature_layers(config))
    return count, image_tokens(processor), hidden


def _name(image: Path, root: Path) -> str:
    return image.relative_to(root).as_posix() if image.is_relative_to(root) else str(image)
