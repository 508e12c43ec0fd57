"""What a Python lacks of what pyproject.toml asks for: the first thing that ./reproduce.sh runs.

    python -m lib.base.environment [--test]        what is missing (with the packages of the tests)
    python -m lib.base.environment --torch         the folder of a torch that is new enough
    python -m lib.base.environment --extra NAME    what an extra of pyproject.toml consists of

The exit status is 1 if anything is missing. Nothing may be installed yet when this runs, so it
imports the standard library only, until it knows better.
"""

import importlib.util
import shlex
import sys
import tomllib
from importlib import metadata
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def needed(project: Path = PROJECT, test: bool = False) -> list[str]:
    """Return the requirement lines of a pyproject.toml, with those of its `test` extra if asked."""
    table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    return table["dependencies"] + (table["optional-dependencies"]["test"] if test else [])


def extra(name: str, project: Path = PROJECT) -> list[str]:
    """Return the requirement lines of an extra."""
    return tomllib.loads(project.read_text())["project"]["optional-dependencies"][name]


def pip_command(name: str) -> str:
    """Return the command that installs an extra into this Python."""
    return shlex.join([sys.executable, "-m", "pip", "install", *extra(name)])


def missing(requirements: list[str]) -> list[str]:
    """Return one phrase for each requirement that this Python does not meet."""
    try:
        from packaging.requirements import Requirement
    except ImportError:  # transformers and others need it, so more than this is missing
        return ["packaging"]
    modules: dict[str, list[str]] = {}
    for module, packages in metadata.packages_distributions().items():
        for package in packages:
            modules.setdefault(package, []).append(module)
    lacks = [_lack(Requirement(line), modules) for line in requirements]
    return [lack for lack in lacks if lack]


def _lack(requirement, modules: dict[str, list[str]]) -> str | None:
    try:
        package = metadata.distribution(requirement.name)
    except metadata.PackageNotFoundError:
        return requirement.name
    if not requirement.specifier.contains(package.version, prereleases=True):
        return f"{requirement.name}{requirement.specifier} (here: {package.version})"
    names = modules.get(package.metadata["Name"], [])
    if names and not any(importlib.util.find_spec(name) for name in names):
        return f"{requirement.name} (listed as installed, but cannot be imported)"
    return None


def main(arguments: list[str]) -> int:
    if "--extra" in arguments:
        print("\n".join(extra(arguments[-1])))
        return 0
    requirements = needed(test="--test" in arguments)
    if "--torch" in arguments:
        requirements = [line for line in requirements if line.startswith("torch")]
    lacks = missing(requirements)
    if lacks:
        print(", ".join(lacks))
        return 1
    if "--torch" in arguments:
        print(Path(importlib.util.find_spec("torch").origin).parents[1])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
