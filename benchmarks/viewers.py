"""Twenty pages of one camera against one, and what they cost the model. `live.py` measures with it.

Run as a module it is the pages: WebSocket clients that read everything, as a browser does, in a process of their own, so that
none of their work is done by the demo's. It answers each line on its standard input with what came so far.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from dtkd_edge.deploy.server import WebView
from dtkd_edge.errors import NotHereError

VIEWERS, WITHIN = 20, 0.05
SETTLE_S = 2.0


@dataclass(frozen=True)
class Sample:
    """Sums at one time: the demo's own count of inferences, both processes' CPU seconds, the pictures that each page got."""

    time: float
    inferences: int
    demo_s: float
    pages_s: float
    pictures: list[int]


class Pages:
    def __init__(self, web: WebView, count: int) -> None:
        self._web, before = web, web.viewers_total
        self._child = subprocess.Popen(
            [sys.executable, "-m", __name__, f"{web.url}ws", str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        while web.viewers_total < before + count:
            if self._child.poll() is not None:
                raise _ended()
            time.sleep(0.05)

    def sample(self) -> Sample:
        assert self._child.stdin is not None and self._child.stdout is not None
        with suppress(BrokenPipeError):
            self._child.stdin.write("\n")
            self._child.stdin.flush()
        answer = self._child.stdout.readline()
        if not answer:
            raise _ended()
        told = json.loads(answer)
        return Sample(time.monotonic(), inferences(self._web), time.process_time(), told["cpu_s"], told["pictures"])

    def close(self) -> None:
        self._child.terminate()
        self._child.communicate()
        while self._web.viewers:
            time.sleep(0.05)


def _ended() -> NotHereError:
    return NotHereError("the process that watches the page ended", "run it again; see its words above")


@contextmanager
def watched(web: WebView, count: int) -> Iterator[Pages]:
    """So many pages, open."""
    pages = Pages(web, count)
    try:
        yield pages
    finally:
        pages.close()


def inferences(web: WebView) -> int:
    """As the demo counts them, read off its metrics."""
    with urllib.request.urlopen(f"{web.url}metrics", timeout=10) as answer:
        found = re.search(r"^dtkd_edge_inference_seconds_count (\d+)$", answer.read().decode(), re.M)
    return int(found[1]) if found else 0


def measure(web: WebView, seconds: float, blocks: int, settle: float = SETTLE_S) -> dict[str, Any]:
    """One page and twenty in turns (1, 20, 20, 1, …): labels a second, and the cores that either process took."""
    counts = (1, VIEWERS)
    taken: dict[int, list[tuple[Sample, Sample]]] = {count: [] for count in counts}
    for block in range(blocks):
        for count in counts[:: -1 if block % 2 else 1]:
            with watched(web, count) as pages:
                time.sleep(settle)
                before = pages.sample()
                time.sleep(seconds)
                taken[count].append((before, pages.sample()))

    def per_second(count: int, what: str) -> list[float]:
        return [(getattr(after, what) - getattr(before, what)) / (after.time - before.time) for before, after in taken[count]]

    def slowest(count: int) -> float:
        """Pictures a second of the page that got the fewest."""
        return min(
            (b - a) / (after.time - before.time)
            for before, after in taken[count]
            for a, b in zip(before.pictures, after.pictures, strict=True)
        )

    rates = {count: per_second(count, "inferences") for count in counts}
    ratios = sorted(many / one for one, many in zip(rates[1], rates[VIEWERS], strict=True))
    ratio = statistics.median(ratios)
    return {
        "what": "viewers",
        "labels_per_second": {str(n): [round(rate, 2) for rate in values] for n, values in rates.items()},
        "ratio": round(ratio, 4),
        "ratios": [round(r, 4) for r in ratios],
        "cores_taken": {
            str(n): {name: round(statistics.median(per_second(n, f"{name}_s")), 3) for name in ("demo", "pages")} for n in counts
        },
        "pictures_per_second": {str(n): round(slowest(n), 1) for n in counts},
        "slow": web.slow,
        "good": ratio >= 1 - WITHIN and web.slow == 0,
    }


def watch(url: str, count: int) -> None:
    import asyncio

    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed

    pictures = [0] * count
    ended = asyncio.Event()  # nobody asks any more

    async def one(number: int) -> None:
        async with connect(url.replace("http", "ws", 1), max_size=None) as socket:
            with suppress(ConnectionClosed):  # dropped as too slow, which the demo counts; its pictures stand still from here on
                async for message in socket:
                    pictures[number] += isinstance(message, bytes)
        await ended.wait()

    def tell() -> None:
        if sys.stdin.readline():
            print(json.dumps({"cpu_s": time.process_time(), "pictures": pictures}), flush=True)
        else:
            ended.set()

    async def every() -> None:
        asyncio.get_running_loop().add_reader(sys.stdin, tell)
        await asyncio.gather(*[one(number) for number in range(count)])

    asyncio.run(every())


if __name__ == "__main__":
    watch(sys.argv[1], int(sys.argv[2]))
