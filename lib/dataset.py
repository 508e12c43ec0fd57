"""SafeEraser's dataset format, read and checked: forget, retain and prompt-decouple sets.

A dataset is a folder with `all_train.json` and `all_val.json` (lists of records, or JSON lines),
`prompt.json` (`{"idk": [refusal, ...]}`), the pictures, and optionally `specificity.json`. Both
spellings in use are read: `image_path` or `image_id`, `Prediction` or `Answer` (`Prediction` where
both are there, as in the official code); paths may begin with "dataset/", as seen from the folder
around. `python -m lib.dataset check PATH` tells what is wrong with a folder.
"""

import argparse
import sys
from pathlib import Path

from lib import dataset_report, paths
from lib.dataset_problems import LIST, DatasetError, Problem, write_list
from lib.dataset_read import check, read
from lib.dataset_records import (
    CATEGORIES,
    NEIGHBOURS,
    SETS,
    Dataset,
    Pair,
    PictureQuestion,
    Record,
    UnsafePair,
    counts,
)
from lib.pictures import PictureError, open_image

__all__ = ["CATEGORIES", "NEIGHBOURS", "SETS", "Dataset", "DatasetError", "Pair", "PictureError",
           "PictureQuestion", "Problem", "Record", "UnsafePair", "check", "counts", "open_image",
           "read"]


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0 if the folder can be used, 1 if it has problems (2: wrong usage)."""
    parser = argparse.ArgumentParser("python -m lib.dataset")
    parser.add_argument("check", choices=["check"], metavar="check",
                        help="tell the problems, or the counts")
    parser.add_argument("PATH", help="the folder with all_train.json")
    parser.add_argument("--leave-out", action="store_true",
                        help="go on without the records and pairs that cannot be used")
    parser.add_argument("--list", metavar="FILE", type=Path, default=paths.runs_root() / LIST,
                        help="where every problem is written, one a line (default: %(default)s)")
    given = parser.parse_args(arguments)
    try:
        dataset = read(given.PATH, leave_out=given.leave_out)
    except DatasetError as error:
        print(error)
        print(write_list(error.problems, given.list, error.root))
        return 1
    print(f"{given.PATH} can be used: {dataset_report.text(dataset)}")
    if dataset.left_out:
        print(write_list(dataset.left_out, given.list, dataset.root))
    return 0


if __name__ == "__main__":
    sys.exit(main())
