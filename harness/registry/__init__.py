"""Names to what is registered under them, foreign code among it."""

from harness.registry.registry import BrokenCode, Registry, first_line, load_foreign
from harness.registry.settings import settings_kept

__all__ = ["BrokenCode", "Registry", "first_line", "load_foreign", "settings_kept"]
