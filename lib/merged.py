"""A model with its adapter merged, as a folder in LLaVA's own layout that other programs load."""

import shutil
from pathlib import Path

from peft import PeftModel
from peft.tuners.lora import LoraLayer

from lib.model import llava


def save_merged(model, processor, folder: Path) -> Path:
    """Write model and processor as safetensors; the adapter's change is in the plain weights.

    The model in memory stays what it is, but is merged afterwards. The folder is replaced.
    Raises ValueError for a model in 4 bits, into whose rounded weights an adapter does not fit.
    """
    whole = llava(model)
    if getattr(whole, "is_quantized", False):
        raise ValueError("A model loaded in 4 bits cannot be merged without loss: evaluate it with "
                         "the generator transformers, or load it without four_bit.")
    if isinstance(model, PeftModel) and not _is_merged(model):
        model.merge_adapter()
    shutil.rmtree(folder, ignore_errors=True)
    whole.save_pretrained(folder, state_dict=_plain(whole.state_dict()))
    processor.save_pretrained(folder)
    return folder


def _is_merged(model: PeftModel) -> bool:
    return all(layer.merged for layer in model.modules() if isinstance(layer, LoraLayer))


def _plain(state: dict) -> dict:
    """The weights under the names that they have without PEFT."""
    return {name.replace(".base_layer.", ".").replace(".modules_to_save.default.", "."): value
            for name, value in state.items()
            if ".lora_" not in name and ".original_module." not in name}
