"""JSON and CSV files, each written whole or not at all."""

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from lib.base import disk


def read_json(path: Path) -> object:
    """Return a JSON file's content. Raises ValueError, naming the file, when it is not JSON."""
    return _parsed(Path(path).read_bytes(), path)


def read_jsonl(path: Path) -> list[dict]:
    """Return the rows of a file with one JSON object per line."""
    with Path(path).open("rb") as lines:
        return [_parsed(line, f"{path}, line {n}") for n, line in enumerate(lines, start=1)]


def write_json(path: Path, value: object) -> None:
    """Write a JSON file with sorted keys, so that equal values give equal bytes.

    The file is replaced in one go, its folder made if need be. NumPy and torch scalars become
    numbers, NaN and infinity null (JSON has neither). Raises TypeError for anything else.
    """
    content = plain(value, Path(path).name, finite_or_null)
    _write(Path(path), json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """Write one JSON object per line, keys in the rows' own order; otherwise like `write_json`."""
    content = (plain(row, f"{Path(path).name}[{n}]", finite_or_null) for n, row in enumerate(rows))
    _write(Path(path), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content))


def write_csv(path: Path, frame, **options) -> None:
    """Write a table; no text of data or a model in it is a formula to a spreadsheet.

    Such a cell begins with an apostrophe, and signs that cannot be seen become U+FFFD. Numbers,
    also those in text, stay what they are.
    """
    frame.map(_inert).rename(columns=_inert, index=_inert).to_csv(
        path, lineterminator="\n", **options)


def _inert(cell: object) -> object:
    if not isinstance(cell, str) or _is_number(cell):
        return cell
    seen = "".join(sign if sign.isprintable() or sign in "\n\t" else "\ufffd" for sign in cell)
    return f"'{seen}" if seen.lstrip().startswith(("=", "+", "-", "@")) else seen


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            disk.sync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _parsed(text: bytes, where: object) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error}). It was cut off or edited: remove it "
                         "and make it again.") from None


def plain(value: object, where: str, number: Callable[[float, str], object]) -> object:
    """Return the value in the types that JSON has; `where` names it in errors."""
    if getattr(value, "ndim", None) == 0:
        value = value.item()  # a NumPy or torch scalar
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return number(value, where)
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{n}]", number) for n, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(item, f"{where}[{key!r}]", number) for key, item in value.items()}
    kind = "dict with keys that are not text" if isinstance(value, dict) else type(value).__name__
    raise TypeError(f"{where} is a {kind}, which JSON cannot hold: use text, numbers, True, False, "
                    "None, lists, and dicts with text as keys.")


def finite_or_null(number: float, where: str) -> float | None:
    return number if math.isfinite(number) else None
