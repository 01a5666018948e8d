"""What a live run is set to, and what it knows after each inference."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from dtkd_edge.deploy.classifier import Prediction, Score
from dtkd_edge.deploy.smoothing import Event
from dtkd_edge.errors import UsageError

RELEASE = 0.7  # of the threshold, where none is given


@dataclass(frozen=True)
class Settings:
    """clip_seconds: what a live clip spans (None: from the manifest); smoothing: seconds of the moving average;
    threshold, release: probabilities at which a label comes and goes (release None: 0.7 × threshold); rate: at most so many
    inferences a second (a file that is read fast: so many per second of the file, by default one for each step between two
    frames of a clip)."""

    clip_seconds: float | None = None
    smoothing: float = 0.5
    threshold: float = 0.5
    release: float | None = None
    rate: float | None = None

    @property
    def released(self) -> float:
        return RELEASE * self.threshold if self.release is None else self.release

    def __post_init__(self) -> None:
        if not 0 <= self.released <= self.threshold <= 1:
            between = "0 ≤ release ≤ threshold ≤ 1 must hold"
            raise UsageError(f"threshold {self.threshold:g}, release {self.released:g}: {between}", "0.5 and 0.35 are usual")
        if self.smoothing < 0:
            raise UsageError(f"smoothing {self.smoothing:g}: must not be negative", "0 switches it off")
        if self.rate is not None and self.rate <= 0:
            raise UsageError(f"rate {self.rate:g}: must be above 0", "leave it out for one label with every frame")


@dataclass(frozen=True)
class Live:
    """What is known after one inference. time: seconds since the first frame.

    label, score: of the main head; label None means nothing certain. held: what holds of each head, None where nothing does.

    age, inference: seconds from the capture of the newest frame to this label, and of the model alone. Of a stream whose labels
    lag behind (`StreamPart.delay`), time and age are those of the frames that the label is about. stamp: the sender's clock
    of that frame. begins, ends: the events that begin and end with this inference, of all heads; began, ended: the main head's.
    """

    seq: int
    time: float
    label: str | None
    score: float
    prediction: Prediction
    age: float
    inference: float
    stamp: float | None = None
    held: dict[str, Score | None] = field(default_factory=dict)
    begins: tuple[Event, ...] = ()
    ends: tuple[Event, ...] = ()

    @property
    def began(self) -> Event | None:
        return next((event for event in self.begins if event.head == self.prediction.main), None)

    @property
    def ended(self) -> Event | None:
        return next((event for event in self.ends if event.head == self.prediction.main), None)

    @property
    def certain(self) -> list[Score]:
        """What holds, the main head's label first."""
        main = self.prediction.main
        heads = [main, *(head for head in self.held if head != main)]
        return [score for head in heads if (score := self.held.get(head)) is not None]


@dataclass
class Latencies:
    """Sum and count for ever, and the last values for percentiles."""

    count: int = 0
    total: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=600))

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.recent.append(value)

    def percentile(self, q: float) -> float:
        values = list(self.recent)
        return float(np.percentile(values, q)) if values else 0.0
