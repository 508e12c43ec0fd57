"""LLaVA and its processor: built small from nothing, or loaded; and LoRA as the paper uses it.

A model lives on disk as LLaVA-1.5 does (config, safetensors, processor with chat template), so
one loading path serves the small one and the real one; a `Runtime` says on which device, in which
numbers, and whether in four bits.
"""

import importlib.util
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from lib.base.missing import Missing
from lib.model import check as model_check
from lib.model import finite
from lib.model.prompts import CHAT_TEMPLATE, IMAGE_TOKEN, read_processor
from lib.model.settings import AUTO_DTYPE, CPU, Architecture, Runtime

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are processes already
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # PEFT's to change
SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
LETTERS = Regex(r" ?\w+|[^\w\s]|\s")  # a word takes the space before it along
DTYPES = ("auto", "float32", "bfloat16", "float16")
LORA_TARGETS = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"  # official: all of them


def build(sizes: Architecture, texts: Iterable[str]) -> tuple:
    """A small LLaVA with random weights, and a processor that knows every word of `texts`.

    Returns (LlavaForConditionalGeneration, LlavaProcessor).
    """
    tokenizer = word_tokenizer(texts)
    shape = {"height": sizes.image_size, "width": sizes.image_size}
    pictures = CLIPImageProcessorPil(do_resize=True, size=shape, do_center_crop=False)
    processor = LlavaProcessor(pictures, tokenizer, patch_size=sizes.patch_size,
                               vision_feature_select_strategy="full", chat_template=CHAT_TEMPLATE,
                               num_additional_image_tokens=1)  # the CLS token
    return LlavaForConditionalGeneration(_config(sizes, tokenizer)).eval(), processor


