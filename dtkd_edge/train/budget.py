"""What a training would take: device hours, loader bandwidth, the teacher cache's size, from measured times of one step.

    python -m dtkd_edge.train.step_cost RECIPE --json cost.json
    python -m dtkd_edge.train.budget cost.json --clips 240000 --epochs 60 --views 8 --devices 1,8,64

It is arithmetic, not a measurement: steps of all devices at the speed of the one that was measured, nothing lost between them,
the loader never the limit. What the loader has to deliver for that is printed too. With the cache the teachers run `views` times
over the clips, whatever the epochs; without it in every epoch.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from dtkd_edge.console import print_table, say
from dtkd_edge.errors import UsageError
from dtkd_edge.exits import reported


@dataclass(frozen=True)
class Cost:
    """Seconds of one step of `batch` clips on one device; `stored`: bytes that the cache keeps per clip and view;
    `clip`: bytes of one uint8 clip as the device receives it."""

    batch: int
    student: float
    teachers: float
    step: float
    cached: float
    clip: int
    stored: int


@dataclass(frozen=True)
class Budget:
    """device_hours; hours (of wall clock); clips_per_second that the loader delivers in all; to_devices and from_cache: bytes a
    second while the student trains; cache: bytes on disk."""

    device_hours: float
    hours: float
    clips_per_second: float
    to_devices: float
    from_cache: float
    cache: float


def budget(cost: Cost, *, clips: int, epochs: int, views: int | None, devices: int) -> Budget:
    """views: None asks the teachers in every step. Epochs are whole passes over `clips`."""
    step = cost.step if views is None else cost.cached
    student_steps = epochs * clips / cost.batch
    seconds = student_steps * step
    if views is not None:
        seconds += min(views, epochs) * clips / cost.batch * cost.teachers
    rate = devices * cost.batch / step
    stored = 0 if views is None else cost.stored
    cache = float(clips * min(views or 0, epochs) * cost.stored)
    return Budget(seconds / 3600, seconds / 3600 / devices, rate, rate * cost.clip, rate * stored, cache)


def read_cost(path: Path) -> tuple[Cost, str]:
    """What `step_cost --json` wrote, and on what it was measured."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        cost = Cost(**{name: told[name] for name in Cost.__dataclass_fields__})
        return cost, f"{told['recipe']}, {told['method']}, {told['precision']} on {told['device']}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path}: no figures of a step: {error}", "make them with: python -m dtkd_edge.train.step_cost RECIPE --json FILE"
        ) from error


def table(cost: Cost, *, clips: int, epochs: int, views: int, devices: Sequence[int], decode_ms: float | None) -> Table:
    out = Table(title=f"{clips:,} clips, {epochs} epochs")
    names = ["devices", "teachers", "device-hours", "hours", "clips/s", "to devices", "cache on disk", "from cache"]
    for name in [*names, *(["decoding cores"] if decode_ms else [])]:
        out.add_column(name, justify="right")
    for count in devices:
        for stored in (None, views):
            found = budget(cost, clips=clips, epochs=epochs, views=stored, devices=count)
            cells = [
                str(count),
                "every step" if stored is None else f"{stored} views stored",
                f"{found.device_hours:,.0f}",
                f"{found.hours:,.1f}",
                f"{found.clips_per_second:,.0f}",
                f"{size(found.to_devices)}/s",
                "" if stored is None else size(found.cache),
                "" if stored is None else f"{size(found.from_cache)}/s",
            ]
            cores = [f"{math.ceil(found.clips_per_second * decode_ms / 1e3):,}"] if decode_ms else []
            out.add_row(*cells, *cores)
    return out


def size(count: float) -> str:
    """Decimal units: 1.3 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _counts(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",")]
    if min(counts) < 1:
        raise ValueError(text)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cost", type=Path, help="what step_cost --json wrote")
    parser.add_argument("--clips", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--views", type=int, default=8, help="of the teacher cache")
    parser.add_argument("--devices", type=_counts, default="1,8,64", help="comma separated")
    parser.add_argument("--decode-ms", type=float, help="one core's time for a clip, from dtkd_edge.benchmarks.loader")
    parser.add_argument(
        "--times",
        type=float,
        default=1.0,
        help="another device's speed, as a multiple of the measured one: an assumption, said so",
    )
    options = parser.parse_args()
    cost, where = read_cost(options.cost)
    if options.times != 1:
        faster = {name: getattr(cost, name) / options.times for name in ("student", "teachers", "step", "cached")}
        cost = Cost(batch=cost.batch, clip=cost.clip, stored=cost.stored, **faster)
        where += f", assumed {options.times:g} times as fast"
    say(f"measured: {where}; a step of {cost.batch} clips {cost.step:.3g} s, with stored teachers {cost.cached:.3g} s")
    print_table(
        table(
            cost,
            clips=options.clips,
            epochs=options.epochs,
            views=options.views,
            devices=options.devices,
            decode_ms=options.decode_ms,
        )
    )


if __name__ == "__main__":
    reported(main)
