"""Live labels as a Python iterator: what `Classifier.stream` is."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

from dtkd_edge.deploy.camera import Grabber
from dtkd_edge.deploy.classifier import Classifier
from dtkd_edge.deploy.live import Live, Settings
from dtkd_edge.deploy.pipeline import Pipeline
from dtkd_edge.deploy.sources import SourceOptions, open_source

IDLE_S = 0.1  # how often a reader who waits looks whether the source has ended


class Unread:
    """What the reader has not taken yet: the newest label, and before it every one at which an event began or ended.

    every: all of them, because nothing happens while the reader is busy.
    """

    def __init__(self, *, every: bool) -> None:
        self._every = every
        self._lives: deque[Live] = deque()
        self._news = threading.Condition()

    def __call__(self, live: Live) -> None:
        with self._news:
            if self._lives and not self._every and not (self._lives[-1].begins or self._lives[-1].ends):
                self._lives.pop()
            self._lives.append(live)
            self._news.notify()

    def take(self) -> Live | None:
        with self._news:
            self._news.wait_for(lambda: self._lives, IDLE_S)
            return self._lives.popleft() if self._lives else None


def stream(classifier: Classifier, source: str, **options: Any) -> Iterator[Live]:
    """See Classifier.stream."""
    names = set(SourceOptions.__dataclass_fields__)
    wanted = SourceOptions(**{key: options.pop(key) for key in list(options) if key in names})
    pipeline = Pipeline(classifier, Grabber(open_source(source, wanted)), Settings(**options))
    unread = Unread(every=wanted.fast)
    pipeline.listeners.append(unread)
    pipeline.start()
    try:
        while True:
            running = pipeline.running  # read before: the last label may come between the two lines
            live = unread.take()
            if live is not None:
                yield live
            elif not running:
                break
    finally:
        pipeline.stop()
    failure = pipeline.failure()
    if failure:
        raise failure
