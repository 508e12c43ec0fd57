"""A local instruction model or guard as a judge, through transformers: text, greedy, in batches."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lib.base.missing import Missing
from lib.data.discretion import letters
from lib.evaluation.verdicts import ABSTAINED, Item, JudgeStopped
from lib.scale import judge_prompts as prompts
from lib.scale import sources
from lib.scale.judge_cache import Cache
from lib.scale.judge_limits import GIVE_UP, PREFIX, LocalSettings, ran_out
from lib.scale.judge_replies import Reply, only_thought

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
        chosen = LocalSettings.from_environment().reply_tokens
        self.new = chosen or wording.MAX_REPLY_TOKENS
        # Other files under the same path are another judge, and so is one that may think longer.
        self.options = sources.identity(model) if Path(model).is_dir() else {}
        if self.new != wording.MAX_REPLY_TOKENS:
            self.options = self.options | {"reply_tokens": self.new}

    def ask(self, items: Mapping[str, Item], cache: Cache,
            done: Callable[[int], None] = lambda count: None) -> None:
        """Ask about every item and keep its verdict in `cache` under its key.

        An item whose replies cannot be read, or that is too long for the model, gets none: it has
        failed. Raises JudgeStopped when the model cannot be loaded, does not fit, is not shown what
        it is to judge, or uses up its tokens before a verdict time after time.
        """
        chats = {key: self.wording.messages(item) for key, item in items.items()}
        judged = wasted = 0
        for left in reversed(range(1 + REMINDERS)):
            unread = {}
            for key, reply in self._replies(chats):
                verdict = self.wording.parse(items[key], reply.text, reply.cut)
                if not (verdict or left) and self.wording.declined(reply.text):
                    verdict = ABSTAINED
                if verdict:
                    cache.add((0, 0), key, verdict)
                    judged, wasted = judged + 1, 0
                    done(judged)
                    continue
                endless = reply.cut and only_thought(reply)  # it would think as long again
                wasted = self._wasted(wasted, reply, bool(left) and not endless)
                if not endless:
                    unread[key] = self.wording.reminded(chats[key], reply.text)
            chats = unread
        done(len(items))

    def _wasted(self, before: int, reply: Reply, has_a_chance: bool) -> int:
        """How many replies in a row ran out of tokens; raises JudgeStopped at GIVE_UP."""
        if not reply.cut or has_a_chance:
            return before if reply.cut else 0
        if before + 1 >= GIVE_UP:
            why = ran_out(only_thought(reply), True, self.new)
            raise JudgeStopped(f"The judge {self.name} has given {GIVE_UP} replies in a row that "
                               f"hold no verdict; of the last one: {why}; "
                               "if it is none, name an instruction model.")
        return before + 1

    def _replies(self, chats: Mapping[str, list]) -> Iterator[tuple[str, Reply]]:
        """Key and reply of every chat that is not too long, in batches of like lengths."""
        tokenizer, model = _loaded(self.model)
        texts = {key: _rendered(self.model, tokenizer, chat) for key, chat in chats.items()}
        lengths = {key: len(tokenizer(text, add_special_tokens=False).input_ids)
                   for key, text in texts.items()}
        config = model.config.get_text_config()
        room = getattr(config, "max_position_embeddings", math.inf) - self.new
        if room <= 0:
            raise JudgeStopped(f"The local judge {self.model!r} reads and writes {room + self.new} "
                               f"tokens at most: set {PREFIX}REPLY_TOKENS to far less.")
        order = sorted((key for key in texts if lengths[key] <= room), key=lengths.get)
        for start in range(0, len(order), BATCH):
            part = order[start:start + BATCH]
            given = [texts[key] for key in part]
            replies = _generated(tokenizer, model, given, self.new)
            for key, prompt, (text, cut) in zip(part, given, replies, strict=True):
                yield key, Reply(prompts.opened(prompt) + text, cut=cut)


@lru_cache(maxsize=2)
def _loaded(name: str) -> tuple:
    """(tokenizer, model): kept, since a process judges many runs; two, for a guard and a judge."""
    try:
        folder = sources.folder(name, "judge")
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left",
                                                  trust_remote_code=False)
        on_gpu = torch.cuda.is_available()
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16 if on_gpu else torch.float32, use_safetensors=True,
            trust_remote_code=False)
    except Missing as error:
        raise JudgeStopped(str(error)) from None
    except Exception as error:  # of transformers, tokenizers and safetensors, each in its own way
        raise JudgeStopped(f"The local judge {name!r} cannot be loaded: {error} Give a folder "
                           "with an instruction model as safetensors, or a hub name.") from None
    if not tokenizer.chat_template:
        raise JudgeStopped(f"The local judge {name!r} has no chat template, so it is no "
                           "instruction model: name one that is.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, model.to("cuda" if on_gpu else "cpu").eval()


def _rendered(name: str, tokenizer, chat: list[dict[str, str]]) -> str:
    """The chat in the model's own format, with the system's text in the first user message.

    Some templates refuse a system message and some leave it out without a word. Some want a
    message's text in a list of parts, and show nothing of a plain one: so the text is looked for in
    the prompt. Raises JudgeStopped, which names the template, where it is in neither.
    """
    if chat[0]["role"] == "system":
        system, task, *rest = chat
        both = f"{system['content']}\n\n{task['content']}"
        chat = [{"role": "user", "content": both}, *rest]
    in_parts = [{**message, "content": [{"type": "text", "text": message["content"]}]}
                for message in chat]
    # Of its own earlier replies a template may leave out the thoughts.
    needed = [letters(message["content"]) for message in chat
              if message["role"] == "user" or message is chat[-1]]
    why = "it leaves out what is to be judged"
    for form in (chat, in_parts):
        try:
            prompt = tokenizer.apply_chat_template(form, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template is a program of the model's makers
            why = f"it fails with {type(error).__name__}: {error}"
            continue
        shown = letters(prompt)
        if all(text in shown for text in needed):
            return prompt
    raise JudgeStopped(f"The chat template of the local judge {name!r} cannot be used: {why}, both "
                       "with plain messages and with lists of parts. Give a model whose template "
                       "(chat_template in tokenizer_config.json, or chat_template.jinja) shows "
                       "messages of user and assistant.")


@torch.no_grad()
def _generated(tokenizer, model, texts: list[str], new: int) -> list[tuple[str, bool]]:
    """Replies of up to `new` tokens, and whether each was cut off there.

    A batch that does not fit into memory is halved.
    """
    inputs = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt",
                       return_token_type_ids=False).to(model.device)
    try:
        tokens = model.generate(**inputs, max_new_tokens=new, do_sample=False, num_beams=1,
                                pad_token_id=tokenizer.pad_token_id)
        return [_reply(tokenizer, model, row) for row in tokens[:, inputs.input_ids.shape[1]:]]
    except torch.OutOfMemoryError:
        half = len(texts) // 2
    if not half:
        raise JudgeStopped("The local judge does not fit into the GPU's memory beside the model "
                           "that is evaluated: name a smaller one, or serve it on another GPU and "
                           "name it as server:MODEL.")
    return [reply for part in (texts[:half], texts[half:])
            for reply in _generated(tokenizer, model, part, new)]


def _reply(tokenizer, model, row: torch.Tensor) -> tuple[str, bool]:
    """A reply's text up to its end, and whether it has none.

    With special tokens, since those around a thought may be special.
    """
    ends = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    tokens = row.tolist()
    end = next((at for at, token in enumerate(tokens) if token in ends), None)
    return tokenizer.decode(tokens[:end], skip_special_tokens=False), end is None
