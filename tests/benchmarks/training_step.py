"""Times one unlearning step's work as the official code does it, and as this repository does.

The same answers, the same model (the laptop profile's sizes, random weights), the same gradient,
which is checked first. The official way (forget.py) takes one sample at a time through the whole
model with its pixel values, one forward per stream (PO: refusal and retain in one), and
accumulates; KL asks a second model. Ours packs all questions about a picture into one row, takes
the tower's features from a cache, and needs one forward (KL: one more, for the retain answers,
through the same model with its adapter off).

`ratio` compares the models' work alone. Every step of the official way also opens its pictures,
processes them and tokenises, in processes of its data loader; ours does that once in a run.
`with reading` counts it. Both ways take turns. Run it on a machine that does nothing else:

    python tests/benchmarks/training_step.py [--method po|gd|kl] [--threads N] [--rounds N]
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib.data import dataset
from lib.data.dataset import CATEGORIES, Record
from lib.data.pictures import open_image
from lib.model.llava import add_lora, build, llava
from lib.model.packing import Example, Group, Packer, image_tokens
from lib.running.options import cores
from lib.running.profiles import LAPTOP
from lib.unlearning import methods, terms
from lib.unlearning import train as unlearn
from lib.world import iconworld
from lib.world.settings import World

METHODS = ("po", "gd", "kl")
SHAPES = {  # (harmful pictures per step, queries about each)
    "official batch: 16 + 16 + 16 answers": (4, 4),
    "laptop profile's own step": (LAPTOP.unlearning.images, LAPTOP.unlearning.queries),
}
Inputs = dict[str, Tensor]
IGNORED = -100


def row_of(method: str) -> dict[str, float]:
    """Weights whose terms are means over answers, so that accumulating gives the same gradient.

    PO's official term is a mean over the tokens of a whole batch, which nothing that accumulates
    can give; refusal and retain as terms of their own cost the same.
    """
    return methods.weights(method, True, rows="added" if method == "po" else "official")


def some_records(folder: Path, count: int) -> list[Record]:
    """The first training records of each category in turn."""
    each = -(-count // len(CATEGORIES))
    world = World(train_per_category=each, val_per_category=1, specificity_pictures=2)
    return list(dataset.read(iconworld.write(world, folder / str(count))).train[:: each])[:count]


def adapted(base):
    """A copy of the model with an adapter that already does something."""
    torch.manual_seed(0)
    model = add_lora(deepcopy(base), LAPTOP.unlearning).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return model


def inputs_of(processor, group: Group, example: Example) -> Inputs:
    """What the processor makes of one question and its answer; the labels are the answer's."""
    picture = [] if group.image is None else [{"type": "image"}]
    said = [{"role": "user", "content": [*picture, {"type": "text", "text": example.question}]},
            {"role": "assistant", "content": [{"type": "text", "text": example.answer}]}]
    image = None if group.image is None else open_image(group.image)
    asked = processor.apply_chat_template(said[:1], add_generation_prompt=True)
    asked = asked.replace(processor.image_token, processor.image_token * image_tokens(processor))
    inputs = dict(processor(images=image, text=processor.apply_chat_template(said),
                            return_tensors="pt"))
    labels = inputs["input_ids"].clone()
    labels[:, : len(processor.tokenizer(asked).input_ids)] = IGNORED
    return {**inputs, "labels": labels}


def collated(items: list[Inputs], pad: int) -> Inputs:
    """The samples as rows of one batch, padded on the right."""
    padding = {"input_ids": pad, "labels": IGNORED, "attention_mask": 0}
    batch = {name: pad_sequence([item[name][0] for item in items], True, value)
             for name, value in padding.items()}
    pictures = [item["pixel_values"] for item in items if "pixel_values" in item]
    return {**batch, "pixel_values": torch.cat(pictures)} if pictures else batch


