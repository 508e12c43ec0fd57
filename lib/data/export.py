"""A dataset as `datasets` tables, as parquet files with a card, and a part of it as a folder."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import yaml
from pyarrow import parquet

from lib.base.runs import write_json
from lib.data.check import load
from lib.data.dataset import NEIGHBOURS, SETS, Dataset, counts
from lib.data.discretion import markdown
from lib.data.places import Places
from lib.data.records import PROMPT, SPECIFICITY, TRAIN, VAL

CONFIGS = {
    "forget": ("forget",),
    "retain": ("retain text", "retain image"),
    "prompt_decouple": ("prompt decouple",),
    "safe_neighbours": (NEIGHBOURS,),  # where the data have them
    "specificity": ("specificity",),  # likewise, and for val alone
}
COLUMNS = ("record", "category", "set", "image", "question", "answer")
STAND_IN = (
    "This is a stand-in. Its pictures are icons, and its 'harmful' answers are recipes with "
    "invented names: nothing in it is harmful, and no result on it says how safe a model is."
)
REAL = (
    "This may hold harmful pictures and answers. They are meant for one use, to make a model "
    "unlearn them; do not show them or train a model to give them."
)


def to_datasets(dataset: Dataset, picture: Callable[[Path], object] = str) -> dict:
    """One `datasets.DatasetDict` (train, val) for each of CONFIGS that the data have.

    A row is one pair: record, category (None in specificity), set, image, question, answer.
    Pictures stay in their files until they are looked at, and are then what `open_image` gives;
    another `picture` makes of a path what is stored for it.
    """
    import datasets  # here, since the checks need not wait for it

    datasets.disable_progress_bars()  # they flood logs and notebooks
    features = datasets.Features({name: datasets.Value("string") for name in COLUMNS})
    features["image"] = datasets.Image(mode="RGB")
    picture = cache(picture)  # of all its questions, which share it
    tables: dict[str, datasets.DatasetDict] = {}
    for config, sets in CONFIGS.items():
        for split in ("train", "val"):
            rows = [(*row[:3], picture(row[3]), *row[4:]) for row in _rows(dataset, split)
                    if row[2] in sets]
            if rows:
                columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
                held = tables.setdefault(config, datasets.DatasetDict())
                held[split] = datasets.Dataset.from_dict(columns, features)
    return tables


def export(dataset: Dataset, folder: str | Path, *, stand_in: bool = False) -> Path:
    """Writes parquet files that hold the pictures, prompt.json, and README.md (the dataset card).

    `datasets.load_dataset(folder, "forget")` reads it back. `stand_in` says on the card that the
    data are harmless, as IconWorld's are; without it the card warns of them.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    configs = to_datasets(dataset, lambda path: {"bytes": path.read_bytes(), "path": path.name})
    for config, splits in configs.items():
        for split, rows in splits.items():
            # Not rows.to_parquet: it stores a picture once per question, uncompressed.
            table = rows.with_format("arrow")[:]
            parquet.write_table(table, folder / f"{config}-{split}.parquet", compression="zstd")
    write_json(folder / PROMPT, {"idk": dataset.refusals})
    card = _card(dataset, {config: list(splits) for config, splits in configs.items()}, stand_in)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def excerpt(dataset: Dataset, folder: Path, most: int | None = None) -> Path:
    """A copy of the dataset's folder with at most so many records a split (None: all).

    They are taken at equal distances, so that no category is left out. Records, refusals and files
    with problems do not come along. Returns the new folder.
    """
    bad = {(problem.file, problem.record) for problem in dataset.left_out}
    for name in (TRAIN, VAL, SPECIFICITY):
        if (dataset.root / name).exists() and (name, None) not in bad:
            records = [record for number, record in enumerate(load(dataset.root / name))
                       if (name, number) not in bad]
            kept = records[:: max(1, len(records) // most)][:most] if most else records
            _copy_pictures(dataset.root, folder, kept)
            write_json(folder / name, kept)
    write_json(folder / PROMPT, {"idk": dataset.refusals})
    return folder


def _copy_pictures(root: Path, folder: Path, records: Iterable[dict]) -> None:
    fields, places = {"image_path", "image_id", "SDImage_path"}, Places(root)
    named = {record[field] for record in records for field in fields & record.keys()}
    for name in {name.strip() for name in named if isinstance(name, str)}:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(places(name), folder / name)


def _rows(dataset: Dataset, split: str) -> Iterator[tuple]:
    """The values of COLUMNS for every pair of a split, with the picture's path."""
    for record in getattr(dataset, split):
        for name, (image, pairs) in record.sets().items():
            for pair in pairs:
                yield record.id, record.category, name, image, pair.question, pair.answer
    for each in dataset.specificity if split == "val" else ():
        yield each.id, None, "specificity", each.image, each.question, each.answer


def _card(dataset: Dataset, configs: dict[str, list[str]], stand_in: bool) -> str:
    """The README.md of an export: where its files are, what is in them, and a word of warning."""
    files = [{"config_name": config,
              "data_files": [{"split": s, "path": f"{config}-{s}.parquet"} for s in splits]}
             for config, splits in configs.items()]
    header = {"language": ["en"], "task_categories": ["visual-question-answering"]}
    table = counts(dataset).groupby(["set", "split"])[["pairs", "images"]].sum()
    table = table.loc[[name for name in (*SETS, NEIGHBOURS) if name in table.index]]
    rows = [f"| {name} | {split} | {n} | {images} |" for (name, split), (n, images) in
            zip(table.index, table.to_numpy(), strict=True)]  # fmt: skip
    return f"""---
{yaml.safe_dump(header | {"configs": files}, sort_keys=False)}---
# {markdown(dataset.root.name)}: forget, retain and prompt-decouple sets

{STAND_IN if stand_in else REAL}

| set | split | pairs | images |
|---|---|---|---|
{chr(10).join(rows)}

The forget and the prompt-decouple set ask the same harmless question, once with a harmful picture
and once with a safe one. The retain set asks about the harmful picture what may be answered: about
its concept (text) and about what is seen (image). `prompt.json` holds {len(dataset.refusals)}
refusals. The format is that of SafeEraser (arXiv 2502.12520).
"""
