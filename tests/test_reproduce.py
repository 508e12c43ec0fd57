"""`reproduce.sh` and `.ci/run`: how they find or make an environment, without any network.

The repositories here are small copies whose lock holds two wheels made on the spot. The Python that
is active in them is a bare virtual environment. At the end the real thing runs at `smoke`.
"""

import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from lib.base.paths import ROOT
from lib.running import chapters

STUB = """
import json, os, sys
import toy
print(json.dumps({"python": sys.executable, "options": sys.argv[1:], "folder": os.getcwd(),
                  "toy": toy.__file__}))
"""
TOOLS = ("bash", "dirname", "readlink", "sed", "cmp", "grep", "mkdir", "rm", "cp")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """A folder with wheels of two toys, of a torch, and of the real `packaging`."""
    folder = tmp_path_factory.mktemp("wheels")
    for name, version in [("toy", "1.0"), ("toy", "2.0"), ("torch", "2.13.0")]:
        wheel(folder, name, version, {f"{name}/__init__.py": b""})
    package = metadata.distribution("packaging")
    sources = {str(file): file.locate().read_bytes() for file in package.files
               if file.suffix == ".py" and file.parts[0] == "packaging"}
    wheel(folder, "packaging", package.version, sources)
    return folder


def wheel(folder, name, version, files):
    info = f"{name}-{version}.dist-info"
    files = {**files, f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\n"
             f"Version: {version}\n".encode(),
             f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    record = [f"{path},sha256={digest(data)},{len(data)}" for path, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,\n"]).encode()
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)


def digest(data):
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def make_repository(folder):
    for part in ("base", "running"):
        (folder / "lib" / part).mkdir(parents=True)
    shutil.copy(ROOT / "reproduce.sh", folder)
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    for name in ("__init__.py", "base/__init__.py", "base/environment.py"):
        shutil.copy(ROOT / "lib" / name, folder / "lib" / name)
    (folder / "lib" / "running" / "pipeline.py").write_text(STUB)
    (folder / "pyproject.toml").write_text(
        '[project]\ndependencies = ["toy>=1"]\n[project.optional-dependencies]\ntest = []\n'
        'ray = ["toy>=1"]\n')
    (folder / "requirements.lock").write_text(
        f"# a comment\npackaging=={metadata.version('packaging')}\ntoy==1.0\n")
    return folder


@pytest.fixture
def repository(tmp_path):
    return make_repository(tmp_path / "a folder with spaces")


@pytest.fixture(scope="module")
def installed_once(tmp_path_factory, wheels):
    """A repository whose .venv was made by its first call, and that call."""
    root = make_repository(tmp_path_factory.mktemp("installed") / "a folder")
    bare = root.parent / "bare"
    venv.create(bare)
    return root, call(root, bare, wheels, "--only", "04,05")


@pytest.fixture
def installed(installed_once, tmp_path):
    """A copy of that repository: its .venv works where it is."""
    return Path(shutil.copytree(installed_once[0], tmp_path / "a copy", symlinks=True))


@pytest.fixture
def bare(tmp_path):
    """A virtual environment with nothing in it."""
    venv.create(tmp_path / "bare")
    return tmp_path / "bare"


def site(environment):
    return next((environment / "lib").glob("python3*")) / "site-packages"


def fill(environment, wheels, *names):
    """Install wheels into an environment by unpacking them."""
    for name in names:
        with zipfile.ZipFile(next(wheels.glob(f"{name}-*.whl"))) as archive:
            archive.extractall(site(environment))


def variables(active, wheels, **more):
    own = {name: value for name, value in os.environ.items()
           if not name.startswith(("PIP_", "VIRTUAL_ENV", "CONDA", "PYTHON"))}
    return {**own, "PATH": f"{active / 'bin'}:{os.environ['PATH']}", "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull, **more}


def call(root, active, wheels, *options, script="reproduce.sh", **more):
    return subprocess.run([str(root / script), *options], cwd="/", text=True, capture_output=True,
                          env=variables(active, wheels, **more), timeout=120)


def ran(result):
    """Return what the stub of the pipeline saw."""
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_an_active_environment_that_has_everything_is_used(repository, bare, wheels):
    fill(bare, wheels, "toy", "packaging")
    saw = ran(call(repository, bare, wheels))
    assert saw["python"] == str(bare / "bin" / "python3")
    assert not (repository / ".venv").exists()


def test_otherwise_a_venv_is_made_and_what_the_active_one_lacks_is_named(installed_once):
    root, result = installed_once
    assert ran(result)["python"] == str(root / ".venv" / "bin" / "python")
    assert "bare/bin/python3) lacks: packaging." in result.stderr
    assert "Making .venv" in result.stderr


def test_options_and_folder_reach_the_pipeline_unchanged(installed_once):
    root, result = installed_once
    assert ran(result)["options"] == ["--only", "04,05"]
    assert ran(result)["folder"] == str(root)


def test_the_venv_is_used_again_without_a_word(installed, bare, wheels):
    result = call(installed, bare, wheels)
    assert ran(result)["python"] == str(installed / ".venv" / "bin" / "python")
    assert result.stderr == ""


def test_the_programs_of_a_venv_go_on_working_after_its_folder_was_moved(installed, bare, wheels):
    programs = installed / ".venv" / "bin"
    headers = {"plain": f"#!{installed}/x/python3.11\n",
               "long": f"#!/bin/sh\n'''exec' \"{installed}/x/python\" \"$0\" \"$@\"\n' '''\n"}
    for name, header in headers.items():
        (programs / name).write_text(f"{header}import sys\nprint(sys.prefix, *sys.argv[1:])\n")
        (programs / name).chmod(0o755)
    for name in ("elsewhere", "a second ü"):
        root = installed.rename(installed.with_name(name))
        assert call(root, bare, wheels).stderr == ""
        for program in headers:
            said = subprocess.check_output([root / ".venv/bin" / program, "a b"], text=True)
            assert said == f"{root}/.venv a b\n"
        active = subprocess.check_output(
            ["bash", "-c", '. .venv/bin/activate && printf %s "$VIRTUAL_ENV"'], cwd=root, text=True)
        assert active == str(root / ".venv")
        installed = root


def test_it_can_be_called_through_a_symbolic_link_from_anywhere(installed, bare, wheels, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "go").symlink_to(installed / "reproduce.sh")
    assert ran(call(tmp_path / "links", bare, wheels, script="go"))["folder"] == str(installed)


def change_lock(root):
    lock = root / "requirements.lock"
    lock.write_text(lock.read_text().replace("toy==1.0", "toy==2.0"))


@pytest.mark.parametrize(("reason", "change"), [
    ("the lock changed", change_lock),
    ("a package is gone", lambda root: shutil.rmtree(site(root / ".venv") / "toy")),
])
def test_a_venv_that_no_longer_fits_is_made_again(installed, bare, wheels, reason, change):
    change(installed)
    (installed / ".venv" / "left over").touch()
    result = call(installed, bare, wheels)
    assert Path(ran(result)["toy"]).exists(), reason
    assert "Making .venv" in result.stderr
    assert not (installed / ".venv" / "left over").exists()
    assert call(installed, bare, wheels).stderr == ""


def test_an_install_that_failed_says_what_to_do(repository, bare, tmp_path):
    failed = call(repository, bare, tmp_path / "no wheels here")
    assert failed.returncode == 1
    assert failed.stderr.endswith("Run this again to try once more.\n")


@pytest.mark.parametrize("settings", [
    {"PYTHONSAFEPATH": "1", "PIP_USER": "1", "PIP_TARGET": "elsewhere"},
    {"PIP_CONFIG_FILE": "user = true"}, {"PIP_CONFIG_FILE": "target = elsewhere"}])
def test_a_user_s_settings_of_python_and_pip_spoil_no_venv(repository, bare, wheels, tmp_path,
                                                           settings):
    if "PIP_CONFIG_FILE" in settings:
        (tmp_path / "pip.conf").write_text(f"[install]\n{settings['PIP_CONFIG_FILE']}\n")
        settings = {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}
    saw = ran(call(repository, bare, wheels, **settings))
    assert saw["python"] == str(repository / ".venv" / "bin" / "python")
    assert Path(saw["toy"]).is_relative_to(repository / ".venv")


def test_an_install_that_was_killed_is_noticed_and_finished_by_the_next_call(
        repository, bare, wheels):
    process = subprocess.Popen([repository / "reproduce.sh"], env=variables(bare, wheels),
                               stderr=subprocess.DEVNULL, start_new_session=True)
    end = time.monotonic() + 60
    while not (repository / ".venv" / "bin").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    result = call(repository, bare, wheels)
    assert "Making .venv" in result.stderr
    assert ran(result)["python"] == str(repository / ".venv" / "bin" / "python")
    assert call(repository, bare, wheels).stderr == ""


def test_a_venv_that_the_user_made_is_used_when_it_is_complete(repository, bare, wheels):
    venv.create(repository / ".venv", symlinks=True)
    fill(repository / ".venv", wheels, "toy", "packaging")
    assert ran(call(repository, bare, wheels))["python"] == str(repository / ".venv/bin/python")


def test_a_venv_that_the_user_made_is_never_removed(repository, bare, wheels):
    venv.create(repository / ".venv", symlinks=True)
    result = call(repository, bare, wheels)
    assert result.returncode == 1
    assert "was not made by this script: activate it and pip install" in result.stderr
    assert (repository / ".venv" / "pyvenv.cfg").exists()


def test_a_torch_that_is_new_enough_is_kept_when_other_packages_are_missing(
        repository, bare, wheels):
    fill(bare, wheels, "torch", "packaging")
    site_of_torch = site(bare)
    for file in site_of_torch.glob("torch-*/METADATA"):
        file.write_text(file.read_text().replace("2.13.0", "2.11.0+cu130"))
    lock = repository / "requirements.lock"
    lock.write_text(lock.read_text() + "torch==2.13.0\n")
    project = repository / "pyproject.toml"
    project.write_text(project.read_text().replace('"toy>=1"', '"toy>=1", "torch>=2.11"'))
    (repository / "lib" / "running" / "pipeline.py").write_text(
        "import toy, torch; print(torch.__file__)")
    result = call(repository, bare, wheels)
    assert result.stdout.strip() == str(site_of_torch / "torch" / "__init__.py"), result.stderr
    assert f"The torch of the active environment is used: {site_of_torch}" in result.stderr
    assert call(repository, bare, wheels).stderr == ""


@pytest.fixture
def tools(tmp_path):
    """A folder for PATH with what the script needs, but no Python."""
    folder = tmp_path / "tools" / "bin"
    folder.mkdir(parents=True)
    for name in TOOLS:
        (folder / name).symlink_to(shutil.which(name))
    return folder


def test_without_a_python_that_is_new_enough_it_says_which_is_needed(repository, tools, wheels):
    (tools / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tools / "python3").chmod(0o755)
    result = call(repository, tools.parent, wheels, PATH=str(tools))
    assert result.returncode == 1
    assert "Python 3.11 or newer is needed" in result.stderr


def test_a_newer_python_of_another_name_is_found(installed, tools, wheels):
    (tools / "python3.12").symlink_to(sys.executable)
    assert ran(call(installed, tools.parent, wheels, PATH=str(tools)))["folder"] == str(installed)


def test_a_python_without_venv_is_answered_with_what_to_install(repository, tools, wheels):
    (tools / "python3").write_text(f"""#!/bin/sh
case "$*" in *ensurepip*) exit 1;; esac
exec "{sys.executable}" -S "$@"
""")
    (tools / "python3").chmod(0o755)
    result = call(repository, tools.parent, wheels, PATH=str(tools))
    assert result.returncode == 1
    assert "apt install python3-venv" in result.stderr
    assert not (repository / ".venv").exists()


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_needs_no_environment(repository, tools, wheels, option):
    result = call(repository, tools.parent, wheels, "--list", option, PATH=str(tools))
    assert result.returncode == 0
    assert result.stdout.startswith("Makes every table and figure")
    for known in ("--profile", "--only", "--jobs", "--list", "--fresh", "--publish", "--test"):
        assert known in result.stdout
    assert "#" not in result.stdout


def test_ci_leaves_the_active_environment_and_asks_for_the_tests(installed, bare, wheels):
    fill(bare, wheels, "toy", "packaging")
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        result = call(installed, bare, wheels, script=".ci/run", **{name: str(bare)})
        assert ran(result)["python"] == str(installed / ".venv" / "bin" / "python")
        assert ran(result)["options"] == ["--test"]


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """The real repository's chapters at the smoke profile: where its results are, and the call."""
    runs = tmp_path_factory.mktemp("smoke")
    return runs / "smoke", reproduce(runs)


def reproduce(runs):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # this Python is the active one
    return subprocess.run([ROOT / "reproduce.sh", "--profile", "smoke"], cwd="/", text=True,
                          capture_output=True, timeout=900,
                          env={**os.environ, "PATH": path, "SAFEERASER_RUNS": str(runs)})


def test_every_notebook_runs_at_the_smoke_profile(smoke):
    results, call = smoke
    assert call.returncode == 0, call.stdout + call.stderr
    executed = sorted(path.name for path in (results / "notebooks").glob("*.ipynb"))
    assert executed == [path.name for path in chapters.find()]


def named_figures():
    return [name for path in chapters.find() for name in chapters.figure_names(chapters.read(path))]


def test_every_figure_that_a_notebook_names_is_there_with_its_table_and_alt_text(smoke):
    figures = smoke[0] / "figures"
    named = named_figures()
    assert len(named) == len(set(named)) >= 10
    texts = json.loads((figures / "alt.json").read_text())
    for name in named:
        assert all((figures / f"{name}.{kind}").stat().st_size for kind in ("png", "svg", "csv"))
        assert len(texts[name].split()) > 3, name


def test_every_figure_that_is_there_is_named_by_a_notebook(smoke):
    drawn = {path.stem for path in (smoke[0] / "figures").glob("*.png")}
    assert drawn == set(named_figures())


def test_a_second_call_of_the_real_thing_finds_nothing_to_do_within_a_minute(smoke):
    results, _ = smoke
    began = time.monotonic()
    again = reproduce(results.parent)
    assert again.returncode == 0, again.stderr
    assert "Nothing to do." in again.stdout
    assert time.monotonic() - began < 60
