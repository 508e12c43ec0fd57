"""The one way into lib.scale from outside of it: what only a large model or a cluster needs."""

from importlib import import_module
from types import ModuleType


def scale(name: str) -> ModuleType:
    """The module of lib.scale of this name, imported only when it is asked for."""
    return import_module(f"lib.scale.{name}")