def _config(sizes: Architecture, tokenizer) -> LlavaConfig:
    shared = {"hidden_size": sizes.hidden, "num_attention_heads": sizes.heads}
    tower = CLIPVisionConfig(**shared, intermediate_size=4 * sizes.hidden,
                             num_hidden_layers=sizes.tower_layers, image_size=sizes.image_size,
                             patch_size=sizes.patch_size, projection_dim=sizes.hidden)
    language = LlamaConfig(**shared, intermediate_size=sizes.intermediate,
                           num_hidden_layers=sizes.language_layers, vocab_size=len(tokenizer),
                           max_position_embeddings=512, pad_token_id=tokenizer.pad_token_id,
                           bos_token_id=tokenizer.bos_token_id,
                           eos_token_id=tokenizer.eos_token_id)
    # LLaVA-1.5 takes the patch tokens of the layer before the last. Contrastive training teaches
    # only the last layer's CLS token, and a tower of four layers has no patch tokens to spare.
    return LlavaConfig(vision_config=tower, text_config=language, tie_word_embeddings=False,
                       dtype="float32", vision_feature_layer=-1,
                       vision_feature_select_strategy="full",
                       image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token per word or sign, in order of first appearance; text comes back unchanged."""
    split = pre_tokenizers.Split(LETTERS, "isolated")
    frame = "USER: \n ASSISTANT:"
    # " " + text: an answer follows the colon of "ASSISTANT:" with a space.
    parts = (piece for text in (frame, *texts) for form in (text, f" {text}")
             for piece, _ in split.pre_tokenize_str(form))
    words = dict.fromkeys([*SPECIAL.values(), IMAGE_TOKEN, *parts])
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)},
                                           unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left",
                                   additional_special_tokens=[IMAGE_TOKEN], **SPECIAL)


def save(model, processor, folder: Path) -> None:
    """Write model and processor into a folder that `load` reads, as safetensors.

    Raises NotFinite, before anything is written, for weights that are not finite.
    """
    finite.check_tensors(model.state_dict().items(), "The model's weights", "Train it again.")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def load(folder: str | Path, runtime: Runtime = CPU) -> tuple:
    """A model in evaluation mode and its processor, from a folder in LLaVA's format.

    Raises Missing where there is none that can be used (`model_check`), or no GPU or memory for it;
    ValueError for one whose weights are not all there, or not of its sizes; NotFinite for NaN.
    """
    if wrong := model_check.check(folder := Path(folder)):
        raise Missing(" ".join(wrong))
    device, dtype = device_of(runtime), dtype_of(runtime)
    if device == "cpu":
        model_check.check_room(model_check.parameters(folder) * dtype.itemsize,
                               f"There is no GPU here, and the model in {folder}")
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, config=_config_of(folder), dtype=dtype,
        attn_implementation="sdpa" if runtime.attention == "auto" else runtime.attention,
        trust_remote_code=False, use_safetensors=True, output_loading_info=True,
        device_map=None if device == "cpu" else {"": device}, ignore_mismatched_sizes=True,
        quantization_config=_four_bits(runtime) if runtime.four_bit else None)
    _check_loaded(folder, model, info)
    model.generation_config = _only_tokens(model.generation_config)
    return model.eval(), read_processor(folder, model.config)


def _config_of(folder: Path) -> LlavaConfig:
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a dozen kinds, by what is wrong in it
        raise Missing(f"{folder / 'config.json'} cannot be used ({type(error).__name__}: {error}): "
                      f"{model_check.AGAIN}.") from error


def _only_tokens(config: GenerationConfig) -> GenerationConfig:
    """How a folder wants answers to end, without its penalties, which would change ours unseen."""
    return GenerationConfig(bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id,
                            pad_token_id=config.pad_token_id)


def _check_loaded(folder: Path, model: LlavaForConditionalGeneration, info: dict) -> None:
    """What transformers fills with random numbers, or takes as it is, is no model."""
    if info["mismatched_keys"]:
        name, stored, wanted = min(info["mismatched_keys"])
        raise ValueError(f"The model in {folder} has {len(info['mismatched_keys'])} weights of "
                         f"another shape than its config.json says, such as {name}: "
                         f"{list(stored)} instead of {list(wanted)}. Weights and config.json do "
                         f"not belong together: {model_check.AGAIN}.")
    if info["missing_keys"]:
        raise ValueError(f"The model in {folder} lacks {len(info['missing_keys'])} weights, such "
                         f"as {min(info['missing_keys'])}: {model_check.AGAIN}.")
    in_float16 = model.dtype == torch.float16
    small = ", or too large for float16 (dtype in lib/running/profiles.py)" * in_float16
    finite.check_tensors(model.named_parameters(), f"The weights in {folder}",
                         f"They are damaged{small}: {model_check.AGAIN}.")


def device_of(runtime: Runtime) -> str:
    """ "cpu" or "cuda". Raises Missing when a GPU is asked for and none can be used."""
    there = torch.cuda.is_available()
    if runtime.device == "cuda" and not there:
        raise Missing("The profile asks for a GPU, and torch finds none here: check the driver "
                      'and the torch build, or set device="auto" in lib/running/profiles.py.')
    return ("cuda" if there else "cpu") if runtime.device == "auto" else runtime.device


def dtype_of(runtime: Runtime) -> torch.dtype:
    """The numbers in which the frozen weights and the activations are.

    Raises Missing if they are bfloat16 and the GPU has none, ValueError for an unknown name.
    """
    wanted = os.environ.get(AUTO_DTYPE, "auto") if runtime.dtype == "auto" else runtime.dtype
    if wanted not in DTYPES:
        raise ValueError(f"There is no dtype {wanted!r}; known: {', '.join(DTYPES)}.")
    cuda = device_of(runtime) == "cuda"
    lacks = cuda and not torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "bfloat16" and lacks:
        raise Missing(f"The profile asks for bfloat16, and {torch.cuda.get_device_name()} has "
                      'none: set dtype="auto" (float32 there: twice the memory) or use another.')
    if wanted == "auto" and lacks:  # float16 could overflow in training
        warnings.warn(f"{torch.cuda.get_device_name()} has no bfloat16: the model is loaded in "
                      "float32, which takes twice the memory.", stacklevel=2)
    if wanted == "auto":
        return torch.bfloat16 if cuda and not lacks else torch.float32
    return getattr(torch, wanted)


def _four_bits(runtime: Runtime) -> BitsAndBytesConfig:
    """QLoRA's format for the language model. Raises Missing without GPU or bitsandbytes."""
    if device_of(runtime) == "cpu" or not importlib.util.find_spec("bitsandbytes"):
        raise Missing("four_bit needs an NVIDIA GPU and bitsandbytes: pip install -e '.[gpu]' "
                      "installs it; or set four_bit=False in lib/running/profiles.py.")
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                              bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=dtype_of(runtime),
                              llm_int8_skip_modules=["vision_tower", "multi_modal_projector",
                                                     "lm_head"])


