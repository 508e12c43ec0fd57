from pathlib import Path

import pytest

from lib.base import paths


@pytest.mark.parametrize(("reason", "value", "expected"), [
    ("unset", None, paths.ROOT / "runs"),
    ("set to nothing", "", paths.ROOT / "runs"),
    ("absolute", "/scratch/runs", Path("/scratch/runs")),
    ("home folder", "~/runs", Path.home() / "runs"),
    ("relative: the same for a shell and a notebook elsewhere", "other", paths.ROOT / "other"),
])
def test_an_environment_variable_moves_all_results(monkeypatch, tmp_path, reason, value, expected):
    monkeypatch.chdir(tmp_path)
    if value is None:
        monkeypatch.delenv("SAFEERASER_RUNS", raising=False)
    else:
        monkeypatch.setenv("SAFEERASER_RUNS", value)
    assert paths.runs_root() == expected
    assert paths.profile_dir("smoke") == expected / "smoke"
    assert paths.figures_dir("smoke") == expected / "smoke" / "figures"
    assert paths.notebooks_dir("smoke") == expected / "smoke" / "notebooks"


def test_the_root_is_the_folder_that_holds_lib_and_tests():
    assert Path(__file__).parent == paths.ROOT / "tests"
    assert (paths.ROOT / "lib" / "base" / "paths.py").is_file()
