"""The figures of a running pipeline in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from dtkd_edge.deploy.live import Latencies
from dtkd_edge.deploy.pipeline import Pipeline


def prometheus(pipeline: Pipeline, web: dict[str, int]) -> str:
    grabber = pipeline.grabber
    lines: list[str] = []

    def one(name: str, kind: str, about: str, value: float) -> None:
        lines.extend([f"# HELP dtkd_edge_{name} {about}", f"# TYPE dtkd_edge_{name} {kind}", f"dtkd_edge_{name} {value:.15g}"])

    def summary(name: str, about: str, latencies: Latencies) -> None:
        lines.extend([f"# HELP dtkd_edge_{name} {about}", f"# TYPE dtkd_edge_{name} summary"])
        lines.extend(f'dtkd_edge_{name}{{quantile="{q / 100:g}"}} {latencies.percentile(q):.6g}' for q in (50, 90, 99))
        lines.extend([f"dtkd_edge_{name}_sum {latencies.total:.15g}", f"dtkd_edge_{name}_count {latencies.count}"])

    one("frames_total", "counter", "Frames that the source gave.", grabber.grabbed)
    one("frames_dropped_total", "counter", "Frames that a newer one replaced before they were used.", grabber.dropped)
    one("reconnects_total", "counter", "Times that the source was opened again.", grabber.reconnects)
    one("source_up", "gauge", "1 while the source gives frames.", float(grabber.state == "live"))
    one("frames_per_second", "gauge", "Frame rate of the source.", grabber.fps)
    summary("label_age_seconds", "From the capture of the newest frame to its label.", pipeline.ages)
    summary("inference_seconds", "The model alone.", pipeline.inferences)
    one("events_total", "counter", "Label events that have ended.", pipeline.events_ended)
    one("viewers", "gauge", "Open pages.", web["viewers"])
    one("viewers_slow_total", "counter", "Pages dropped because they read too slowly.", web["viewers_slow"])
    one("refused_total", "counter", "Requests refused: origin, host or token.", web["refused"])
    if "webhook_sent" in web:
        one("webhook_sent_total", "counter", "Events posted to the webhook.", web["webhook_sent"])
        one("webhook_failed_total", "counter", "Events that the webhook did not take.", web["webhook_failed"])
        one("webhook_dropped_total", "counter", "Events dropped because too many waited for the webhook.", web["webhook_dropped"])
        one("webhook_waiting", "gauge", "Events that wait for the webhook.", web["webhook_waiting"])
    one("stalled_seconds", "gauge", "Since the slowest thread of the pipeline came round.", pipeline.stalled())
    one("threads", "gauge", "Python threads.", threading.active_count())
    one("resident_memory_bytes", "gauge", "Resident memory of the process.", resident_memory())
    return "\n".join(lines) + "\n"


def resident_memory() -> int:
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.is_file() else 0
