"""Out of memory in a step of training: what to lower, and the largest batch that fits."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dtkd_edge.errors import NotHereError


def is_out_of_memory(error: BaseException) -> bool:
    """A device's allocator has a type for it, the CPU's only words."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)  # "can't" or "Cannot"
    )


def too_large(section: str, batch: int, accumulate: int, fits: Callable[[int], bool] | None) -> NotHereError:
    """The error of a step of `batch` clips that ran out of memory.

    section: of the recipe that its `batch_size` stands in, such as train. fits: whether a step of so many clips can be made; it
    is asked for half of them, a quarter and so on. None: it cannot be tried here.
    """
    size = batch
    found = False
    while fits is not None and size >= 4 and not found:
        size //= 2
        torch.cuda.empty_cache()  # does nothing where there is no GPU
        found = fits(size)
    wanted = f"{section}.batch_size"
    if found:
        times = -(-batch * accumulate // size)
        hint = f"{size} clips fit: --set {wanted}={size} --set {section}.accumulate={times} makes steps as large"
    else:
        hint = f"lower {wanted}, student.size or student.frames, or the size or frames of a teacher"
    if torch.cuda.is_available():
        hint += "; precision=bf16 halves what a clip takes"
    return NotHereError(f"{section}: not enough memory for a step of {batch} clips", hint)
