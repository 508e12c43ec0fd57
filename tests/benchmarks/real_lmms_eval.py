"""lib/scale/harness.py with the real lmms-eval, which no test has: what it reads, and what fails.

    SAFEERASER_LMMS_PYTHON=/its/bin/python python tests/benchmarks/real_lmms_eval.py EMPTY_FOLDER

Nothing is downloaded. A tiny random LLaVA in LLaVA-1.5's layout, its adapter merged, answers made
questions of the seven benchmarks, whose own definitions (prompts, scoring, metrics) come from
lmms-eval's package: only the rows are ours. Half of the right answers of GQA and VQA are what
`generate` says to the same prompt, so they score 0.5 if lmms-eval reads the same model and asks
it as we do.
"""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib.model import generate
from lib.model import llava as models
from lib.model.merged import save_merged
from lib.model.packing import Features
from lib.model.settings import Evaluation
from lib.scale import harness
from lib.scale.harness import BENCHMARKS, Benchmark, HarnessError
from lib.unlearning.settings import Unlearning
from tests import tiny_llava

ROWS, TOKENS = 4, 6
ASKED = "What is it?"
SHORT = "\nAnswer the question using a single word or phrase."
OWN = {  # what a row of each benchmark has beside its picture
    "gqa": {"imageId": "1"},
    "vizwiz_vqa_val": {"question_id": "1", "answers": ["cup"] * 10},
    "scienceqa_img": {"hint": "", "choices": ["a", "b"], "answer": 0},
    "vqav2_val": {"question_id": 1},
    "pope": {"question_id": "1", "answer": "yes"},
    "mmvet": {"question_id": "1", "answer": "cup", "capability": "rec"},
    "mmbench_en_dev_static": {
        "hint": "nan", "answer": "A", "A": "cup", "B": "cat", "C": "nan", "D": "nan",
        "category": "c", "L2-category": "l", "source": "s", "split": "dev"},
}
WHERE = "import lmms_eval, os; print(os.path.dirname(lmms_eval.__file__))"
WRAPPER = """#!/bin/sh
case "$2" in *run_module*) exec "{python}" "$@" --include_path "{tasks}";; esac
exec "{python}" "$@"
"""


def write_model(folder: Path) -> tuple:
    """(folder, model, processor) of a tiny LLaVA-1.5 with a random adapter, merged."""
    model, processor = models.load(tiny_llava.write_model(folder / "given"))
    model = models.add_lora(model, Unlearning(lora_rank=4, lora_alpha=8))
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    model.eval()
    return save_merged(model, processor, folder / "merged"), model, processor


def pictures(folder: Path) -> list[Path]:
    rng, paths = np.random.default_rng(0), [folder / f"{i}.png" for i in range(ROWS)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(path)
    return paths


def rows(task: str, number: int, image: Path, said: str) -> dict:
    right = said if number < ROWS / 2 else "something else"
    known = {"gqa": {"answer": right},
             "vqav2_val": {"answers": [{"answer": right, "answer_id": i} for i in range(10)]}}
    return {**OWN[task], **known.get(task, {}), "question": ASKED, "index": number,
            "image": Image.open(image)}


def write_task(folder: Path, package: Path, each: Benchmark, images: list, said: list) -> Benchmark:
    """The benchmark under another name, with rows of our own."""
    definition, = package.glob(f"tasks/*/{each.task}.yaml")
    place = folder / each.task
    place.mkdir(parents=True)
    found = [rows(each.task, i, *pair) for i, pair in enumerate(zip(images, said, strict=True))]
    datasets.Dataset.from_list(found).to_parquet(place / "rows.parquet")
    (place / "utils.py").write_text("def same(rows):\n    return rows\n")
    (place / "own.yaml").write_text(
        f"include: {definition}\ntask: own_{each.task}\ndataset_path: parquet\n"
        f"dataset_name: null\ntest_split: rows\nprocess_docs: !function utils.same\n"
        f"generation_kwargs:\n  max_new_tokens: {TOKENS}\n"
        f"dataset_kwargs:\n  data_files:\n    rows: {place / 'rows.parquet'}\n")
    return replace(each, task=f"own_{each.task}")


class Judge(BaseHTTPRequestHandler):
    """Gives every answer of MM-Vet half a point."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        said = {"choices": [{"index": 0, "finish_reason": "stop",
                             "message": {"role": "assistant", "content": "0.5"}}],
                "id": "1", "object": "chat.completion", "created": 1, "model": "m"}
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words) -> None:
        pass


def prepare(folder: Path, address: str) -> Path:
    """Let lmms-eval find our tasks and judge, and no network; returns its package."""
    real = os.environ["SAFEERASER_LMMS_PYTHON"]
    python = folder / "python"
    python.write_text(WRAPPER.format(python=real, tasks=folder / "tasks"))
    python.chmod(0o755)
    os.environ |= {"SAFEERASER_LMMS_PYTHON": str(python), "HF_HUB_OFFLINE": "1",
                   "HF_TOKEN": "hf_secret", "OPENAI_API_KEY": "sk-secret",
                   "OPENAI_API_URL": address}
    found = subprocess.run([real, "-c", WHERE], capture_output=True, text=True, check=True)
    return Path(found.stdout.strip().splitlines()[-1])


def told(what: str, folder: Path, model: Path, benchmark: Benchmark) -> None:
    """Print what is told of a benchmark that must fail."""
    try:
        harness.measure(model, folder / "failures", [benchmark], "float32", "cpu")
    except HarnessError as error:
        print(f"{what}: {error}", flush=True)
    else:
        sys.exit(f"{what}: no error")


def main(folder: Path) -> None:
    server = HTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    package = prepare(folder, f"http://127.0.0.1:{server.server_port}/v1")
    merged, model, processor = write_model(folder)
    images = pictures(folder)
    said = generate.answer(model, processor, Features(model, processor),
                           [generate.Query(image, ASKED + SHORT) for image in images],
                           Evaluation(max_new_tokens=TOKENS))
    tasks = [write_task(folder / "tasks", package, each, images, said) for each in BENCHMARKS]
    print("lmms-eval", harness.version(), flush=True)
    harness.check(BENCHMARKS)
    found = harness.measure(merged, folder / "out", tasks, "float32", "cpu", print)
    print(found, flush=True)

    told("data that cannot be had", folder, merged, BENCHMARKS[4])
    config = json.loads((merged / "config.json").read_text())
    config["vision_feature_layer"] = 99  # it loads, and cannot look at a picture
    (merged / "config.json").write_text(json.dumps(config))
    told("a model that fails", folder, merged, tasks[0])
    written = [path for path in folder.rglob("*") if path.suffix in (".txt", ".json", ".jsonl")]
    leaks = [path for path in written
             if any(key in path.read_text() for key in ("hf_secret", "sk-secret"))]
    assert not leaks, f"a key was written: {leaks}"
    assert [found[name] for name in ("GQA", "VQA", "MM-Vet")] == [0.5] * 3


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
