"""What the page is sent, and what it may ask for."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dtkd_edge.deploy.classifier import MAIN_HEAD, Score
from dtkd_edge.deploy.session import Session
from dtkd_edge.deploy.sources.browser import BrowserSource
from dtkd_edge.deploy.webhook import Webhook

PICTURE_WIDTH = 960  # wider pictures are scaled down for the page
JPEG_QUALITY = 80
TOP = 5


def hello(session: Session) -> dict[str, Any]:
    """The first message: what runs, and what else there is."""
    classifier = session.pipeline.classifier
    manifest, source = classifier.artifact.manifest, session.pipeline.grabber.source
    heads = sorted(manifest.labels, key=_main_first)
    return {
        "type": "hello",
        "model": manifest.model.name,
        "precision": classifier.backend.effective_precision,
        "backend": classifier.backend.name,
        "device": classifier.backend.device,
        **session.choices(),
        "browser": isinstance(source, BrowserSource),
        "heads": heads,
        "labels": [label for head in heads for label in manifest.labels[head]],
    }


def state(session: Session, webhook: Webhook | None) -> dict[str, Any]:
    """What changes with every label."""
    pipeline, grabber = session.pipeline, session.pipeline.grabber
    live, failure = pipeline.live, pipeline.failure()
    out: dict[str, Any] = {
        "type": "state",
        "status": "failed" if failure else grabber.state,
        "error": failure.message if failure else None,
        "now": round(pipeline.clock(), 3),
        "filled": round(pipeline.filled, 3),
        "fps": round(grabber.fps, 2),
        "rate": round(pipeline.label_rate.value(time.monotonic()), 2),
        "dropped": grabber.dropped,
        "trouble": session.trouble,
        "refused": session.refused,
        "webhook": webhook.counts() if webhook else None,
        "current": [event.to_json() for event in pipeline.current()],
        "seq": live.seq if live else 0,
        "certain": scores_json(live.certain) if live else [],
        "held": {head: score.label if score else None for head, score in live.held.items()} if live else {},
        "top": {},
    }
    if live:
        out |= {
            "age_ms": round(live.age * 1000, 2),
            "age_p90_ms": round(pipeline.ages.percentile(90) * 1000, 2),
            "inference_ms": round(live.inference * 1000, 3),
            "stamp": live.stamp,
            "top": {head: scores_json(live.prediction.top(TOP, head)) for head in sorted(live.held, key=_main_first)},
        }
    return out


def _main_first(head: str) -> bool:
    return head != MAIN_HEAD


def wish(text: str | None) -> tuple[str, int] | None:
    """'{"source": 1}' → ('source', 1). Whatever else a page sends is None."""
    if not text or len(text) > 100:
        return None
    try:
        said = json.loads(text)
    except ValueError:
        return None
    for what in ("source", "artifact"):
        if isinstance(said, dict) and type(said.get(what)) is int:
            return what, said[what]
    return None


def scores_json(scores: list[Score]) -> list[dict[str, Any]]:
    return [{"label": s.label, "score": round(s.score, 4)} for s in scores]


def to_jpeg(image: NDArray[np.uint8], width: int = PICTURE_WIDTH) -> bytes:
    picture = Image.fromarray(image)
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.BILINEAR)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()
