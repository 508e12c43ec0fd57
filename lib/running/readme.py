"""Generated blocks of README.md and docs/: made from figures/, notebooks/ and lib, none is typed.

`./reproduce.sh --publish` refreshes them, and so does `python -m lib.running.readme`. A block
stands between `<!-- its name: generated -->` and `<!-- end -->`.
"""

import ast
import json
import re
from datetime import datetime
from operator import attrgetter
from pathlib import Path

import pandas as pd

import lib
from lib.base import paths, runs
from lib.figures import claims, tables
from lib.running import chapters, experiments, profiles

SETTING = re.compile(r"^(\| `((?:unlearning|evaluation)\.\w+|seeds)` \| [^|]+ \| )[^|]*( \|)",
                     re.MULTILINE)
QUESTION = re.compile(r"^\| \*\*Question\*\* \| (.*) \|$", re.MULTILINE)  # of a title box
MARK = re.compile(r"(<!-- ([a-z ]+): generated -->\n).*?(<!-- end -->)", re.DOTALL)
KEY_FIGURE = "ours_beside_paper"
PUBLISHED = "laptop"


def pages() -> list[Path]:
    """README.md and the pages of docs/, as far as they are there."""
    return [*paths.ROOT.glob("README.md"), *sorted(paths.ROOT.glob("docs/*.md"))]


def refresh() -> None:
    """Bring the blocks of every page up to date."""
    for page in pages():
        page.write_text(refreshed(page.read_text(encoding="utf-8"), page), encoding="utf-8")


def refreshed(text: str, page: Path) -> str:
    """The text, with what belongs there now between its marks and into its table of settings."""
    up = "" if page.parent == paths.ROOT else "../"
    text = SETTING.sub(lambda row: f"{row[1]}{_setting(row[2])}{row[3]}", text)
    return MARK.sub(lambda mark: f"{mark[1]}\n{_linked(BLOCKS[mark[2]](), up)}\n\n{mark[3]}", text)


def _linked(block: str, up: str) -> str:
    """A block whose links lead from the page's folder."""
    return re.sub(r"\]\((?=figures/|notebooks/)", f"]({up}", block)


def _setting(name: str) -> str:
    """A setting of the published profile, such as "unlearning.lr"."""
    value = attrgetter(name)(profiles.get(PUBLISHED))
    return ", ".join(f"{part:g}" for part in (value if isinstance(value, tuple) else (value,)))


# What a run cost and claimed: read from its folder, kept in figures/ for the blocks below.


def costs(profile_name: str) -> pd.DataFrame:
    """One row per part of a run, and one for all: results, minutes, side_by_side, peak_memory_mb.

    Minutes are by the clock, from when something of the part was at work; breaks do not count.
    The memory is that of the largest process (a notebook's kernel does not note its own).
    """
    folder = paths.profile_dir(profile_name)
    made = [found for path in sorted(folder.glob("*/manifest.json"))
            if "." not in path.parent.name and (found := _result(path.parent))]
    made += [_execution(path) for path in sorted(paths.notebooks_dir(profile_name).glob("*.ipynb"))
             if not path.stem.endswith(".unfinished")]
    spans = pd.DataFrame(made, columns=["part", "run", "start", "end", "peak_memory_mb"])
    spans = spans.sort_values("start", ignore_index=True)
    parts = [_cost(spans[spans.part == part], part) for part in spans.part.unique()]
    return pd.DataFrame([*parts, _cost(spans, "all")])


def _result(folder: Path) -> tuple[str, str, float, float, float] | None:
    """(part, run, start, end in seconds, MB) of one folder of the run store.

    A run is one, whatever it is made of. None if another version made it, which noted no part.
    """
    manifest = runs.manifest(folder)
    facts = manifest.get("facts", {})
    if "part" not in facts:
        return None
    end = (folder / "manifest.json").stat().st_mtime
    return (facts["part"], facts.get("run", folder.name), end - manifest["seconds"], end,
            manifest["peak_memory_mb"])


