"""Times the answers of an evaluation one at a time, as the official code asks for them, and ours.

The same queries, the same model (the laptop profile's sizes, random weights unless `--model` names
a folder), the same greedy answers, which is checked. The official way opens the picture, calls the
processor and `generate` with pixel values for every query. Ours asks in batches and gives each
picture to the tower once; its cache of features is empty at the beginning of every round. Both ways
take turns. Run it on a machine that does nothing else:

    python tests/benchmarks/evaluation.py [--model FOLDER] [--threads N] [--rounds N] [--records N]
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib.data import dataset
from lib.data.pictures import open_image
from lib.evaluation import evaluate
from lib.model import generate
from lib.model import llava as models
from lib.model.generate import Query
from lib.model.packing import Features
from lib.running.profiles import LAPTOP
from lib.world import iconworld
from lib.world.settings import World

SETTINGS = LAPTOP.evaluation


def some_queries(folder: Path, records: int) -> list[Query]:
    """All questions of the evaluation about so many records per category, and specificity."""
    world = World(train_per_category=1, val_per_category=records, specificity_pictures=2 * records)
    asked = evaluate.questions(dataset.read(iconworld.write(world, folder)), 0)
    return [Query(question.image, question.question) for question in asked]


@torch.no_grad()
def one_by_one(model, processor, queries: list[Query]) -> list[str]:
    """The official way."""
    answers = []
    for query in queries:
        picture = [] if query.image is None else [{"type": "image"}]
        said = [{"role": "user", "content": [*picture, {"type": "text", "text": query.question}]}]
        text = processor.apply_chat_template(said, add_generation_prompt=True)
        image = None if query.image is None else open_image(query.image)
        inputs = processor(images=image, text=text, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=SETTINGS.max_new_tokens, do_sample=False)
        new = tokens[0, inputs.input_ids.shape[1] :]
        answers.append(processor.decode(new, skip_special_tokens=True).strip())
    return answers


def in_batches(model, processor, queries: list[Query]) -> list[str]:
    """Our way."""
    return generate.answer(model, processor, Features(model, processor), queries, SETTINGS)


def timed(way: Callable, *arguments) -> tuple[float, list[str]]:
    # One thread's own seconds do not count those in which others had the core.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    answers = way(*arguments)
    return clock() - start, answers


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="a model's folder (default: random weights)")
    parser.add_argument("--threads", type=int, default=1, help="of either way (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, help="of both ways (default: 3)")
    parser.add_argument("--records", type=int, default=3, help="per category (default: 3)")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    model, processor = (models.load(chosen.model) if chosen.model else
                        models.build(LAPTOP.architecture, iconworld.vocabulary_texts()))
    with tempfile.TemporaryDirectory() as folder:
        queries, times = some_queries(Path(folder), chosen.records), []
        in_batches(model, processor, queries[:8])  # warms up
        for _ in range(chosen.rounds):
            official, expected = timed(one_by_one, model, processor, queries)
            ours, answers = timed(in_batches, model, processor, queries)
            if answers != expected:
                differ = sum(a != b for a, b in zip(answers, expected, strict=True))
                raise SystemExit(f"{differ} of {len(queries)} answers differ; no time would count.")
            times.append((official, ours))
    print(f"{chosen.threads} thread(s), median of {chosen.rounds} rounds, {len(queries)} queries")
    print(f"one by one  {median(a for a, _ in times):8.2f} s")
    print(f"in batches  {median(b for _, b in times):8.2f} s")
    print(f"ratio       {median(a / b for a, b in times):8.1f}x, the same answers")


if __name__ == "__main__":
    main()
