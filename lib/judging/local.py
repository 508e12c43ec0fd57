"""A local instruction model or guard as a judge, through transformers: text, greedy, in batches."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lib import sources
from lib.judging import prompts
from lib.judging.cache import Cache
from lib.judging.verdicts import ABSTAINED, Item, JudgeStopped

REMINDERS = 1  # after a reply that cannot be read; greedy, so a second one would hardly help
BATCH = 16


class LocalJudge:
    """Asks a model from a folder or, by its hub name, from the hub.

    `wording` is the module that words the questions and reads the replies: prompts, or
    guard_prompts for a guard.
    """

    def __init__(self, model: str, wording: ModuleType = prompts):
        kind = "local" if wording is prompts else "guard"
        self.name, self.model, self.wording = f"{kind}:{model}", model, wording
        # Other files under the same path are another judge.
        self.options = sources.identity(model) if Path(model).is_dir() else {}

    def ask(self, items: Mapping[str, Item], cache: Cache,
            done: Callable[[int], None] = lambda count: None) -> None:
        """Ask about every item and keep its verdict in `cache` under its key.

        An item whose replies cannot be read, or that is too long for the model, gets none: it has
        failed. Raises JudgeStopped when the model cannot be loaded or does not fit.
        """
        chats = {key: self.wording.messages(item) for key, item in items.items()}
        judged = 0
        for left in reversed(range(1 + REMINDERS)):
            unread = {}
            for key, text in self._replies(chats):
                verdict = self.wording.parse(items[key], text)
                if not (verdict or left) and self.wording.declined(text):
                    verdict = ABSTAINED
                if verdict:
                    cache.add((0, 0), key, verdict)
                    judged += 1
                    done(judged)
                else:
                    unread[key] = self.wording.reminded(chats[key], text)
            chats = unread
        done(len(items))

    def _replies(self, chats: Mapping[str, list]) -> Iterator[tuple[str, str]]:
        """Key and reply of every chat that is not too long, in batches of like lengths."""
        tokenizer, model = _loaded(self.model)
        texts = {key: _rendered(tokenizer, chat) for key, chat in chats.items()}
        lengths = {key: len(tokenizer(text, add_special_tokens=False).input_ids)
                   for key, text in texts.items()}
        config = model.config.get_text_config()
        new = self.wording.MAX_REPLY_TOKENS
        room = getattr(config, "max_position_embeddings", math.inf) - new
        order = sorted((key for key in texts if lengths[key] <= room), key=lengths.get)
        for start in range(0, len(order), BATCH):
            part = order[start:start + BATCH]
            replies = _generated(tokenizer, model, [texts[key] for key in part], new)
            yield from zip(part, replies, strict=True)


@lru_cache(maxsize=2)
def _loaded(name: str) -> tuple:
    """(tokenizer, model): kept, since a process judges many runs; two, for a guard and a judge."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left",
                                                  trust_remote_code=False)
        on_gpu = torch.cuda.is_available()
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.bfloat16 if on_gpu else torch.float32, use_safetensors=True,
            trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise JudgeStopped(f"The local judge {name!r} cannot be loaded: {error} Give a folder "
                           "with an instruction model as safetensors, or a hub name.") from None
    if not tokenizer.chat_template:
        raise JudgeStopped(f"The local judge {name!r} has no chat template, so it is no "
                           "instruction model: name one that is.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, model.to("cuda" if on_gpu else "cpu").eval()


def _rendered(tokenizer, chat: list[dict[str, str]]) -> str:
    """The chat in the model's own format, with the system's text in the first user message.

    Some templates refuse a system message and some leave it out without a word.
    """
    if chat[0]["role"] == "system":
        system, task, *rest = chat
        both = f"{system['content']}\n\n{task['content']}"
        chat = [{"role": "user", "content": both}, *rest]
    return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)


@torch.no_grad()
def _generated(tokenizer, model, texts: list[str], new: int) -> list[str]:
    """Replies of up to `new` tokens; a batch that does not fit into memory is halved."""
    inputs = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt",
                       return_token_type_ids=False).to(model.device)
    try:
        tokens = model.generate(**inputs, max_new_tokens=new, do_sample=False, num_beams=1,
                                pad_token_id=tokenizer.pad_token_id)
        replies = tokens[:, inputs.input_ids.shape[1]:]
        return tokenizer.batch_decode(replies, skip_special_tokens=True)
    except torch.OutOfMemoryError:
        half = len(texts) // 2
    if not half:
        raise JudgeStopped("The local judge does not fit into the GPU's memory beside the model "
                           "that is evaluated: name a smaller one, or serve it on another GPU and "
                           "name it as server:MODEL.")
    return [reply for part in (texts[:half], texts[half:])
            for reply in _generated(tokenizer, model, part, new)]
