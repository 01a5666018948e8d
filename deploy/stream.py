"""Live labels as a Python iterator: what `Classifier.stream` is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from dtkd_edge.deploy.camera import Grabber
from dtkd_edge.deploy.classifier import Classifier
from dtkd_edge.deploy.live import Live, Settings
from dtkd_edge.deploy.pipeline import Pipeline
from dtkd_edge.deploy.sources import SourceOptions, open_source


def stream(classifier: Classifier, source: str, **options: Any) -> Iterator[Live]:
    """See Classifier.stream."""
    names = set(SourceOptions.__dataclass_fields__)
    wanted = SourceOptions(**{key: options.pop(key) for key in list(options) if key in names})
    pipeline = Pipeline(classifier, Grabber(open_source(source, wanted)), Settings(**options))
    waiting: deque[Live] = deque()
    if wanted.fast:
        pipeline.listeners.append(waiting.append)
    pipeline.start()
    seen = 0
    try:
        while True:
            running = pipeline.running  # read before: the last label may come between the two lines
            live = pipeline.next(seen)
            if wanted.fast and live is not None:  # every label, not only the newest
                while waiting:
                    live = waiting.popleft()
                    seen = live.seq
                    yield live
            elif live is not None:
                seen = live.seq
                yield live
            elif not running:
                break
    finally:
        pipeline.stop()
    failure = pipeline.failure()
    if failure:
        raise failure
