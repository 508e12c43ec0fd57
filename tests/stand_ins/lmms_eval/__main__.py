"""`python -m lmms_eval ...`: writes <output>/<model>/<date>_results.json as lmms-eval does.

LMMS_STAND_IN may hold {task: how}: how to fail there. Every call is noted in LMMS_CALLS.
"""

import argparse
import json
import os
import sys
from pathlib import Path

METRICS = {"gqa": ("exact_match", 0.62), "vizwiz_vqa_val": ("exact_match", 0.54),
           "scienceqa_img": ("exact_match", 0.7), "vqav2_val": ("exact_match", 0.76),
           "pope": ("pope_accuracy", 0.86), "mmvet": ("gpt_eval_score", 31.0),
           "mmbench_en_dev": ("gpt_eval_score", 64.0)}

parser = argparse.ArgumentParser()
for option in ("--model", "--model_args", "--tasks", "--batch_size", "--output_path"):
    parser.add_argument(option, required=True)
given = parser.parse_args()
model = dict(part.split("=", 1) for part in given.model_args.split(","))
assert (given.model, given.batch_size) == ("llava_hf", "1")
assert set(model) == {"pretrained", "dtype", "device"}
with open(os.environ["LMMS_CALLS"], "a") as calls:
    calls.write(f"{given.tasks} {' '.join(sorted(os.listdir(model['pretrained'])))}\n")

how = json.loads(os.environ.get("LMMS_STAND_IN", "{}")).get(given.tasks)
if how == "crashes":
    sys.exit("RuntimeError: CUDA out of memory")
if how == "fails and exits with 0":  # as lmms-eval does with every exception
    print("Error during evaluation: no such dataset. Please set `--verbosity=DEBUG`")
    sys.exit()
if how == "loses answers":
    print("ERROR Error CUDA error: device-side assert in generating\n" * 3)
metric, value = METRICS[given.tasks]
numbers = {"alias": given.tasks, f"{metric},none": None if how == "no number" else value,
           f"{metric}_stderr,none": 0.004 if metric != "gpt_eval_score" else "N/A",
           "submission,none": None}
results = {"results": {given.tasks: numbers}, "config": {"limit": 8 if how == "a part" else None},
           "n-samples": {given.tasks: {"original": 500, "effective": 498}}}
folder = Path(given.output_path, "__".join(Path(model["pretrained"]).parts[-2:]))
folder.mkdir(parents=True, exist_ok=True)
text = json.dumps(results)
name = "20261122_101112_results.json"
(folder / name).write_text(text[:50] if how == "is cut off" else text)
submissions = Path(given.output_path, "submissions")
submissions.mkdir(exist_ok=True)
(submissions / f"{given.tasks}_results.json").write_text('{"overall_acc": 0.1}')