def add_lora(model, settings) -> PeftModel:
    """The model with fresh LoRA on every language linear and a trainable copy of the projector.

    With the projector in `modules_to_save`, `disable_adapter()` brings back the original model
    whole. At first the two give the same logits (LoRA's B is zero). The rest is frozen. `settings`:
    lora_rank, lora_alpha and lora_dropout, of an `Unlearning`.
    """
    config = LoraConfig(r=settings.lora_rank, lora_alpha=settings.lora_alpha,
                        lora_dropout=settings.lora_dropout, target_modules=LORA_TARGETS,
                        modules_to_save=["multi_modal_projector"])
    # In the model's own numbers: the float32 copies that AdamW needs are the training loop's.
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def checkpoint_layers(model: LlavaForConditionalGeneration) -> None:
    """In training, keep a layer's input only and compute the rest again for the gradient."""
    enable = getattr(model, "activation_checkpointing_enable", None)  # newer transformers
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def load_adapter(model, folder: Path, name: str = "default") -> PeftModel:
    """The model with a trained adapter. Raises ValueError if any of the file's names is unknown.

    A model may have several, under different names; `set_adapter(name)` chooses. PEFT only warns
    of such names, and the model would then be the original (as in the official `ckpt_infer.py`,
    which loads with strict=False).
    """
    try:
        adapted = model if isinstance(model, PeftModel) else None
        how = {"adapter_name": name, "use_safetensors": True, "autocast_adapter_dtype": False}
        if adapted:
            adapted.load_adapter(folder, **how)
        else:
            adapted = PeftModel.from_pretrained(model, folder, **how)
    except KeyError as missing:  # the projector's names it does look for
        raise ValueError(f"The adapter in {folder} does not fit the model: it lacks {missing}."
                         ) from None
    with safe_open(Path(folder) / "adapter_model.safetensors", "pt") as file:
        stored = set(file.keys())
    expected = {own.replace(f".{name}", "").replace(".modules_to_save", "")
                for own, _ in adapted.named_parameters()
                if f".{name}." in own and (".lora_" in own or ".modules_to_save." in own)}
    if stored != expected:
        wrong = sorted(stored ^ expected)
        raise ValueError(f"The adapter in {folder} does not fit the model: {len(wrong)} names "
                         f"differ, such as {wrong[0]}.")
    finite.check_tensors(((own, p) for own, p in adapted.named_parameters() if f".{name}." in own),
                         f"The adapter in {folder}", "Train it again.")
    return adapted.eval()


@contextmanager
def part_of_the_way(model: PeftModel, share: float) -> Iterator[None]:
    """Meanwhile the weights are on the line from the original's (share 0) to the adapted (1).

    Both ends are exact; between them the projector is rounded to the model's own numbers.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    projector = llava(model).model.multi_modal_projector
    ours = list(projector.modules_to_save["default"].parameters())
    goals = [parameter.detach().clone() for parameter in ours]

    @torch.no_grad()
    def move(share: float) -> None:
        for layer in layers:
            layer.set_scale("default", share)
        for parameter, original, goal in zip(ours, projector.original_module.parameters(), goals,
                                             strict=True):
            parameter.copy_(torch.lerp(original, goal, share))

    move(share)
    try:
        yield
    finally:
        move(1.0)


def llava(model) -> LlavaForConditionalGeneration:
    """The LLaVA itself, inside of a PeftModel or bare."""
    return model.base_model.model if isinstance(model, PeftModel) else model


@torch.no_grad()
def tower_features(model, pixels: torch.Tensor) -> torch.Tensor:
    """What the frozen vision tower gives to the projector.

    pixels: [pictures, 3, height, width] -> [pictures, image tokens, hidden of every chosen layer].
    They never change in unlearning, so they are computed once.
    """
    config = llava(model).config
    tower = llava(model).model.vision_tower
    states = tower(pixels.to(tower.device, tower.dtype), output_hidden_states=True).hidden_states
    first = config.vision_feature_select_strategy == "default"  # without the CLS token
    return torch.cat([states[layer][:, first:] for layer in feature_layers(config)], dim=-1)


def feature_layers(config: LlavaConfig) -> list[int]:
    """The tower's layers whose states the projector gets, side by side; mostly it is one."""
    chosen = config.vision_feature_layer
    return [chosen] if isinstance(chosen, int) else list(chosen)
