"""How much there is to do at a real profile: the rows of its training steps, and its answers.

What nothing here can compute is assumed, in one place: `Assumed`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lib.data.check import load
from lib.running.profiles import Profile
from lib.scale import harness
from lib.scale.arithmetic import Row
from lib.unlearning import methods, terms
from lib.unlearning.steps import TEXTS


def _of(value: float, why: str):
    return field(default=value, metadata={"why": why})


@dataclass(frozen=True)
class Assumed:
    """What nothing here can compute; `--explain` prints it. Tokens are of Llama's tokenizer."""

    train: int = _of(1800, "training records, if no data folder says: three quarters of all, "
                           "which are 28.8 K pairs / 12")
    val: int = _of(600, "held-out records, if no data folder says: the other quarter")
    pictures: int = _of(3000, "pictures, harmful and safe, if no data folder says (the paper's)")
    neighbours: int = _of(0, "safe neighbours of a record, if no data folder says")
    prefix: int = _of(5, "tokens before a question beside the image's: <s> USER:")
    question: int = _of(30, "tokens of a question with ASSISTANT:")
    answer: int = _of(160, "tokens of a harmful or a normal answer about a picture")
    retain: int = _of(80, "tokens of a retain answer")
    refusal: int = _of(20, "tokens of a refusal")
    short: int = _of(60, "tokens of a public benchmark's question, with its choices")
    word: int = _of(8, "tokens of its answer (a model that babbles writes up to 1,024)")
    longest: float = _of(2.0, "longest answer of a batch, as a multiple of the mean")
    training_rate: float = _of(0.42, "share of the data sheet's FLOP/s that training reaches")
    reading_rate: float = _of(0.45, "the same while prompts are read, and in the tower")
    bandwidth_rate: float = _of(0.6, "share of the data sheet's bandwidth in generation")
    layer_seconds: float = _of(7e-4, "least time of a layer for a new token: Python, kernel starts")
    picture_seconds: float = _of(0.02, "to open and scale one picture on a core")
    usable: float = _of(0.93, "share of the GPU's memory that tensors can take (context, gaps)")
    answer_bytes: float = _of(1500, "bytes of one answer's row in answers.jsonl, with its question")


def measured(data: str | None) -> Assumed:
    """The assumptions, with the numbers of records and pictures in the data folder, if it can be
    read."""
    if data is None:
        return Assumed()
    files = [_loaded(Path(data, f"all_{split}.json")) for split in ("train", "val")]
    if not files[0]:
        return Assumed()
    records = [record for file in files for record in file if isinstance(record, dict)]
    named = {str(record[field]) for record in records
             for field in ("image_path", "image_id", "SDImage_path") if field in record}
    near = sum(len(record.get("safeNb_pairs") or ()) for record in records)
    return Assumed(train=len(files[0]), val=len(files[1]), pictures=len(named),
                   neighbours=round(near / max(1, len(records))))


def _loaded(file: Path) -> list:
    """Its records; none of a file that cannot be read, which may have been left out."""
    try:
        records = load(file)
    except (OSError, ValueError):
        return []
    return records if isinstance(records, list) else []


def run_rows(profile: Profile) -> dict[str, list[dict[str, float]]]:
    """The losses' weights of every unlearning run, by the plan's steps (`experiments`)."""
    seeds = len(profile.seeds)
    without, with_pd = ([methods.weights(method, added) for method in methods.METHODS] * seeds
                        for added in (False, True))
    sweep = [methods.weights("po", True, weight) for weight in profile.sweep_weights] * seeds
    named = {"unlearning without PD": without, "unlearning with PD": with_pd,
             "PO at other weights of PD": sweep}
    return {f"{name}: {len(rows)} runs": rows for name, rows in named.items() if rows}


def benchmarked(profile: Profile) -> tuple[int, int]:
    """(questions of the profile's benchmarks, models that are asked them): the original model and
    every run but those at other weights of PD."""
    questions = sum(each.questions for each in harness.named(profile.benchmarks))
    return questions, 1 + 2 * len(methods.METHODS) * len(profile.seeds)


def asked(profile: Profile, assumed: Assumed) -> int:
    """How many answers one model's evaluation has (`evaluate`): greedy, and samples of the harmful.

    Per record four harmful, four safe and four retain questions, and its safe neighbours.
    """
    some = profile.evaluation.train_records
    records = assumed.val + (assumed.train if some is None else min(assumed.train, 6 * some))
    return records * (12 + assumed.neighbours + 4 * profile.evaluation.samples)


def step_rows(row: Mapping[str, float], images: int, queries: int | None, image_tokens: int,
              assumed: Assumed) -> list[Row]:
    """The rows of one training step, as `steps.groups` and `Packer` make them."""
    count, half = queries or 4, (queries or 4) // 2  # half of the retain pairs are texts
    kinds = terms.reads(row)
    kept = half if "retain" in kinds else 0
    answers = [assumed.answer] * (count * ("forget" in kinds))
    answers += [assumed.refusal] * (count * ("refusal" in kinds))
    answers += [assumed.retain] * kept
    found = []
    for _ in range(images):
        found.append(_row(image_tokens, answers, assumed))
        if "prompt_decouple" in kinds:
            found.append(_row(image_tokens, [assumed.answer] * count, assumed))
    texts = [assumed.retain] * (images * kept)
    return found + [_row(0, texts[i : i + TEXTS], assumed) for i in range(0, len(texts), TEXTS)]


def rows_of(batch, image_token: int) -> list[Row]:
    """The rows of a `packing.Batch`, counted from its tensors."""
    lengths, found = iter(batch.answers.bincount().tolist()), []
    for ids, segments in zip(batch.input_ids, batch.segments, strict=True):
        own = segments[segments > 0].bincount()[1:].tolist()
        questions = tuple((tokens - answer + 1, answer)
                          for tokens, answer in zip(own, lengths, strict=False))
        found.append(Row(int((segments == 0).sum()), questions, bool((ids == image_token).any())))
    return found


def _row(image_tokens: int, answers: Sequence[int], assumed: Assumed) -> Row:
    return Row(assumed.prefix + image_tokens,
               tuple((assumed.question, answer) for answer in answers), image_tokens > 0)