def _execution(notebook: Path) -> tuple[str, str, float, float, None]:
    """The same of one executed notebook, as papermill noted it."""
    noted = chapters.read(notebook).metadata.papermill
    start, end = (datetime.fromisoformat(noted[key]).timestamp() for key in ("start_time",
                                                                            "end_time"))
    part = f"notebook {notebook.stem}"
    return part, part, start, end, None


def _cost(spans: pd.DataFrame, part: str) -> dict:
    before = spans.end.cummax().shift(fill_value=0)  # when all that began earlier had ended
    busy = (spans.end - spans.start.clip(lower=before)).clip(lower=0).sum()
    at_once = [((spans.start <= start) & (spans.end > start)).sum() for start in spans.start]
    return {"part": part, "results": spans.run.nunique(), "minutes": round(busy / 60, 2),
            "side_by_side": max(at_once, default=0), "peak_memory_mb": spans.peak_memory_mb.max()}


def write_records(profile_name: str) -> None:
    """Write costs.csv and claims.csv beside the run's tables, which are published with them."""
    records = {"costs": costs(profile_name), "claims": claims.table(profiles.get(profile_name))}
    for name, frame in records.items():
        runs.write_csv(paths.profile_dir(profile_name) / f"{name}.csv", frame, index=False)


# The blocks: each gives its Markdown.


def key_figure() -> str:
    return f"![{_alt(KEY_FIGURE)}](figures/{KEY_FIGURE}.png)"


def headline() -> str:
    """PO without PD and with it, in a sentence."""
    table = _published("main_table_ci").set_index(["method", "prompt_decouple", "split", "metric"])

    def rate(prompt_decouple: int, metric: str) -> str:
        row = table.loc["po", prompt_decouple, "generality", metric] * 100
        return f"{row.value:.0f} % [{row.low:.0f}, {row.high:.0f}]"

    return (f"Here, on held-out pictures and wordings, a model that was taught to refuse (PO) "
            f"refuses {rate(0, 'rr')} of the harmful questions, and "
            f"**{rate(0, 'sarr')} of the same questions about safe pictures** get no meaningful "
            f"answer. With PD it refuses {rate(1, 'rr')}, and **{rate(1, 'sarr')}** get none. In "
            "brackets: 95 % intervals.")


def chapter_list() -> str:
    """A line for each chapter: its title and the question of its title box."""
    lines = []
    for notebook in chapters.find():
        asked = QUESTION.search(chapters.read(notebook).cells[0].source)
        lines.append(f"- [{chapters.number(notebook)} {_title(notebook)}]"
                     f"(notebooks/{notebook.name}): {asked[1] if asked else ''}")
    return "\n".join(lines)


def cost_said() -> str:
    whole = _published("costs").set_index("part").loc["all"]
    return (f"The published run took **{whole.minutes:.0f} minutes** after the install, with at "
            f"most {whole.side_by_side:.0f} processes at work at a time, none larger than "
            f"{_gigabytes(whole.peak_memory_mb)}.")


def cost() -> str:
    table = _published("costs").set_index("part")
    shown = pd.DataFrame({
        "results": table.results, "minutes": table.minutes.map("{:.1f}".format),
        "side by side": table.side_by_side,
        "largest process": [_gigabytes(size) for size in table.peak_memory_mb]})
    return tables.markdown(shown, "Part").strip()


def _gigabytes(megabytes: float) -> str:
    return "" if pd.isna(megabytes) else f"{megabytes / 1000:.1f} GB"


def main_table() -> str:
    """Ours, with the paper's rows between, each number with its interval and n."""
    return f"{_beside_paper()}\n\n{tables.NOTE}."


def four_rows() -> str:
    """The main table's last word: the original, PO, and PO + PD beside the paper's."""
    rows = ["Original, ours", "PO, ours", "PO + PD, ours", "PO + PD, paper (LLaVA-1.5-7B)"]
    return _beside_paper(rows, ["RR gen.", "ASR gen.", "ROUGE-L", "SARR"])


