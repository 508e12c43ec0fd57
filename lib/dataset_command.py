"""`python -m lib.dataset check PATH`: what is in a dataset folder, or what is wrong with it."""

import argparse
from pathlib import Path

from lib import dataset_report, paths
from lib.dataset import read
from lib.dataset_problems import LIST, DatasetError, write_list


def main(arguments: list[str] | None = None) -> int:
    """0 if the folder can be used, 1 if it has problems (2: wrong usage)."""
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
