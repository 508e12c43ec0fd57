"""The GPU benchmark's whole path, at a tiny size on a CPU."""

import importlib.util
import json
import sys

import pytest

from lib.base.paths import ROOT


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu", ROOT / "tests/benchmarks/gpu.py")
    module = sys.modules["gpu"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_part_is_measured_and_written(gpu, tmp_path, capsys):
    results = gpu.main(["--tiny", "--json", str(tmp_path / "results.json")])
    shown = capsys.readouterr().out
    assert "FAILED" not in shown
    parts = {result.part for result in results}
    assert parts == {"matrix rate", "training", "official", "KL", "small GPU", "evaluation"}
    measured = [r.measured for r in results if "memory" not in r.what and "second model" not in
                r.what]
    assert all(value > 0 for value in measured)
    written = json.loads((tmp_path / "results.json").read_text())
    assert [row["what"] for row in written] == [result.what for result in results]
    assert all(result.what in shown for result in results)


def test_without_a_gpu_the_full_size_is_refused(gpu):
    if gpu.CUDA:
        pytest.skip("this machine has a GPU")
    with pytest.raises(SystemExit, match="--tiny"):
        gpu.main([])


def test_a_part_that_fails_is_told_of_and_the_others_go_on(gpu, capsys):
    def part(bench):
        raise RuntimeError("out of something")

    assert gpu.attempted(part, None)[0].what == "FAILED, see above"
    assert "out of something" in capsys.readouterr().err
