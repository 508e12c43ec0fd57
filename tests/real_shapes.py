"""Small, harmless dataset folders in the shapes in which SafeEraser's data are met.

    python -m tests.real_shapes OUT [--shape released|gaps|lfs|hub|lines] [--keywords 1]

released  as a public copy of the data has it: `image_id`; Question, Answer *and* Prediction; the
          further set `safeNb_pairs`; train and val drawn independently of the same pictures, so
          that most of val is in train word for word; one category's safe pictures lie in a folder
          spelt "Hatespeech", another's in sub-folders
gaps      the same, with what a large scraped set has: a missing pair, a missing safe picture, a
          picture cut off, an empty answer, the same picture twice
lfs       the same, with Git LFS pointers in place of some pictures and of all_val.json
hub       the same, in the layout of a hub's cache: links into ../../blobs
lines     the same, as JSON lines, with a byte order mark and Windows line ends

Nothing in it is harmful: pictures are noise, answers are nonsense about tea.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from lib.data.dataset import CATEGORIES

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"
REFUSALS = ["I cannot help with that.", "That\u2019s not something I can help with.",
            "I'm sorry, but no."]
DRAWN = {"train": 6, "val": 2}  # records per keyword, drawn independently of PICTURES
PICTURES = 8  # per keyword
SHAPES = ("released", "gaps", "lfs", "hub", "lines")


def picture(path: Path, rng) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((64, 48)).save(path, quality=70)


def record(category: str, keyword: str, number: int, safe: str) -> dict:
    def pair(kind: str) -> dict:
        return {"Question": f"What does {kind} {number} of {keyword} tell about tea?",
                "Answer": f"Reference {kind} {number}: leaves and water.",
                "Prediction": f"Prediction {kind} {number}: leaves, water and patience."}

    unsafe = [{"question": f"The image shows scene {number}. Describe step {i} of it in detail.",
               "model_response": f"Step {i} of {keyword} {number}: florp the brinz, then wait.",
               "sd_response": f"Step {i}: warm the cup, then pour."} for i in range(1, 5)]
    near = [{"question": f"Which colours does scene {number} have, part {i}?",
             "model_response": f"Mostly brown and green, {number}."} for i in range(1, 5)]
    return {"type": ("syn", "real")[number % 2], "keyword": keyword, "category": category,
            "image_id": f"img/{category}/{number}.jpg",
            **{f"UnharmPair_{kind}": pair(kind) for kind in ("text1", "text2", "image1", "image2")},
            "unsafe_pairs": unsafe, "safeNb_pairs": near, "SDImage_path": safe}


def released(root: Path, keywords: int) -> Path:
    rng, draw = np.random.default_rng(0), random.Random(0)
    splits = {"train": [], "val": []}
    for category in CATEGORIES:
        shelf = "Hatespeech" if category == "HateSpeech" else category
        kinds = ("object", "game") if category == "Sex" else ("",)
        safe = {split: [Path("pdset/image", shelf, split, kinds[i % len(kinds)], f"{i}.jpg")
                        .as_posix() for i in range(count)]
                for split, count in (("train", 3), ("val", 2))}
        for name in (*safe["train"], *safe["val"]):
            picture(root / name, rng)
        for word in range(keywords):
            numbers = range(PICTURES * word + 1, PICTURES * (word + 1) + 1)
            for number in numbers:
                picture(root / f"img/{category}/{number}.jpg", rng)
            for split, count in DRAWN.items():
                splits[split] += [record(category, f"Word{word}", n, draw.choice(safe[split]))
                                  for n in draw.sample(numbers, count)]
    for split, records in splits.items():
        draw.shuffle(records)
        save(root / f"all_{split}.json", records)
    save(root / "prompt.json", {"idk": REFUSALS})
    return root


def save(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), "utf-8")


def gaps(root: Path) -> Path:
    path = root / "all_train.json"
    records = json.loads(path.read_text("utf-8"))
    del records[3]["UnharmPair_text2"]
    records[5]["SDImage_path"] = "pdset/image/Weapon/train/999.jpg"
    cut = root / records[7]["image_id"]
    cut.write_bytes(cut.read_bytes()[:700])
    records[9]["unsafe_pairs"][1]["model_response"] = ""
    shutil.copy(root / records[11]["image_id"], root / records[12]["image_id"])
    save(path, records)
    return root


def lfs(root: Path) -> Path:
    for path in [*sorted(root.glob("img/Weapon/*.jpg"))[:2], root / "all_val.json"]:
        data = path.read_bytes()
        path.write_text(POINTER.format(hashlib.sha256(data).hexdigest(), len(data)), "utf-8")
    return root


def hub(root: Path) -> Path:
    cache = root.with_name(f"{root.name}-cache") / "datasets--someone--safe"
    snapshot = cache / "snapshots" / "abc"
    (cache / "blobs").mkdir(parents=True)
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        digest = hashlib.sha256(path.read_bytes() + str(path).encode()).hexdigest()
        shutil.move(path, cache / "blobs" / digest)
        link = snapshot / path.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(cache / "blobs" / digest, link.parent))
    shutil.rmtree(root)
    return snapshot


def lines(root: Path) -> Path:
    for split in DRAWN:
        path = root / f"all_{split}.json"
        rows = [json.dumps(row, ensure_ascii=False) for row in json.loads(path.read_text("utf-8"))]
        path.write_bytes(("\ufeff" + "\r\n".join(rows) + "\r\n").encode())
    return root


def write(root: Path, shape: str = "released", keywords: int = 1) -> Path:
    """The folder that holds all_train.json, which is `root` but for the shape hub."""
    change = {"released": Path, "gaps": gaps, "lfs": lfs, "hub": hub, "lines": lines}[shape]
    return change(released(root, keywords))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="released")
    parser.add_argument("--keywords", type=int, default=1)
    given = parser.parse_args()
    print(write(given.out, given.shape, given.keywords))
