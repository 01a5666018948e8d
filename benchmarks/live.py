"""How late a live label is, and what hours and viewers do to it: `python -m dtkd_edge.benchmarks.live ARTIFACT...`.

The whole way of `dtkd-edge demo`: a file through decoder, sampler, model and page, on this machine. For every artefact:

age      at 30 pictures a second: capture-to-label age. Limit: its p90 is at most one frame interval + 1.5 × the model's median.
viewers  with one page open and with twenty, taking turns, the source half as fast again as the model alone but at most 240
         pictures a second (the row says where that was the limit): labels a second, as the demo's own metrics count them.
         Limits: within 5 %, no page dropped. The pages are a process of their own, whose share of the cores is told.
soak     the first artefact only, with one page open, for --minutes. Limits: from the second minute on the age's p90 of each
         minute stays below the limit above, the last minute's is not above the first's (by a tenth and 2 ms), the resident
         memory grows by less than 5 MB (medians), the threads by none, and the page is not dropped. Below five minutes it is
         fifths of the time.

Prints a table in Markdown; exits 1 when a limit is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
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
from dtkd_edge.benchmarks.viewers import SETTLE_S, VIEWERS, WITHIN, measure, watched
from dtkd_edge.console import say
from dtkd_edge.deploy.backends.devices import cpu_name
from dtkd_edge.deploy.camera import Grabber
from dtkd_edge.deploy.classifier import Classifier, load
from dtkd_edge.deploy.live import Live, Settings
from dtkd_edge.deploy.metrics import resident_memory
from dtkd_edge.deploy.pipeline import Pipeline
from dtkd_edge.deploy.server import WebView
from dtkd_edge.deploy.session import Session
from dtkd_edge.deploy.sources import SourceOptions, open_source
from dtkd_edge.deploy.sources.av import import_av
from dtkd_edge.deploy.sources.pattern import draw
from dtkd_edge.errors import UsageError
from dtkd_edge.exits import reported

FPS = 30.0
MODELS = 1.5  # of the model's median that an age may take besides one frame interval
BEYOND = 1.5  # times the labels that the model gives alone: pictures a second of a source that is not the limit …
MOST_FPS = 240.0  # … up to what a file can be played at
SOURCE_LIMITS = 0.9  # labels a second with one page / pictures a second, from which on the source was the limit
GROWTH_MB = 5.0
FLAT, FLAT_MS = 1.1, 2.0  # the last minute's p90 against the first's
MEASURES = ("age", "viewers", "soak")


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
def running(classifier: Classifier, source: str, fps: float = FPS, settings: Settings | None = None) -> Iterator[Session]:
    options = SourceOptions(fps=fps, loop=True)
    session = Session(Pipeline(classifier, Grabber(open_source(source, options)), settings), options=options)
    session.start()
    try:
        yield session
    finally:
        session.pipeline.stop()


@contextmanager
def shown(session: Session) -> Iterator[WebView]:
    web = WebView(session, "127.0.0.1", 0)
    web.start()
    try:
        yield web
    finally:
        web.stop()


def age(session: Session, seconds: float, settle: float = SETTLE_S) -> dict[str, Any]:
    lives: list[Live] = []
    pipeline = session.pipeline
    time.sleep(settle + pipeline.span)
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


def alone(classifier: Classifier, seconds: float = 0.5) -> float:
    """Labels a second of the model by itself, at its fastest."""
    clip = np.zeros((classifier.artifact.manifest.input.shape[1:]), np.uint8)
    clip = clip[None] if classifier.artifact.manifest.mode == "stream" else clip
    classifier.predict_live(clip)
    times, end = [time.monotonic()], time.monotonic() + seconds
    while times[-1] < end or len(times) < 6:
        classifier.predict_live(clip)
        times.append(time.monotonic())
    classifier.backend.reset()
    return 1 / min(b - a for a, b in pairwise(times))


def viewers(
    classifier: Classifier, source: str, seconds: float, blocks: int, camera_fps: float | None = None, settle: float = SETTLE_S
) -> dict[str, Any]:
    """camera_fps: none: more than the model can label."""
    fps = camera_fps or min(max(FPS, round(BEYOND * alone(classifier))), MOST_FPS)
    # A stream artefact takes its frames as far apart as its clip's: here every picture.
    every = Settings(clip_seconds=classifier.preprocess.sampling.frames / fps)
    settings = every if classifier.artifact.manifest.mode == "stream" else None
    with running(classifier, source, fps, settings) as session, shown(session) as web:
        result = measure(web, seconds, blocks, settle)
    labels = statistics.median(result["labels_per_second"]["1"])
    return {**result, "source_fps": fps, "source_was_the_limit": labels >= SOURCE_LIMITS * fps}


def soak(session: Session, web: WebView, minutes: float, settle: float = SETTLE_S) -> dict[str, Any]:
    samples: list[tuple[int, int, int]] = []
    # A label a frame, and half as many again; in memory that is there from the start, or it would grow with them.
    most = round(90 * minutes * FPS) + 1000
    ages, models, counts = np.ones(most), np.ones(most), [0]
    pipeline = session.pipeline
    parts = max(round(minutes), 5)
    length = 60 * minutes / parts

    def note(live: Live) -> None:
        if counts[-1] < most:
            ages[counts[-1]], models[counts[-1]] = 1e3 * live.age, 1e3 * live.inference
            counts[-1] += 1

    time.sleep(settle + pipeline.span)
    pipeline.listeners.append(note)
    with watched(web, 1):
        for part in range(parts):
            counts.append(counts[-1])
            end = time.monotonic() + length
            while (left := end - time.monotonic()) > 0:
                files = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0  # noqa: PTH208
                samples.append((resident_memory(), threading.active_count(), files))
                time.sleep(min(left, 5.0, length / 10))
            if part == 0:
                warm = len(samples)
        left_open = len(web.viewers)
    pipeline.listeners.remove(note)
    kept = samples[warm:]
    quarter = max(len(kept) // 4, 1)
    memory = [statistics.median(s[0] / 1e6 for s in some) for some in (kept[:quarter], kept[-quarter:])]
    # Where no label came in a part, the last was at least as old as the part is long.
    p90 = [percentile(list(ages[a:b]), 90) if b > a else 1e3 * length for a, b in pairwise(counts)]
    limit = 1e3 / FPS + MODELS * float(np.median(models[counts[1] : counts[-1]]))
    broken = []
    if max(p90[1:]) > limit:
        broken.append("age above the limit")
    if p90[-1] > FLAT * p90[0] + FLAT_MS:
        broken.append("age not flat")
    if memory[1] - memory[0] >= GROWTH_MB:
        broken.append("memory grows")
    if kept[-1][1] > kept[0][1]:
        broken.append("threads grow")
    if web.slow or left_open != 1:
        broken.append("viewer dropped")
    return {
        "what": "soak", "minutes": minutes, "part_s": round(length, 1), "labels": counts[-1],
        "age_p90_ms": [round(age, 2) for age in p90], "limit_ms": round(limit, 2), "memory_mb": [round(mb, 1) for mb in memory],
        "growth_mb": round(memory[1] - memory[0], 2), "threads": [kept[0][1], kept[-1][1]], "files": [kept[0][2], kept[-1][2]],
        "slow": web.slow, "broken": broken, "good": not broken,
    }  # fmt: skip


def row(line: dict[str, Any]) -> str:
    """A line of results as one of a table in Markdown."""
    if line["what"] == "age":
        a, model = line["age_ms"], line["model_ms"]
        figure = (
            f"p50 {a['p50']:.1f} ms, p90 {a['p90']:.1f} ms, longest {a['max']:.1f} ms (model {model['p50']:.1f} ms); "
            f"{line['labels_per_second']:.1f} labels/s, {line['dropped']} of {line['frames']} frames dropped"
        )
        what, limit = f"age of live labels, {FPS:.0f} fps", f"p90 ≤ {line['limit_ms']:.1f} ms"
    elif line["what"] == "viewers":
        one, many = (line["labels_per_second"][str(n)] for n in (1, VIEWERS))
        cores, pictures = line["cores_taken"], line["pictures_per_second"][str(VIEWERS)]
        figure = (
            f"{line['ratio']:.3f} ({line['ratios'][0]:.3f}–{line['ratios'][-1]:.3f}, {len(line['ratios'])} pairs in turns): "
            f"{statistics.median(many):.1f} and {statistics.median(one):.1f} labels/s of {line['source_fps']:.0f} fps; "
            f"the demo took {cores[str(VIEWERS)]['demo']:.2f} and {cores['1']['demo']:.2f} cores, the viewers' own process "
            f"{cores[str(VIEWERS)]['pages']:.2f} and {cores['1']['pages']:.2f}; each viewer got {pictures:.0f} pictures/s or more"
            f"{'; the source was the limit' if line['source_was_the_limit'] else ''}"
            f"{'; {} viewers dropped'.format(line['slow']) if line['slow'] else ''}"
        )
        what, limit = f"labels/s with {VIEWERS} viewers / with one", f"≥ {1 - WITHIN:.2f}"
    else:
        p90, threads = line["age_p90_ms"], line["threads"]
        part = "minute" if line["part_s"] == 60 else f"{line['part_s']:g} s"
        figure = (
            f"age p90 {p90[0]:.1f} ms in the first {part}, {p90[-1]:.1f} ms in the last (highest {max(p90[1:]):.1f}); "
            f"memory {line['memory_mb'][0]:.1f} → {line['memory_mb'][1]:.1f} MB ({line['growth_mb']:+.1f}); "
            f"threads {threads[0]} → {threads[1]}, open files {line['files'][0]} → {line['files'][1]}; {line['labels']:,} labels"
        )
        what = f"soak of {line['minutes']:g} min, {FPS:.0f} fps, one viewer"
        limit = f"age flat and ≤ {line['limit_ms']:.1f} ms; < {GROWTH_MB:.0f} MB; threads constant"
    verdict = "kept" if line["good"] else "**missed**" + "".join(f", {why}" for why in line.get("broken", []))
    return f"| {what}, `{line['artifact']}` | {figure} | {limit}: {verdict} |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dtkd_edge.benchmarks.live", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("artifact", nargs="+", type=Path, help="artefacts, for instance a clip and a stream one")
    parser.add_argument("--only", default=",".join(MEASURES), help="some of age,viewers,soak [default: all]")
    parser.add_argument("--source", help="a video file, played again and again [default: 12 s of the test pattern]")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each age, and of each block with viewers")
    parser.add_argument("--blocks", type=int, default=3, help="turns of one viewer and of twenty")
    parser.add_argument("--fps", type=float, help="of the camera with viewers [default: half again what the model can label]")
    parser.add_argument("--settle", type=float, default=SETTLE_S, help="seconds that pass before each measurement [%(default)g]")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the soak; 0 leaves it out")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="of the runtime")
    parser.add_argument("--json", type=Path, help="every figure there, a line each")
    wanted = parser.parse_args()
    measures = [name.strip() for name in wanted.only.split(",")]
    for name in measures:
        if name not in MEASURES:
            raise UsageError(f"--only {name}: no such measure", f"some of: {', '.join(MEASURES)}")
    lines: list[dict[str, Any]] = []
    here = {"cpu": cpu_name(), "cores": os.cpu_count()}
    load_before = os.getloadavg()[0]

    def tell(artifact: Path, result: dict[str, Any]) -> None:
        lines.append({"artifact": artifact.name, **result, **here, "load": round(os.getloadavg()[0], 2)})
        print(row(lines[-1]), flush=True)

    print("| what | figure | limit |\n|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        source = wanted.source or str(drawn_clip(Path(folder) / "clip.mp4"))
        for number, artifact in enumerate(wanted.artifact):
            with load(artifact, device=wanted.device, threads=wanted.threads) as classifier:
                if "age" in measures:
                    with running(classifier, source) as session:
                        tell(artifact, age(session, wanted.seconds, wanted.settle))
                if "viewers" in measures:
                    tell(artifact, viewers(classifier, source, wanted.seconds, wanted.blocks, wanted.fps, wanted.settle))
                if "soak" in measures and wanted.minutes and number == 0:
                    with running(classifier, source) as session, shown(session) as web:
                        tell(artifact, soak(session, web, wanted.minutes, wanted.settle))
    print(
        f"\n`python -m dtkd_edge.benchmarks.live {shlex.join(sys.argv[1:])}`; {here['cpu']}, {here['cores']} cores, "
        f"load before {load_before:.1f}.",
        flush=True,
    )
    if wanted.json:
        wanted.json.write_text("".join(json.dumps(line) + "\n" for line in lines))
    broken = [f"{line['what']} of {line['artifact']}" for line in lines if not line["good"]]
    say(f"beyond the limit: {', '.join(broken)}" if broken else "all within the limits")
    return 1 if broken else 0


if __name__ == "__main__":
    reported(main)
