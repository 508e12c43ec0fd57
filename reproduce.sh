#!/usr/bin/env bash
# Makes every table and figure of the companion, from nothing.
#
#   ./reproduce.sh         everything at the laptop profile; no GPU, no download of data or models
#     --profile NAME       smoke (3 minutes, too little to show anything), laptop, or with a GPU
#                          llava-7b, llava-13b: the paper's models, with SafeEraser's own data
#     --model PLACE        for these: a LLaVA-1.5, as a local folder or a hub name
#     --data PLACE         for these: SafeEraser's dataset, as a local folder or a hub name
#     --judge NAME         for these: rules, local:MODEL, server:MODEL or guard:MODEL+JUDGE
#     --labelled FILE      for these: answers that a person has labelled, to correct the judge's rates
#     --benchmarks NAMES   for these: all, or some of the benchmarks behind specificity, with commas
#                          between; none unless given (docs/full-scale.md)
#     --official-quirks    for these: also what the official code does and the paper does not say
#     --only NN[,NN]       these chapters, with what they need
#     --jobs N             so many runs side by side
#     --engine ray         the runs as tasks of Ray (an extra) instead of processes here: of a Ray
#       [--address A]      on this machine, or of the cluster at A: HOST:PORT of its head, or auto
#     --list               show the plan, what it costs and what is there already; make nothing. With
#                          a GPU it measures first what a step and an answer take: about a minute
#     --gpu NAME           with --list: the hours that docs/full-scale.md has for this GPU, such as
#                          h100, instead of those measured here
#     --fresh              remove the profile's results first, but not what judges were paid for
#     --stale                make again what other code than is here has made, and what follows
#     --vouch                make one result of each kind again, compare the bits, and vouch for
#                            the others of its kind where they are equal
#     --publish            after a full run, copy its notebooks to notebooks/, figures to figures/
#   ./reproduce.sh --test  run the tests instead
#
# A run that was stopped, by whatever, goes on where it was. The packages come from the active
# environment (conda, venv, plain python3) if it has all that pyproject.toml asks for; otherwise
# from .venv beside this file, which is made from requirements.lock the first time.
set -euo pipefail
export SAFEERASER_CALLED_FROM=$PWD  # --model and --data may be relative to it
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"
# Settings of the user's that would make a useless .venv, or install past it; pip's flags below are
# for those that stand in its configuration file.
unset PYTHONSAFEPATH PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT PIP_DRY_RUN
stamp=.venv/.requirements.lock  # a copy of what was installed, written last
place=.venv/.place  # the folder in which its programs were told where they are

say() { printf '%s\n' "$*" >&2; }
stop() { say "$*"; exit 1; }

find_python() {
  for python in python3 python3.14 python3.13 python3.12 python3.11; do
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return
  done
  stop "Python 3.11 or newer is needed, and neither python3 nor python3.11 to python3.14 is one:" \
       "install it, or activate an environment that has it, and run this again."
}

make_venv() {
  "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    stop "$(command -v "$python") cannot make virtual environments (no venv or ensurepip module)." \
         "On Debian and Ubuntu: apt install python3-venv. Then run this again."
  say "Making .venv and installing requirements.lock into it: once, about 2 minutes."
  mkdir -p .venv && : > "$stamp"
  rm -rf .venv/* "$place"  # not the stamp, a dotfile: should this be interrupted, the next call knows
  "$python" -m venv .venv
  local lock=requirements.lock torch
  if torch=$("$python" -m lib.base.environment --torch); then  # perhaps one for this machine's GPU
    say "The torch of the active environment is used: $torch"
    printf '%s\n' "$torch" > "$(echo .venv/lib/python3*/site-packages)/torch.pth"
    lock=.venv/requirements-without-torch.lock
    grep -v '^torch==' requirements.lock > "$lock"
  fi
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --no-user --target "" --root / --prefix "$PWD/.venv" -r "$lock" ||
    stop "The packages could not be installed (see above). Run this again to try once more."
  cp requirements.lock "$stamp"
}

# What is in .venv/bin begins with the path of its Python, which is another one after this folder was
# moved: from here on the programs take the Python beside them, and `activate` is written again.
mend_venv() {
  printf '%s\n' "$PWD" | cmp -s - "$place" && return
  .venv/bin/python -m venv --without-pip .venv && .venv/bin/python - <<'END' &&
import pathlib, re
first = re.compile(rb"\A#!(/bin/sh\n'''exec' .*\n' '''|.*python[\d.]*)\n")
beside = b"""#!/bin/sh
'''exec' "$(dirname -- "$(readlink -f -- "$0")")/python" "$0" "$@"
' '''
"""
for program in pathlib.Path(".venv/bin").iterdir():
    if program.is_file() and not program.is_symlink():
        program.write_bytes(first.sub(lambda _: beside, program.read_bytes()))
END
    printf '%s\n' "$PWD" > "$place"
}

for option in "$@"; do
  case $option in -h|--help) sed -n '2,/^set/s/^# \{0,1\}//p' reproduce.sh; exit;; esac
done
trap 'stop "Stopped. Run this again to go on."' INT

find_python
if ! missing=$("$python" -m lib.base.environment "$@"); then
  active=$(command -v "$python")
  if [[ -e .venv && ! -e $stamp ]]; then
    .venv/bin/python -m lib.base.environment "$@" >/dev/null ||
      stop "The active environment ($active) lacks $missing, and the .venv here was not made by" \
           "this script: activate it and pip install -r requirements.lock, or remove it."
  elif ! cmp -s requirements.lock "$stamp" ||
       ! .venv/bin/python -m lib.base.environment "$@" >/dev/null; then
    say "The active environment ($active) lacks: $missing."
    make_venv
  fi
  python=.venv/bin/python
  [[ ! -e $stamp ]] || mend_venv ||
    say "The programs in .venv/bin may be broken: say .venv/bin/python -m jupyterlab, and the like."
fi
exec "$python" -m lib.running.pipeline "$@"
