"""Profiles by name: those that come with the project, and those that a user brings."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Final

from reasonscale.profiles.profile import BadProfile, Profile, read

_SHIPPED: Final = Path(str(resources.files("reasonscale.profiles"))) / "shipped"
_ENDING: Final = ".json"


def shipped() -> list[str]:
    """Return the names of the profiles that come with the project."""
    return sorted(entry.stem for entry in _SHIPPED.glob(f"*{_ENDING}"))


def load(name: str) -> Profile:
    """Return a shipped profile by name, or one from a file."""
    if name in shipped():
        return read(_SHIPPED / f"{name}{_ENDING}")
    if Path(name).is_file():
        return read(Path(name))
    raise BadProfile(f"profile {name!r}: no such name or file; there are {', '.join(shipped())}")
