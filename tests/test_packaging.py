"""Files that say what the project is and needs: they agree with each other and with lib."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lib
from lib.base.environment import needed
from lib.base.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {canonicalize_name(name): version for name, version in re.findall(
    r"^([\w.-]+)==([\w.]+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)}
def tracked():
    """Return the files of the repository, or of the folder where there is no git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    names = [name for name in listed.stdout.split("\0") if name]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def test_every_package_of_lib_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert listed == ["lib", *(f"lib.{folder}" for folder in lib.FOLDERS)]


def test_every_other_file_of_lib_is_installed_with_its_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    files = [path.relative_to(ROOT) for path in tracked() if (ROOT / "lib") in path.parents
             and path.suffix != ".py"]
    assert files
    for path in files:
        globs = settings["package-data"].get(".".join(path.parent.parts), [])
        assert any(path.match(glob) for glob in globs), path


@pytest.mark.parametrize("line", needed(test=True))
def test_every_requirement_has_a_pin_in_its_range(line):
    requirement = Requirement(line)
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


def test_the_lock_holds_exactly_what_the_requirements_need():
    if any(canonicalize_name(name) in PINS and _version(name) != PINS[canonicalize_name(name)]
           for name in map(_name, needed(test=True))):
        pytest.skip("this environment was not installed from requirements.lock")
    assert sorted(PINS) == sorted(_closure(needed(test=True)))


def _name(line):
    return Requirement(line).name


def _version(name):
    return metadata.version(name).split("+")[0]


def _closure(lines):
    """Return the names of all packages that these requirements need in this environment."""
    extras, waiting = {}, [Requirement(line) for line in lines]
    while waiting:
        wanted = waiting.pop()
        known = extras.setdefault(canonicalize_name(wanted.name), set())
        fresh = {"", *wanted.extras} - known
        known |= fresh
        further = map(Requirement, metadata.requires(wanted.name) or []) if fresh else []
        waiting += [r for r in further if r.marker is None
                    or any(r.marker.evaluate({"extra": extra}) for extra in fresh)]
    return extras


def test_the_versions_that_were_promised_are_the_ones_in_the_files():
    assert PINS["torch"] == "2.13.0"
    assert {"torch>=2.11", "transformers>=5.17,<6"} <= set(PROJECT["dependencies"])
    assert PROJECT["requires-python"] == ">=3.11"


def test_the_lock_names_packages_and_versions_and_nothing_else():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert len([line for line in lines if not line.startswith("#")]) == len(PINS)


def test_conda_installs_the_lock_through_pip():
    recipe = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert recipe["name"] == PROJECT["name"]
    assert recipe["dependencies"][0] == "python=3.11"
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert recipe["dependencies"][-1] == {"pip": [x for x in lines if not x.startswith("#")]}


def test_a_checkout_with_windows_line_ends_has_scripts_that_bash_reads(tmp_path):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x", *words], check=True)

    git("init", "-q", tmp_path / "a")
    for name in (".gitattributes", "reproduce.sh", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / "a")
    git("-C", tmp_path / "a", "add", ".")
    git("-C", tmp_path / "a", "commit", "-qm", "as it is")
    git("-c", "core.autocrlf=true", "clone", "-q", tmp_path / "a", tmp_path / "b")
    for path in (ROOT / "reproduce.sh", ROOT / "requirements.lock"):
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()


def test_the_citation_prefers_the_paper_and_names_its_nine_authors():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Chen", "Deng", "Zheng", "Yan", "Liu", "Wu", "Jiang", "Liu", "Hu"]
    assert paper["title"].startswith("SafeEraser: Enhancing Safety in Multimodal")
    assert (paper["year"], paper["start"], paper["end"]) == (2025, 14194, 14224)
    assert citation["version"] == PROJECT["version"]
    assert citation["authors"] == PROJECT["authors"]


def test_the_licence_is_mit_in_every_file_that_names_one():
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n")
    assert PROJECT["license"] == "MIT"
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"] == "MIT"


@pytest.mark.parametrize("script", ["reproduce.sh", ".ci/run"])
def test_the_scripts_can_be_run_and_read_by_bash(script):
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)


def test_the_style_check_finds_nothing():
    result = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "lib", "tests"],
                            cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_what_a_run_writes_is_not_tracked():
    ignored = subprocess.run(["git", "check-ignore", "runs/x", ".venv/x", "lib/__pycache__/x"],
                             cwd=ROOT, capture_output=True, text=True)
    if ignored.returncode == 128:
        pytest.skip("not a git repository")
    assert len(ignored.stdout.split()) == 3


def test_no_tracked_file_names_where_packages_come_from_or_is_large():
    hosts = re.compile(r"pypi\.o" r"rg|pythonh" r"osted|--index" r"-url|--extra-index" r"-url")
    for path in tracked():
        assert path.stat().st_size < 2_000_000, path
        assert not hosts.search(path.read_text(encoding="utf-8", errors="ignore")), path
