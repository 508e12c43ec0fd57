"""What Python imports first where PYTHONPATH names this folder: lib then knows tiny-real."""

from lib.running import profiles
from tests.tiny_profiles import TINY_REAL

profiles.PROFILES[TINY_REAL.name] = TINY_REAL
