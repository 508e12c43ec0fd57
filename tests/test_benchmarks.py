"""The scripts in tests/benchmarks are run by hand; what they import is there all the same."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted(Path(__file__).with_name("benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_benchmark_finds_all_that_it_imports(script, monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])  # the scripts add to it
    assert callable(runpy.run_path(str(script), run_name=script.stem)["main"])
