"""The code that the notebooks share. Each folder imports only from those before it in FOLDERS."""

import sys
from importlib.abc import MetaPathFinder

FOLDERS = ("base", "data", "world", "model", "unlearning", "evaluation", "figures", "running",
           "scale")
MOVED = {  # commands of before there were folders, and what replaces them
    "lib.dataset": "python -m lib.data",
    "lib.losses": "python -m lib.unlearning",
    "lib.costs": "./reproduce.sh --list",
    "lib.pipeline": "python -m lib.running.pipeline",
    "lib.environment": "python -m lib.base.environment",
    "lib.readme": "python -m lib.running.readme",
}


class _Moved(MetaPathFinder):
    """Says what replaces a module that is not where it was."""

    def find_spec(self, name, path=None, target=None):
        if name in MOVED:
            raise ModuleNotFoundError(f"There is no {name} any more; instead: {MOVED[name]}")
        return


sys.meta_path.append(_Moved())  # asked last, so only for what is not there