class Official:
    """Batch 1, gradients accumulated, one forward per stream, a second model for KL."""

    def __init__(self, base, processor, rows: list[Group], row: dict[str, float]):
        self.model, self.reference, self.row = adapted(base), deepcopy(base), row
        self.optimizer, self.processor = optimizer_of(self.model), processor
        self.samples = [(group, example) for group in rows for example in group.examples]
        self.counts = Counter(example.term for _, example in self.samples)
        self.batches = self.read()

    def read(self) -> list[list[tuple[list[str], Inputs]]]:
        """The forwards of every micro-step: the terms of the rows, and the batch."""
        streams = {term: [] for term in self.counts}
        for group, example in self.samples:
            streams[example.term].append(inputs_of(self.processor, group, example))
        together = ["refusal", "retain"] if "refusal" in streams else []
        forwards = [together] + [[term] for term in streams if term not in together]
        return [[self._batch(terms, streams, i) for terms in forwards
                 if any(i < len(streams[term]) for term in terms)]
                for i in range(max(self.counts.values()))]

    def _batch(self, terms: list[str], streams: dict, i: int) -> tuple[list[str], Inputs]:
        there = [term for term in terms if i < len(streams[term])]
        pad = self.processor.tokenizer.pad_token_id
        return there, collated([streams[term][i] for term in there], pad)

    def gradients(self) -> None:
        for forwards in self.batches:
            sum(self._loss(terms, batch) for terms, batch in forwards).backward()

    def _loss(self, terms: list[str], batch: Inputs) -> Tensor:
        """The rows' losses by their terms' weights and their shares of the terms' means."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits = llava(self.model)(**inputs).logits
        loss = 0.0
        for i, term in enumerate(terms):
            at = (batch["labels"][i] != IGNORED).nonzero()[:, 0]
            is_kl = term == "retain" and "kl" in self.row
            value = (self._kl(inputs, logits, i, at - 1) if is_kl else
                     functional.cross_entropy(logits[i, at - 1], batch["labels"][i, at]))
            loss = loss + self.row["kl" if is_kl else term] * value / self.counts[term]
        return loss

    def _kl(self, inputs: Inputs, logits: Tensor, i: int, at: Tensor) -> Tensor:
        with torch.no_grad():
            original = self.reference(**inputs).logits
        return terms.kl(original[i, at], logits[i, at], torch.zeros(len(at), dtype=torch.long), 1)


class Ours:
    """What `unlearn` does in a step."""

    def __init__(self, base, processor, rows: list[Group], row: dict[str, float]):
        self.model, self.rows, self.row = adapted(base), rows, row
        self.optimizer = optimizer_of(self.model)
        self.packer = Packer(self.model, processor)
        self.packer.pack(rows)  # features and tokens: once per picture and text of a whole run

    def gradients(self) -> None:
        found = unlearn.said_of(self.model, self.packer, self.rows, self.row)
        terms.total(found, self.row).backward()


def optimizer_of(model) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=0.0)  # all of the work, and the model stays what it is


def seconds(work: Callable[[], object]) -> float:
    # One thread's own seconds do not count those in which others had the core.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    work()
    return clock() - start


def step(way) -> None:
    way.gradients()
    trained = [p for group in way.optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    way.optimizer.step()
    way.optimizer.zero_grad(set_to_none=True)


def difference(one, other) -> float:
    """The largest difference of the two gradients in any parameter, relative to its largest."""
    found = []
    for way in (one, other):
        way.gradients()
        found.append({n: p.grad for n, p in way.model.named_parameters() if p.requires_grad})
    worst = max(((found[1][name] - g).abs().max() / g.abs().max()).item()
                for name, g in found[0].items())
    for way in (one, other):
        way.optimizer.zero_grad(set_to_none=True)
    return worst


def compare(base, processor, records: list[Record], method: str, queries: int,
            rounds: int) -> dict:
    row = row_of(method)
    rows = unlearn.groups(records, ["I cannot assist with this request."], row,
                          np.random.default_rng(0), queries)
    official, ours = (way(base, processor, rows, row) for way in (Official, Ours))
    worst = difference(official, ours)
    if not worst < 1e-3:
        raise SystemExit(f"{method}: the gradients differ by {worst:.1e}; no time would count.")
    times = [(seconds(lambda: step(official)), seconds(lambda: step(ours)),
              seconds(official.read)) for _ in range(rounds + 1)][1:]  # the first one warms up
    return {"method": f"{method.upper()} + PD", "answers": sum(official.counts.values()),
            "official": median(a for a, _, _ in times), "ours": median(b for _, b, _ in times),
            "ratio": median(a / b for a, b, _ in times),
            "with_reading": median((a + c) / b for a, b, c in times), "difference": worst}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--method", choices=METHODS, help="one of them (default: all)")
    parser.add_argument("--threads", type=int, default=cores(),
                        help="of either way (default: as many as there are cores)")
    parser.add_argument("--rounds", type=int, default=7, help="of both ways (default: 7)")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    base, processor = build(LAPTOP.architecture, iconworld.vocabulary_texts())
    print(f"{chosen.threads} thread(s), median of {chosen.rounds} rounds; seconds per step")
    with tempfile.TemporaryDirectory() as folder:
        for shape, (pictures, queries) in SHAPES.items():
            print(f"\n{shape}\n{'':9}answers  official     ours    ratio  with reading  "
                  "gradients differ by")
            records = some_records(Path(folder), pictures)
            for method in [chosen.method] if chosen.method else METHODS:
                found = compare(base, processor, records, method, queries, chosen.rounds)
                print("{method:9}{answers:7}{official:10.3f}{ours:9.3f}{ratio:8.1f}x"
                      "{with_reading:13.1f}x{difference:21.1e}".format(**found), flush=True)


if __name__ == "__main__":
    main()
