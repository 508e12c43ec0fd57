"""Every figure: a tidy frame goes in, a matplotlib figure comes out.

Rates and their intervals are fractions (0-1) in the frames and percent on the axes. Each function
takes `title`, which should say the finding; without it the title only names what is shown.
"""

from lib.figures.parts import percent
from lib.figures.plots_compared import forget_against_utility, ours_beside_paper, paired_differences
from lib.figures.plots_pictures import category_examples, counts, same_question_two_pictures
from lib.figures.plots_rates import before_after, sarr_by_category, sarr_parts, weight_sweep
from lib.figures.plots_training import (
    base_training,
    over_steps,
    packing,
    term_trajectories,
    thin,
)
from lib.figures.saving import save
from lib.figures.style import LABEL_COLOURS, METHOD_COLOURS, METRIC_NAMES
from lib.unlearning.methods import run_name

__all__ = [
    "LABEL_COLOURS", "METHOD_COLOURS", "METRIC_NAMES", "base_training", "before_after",
    "category_examples", "counts", "forget_against_utility", "ours_beside_paper", "over_steps",
    "packing", "paired_differences", "percent", "run_name", "same_question_two_pictures",
    "sarr_by_category", "sarr_parts", "save", "term_trajectories", "thin", "weight_sweep",
]  # fmt: skip
