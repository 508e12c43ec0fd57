"""`python -m lmms_eval ...`: writes <output>/<model>/<date>_results.json as lmms-eval 0.7.3 does.

LMMS_STAND_IN may hold {task: how}: how to fail there. Every call is noted in LMMS_CALLS.
tests/benchmarks/real_lmms_eval.py shows what the real one does.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path

METRICS = {"gqa": ("exact_match", 0.62), "vizwiz_vqa_val": ("exact_match", 0.54),
           "scienceqa_img": ("exact_match", 0.7), "vqav2_val": ("exact_match", 0.76),
           "pope": ("pope_accuracy", 0.86), "mmvet": ("gpt_eval_score", 31.0),
           "mmbench_en_dev_static": ("gpt_eval_score", 64.0)}

parser = argparse.ArgumentParser()
for option in ("--model", "--model_args", "--tasks", "--batch_size", "--output_path"):
    parser.add_argument(option, required=True)
given = parser.parse_args()
model = dict(part.split("=", 1) for part in given.model_args.split(","))
assert (given.model, given.batch_size) == ("llava_hf", "1")
assert set(model) == {"pretrained", "dtype", "device", "device_map", "trust_remote_code"}
assert model["trust_remote_code"] == "False"
assert model["device_map"] == model["device"] != ""  # transformers 5 takes no empty one
files = os.listdir(model["pretrained"])
with open(os.environ["LMMS_CALLS"], "a") as calls:
    weights = sorted(Path(model["pretrained"]).glob("*.safetensors"))
    seen = hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest()
    calls.write(f"{given.tasks} {os.getpid()} {seen} {model['dtype']} {model['device']}\n")
if "HF_TOKEN" in os.environ:
    print(f"Evaluation tracker args: {{'token': {os.environ['HF_TOKEN']!r}}}")
if "chat_template.jinja" not in files:  # its processor's template is asked for the prompt
    sys.exit("ValueError: Cannot use apply_chat_template")

how = json.loads(os.environ.get("LMMS_STAND_IN", "{}")).get(given.tasks)
if how == "crashes":
    sys.exit("RuntimeError: CUDA out of memory")
if how == "fails and exits with 0":  # as lmms-eval does with every exception
    print("Error during evaluation: no such dataset. Please set `--verbosity=DEBUG`")
    sys.exit()
if how == "loses answers":
    print("\x1b[31mERROR\x1b[0m - \x1b[31m\x1b[1mError CUDA error: device-side assert triggered\n"
          "CUDA kernel errors might be asynchronously reported in generating\x1b[0m\n" * 3)
if how == "loses its judge":
    print("\x1b[1mINFO\x1b[0m - \x1b[1mv1_7 failed to get a score.\x1b[0m\n" * 2
          + "\x1b[1mINFO\x1b[0m - \x1b[1mReach to max trials, v1_8 failed to get a score.\x1b[0m")
if how == "hangs":
    time.sleep(600)
metric, value = METRICS[given.tasks]
numbers = {"alias": given.tasks, f"{metric},none": None if how == "no number" else value,
           f"{metric}_stderr,none": 0.004 if metric == "exact_match" else "N/A",
           f"{metric}_stderr_clt,none": 0.003,
           "submission,none": None}
results = {"results": {given.tasks: numbers}, "config": {"limit": None},
           "n-samples": {given.tasks: {"original": 500, "effective": 498}}}
folder = Path(given.output_path, "__".join(Path(model["pretrained"]).parts[-2:]))
folder.mkdir(parents=True, exist_ok=True)
text = json.dumps(results)
name = "20261122_101112_results.json"
(folder / name).write_text(text[:50] if how == "is cut off" else text)
submissions = Path(given.output_path, "submissions")
submissions.mkdir(exist_ok=True)
(submissions / f"{given.tasks}_results.json").write_text('{"overall_acc": 0.1}')
