"""A local instruction model or guard as a judge, through transformers: text, greedy, in batches."""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

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
                thought = only_thought(reply)
                if not verdict and not left and self.wording.declined(reply.text):
                    verdict = ABSTAINED
                if verdict:
                    cache.add((0, 0), key, verdict)
                    judged += 1
                    done(judged)
                elif left and not (thought and reply.cut):  # else it would think as long again
                    unread[key] = self.wording.reminded(chats[key], reply.text)
                is_lost = reply.cut and not verdict and key not in unread
                wasted = wasted + 1 if is_lost else 0
                if wasted == GIVE_UP:
                    raise JudgeStopped(f"The judge {self.name} has given {GIVE_UP} replies in a "
                                       "row that hold no verdict; of the last one: "
                                       f"{ran_out(thought, True, self.new)}.")
            chats = unread
        done(len(items))

    def _replies(self, chats: Mapping[str, list]) -> Iterator[tuple[str, Reply]]:
        """Key and reply of every chat that is not too long, in batches of like lengths."""
        tokenizer, model = _loaded(self.model)
        texts = {key: _rendered(self.model, tokenizer, chat) for key, chat in chats.items()}
        lengths = {key: len(tokenizer(text, add_special_tokens=False).input_ids)
                   for key, text in texts.items()}
        room = getattr(model.config.get_text_config(), "max_position_embeddings", 10**9)
        if room <= self.new:
            raise JudgeStopped(f"The local judge {self.model!r} reads and writes {room} tokens at "
                               f"most: set {PREFIX}REPLY_TOKENS to far less.")
        fitting = [key for key in texts if lengths[key] + self.new <= room]
        order = sorted(fitting, key=lengths.get)
        for start in range(0, len(order), BATCH):
            part = order[start:start + BATCH]
            replies = _generated(tokenizer, model, [texts[key] for key in part], self.new)
            yield from zip(part, replies, strict=True)


@lru_cache(maxsize=2)
def _loaded(name: str) -> tuple:
    """(tokenizer, model): kept, since a process judges many runs; two, for a guard and a judge."""
    on_gpu = torch.cuda.is_available()
    try:
        folder = sources.folder(name, "judge")
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left",
                                                  trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16 if on_gpu else torch.float32, use_safetensors=True,
            trust_remote_code=False)
    except Exception as error:  # of transformers, tokenizers and safetensors, each in its own way
        raise JudgeStopped(f"The local judge {name!r} cannot be loaded: {error} Give a folder "
                           "with an instruction model as safetensors, or a hub name.") from None
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
    raise JudgeStopped(f"The chat template of the local judge {name!r} cannot be used, with plain "
                       f"messages or with lists of parts: {why}. Name an instruction model whose "
                       "template shows messages of user and assistant.")


@torch.no_grad()
def _generated(tokenizer, model, texts: list[str], new: int) -> list[Reply]:
    """Replies of up to `new` tokens; a batch that does not fit into memory is halved."""
    inputs = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt",
                       return_token_type_ids=False).to(model.device)
    try:
        tokens = model.generate(**inputs, max_new_tokens=new, do_sample=False, num_beams=1,
                                pad_token_id=tokenizer.pad_token_id)
        said = tokens[:, inputs.input_ids.shape[1]:].tolist()
        return [_reply(tokenizer, model, *each) for each in zip(texts, said, strict=True)]
    except torch.OutOfMemoryError:
        half = len(texts) // 2
    if not half:
        raise JudgeStopped("The local judge does not fit into the GPU's memory beside the model "
                           "that is evaluated: name a smaller one, or serve it on another GPU and "
                           "name it as server:MODEL.")
    return [reply for part in (texts[:half], texts[half:])
            for reply in _generated(tokenizer, model, part, new)]


def _reply(tokenizer, model, prompt: str, tokens: list[int]) -> Reply:
    """A reply up to its end, with the special tokens that may be around a thought."""
    ends = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    end = next((at for at, token in enumerate(tokens) if token in ends), None)
    text = tokenizer.decode(tokens[:end], skip_special_tokens=False)
    return Reply(prompts.opened(prompt) + text, cut=end is None)
