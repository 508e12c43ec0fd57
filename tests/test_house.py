"""The house: folders that tell the story, arrows that point one way, files that can be read."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter

import pytest

import lib
from lib.base.paths import ROOT

FILES = sorted((ROOT / "lib").rglob("*.py"))
WORDS = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
         tokenize.ENDMARKER)
MOST_CODE = {"unlearning": 400}  # lines, without blanks, comments and docstrings
MOST_LINES = 300  # of a file
LONGEST = 40  # lines of a function's code


def folder_of(path):
    parts = path.relative_to(ROOT / "lib").parts
    return parts[0] if len(parts) > 1 else ""


def name_of(path):
    return path.relative_to(ROOT / "lib").as_posix()


def code_lines(path):
    """The numbers of the lines that hold code."""
    text = path.read_text(encoding="utf-8")
    found = {line for token in tokenize.generate_tokens(io.StringIO(text).readline)
             if token.type not in WORDS for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if documented and ast.get_docstring(node):
            found -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return found


def folders_imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and re.match(r"lib\b", node.module or ""):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("lib.")]
        yield from (name.split(".")[1] for name in names)


def test_lib_has_the_folders_that_it_names_and_no_loose_files():
    assert sorted({folder_of(path) for path in FILES} - {""}) == sorted(lib.FOLDERS)
    assert [path.name for path in FILES if not folder_of(path)] == ["__init__.py"]


@pytest.mark.parametrize("path", [path for path in FILES if folder_of(path)], ids=name_of)
def test_a_folder_imports_only_from_those_above_it(path):
    above = lib.FOLDERS[: lib.FOLDERS.index(folder_of(path)) + 1]
    assert set(folders_imported(path)) <= set(above)


def test_only_the_lookup_by_name_knows_what_a_large_model_needs():
    naming = {name_of(path) for path in FILES if folder_of(path) != "scale"
              and re.search(r"lib\.scale\.\{|import_module", path.read_text(encoding="utf-8"))}
    assert naming == {"base/extras.py"}


def test_what_is_looked_up_in_scale_is_there():
    asked = {name for path in FILES for name in
             re.findall(r"""\bscale\("(\w+)"\)""", path.read_text(encoding="utf-8"))}
    assert asked
    assert asked <= {path.stem for path in FILES if folder_of(path) == "scale"}


def test_the_paper_is_read_over_coffee_and_no_file_or_function_is_too_long():
    sizes, long = Counter(), []
    for path in FILES:
        lines, text = code_lines(path), path.read_text(encoding="utf-8")
        sizes[folder_of(path)] += len(lines)
        if len(text.splitlines()) > MOST_LINES:
            long.append(f"{name_of(path)}: {len(text.splitlines())} lines")
        long += [f"{name_of(path)}: {node.name}" for node in ast.walk(ast.parse(text))
                 if isinstance(node, ast.FunctionDef)
                 and len(lines & set(range(node.lineno, node.end_lineno + 1))) > LONGEST]
    print("\n".join(f"{sizes[folder]:6} lines of code in {folder}" for folder in lib.FOLDERS))
    assert not long
    assert all(sizes[folder] <= most for folder, most in MOST_CODE.items()), sizes


@pytest.mark.parametrize(("old", "new"), lib.MOVED.items())
def test_a_command_of_before_says_what_replaces_it(old, new):
    run = subprocess.run([sys.executable, "-m", old], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode != 0
    assert f"instead: {new}" in run.stderr
