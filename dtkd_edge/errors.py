"""What can go wrong, as one tree; the command line turns each branch into an exit code.

    DtkdEdgeError              1  a defect of ours, when nothing below fits
    ├── UsageError             2  wrong use of a command or a function
    ├── InputError             3  bad input from the user
    │   ├── RecipeError            a recipe or a --set override
    │   ├── DataError              a catalogue, a folder, too many broken clips
    │   │   └── VideoError         one file that does not decode
    │   ├── CheckpointError        weights that do not fit
    │   └── ArtifactError          an exported folder that is changed, half-written or unknown
    ├── NotHereError           4  something needed is not on this machine
    │   ├── MissingDependency      a Python library or a system library
    │   └── MissingDevice          an accelerator, a camera, a host
    └── VerificationError      5  a result that was produced but is not right

Every error carries what is wrong with which file or option (`message`) and what to do (`hint`): one line each.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DtkdEdgeError(Exception):
    """Base of all errors that dtkd-edge raises on purpose. `message` and `hint` are one line each."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[type[DtkdEdgeError], tuple[str, str]]:  # crosses process borders (of a training)
        return type(self), (self.message, self.hint)


class UsageError(DtkdEdgeError):
    exit_code = 2


class InputError(DtkdEdgeError):
    exit_code = 3


class RecipeError(InputError): ...


class DataError(InputError): ...


class VideoError(DataError): ...


class CheckpointError(InputError): ...


class ArtifactError(InputError): ...


class NotHereError(DtkdEdgeError):
    exit_code = 4


class MissingDependency(NotHereError):
    """A library is missing. Give the extra that brings it, and the hint is the exact install line."""

    def __init__(self, message: str, hint: str = "", *, extra: str = "") -> None:
        super().__init__(message, hint or (f'pip install "dtkd-edge[{extra}]"' if extra else ""))


class MissingDevice(NotHereError): ...


class VerificationError(DtkdEdgeError):
    exit_code = 5


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """How a hint begins where a known name is near: "did you mean student? ", else "". prefix: what stands before each name."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {prefix}{near[0]}? " if near else ""
