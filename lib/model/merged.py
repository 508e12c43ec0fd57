"""What is evaluated is what was trained: an adapter is merged in float32, or not at all.

In bfloat16's three digits a sum of weight and learned change loses much of the change: a third of
it, where it is 0.5 % of the weight. A folder for other programs is therefore in float32 whatever
the model is in, and has to be loaded so: it takes 4 bytes a parameter (28 GB of a 7B model), on the
disk, in memory while it is made, and on the GPU of whoever loads it.
"""

import copy
import shutil
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from lib.model import check as model_check
from lib.model import finite
from lib.model.llava import llava

DTYPE = "float32"  # of the folder, to be told to what loads it


def merge_if_exact(model: PeftModel) -> None:
    """Merge the adapter into float32 weights; others stay beside it, and answer unmerged.

    The same weights in fewer matrices: generation takes half the time.
    """
    whole = llava(model)
    if whole.dtype == torch.float32 and not getattr(whole, "is_quantized", False):
        model.merge_adapter()


def save_merged(model, processor, folder: Path) -> Path:
    """Write model and processor as safetensors; the adapter's change is in the plain weights.

    The model in memory stays what it is. The folder is replaced. Raises ValueError for a model in 4
    bits, into whose rounded weights an adapter does not fit; Missing where there is no memory for
    it; NotFinite for weights that are not finite.
    """
    whole = llava(model)
    if getattr(whole, "is_quantized", False):
        raise ValueError("A model loaded in 4 bits cannot be merged without loss: evaluate it with "
                         "the generator transformers, or load it without four_bit.")
    model_check.check_room(4 * whole.num_parameters(), "The model with its adapter merged")
    weights = _plain(whole)
    finite.check_tensors(weights.items(), "The merged weights", "Train the adapter again.")
    shutil.rmtree(folder, ignore_errors=True)
    _with(weights, whole).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@torch.no_grad()
def _plain(whole) -> dict[str, Tensor]:
    """The weights with the adapter's change, on the CPU, under the names they have without PEFT."""
    weights = {name.replace(".base_layer.", ".").replace(".modules_to_save.default.", "."):
               value.to("cpu", torch.float32) for name, value in whole.state_dict().items()
               if ".lora_" not in name and ".original_module." not in name}
    for name, layer in whole.named_modules():
        if isinstance(layer, LoraLayer) and not layer.merged:
            for adapter in layer.active_adapters:
                a, b = (part[adapter].weight.to("cpu", torch.float32)
                        for part in (layer.lora_A, layer.lora_B))
                weights[f"{name}.weight"] = (
                    weights[f"{name}.weight"] + b @ a * layer.scaling[adapter])
    return weights


def _with(weights: dict[str, Tensor], whole):
    """A model like `whole`, in float32 and without PEFT, that has these weights."""
    with torch.device("meta"):
        plain = type(whole)._from_config(copy.deepcopy(whole.config), dtype=torch.float32)
    plain.load_state_dict(weights, assign=True)
    plain.generation_config = whole.generation_config
    return plain
