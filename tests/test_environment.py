"""What a Python lacks: `lib/base/environment.py`."""

import subprocess
import sys
from importlib import metadata

import pytest

from lib.base import environment

PYTEST = metadata.version("pytest")


@pytest.mark.parametrize(("reason", "requirement", "lack"), [
    ("there, any version", "pytest", None),
    ("there, written otherwise", "PyTest>=1", None),
    ("there, in the range", f"pytest>={PYTEST},<1000", None),
    ("its module has another name", "pyyaml>=1", None),
    ("too old", "pytest>=1000", f"pytest>=1000 (here: {PYTEST})"),
    ("too new", "pytest<1", f"pytest<1 (here: {PYTEST})"),
    ("not there", "no-such-package>=1", "no-such-package"),
])
def test_a_requirement_is_met_by_an_installed_version_in_its_range(reason, requirement, lack):
    assert environment.missing([requirement]) == ([lack] if lack else []), reason


@pytest.mark.parametrize(("reason", "version", "met"), [
    ("a build for a GPU counts as its version", "2.11.0+cu130", True),
    ("a nightly build counts as its version", "2.13.0.dev20260901", True),
    ("an older release", "2.10.1+cpu", False),
])
def test_the_local_builds_of_torch_are_judged_by_their_release(
        tmp_path, monkeypatch, reason, version, met):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    _install(tmp_path, version)
    monkeypatch.syspath_prepend(tmp_path)
    assert environment.missing(["torch>=2.11"]) == (
        [] if met else [f"torch>=2.11 (here: {version})"]), reason


def test_a_package_whose_files_are_gone_is_missing(tmp_path, monkeypatch):
    _install(tmp_path, "3.0", name="half_removed")
    monkeypatch.syspath_prepend(tmp_path)
    assert environment.missing(["half-removed"]) == [
        "half-removed (listed as installed, but cannot be imported)"]


def _install(site, version, name="torch"):
    info = site / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text(f"{name}/__init__.py,,\n{name}-{version}.dist-info/METADATA,,\n")


def test_what_the_tests_need_is_asked_for_only_with_the_tests():
    assert not any(line.startswith("pytest") for line in environment.needed())
    assert any(line.startswith("pytest") for line in environment.needed(test=True))


def test_this_python_lacks_nothing_that_the_project_needs():
    assert environment.missing(environment.needed(test=True)) == []


def test_an_empty_python_names_what_it_lacks_without_a_traceback():
    bare = [sys.executable, "-S", "-m", "lib.base.environment"]  # -S: no site-packages
    result = subprocess.run(bare, cwd=environment.PROJECT.parent, text=True, capture_output=True)
    assert (result.returncode, result.stdout, result.stderr) == (1, "packaging\n", "")


def test_the_folder_of_torch_is_the_one_from_which_it_is_imported():
    result = subprocess.run([sys.executable, "-m", "lib.base.environment", "--torch"],
                            cwd=environment.PROJECT.parent, text=True, capture_output=True)
    assert result.stdout.strip() == str(metadata.distribution("torch").locate_file(""))
