"""How late a live label is, and what hours and viewers do to it: `python -m dtkd_edge.benchmarks.live ARTIFACT...`.

The whole way of `dtkd-edge demo`: a file at 30 pictures a second through decoder, sampler, model and page, on this machine.

age      for each artefact alone: capture-to-label age. Limit: its p90 is at most one frame interval + 1.5 × the model's median.
viewers  the first artefact with one page open and with twenty, taking turns: label rate. Limit: within 5 %.
soak     the first artefact with one page open for --minutes, in fifths of which the first is warming up. Limits: in every other
         fifth the age's p90 stays below the limit above; from the second to the last the resident memory grows by less than
         5 MB (medians), and the threads by none.

Exits 1 when a limit is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dtkd_edge.benchmarks.statistics import percentile
from dtkd_edge.console import say
from dtkd_edge.deploy.backends.devices import cpu_name
from dtkd_edge.deploy.camera import Grabber
from dtkd_edge.deploy.classifier import load
from dtkd_edge.deploy.live import Live
from dtkd_edge.deploy.metrics import resident_memory
from dtkd_edge.deploy.pipeline import Pipeline
from dtkd_edge.deploy.server import WebView
from dtkd_edge.deploy.session import Session
from dtkd_edge.deploy.sources import SourceOptions, open_source
from dtkd_edge.deploy.sources.av import import_av
from dtkd_edge.deploy.sources.pattern import draw
from dtkd_edge.errors import NotHereError
from dtkd_edge.exits import reported

FPS = 30.0
MODELS = 1.5  # of the model's median that an age may take besides one frame interval
VIEWERS, WITHIN = 20, 0.05
GROWTH_MB = 5.0
SETTLE_S = 2.0


def drawn_clip(path: Path) -> Path:
    """Twelve seconds of the test pattern, 640×480: what is measured where no --source is given."""
    av = import_av()
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=int(FPS), options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for i in range(int(12 * FPS)):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(draw(i / FPS, 640, 480), format="rgb24")))
        file.mux(stream.encode())
    return path


@contextmanager
def running(artifact: Path, source: str, device: str, threads: int | None) -> Iterator[Session]:
    options = SourceOptions(fps=FPS, loop=True)
    with load(artifact, device=device, threads=threads) as classifier:
        session = Session(Pipeline(classifier, Grabber(open_source(source, options)), None), options=options)
        session.start()
        try:
            yield session
        finally:
            session.stop()


def age(session: Session, seconds: float) -> dict[str, Any]:
    lives: list[Live] = []
    pipeline = session.pipeline
    time.sleep(SETTLE_S + pipeline.span)
    frames, dropped = pipeline.grabber.grabbed, pipeline.grabber.dropped
    pipeline.listeners.append(lives.append)
    time.sleep(seconds)
    pipeline.listeners.remove(lives.append)
    ages, models = [1e3 * live.age for live in lives], [1e3 * live.inference for live in lives]
    waits = [a - model for a, model in zip(ages, models, strict=True)]  # for the frame, its scaling, the model that is still busy
    limit = 1e3 / FPS + MODELS * statistics.median(models)
    p90 = percentile(ages, 90)
    return {
        "what": "age", "labels": len(lives), "labels_per_second": round(len(lives) / seconds, 2),
        "frames": pipeline.grabber.grabbed - frames, "dropped": pipeline.grabber.dropped - dropped,
        "age_ms": {"p50": round(percentile(ages, 50), 2), "p90": round(p90, 2), "max": round(max(ages), 2)},
        "model_ms": {"p50": round(percentile(models, 50), 2), "p90": round(percentile(models, 90), 2)},
        "besides_ms": {"p50": round(percentile(waits, 50), 2), "p90": round(percentile(waits, 90), 2)},
        "limit_ms": round(limit, 2), "good": p90 <= limit,
    }  # fmt: skip


@contextmanager
def watched(web: WebView, viewers: int) -> Iterator[None]:
    """So many pages, in a process of their own. They read everything, as a browser does."""
    child = subprocess.Popen([sys.executable, "-m", __spec__.name, "--watch", f"{web.url}ws", str(viewers)])
    try:
        while len(web.viewers) < viewers:
            if child.poll() is not None:
                raise NotHereError("the process that watches the page ended", "run it again; see its words above")
            time.sleep(0.05)
        yield
    finally:
        child.terminate()
        child.wait()
    while web.viewers:
        time.sleep(0.05)


def watch(url: str, viewers: int) -> None:
    import asyncio

    from websockets.asyncio.client import connect

    async def one() -> None:
        async with connect(url.replace("http", "ws", 1), max_size=None) as socket:
            async for _ in socket:
                pass

    async def every() -> None:
        await asyncio.gather(*[one() for _ in range(viewers)])

    asyncio.run(every())


def viewers(session: Session, web: WebView, seconds: float, blocks: int) -> dict[str, Any]:
    rates: dict[int, list[float]] = {1: [], VIEWERS: []}
    for block in range(blocks):
        for count in [1, VIEWERS][:: -1 if block % 2 else 1]:
            with watched(web, count):
                time.sleep(SETTLE_S)
                before, begin = session.pipeline.inferences.count, time.monotonic()
                time.sleep(seconds)
                rates[count].append((session.pipeline.inferences.count - before) / (time.monotonic() - begin))
    one, many = (statistics.median(rates[count]) for count in (1, VIEWERS))
    return {
        "what": "viewers", "labels_per_second": {str(n): [round(r, 2) for r in values] for n, values in rates.items()},
        "ratio": round(many / one, 4), "slow": web.slow, "good": many / one >= 1 - WITHIN,
    }  # fmt: skip


def soak(session: Session, web: WebView, minutes: float) -> dict[str, Any]:
    samples: list[tuple[int, int, int]] = []
    # A label a frame, and half as many again; in memory that is there from the start, or it would grow with them.
    most = round(90 * minutes * FPS) + 1000
    ages, models, counts = np.ones(most), np.ones(most), [0]
    pipeline = session.pipeline

    def note(live: Live) -> None:
        if counts[-1] < most:
            ages[counts[-1]], models[counts[-1]] = 1e3 * live.age, 1e3 * live.inference
            counts[-1] += 1

    pipeline.listeners.append(note)
    with watched(web, 1):
        for fifth in range(5):
            counts.append(counts[-1])
            end = time.monotonic() + 60 * minutes / 5
            while (left := end - time.monotonic()) > 0:
                files = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0  # noqa: PTH208
                samples.append((resident_memory(), threading.active_count(), files))
                time.sleep(min(left, 5.0, 60 * minutes / 50))
            if fifth == 0:
                warm = len(samples)
    pipeline.listeners.remove(note)
    kept = samples[warm:]
    quarter = max(len(kept) // 4, 1)
    memory = [statistics.median(s[0] / 1e6 for s in part) for part in (kept[:quarter], kept[-quarter:])]
    length = 60e3 * minutes / 5  # of a fifth: where no label came in one, the last was at least that old
    p90 = [percentile(list(ages[a:b]), 90) if b > a else length for a, b in pairwise(counts)]
    limit = 1e3 / FPS + MODELS * float(np.median(models[counts[1] : counts[-1]]))
    return {
        "what": "soak", "minutes": minutes, "labels": counts[-1], "age_p90_ms": [round(age, 2) for age in p90],
        "limit_ms": round(limit, 2), "memory_mb": [round(megabytes, 1) for megabytes in memory],
        "growth_mb": round(memory[1] - memory[0], 2), "threads": [kept[0][1], kept[-1][1]], "files": [kept[0][2], kept[-1][2]],
        "good": max(p90[1:]) <= limit and memory[1] - memory[0] < GROWTH_MB and kept[-1][1] <= kept[0][1],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dtkd_edge.benchmarks.live", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("artifact", nargs="*", type=Path, help="artefacts, for instance a clip and a stream one")
    parser.add_argument("--source", help="a video file, played at 30 pictures a second [default: 12 s of the test pattern]")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each age, and of each block with viewers")
    parser.add_argument("--blocks", type=int, default=3, help="turns of one viewer and of twenty")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the soak; 0 leaves it out")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="of the runtime")
    parser.add_argument("--json", type=Path, help="write the lines there too")
    parser.add_argument("--watch", nargs=2, metavar=("URL", "N"), help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.watch:
        watch(wanted.watch[0], int(wanted.watch[1]))
        return 0
    if not wanted.artifact:
        parser.error("name at least one artefact")
    lines: list[dict[str, Any]] = []
    here = {"cpu": cpu_name(), "cores": os.cpu_count()}

    def tell(artifact: Path, result: dict[str, Any]) -> None:
        lines.append({"artifact": artifact.name, **result, **here, "load": round(os.getloadavg()[0], 2)})
        print(json.dumps(lines[-1]), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        source = wanted.source or str(drawn_clip(Path(folder) / "clip.mp4"))
        for artifact in wanted.artifact:
            with running(artifact, source, wanted.device, wanted.threads) as session:
                tell(artifact, age(session, wanted.seconds))
        with running(wanted.artifact[0], source, wanted.device, wanted.threads) as session:
            web = WebView(session, "127.0.0.1", 0)
            web.start()
            tell(wanted.artifact[0], viewers(session, web, wanted.seconds, wanted.blocks))
            if wanted.minutes:
                tell(wanted.artifact[0], soak(session, web, wanted.minutes))
            web.stop()
    if wanted.json:
        wanted.json.write_text("".join(json.dumps(line) + "\n" for line in lines))
    broken = [f"{line['what']} of {line['artifact']}" for line in lines if not line["good"]]
    say(f"beyond the limit: {', '.join(broken)}" if broken else "all within the limits")
    return 1 if broken else 0


if __name__ == "__main__":
    reported(main)
