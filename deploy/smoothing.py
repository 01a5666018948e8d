"""From noisy probabilities to a label that a person can read: a running mean, a threshold with hysteresis, events."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Ema:
    """Exponential moving average whose weight follows the time between values, so that it does not depend on the rate.

    p ← p + (1 − e^(−Δt/τ)) · (new − p), τ = `seconds`; 0 means no smoothing.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._value: dict[str, NDArray[np.float32]] = {}
        self._time = 0.0

    def update(self, new: dict[str, NDArray[np.float32]], time: float) -> dict[str, NDArray[np.float32]]:
        if not self._value or self.seconds <= 0:
            self._value = dict(new)
        else:
            weight = np.float32(1 - math.exp(-max(time - self._time, 0.0) / self.seconds))
            self._value = {head: old + weight * (new[head] - old) for head, old in self._value.items()}
        self._time = time
        return self._value

    def reset(self) -> None:
        self._value = {}


@dataclass
class Event:
    """One label that held for a while. start, end: seconds since the source started; score: its highest probability.

    head: the model's head that it is a label of. wall: when it started, in seconds since 1970; None where the source is not live.
    """

    label: str
    start: float
    end: float | None
    score: float
    head: str = ""
    wall: float | None = None

    def to_json(self) -> dict[str, Any]:
        end = None if self.end is None else round(self.end, 3)
        out = {"label": self.label, "start": round(self.start, 3), "end": end, "score": round(self.score, 4), "head": self.head}
        if self.wall is not None:
            out["time"] = datetime.fromtimestamp(self.wall, timezone.utc).isoformat(timespec="milliseconds")
        return out


class Gate:
    """A label of one head comes on at `threshold` and stays until it falls below `release`, or another one passes `threshold`
    and it."""

    def __init__(self, threshold: float, release: float, head: str = "") -> None:
        if not 0 <= release <= threshold <= 1:
            raise ValueError(f"0 ≤ release ({release}) ≤ threshold ({threshold}) ≤ 1 does not hold")
        self.threshold, self.release, self.head = threshold, release, head
        self.current: Event | None = None

    def update(self, probabilities: dict[str, float], time: float) -> Event | None:
        """Every label's smoothed probability, now. Returns the event that has just ended, if one has."""
        best = max(probabilities, key=probabilities.__getitem__)
        ended = None
        now = self.current
        if now is not None:
            other = best != now.label and probabilities[best] >= self.threshold
            if other or probabilities[now.label] < self.release:
                ended = self.close(time)
            else:
                now.score = max(now.score, probabilities[now.label])
        if self.current is None and probabilities[best] >= self.threshold:
            self.current = Event(best, time, None, probabilities[best], self.head)
        return ended

    def close(self, time: float) -> Event | None:
        """End the current event (the source ended, or broke off)."""
        ended, self.current = self.current, None
        if ended is not None:
            ended.end = time
        return ended