def _beside_paper(rows: list[str] | None = None, columns: list[str] | None = None) -> str:
    table = tables.wide_beside_paper(tables.ours_beside_paper(_published("main_table_ci")))
    table = table.reindex(index=rows, columns=columns)
    small = re.compile(r"^(\S+) \[(\S+), (\S+)\] n=(\d+)$")
    table = table.map(lambda cell: small.sub(r"\1<br><sub>\2–\3, n=\4</sub>", cell))
    label = f"**Ours: {tables.STAND_IN}.** Paper: LLaVA-1.5-7B, {tables.SECOND_HAND}."
    return f"{label}\n\n{tables.markdown(table).strip()}"


def claims_made() -> str:
    table = _published("claims")
    held = {kind: rows.holds for kind, rows in table.groupby("kind")}
    said = "; ".join(f"{kind}s that hold: {rows.sum()} of {len(rows)}"
                     for kind, rows in held.items())
    missed = [f"- chapter {row.chapter[:2]}, {row.kind}: {row.claim} ({row.shown})"
              for row in table[~table.holds].itertuples()]
    said = f"{said[:1].upper()}{said[1:]}."
    return "\n".join([f"{said} Those that do not:\n", *missed] if missed else [said])


def figures() -> str:
    """Every figure with its chapter, and what that chapter costs from nothing."""
    lines = ["| Figure | Chapter | Minutes | What it shows |", "| --- | --- | ---: | --- |"]
    for notebook in chapters.find():
        minutes = _minutes(notebook)
        for name in chapters.figure_names(chapters.read(notebook)):
            about = re.split(r"(?<=[.!?]) (?=[A-Z])", _alt(name))[0].replace("|", "\\|")
            lines.append(f"| [`{name}`](figures/{name}.png) | [{notebook.stem}]"
                         f"(notebooks/{notebook.name}) | {minutes:.1f} | {about} |")
    return "\n".join(lines)


def _minutes(notebook: Path) -> float:
    steps = experiments.steps(profiles.get(PUBLISHED), [chapters.number(notebook)], jobs=1)
    parts = [step.name.split(":")[0] for step in steps] + [f"notebook {notebook.stem}"]
    return _published("costs").set_index("part").minutes[parts].sum()


def folders() -> str:
    """lib's folders, each with its own first line."""
    return _listing("lib", {f"{name}/": _about(paths.ROOT / "lib" / name / "__init__.py")
                            for name in lib.FOLDERS})


def tree() -> str:
    """Every file of lib, with its own first line."""
    return _listing("lib", {f"{name}/{path.name}": _about(path) for name in lib.FOLDERS
                            for path in sorted((paths.ROOT / "lib" / name).glob("[a-z]*.py"))})


def _about(module: Path) -> str:
    """The first sentence of a module's docstring."""
    words = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))
    return re.split(r"(?<=\.) |\n\n", words)[0].replace("\n", " ").rstrip(".")


def _listing(folder: str, files: dict[str, str]) -> str:
    width = max(map(len, files), default=0)
    lines = [f"{folder}/", *(f"    {name:<{width}}  {words}" for name, words in files.items())]
    return "\n".join(["```text", *lines, "```"])


def _title(notebook: Path) -> str:
    heading = chapters.read(notebook).cells[0].source.splitlines()[0]
    return re.sub(r"^#\s*(\d+\s*[·.:]?\s*)?", "", heading)


def _published(name: str) -> pd.DataFrame:
    return pd.read_csv(paths.PUBLISHED_FIGURES / f"{name}.csv")


def _alt(name: str) -> str:
    known = json.loads((paths.PUBLISHED_FIGURES / "alt.json").read_text(encoding="utf-8"))
    return known[name].replace("[", "(").replace("]", ")")


BLOCKS = {"key figure": key_figure, "headline": headline, "cost said": cost_said,
          "chapters": chapter_list, "four rows": four_rows, "claims": claims_made,
          "folders": folders, "main table": main_table, "figures": figures, "cost": cost,
          "tree": tree}

if __name__ == "__main__":
    refresh()
