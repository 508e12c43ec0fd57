"""The code that the notebooks share. Each folder imports only from those before it in FOLDERS."""

import sys
from importlib.abc import MetaPathFinder

FOLDERS = ("base", "data", "world", "model", "unlearning", "evaluation", "figures", "running",
           "scale")
MOVED = {  # commands of before there were folders
    "lib.dataset": "lib.data",
    "lib.losses": "lib.unlearning",
    "lib.costs": "lib.scale.estimate",
    "lib.pipeline": "lib.running.pipeline",
    "lib.environment": "lib.base.environment",
    "lib.readme": "lib.running.readme",
}


class _Moved(MetaPathFinder):
    """Says what replaces a module that is not where it was."""

    def find_spec(self, name, path=None, target=None):
        if name in MOVED:
            raise ModuleNotFoundError(f"{name} is {MOVED[name]} now: python -m {MOVED[name]}")
        return


sys.meta_path.append(_Moved())  # asked last, so only for what is not there
