"""`dtkd-edge data synth`: make the generated sets. No torch."""

from __future__ import annotations

import time
from pathlib import Path

from dtkd_edge.console import say
from dtkd_edge.data.motion import generate


def synth(out: Path, *, kind: str, clips: int, val_clips: int, size: int, seed: int) -> None:
    """Write a generated set to `out`; see dtkd_edge.data.motion."""
    start = time.perf_counter()
    generate(out, kind, clips, val_clips, size, seed)
    say(f"{out}: {clips} training and {val_clips} validation clips of {kind} ({time.perf_counter() - start:.1f} s)")
