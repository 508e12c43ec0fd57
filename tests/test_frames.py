"""Frames that cannot be drawn say why."""

import pandas as pd
import pytest

from tests.figure_frames import (
    FRAMES,
    both_sources,
    by_category,
    differences,
    draw,
    one_split,
    pair_counts,
    parts,
    rates,
    sweep,
    two_pictures,
)


def needed(name: str) -> list[str]:
    with pytest.raises(ValueError, match=f"plots.{name}: the frame lacks") as error:
        draw(name, pd.DataFrame())
    return str(error.value).partition("It needs ")[2].removesuffix(".").split(", ")


@pytest.mark.parametrize("name", FRAMES)
def test_a_missing_column_is_named_and_the_needed_ones_are_enough(name):
    frame, columns = pd.DataFrame(FRAMES[name]()), needed(name)
    for column_ in columns:
        with pytest.raises(ValueError, match=f"the frame lacks {column_}\\. It needs"):
            draw(name, frame.drop(columns=column_))
    draw(name, frame[frame.metric != "specificity"][columns] if "metric" in frame
         else frame[columns])  # fmt: skip


def twice(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame])


def without(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    return frame[(frame.metric != metric) | (frame.method != "po")]


REFUSED = [
    ("no rows", "counts", lambda: pair_counts()[:0], "the frame has no rows"),
    ("a method without a colour", "before_after", lambda: rates().replace("ga", "dpo"),
     "unknown method dpo.* line in lib/unlearning/methods"),
    ("a label without a colour", "same_question_two_pictures",
     lambda: pd.DataFrame(two_pictures()).replace("normal", "odd"),
     "unknown label odd.* line in lib/figures/style"),
    ("two splits in one picture", "forget_against_utility", rates, "one of efficacy, generality"),
    ("two metrics in one picture", "paired_differences",
     lambda: pd.concat([differences(), differences().assign(metric="rr")]), "one of sarr, rr"),
    ("bars of two seeds", "before_after", lambda: twice(rates()), "several rows for method van"),
    ("bars of two seeds", "sarr_parts", lambda: twice(parts()), "average the seeds"),
    ("cells of two seeds", "sarr_by_category", lambda: twice(by_category()), "category Illegal"),
    ("bars of two seeds", "ours_beside_paper", lambda: twice(both_sources()), "source ours"),
    ("two differences", "paired_differences", lambda: twice(differences()), "for method ga"),
    ("half of the stack", "sarr_parts", lambda: without(parts(), "sarr_degenerate"),
     "metric sarr_degenerate is missing for method po, prompt_decouple 0"),
    ("no utility", "forget_against_utility", lambda: without(one_split(), "rouge_l"),
     "metric rouge_l is missing for method po"),
    ("half of a sweep", "weight_sweep", lambda: sweep()[lambda f: f.metric != "rr"],
     "metric rr is missing for weight 0"),
    ("a sweep of nothing", "weight_sweep", lambda: sweep()[lambda f: f.weight == 0],
     "every weight is 0"),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "name", "frame", "message"), REFUSED)
def test_a_frame_that_cannot_be_drawn_says_why(reason, name, frame, message):
    with pytest.raises(ValueError, match=message):
        draw(name, frame())
