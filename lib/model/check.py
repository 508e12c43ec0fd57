"""What can be wrong with a model's folder: found in seconds, before anything of it is loaded."""

import json
import os
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lib.base.missing import Missing
from lib.data.pictures import is_pointer

WANTED = "LlavaForConditionalGeneration"
INDEX = "model.safetensors.index.json"
AGAIN = "copy or download it again"
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
TEXTS = (".safetensors", ".json", ".jinja")
PROCESSORS = ("processor_config.json", "preprocessor_config.json")


def check(folder: Path) -> list[str]:
    """Everything that is wrong with a LLaVA in transformers' layout, a sentence each.

    Of the weights only the headers are read, which tell a file that is cut off.
    """
    if not (folder / "config.json").exists():
        if (folder / "adapter_config.json").exists():
            return [f"{folder} holds an adapter, which is a change to a model: give the model's "
                    "own folder."]
        if (folder / "snapshots").is_dir():
            return [f"{folder} is a hub's cache: give the folder in its snapshots that has a "
                    "config.json."]
        return [f"There is no model in {folder} (no config.json): give the folder that has it."]
    wrong = _pointers(folder) or _of_config(folder)
    return wrong or [*_of_weights(folder), *_of_processor(folder)]


def _pointers(folder: Path) -> list[str]:
    """What Git leaves in the place of large files as long as they have not been fetched."""
    read = (*TEXTS, *TOKENIZERS[: 1 + (not (folder / TOKENIZERS[0]).exists())])
    found = [path.name for path in sorted(folder.iterdir())
             if path.name.endswith(read) and path.is_file() and is_pointer(path)]
    if not found:
        return []
    return [f"In {folder} Git LFS pointers stand in the place of {len(found)} of the model's files "
            f"(first: {found[0]}), which were not fetched: type 'git lfs pull' there, or download "
            "the model again."]


def marks(folder: Path) -> set[str]:
    """What a model's tokenizer and processor read as more than text: "</s>", the image token."""
    tokenizer = _settings(folder / "tokenizer.json")
    found = [token.get("content") for token in tokenizer.get("added_tokens") or ()
             if token.get("special")]
    for name in ("processor_config.json", "tokenizer_config.json"):
        settings = _settings(folder / name)
        found += [settings.get("image_token"),
                  *(token.get("content") for token in
                    (settings.get("added_tokens_decoder") or {}).values() if token.get("special"))]
    return {mark for mark in found if isinstance(mark, str) and len(mark) > 2}


def _settings(file: Path) -> dict:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _of_config(folder: Path) -> list[str]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = ", ".join(config.get("architectures") or [f"a {config.get('model_type')}"])
        parts = {part: (config.get(part) or {}).get("model_type", usual)
                 for part, usual in (("text_config", "llama"),
                                     ("vision_config", "clip_vision_model"))}
    except (OSError, ValueError, AttributeError, TypeError):
        return [f"{folder / 'config.json'} is not JSON with a model's settings: {AGAIN}."]
    if kind != WANTED or config.get("model_type") != "llava" or "text_config" not in config:
        return [f"The model in {folder} is {kind}, not LLaVA-1.5 in transformers' layout ({WANTED} "
                "with a text_config): take llava-hf/llava-1.5-7b-hf or one of its form."]
    if parts != {"text_config": "llama", "vision_config": "clip_vision_model"}:
        return [f"The model in {folder} is a {' with a '.join(parts.values())}, and LLaVA-1.5 is a "
                "llama with a clip_vision_model: take llava-hf/llava-1.5-7b-hf or one of its form."]
    if config.get("quantization_config"):
        return [f"The model in {folder} is quantized already: take the one that it was made from "
                "(four_bit=True in lib/running/profiles.py quantizes it when it is loaded)."]
    return _of_layers(folder, config)


def _of_layers(folder: Path, config: dict) -> list[str]:
    """`vision_feature_layer`, a number or a list, has to name layers that the tower has."""
    chosen = config.get("vision_feature_layer", -2)
    layers = chosen if isinstance(chosen, list) else [chosen]
    tower = config.get("vision_config") or {"num_hidden_layers": 24}  # transformers' defaults
    count = tower.get("num_hidden_layers", 12)
    if layers and all(isinstance(layer, int) and -count - 1 <= layer <= count for layer in layers):
        return []
    return [f"{folder / 'config.json'} has vision_feature_layer {chosen}, and its vision tower has "
            f"{count} layers: {AGAIN}."]


def _of_weights(folder: Path) -> list[str]:
    single, index = folder / "model.safetensors", folder / INDEX
    if not single.exists() and not index.exists():
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        if pickled:
            return [f"The model in {folder} has pickled weights alone ({pickled[0]}), which can "
                    "run code and are never loaded: take it as safetensors."]
        return [f"The model in {folder} has neither model.safetensors nor {INDEX}: {AGAIN}."]
    try:
        places = {} if single.exists() else json.loads(index.read_text())["weight_map"]
        names = sorted(set(places.values())) or [single.name]
        if any(Path(name).name != name for name in names):
            raise ValueError("a shard lies in another folder")
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{index} is not JSON with a weight_map of files beside it: {AGAIN}."]
    files = [folder / name for name in names]
    return [f"{file} {what}: {AGAIN}." for file in files if (what := _of_file(file))]


def _of_file(file: Path) -> str | None:
    if not file.exists():
        return "is missing"
    try:
        with safe_open(file, "pt"):
            return None
    except (OSError, SafetensorError) as error:
        return f"is damaged or cut off ({error})"


def _of_processor(folder: Path) -> list[str]:
    return [f"The model in {folder} has neither {' nor '.join(names)}: {AGAIN}."
            for names in (TOKENIZERS, PROCESSORS)
            if not any((folder / name).exists() for name in names)]


def parameters(folder: Path) -> int:
    """How many numbers a model's files hold; only their headers are read."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            total += sum(prod(file.get_slice(name).get_shape()) for name in set(file.keys()))
    return total


def check_room(needed: int, what: str) -> None:
    """Raises Missing if so many bytes do not fit into this machine's memory.

    The operating system would kill the process in the middle of filling it, without a word.
    """
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise Missing(f"{what} takes {needed / 2**30:.0f} of the {there / 2**30:.0f} GiB of this "
                      "machine's memory: run this on a machine with a GPU, or with more memory.")
