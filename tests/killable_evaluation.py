"""Evaluate a model and write its answers: `killable_evaluation.py MODEL DATASET JOURNAL OUT`.

A test kills this program, which takes its time between two batches, and goes on with what it left.
"""

import sys
import time
from pathlib import Path

from lib.base import runs
from lib.data import dataset
from lib.evaluation import evaluate
from lib.evaluation.world_rule import RuleJudge
from lib.model import llava as model
from lib.model.packing import Features
from lib.model.settings import Evaluation

SETTINGS = Evaluation(samples=1, max_new_tokens=8, batch=5)


def main(folder: Path, root: Path, journal: Path, out: Path, pause: float = 0.0) -> None:
    """Print how far it is after every batch."""
    net, processor = model.load(folder)
    read = dataset.read(root)
    asked = evaluate.only(evaluate.questions(read, 0), split="val")

    def report(text: str) -> None:
        print(text, flush=True)
        time.sleep(pause)

    frame = evaluate.evaluate(net, processor, Features(net, processor), asked, SETTINGS,
                              RuleJudge(), read.root, report, journal)
    runs.write_jsonl(out, frame.to_dict("records"))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]), pause=0.1)
