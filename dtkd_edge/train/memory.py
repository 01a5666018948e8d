"""The memory of a training: kept between steps; and where it is not enough, what to lower, the largest batch that a step fits,
and smaller parts where the size is not the recipe's."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dtkd_edge.errors import NotHereError

PROBES = 3  # steps tried between a size that fits and one that does not
_THRESHOLDS = (2**30, 2**25)  # bytes; older glibc takes no more than 32 MiB


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for what it allocates next. False where the C library cannot be told so.

    glibc hands large freed blocks back to the kernel. A training step on a CPU frees and allocates the same hundreds of
    megabytes again and again, and each time the kernel has to clear every page anew: a third of the step of a light CNN.
    """
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of <malloc.h>
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; musl and macOS have none
    if mallopt is None or not any(mallopt(mmap_threshold, size) for size in _THRESHOLDS):
        return False  # and not the other one alone, which would fix this one at 128 KiB, where glibc raises it as it learns
    return bool(mallopt(trim_threshold, _THRESHOLDS[0]))


def is_out_of_memory(error: BaseException) -> bool:
    """A device's allocator has a type for it, the CPU's only words."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)  # "can't" or "Cannot"
    )


@contextmanager
def memory_errors(what: str, hint: str = "lower the batch sizes, or take smaller networks") -> Iterator[None]:
    """NotHereError, in one line, where the memory is not enough for `what`."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise NotHereError(f"{what}: not enough memory: {str(error).splitlines()[0][:200]}", hint) from error


class InParts:
    """A function of frames `[B, …]` that returns `{name: [B, …]}`, called on as many of them at a time as the memory allows: on
    all, else on half, a quarter and so on, from then on too. For calls without gradients, where it changes no result."""

    def __init__(self, call: Callable[[Tensor], dict[str, Tensor]], what: str) -> None:
        self.call, self.what = call, what
        self.size: int | None = None

    def __call__(self, frames: Tensor) -> dict[str, Tensor]:
        while (result := self._try(frames)) is None:  # the error is gone by now, and what its frames held
            count = min(self.size or len(frames), len(frames))
            if count < 2:
                raise NotHereError(f"{self.what}: not enough memory for a single clip", "take a smaller network, size or frames")
            self.size = count // 2
            torch.cuda.empty_cache()  # does nothing where there is no GPU
        return result

    def _try(self, frames: Tensor) -> dict[str, Tensor] | None:
        try:
            parts = [self.call(part) for part in frames.split(self.size or len(frames))]
            if len(parts) == 1:
                return parts[0]
            return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None


def largest_that_fits(batch: int, fits: Callable[[int], bool]) -> int | None:
    """Of a batch that does not fit: halved until it does, then a few sizes between that and the last one that did not. None:
    not even 2 clips."""
    low, high = max(batch // 2, 2), batch
    while low < high and not fits(low):
        low, high = max(low // 2, 2), low
    if low >= high:
        return None
    for _ in range(PROBES):
        middle = (low + high) // 2
        if middle == low:
            break
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def too_large(section: str, batch: int, accumulate: int, fits: Callable[[int], bool] | None) -> NotHereError:
    """The error of a step of `batch` clips that ran out of memory.

    section: of the recipe that its `batch_size` stands in, such as train. fits: whether a step of so many clips can be made.
    None: it cannot be tried here.
    """

    def tried(count: int) -> bool:
        torch.cuda.empty_cache()  # does nothing where there is no GPU
        return fits is not None and fits(count)

    size = None if fits is None else largest_that_fits(batch, tried)
    wanted = f"{section}.batch_size"
    if size:
        times = -(-batch * accumulate // size)
        hint = f"{size} clips fit: --set {wanted}={size} --set {section}.accumulate={times} makes steps as large"
    else:
        hint = f"lower {wanted}, student.size or student.frames, or the size or frames of a teacher"
    if torch.cuda.is_available():
        hint += "; precision=bf16 halves what a clip takes"
    return NotHereError(f"{section}: not enough memory for a step of {batch} clips", hint)
