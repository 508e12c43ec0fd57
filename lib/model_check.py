"""What can be wrong with a model's folder: found in seconds, before anything of it is loaded."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

WANTED = "LlavaForConditionalGeneration"
INDEX = "model.safetensors.index.json"
AGAIN = "copy or download it again"
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
PROCESSORS = ("processor_config.json", "preprocessor_config.json")


def check(folder: Path) -> list[str]:
    """Everything that is wrong with a LLaVA in transformers' layout, a sentence each.

    Of the weights only the headers are read, which tell a file that is cut off.
    """
    if not (folder / "config.json").exists():
        if (folder / "adapter_config.json").exists():
            return [f"{folder} holds an adapter, which is a change to a model: give the model's "
                    "own folder."]
        return [f"There is no model in {folder} (no config.json): give the folder that has it."]
    wrong = _of_config(folder)
    return wrong or [*_of_weights(folder), *_of_processor(folder)]


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
    except (OSError, ValueError, AttributeError, TypeError):
        return [f"{folder / 'config.json'} is not JSON with a model's settings: {AGAIN}."]
    parts = {part: (config.get(part) or {}).get("model_type", usual)
             for part, usual in (("text_config", "llama"), ("vision_config", "clip_vision_model"))}
    if kind != WANTED or config.get("model_type") != "llava" or "text_config" not in config:
        return [f"The model in {folder} is {kind}, not LLaVA-1.5 in transformers' layout ({WANTED} "
                "with a text_config): take llava-hf/llava-1.5-7b-hf or one of its form."]
    if parts != {"text_config": "llama", "vision_config": "clip_vision_model"}:
        return [f"The model in {folder} is a {' with a '.join(parts.values())}, and LLaVA-1.5 is a "
                "llama with a clip_vision_model: take llava-hf/llava-1.5-7b-hf or one of its form."]
    return []


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
    except (ValueError, KeyError):
        return [f"{index} is not JSON with a weight_map: {AGAIN}."]
    files = [folder / name for name in sorted(set(places.values()))] or [single]
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
