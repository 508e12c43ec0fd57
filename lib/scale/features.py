"""The tower's features of all of a dataset's pictures on disk, computed once for all runs.

A folder of safetensors files, in the model's own numbers, of which a picture at a time is read:
LLaVA-1.5 takes 1.2 MB for each, so SafeEraser's 6,000 pictures would fill 7 GB of every process.
`packing.Features` is the way in memory.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lib.data.dataset import Dataset
from lib.model.llava import llava
from lib.model.packing import Features, seen

FILE = "tower"  # the folder, in that of the result


class StoredFeatures:
    """`Features` from a folder that `write` has filled; another picture's are computed."""

    def __init__(self, folder: Path, root: Path, others: Features):
        self.root, self.others = root, others
        files = [safe_open(path, "pt") for path in sorted(folder.iterdir())]
        self.places = {name: file for file in files for name in file.keys()}  # noqa: SIM118

    def __call__(self, image: Path) -> Tensor:
        name = _name(image, self.root)
        return self.places[name].get_tensor(name) if name in self.places else self.others(image)

    def add(self, images: Sequence[Path]) -> None:
        """Compute those that are not there."""
        self.others.add([image for image in images if _name(image, self.root) not in self.places])


def pictures(dataset: Dataset) -> list[Path]:
    """Every picture of a dataset, each once."""
    shown = [path for record in (*dataset.train, *dataset.val)
             for path in (record.image, record.safe_image)]
    return list(dict.fromkeys([*shown, *(item.image for item in dataset.specificity)]))


def write(folder: Path, model, processor, images: Sequence[Path], root: Path, batch: int = 32,
          report: Callable[[str], None] = lambda text: None) -> None:
    """Compute the features of `images`, each [image tokens, hidden], a batch and a file at a time.
    """
    folder.mkdir(exist_ok=True)
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        found = seen(model, processor, part).to(llava(model).dtype)
        save_file({_name(image, root): row.clone() for image, row in zip(part, found, strict=True)},
                  folder / f"{start:06}.safetensors")
        report(f"{start + len(part)} of {len(images)} pictures")


def _name(image: Path, root: Path) -> str:
    return image.relative_to(root).as_posix() if image.is_relative_to(root) else str(image)
