import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lib.base import provenance
from lib.base.paths import ROOT


def git(folder, *words):
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=folder,
                   check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "one")
    return tmp_path


def test_the_commit_is_that_of_head_and_clean(repository):
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=repository, text=True).strip()
    assert provenance.git_commit(repository) == (head, False)


def test_a_changed_tracked_file_makes_it_dirty_and_an_untracked_one_does_not(repository):
    (repository / "runs.log").write_text("output")
    assert provenance.git_commit(repository)[1] is False
    (repository / "file").write_text("two")
    assert provenance.git_commit(repository)[1] is True


def test_there_is_no_commit_outside_of_git(tmp_path):
    assert provenance.git_commit(tmp_path) == (None, None)


def test_a_repository_further_up_is_not_taken_for_ours(repository):
    (repository / "unpacked").mkdir()
    assert provenance.git_commit(repository / "unpacked") == (None, None)


def test_a_repository_without_commits_has_no_commit(tmp_path):
    git(tmp_path, "init")
    assert provenance.git_commit(tmp_path) == (None, None)


def test_a_machine_without_git_has_no_commit(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance.git_commit(repository) == (None, None)


def test_a_broken_repository_has_no_commit(tmp_path):
    (tmp_path / ".git").write_text("gitdir: nowhere")
    assert provenance.git_commit(tmp_path) == (None, None)


def test_the_versions_are_those_that_the_packages_state_themselves():
    assert provenance.package_versions()["numpy"] == np.__version__


def test_a_package_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", ("numpy", "no-such-package"))
    assert list(provenance.package_versions()) == ["numpy"]


LIGHT = """
import sys
from lib.base import provenance, runs
before = provenance.peak_memory_mb()
block = bytearray(b"x") * 200_000_000
print(before, provenance.peak_memory_mb(), provenance.describe()["device"], "torch" in sys.modules)
"""


@pytest.fixture
def light_process():
    """What a fresh process reports that was started by one which holds 300 MB."""
    held = bytearray(b"x") * 300_000_000
    output = subprocess.check_output([sys.executable, "-c", LIGHT], text=True, cwd=ROOT,
                                     env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert len(held) == 300_000_000
    return output.split()


def test_peak_memory_is_this_processs_own_and_grows_by_what_it_takes(light_process):
    before, after = map(float, light_process[:2])
    assert 5 < before < 150
    assert 195 < after - before < 250


def test_a_description_imports_no_torch_to_learn_the_device(light_process):
    assert light_process[2:] == ["cpu", "False"]


def test_without_proc_the_peak_is_bytes_on_macos_and_kibibytes_elsewhere(monkeypatch):
    monkeypatch.setattr(provenance, "Path", lambda name: Path("/nonexistent"))
    monkeypatch.setattr(sys, "platform", "linux")
    kibibytes = provenance.peak_memory_mb()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert kibibytes > 5
    assert provenance.peak_memory_mb() == pytest.approx(kibibytes / 1024, abs=0.1)
