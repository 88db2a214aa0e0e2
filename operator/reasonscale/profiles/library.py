"""Profiles by name: those that come with the project, and those that a user brings."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Final

from reasonscale.api import constants as c
from reasonscale.api.resolve import Resolved
from reasonscale.api.validate import InvalidResource, Problem
from reasonscale.profiles.prior import prior_of
from reasonscale.profiles.profile import BadProfile, Profile, read
from reasonscale.scaling.types import StepTime

FIELD: Final = "spec.accelerator.profile"
_SHIPPED: Final = Path(str(resources.files("reasonscale.profiles"))) / "shipped"
_ENDING: Final = ".json"


class NoSuchProfile(BadProfile):
    """A name that nothing has; the message lists those there are."""


def shipped() -> list[str]:
    """Return the names of the profiles that come with the project."""
    return _names(_SHIPPED)


def load(name: str) -> Profile:
    """Return a shipped profile by name, or one from a file."""
    if name in shipped():
        return read(_SHIPPED / f"{name}{_ENDING}")
    if Path(name).is_file():
        return read(Path(name))
    raise NoSuchProfile(f"profile {name!r}: no such name or file; there are {', '.join(shipped())}")


def is_path(name: str) -> bool:
    """Tell whether a resource means a file by it, which a cluster does not have."""
    return "/" in name or name.endswith(_ENDING)


@dataclass(frozen=True, slots=True)
class Library:
    """Where a resource's profile is looked for: NAME.json in a folder of the user's, then what is shipped.

    `beside`: the folder is that of the resource's own file, from which a path may lead to any other; in a cluster a name
    leads nowhere else.
    """

    folder: Path | None = None
    beside: bool = False

    def find(self, name: str) -> Profile:
        """Return a profile as its file stands now; NoSuchProfile, or BadProfile where the file is not right."""
        for path in self._places(name):
            try:
                stat = path.stat()
            except OSError:
                continue
            return _read(path, (stat.st_mtime_ns, stat.st_ino, stat.st_size))
        raise NoSuchProfile(self._unknown(name))

    def _places(self, name: str) -> Iterator[Path]:
        if is_path(name):
            if self.beside and self.folder is not None:
                yield self.folder / name
            return
        if self.folder is not None:
            yield self.folder / f"{name}{_ENDING}"
        yield _SHIPPED / f"{name}{_ENDING}"

    def _unknown(self, name: str) -> str:
        # Beside a resource lie other files of that ending.
        own = _names(self.folder) if self.folder is not None and not self.beside else []
        known = sorted({*own, *shipped()})
        if self.beside:
            tried = self.folder / (name if is_path(name) else f"{name}{_ENDING}") if self.folder else name
            said = f"was {name!r}; no profile of that name is shipped, and there is no file {tried}"
            if is_path(name):
                said = f"was {name!r}; there is no file {tried}"
        elif is_path(name):
            said = (
                f"was {name!r}; a cluster has no such file: write the name that the chart's value `profiles` gives it"
            )
        else:
            said = (
                f"was {name!r}; no profile has that name, neither a shipped one nor one of the chart's value `profiles`"
            )
        near = difflib.get_close_matches(Path(name).name.removesuffix(_ENDING), known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{said}; {hint}there are {', '.join(known)}"


def _names(folder: Path) -> list[str]:
    return sorted(entry.stem for entry in folder.glob(f"*{_ENDING}"))


@lru_cache(maxsize=256)
def _read(path: Path, version: tuple[int, int, int]) -> Profile:
    """Read a file once for each version of it: the operator asks for every model every five seconds."""
    return read(path)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What came of the profile that a resource names. `profile` None: the scaler starts without, and the message says why."""

    profile: Profile | None
    reason: str
    message: str

    @property
    def note(self) -> str | None:
        """Return what a user should know of it before it runs."""
        if self.reason == c.PROFILE_UNKNOWN:
            return f"{FIELD}: {self.message}; in a cluster the chart's value `profiles` must have it, or the scaler starts without"
        return f"{FIELD}: {self.message}" if self.reason == c.PROFILE_DIFFERS else None

    @property
    def prior(self) -> StepTime | None:
        """Return what the scaler starts from."""
        return None if self.profile is None else prior_of(self.profile)


def chosen(resolved: Resolved, library: Library) -> Chosen | None:
    """Return the profile that a resource names, with what is to be said of it; None where it names none."""
    name = resolved.profile
    if name is None:
        return None
    try:
        found = library.find(name)
    except NoSuchProfile as error:
        return Chosen(None, c.PROFILE_UNKNOWN, str(error))
    except BadProfile as error:
        return Chosen(None, c.PROFILE_UNUSABLE, f"was {name!r}; {error}")
    differs = list(_differences(found, resolved))
    if differs:
        said = f"{name} was measured with {' and '.join(differs)}; the scaler starts from its times all the same"
        return Chosen(found, c.PROFILE_DIFFERS, said)
    return Chosen(found, c.PROFILE_LOADED, f"the scaler starts from the step times of {name}")


def chosen_beside(resolved: Resolved, folder: Path, *, cluster: bool = False) -> Chosen | None:
    """Return the same for a resource in a file of that folder; InvalidResource where what it names can't be used.

    `cluster`: it may be for one, whose operator knows names that are not known here.
    """
    found = chosen(resolved, Library(folder, beside=True))
    if found is None or (cluster and found.reason == c.PROFILE_UNKNOWN and not is_path(resolved.profile or "")):
        return found
    if found.profile is None:
        raise InvalidResource([Problem(FIELD, found.message)])
    return found


def _differences(profile: Profile, resolved: Resolved) -> Iterator[str]:
    """Yield what the profile was measured with and this model has otherwise."""
    if profile.gpus_per_replica != resolved.gpus_per_replica:
        many = "s" * (profile.gpus_per_replica > 1)
        yield f"{profile.gpus_per_replica} GPU{many} a replica (this model takes {resolved.gpus_per_replica})"
    if profile.max_num_batched_tokens != resolved.max_num_batched_tokens:
        yield f"max_num_batched_tokens {profile.max_num_batched_tokens} (this engine has {resolved.max_num_batched_tokens})"
