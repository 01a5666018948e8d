"""What an epoch of training costs beside its networks: the loader, and distillation from stored teacher outputs.

    python -m dtkd_edge.train.epoch_cost [RECIPE] [--set A.B=V] [--turns 7] [--json FILE] [--cpu-time]

On the recipe's own clips, with its student, teachers, batch size and precision (weights do not matter: they are random), through
the loop that `train` runs:

    memory    an epoch of the student alone (ce), on batches that are in memory
    alone     the same, on batches from the loader
    cached    an epoch of the recipe's method, from the loader, with the teachers' outputs stored (teachers.views, or 2)

and of these, in pairs of one turn, alone / memory (is the loader the limit?) and cached / alone (what does the method cost?). All
take turns, so that a busy machine slows them alike; the first turn, which fills caches, does not count. Printed are the median
and the middle half.

--cpu-time counts this process's time on one CPU thread instead of the clock's, that of the loader's threads included: what the
method costs can then be told on a busy machine, whether the loader is the limit cannot.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dtkd_edge import recipe_reader as recipes
from dtkd_edge.console import progress
from dtkd_edge.exits import reported
from dtkd_edge.files import write_json
from dtkd_edge.models import VideoModel
from dtkd_edge.recipe import DistillConfig, Recipe
from dtkd_edge.train.engine import Engine
from dtkd_edge.train.log import RunLog
from dtkd_edge.train.loop import Phase, train_epoch
from dtkd_edge.train.phases import RunContext, RunData
from dtkd_edge.train.schedule import make_optimizer
from dtkd_edge.train.step_cost import device_name


def measure(
    recipe: Recipe, engine: Engine, turns: int, folder: Path, clock: Callable[[], float] = time.perf_counter
) -> tuple[dict[str, list[float]], int]:
    """Seconds of each epoch by name, and how many steps one has. folder: for the teachers' stored outputs."""
    recipe.teachers.views = recipe.teachers.views or 2
    context = RunContext(recipe, folder, RunData.open(recipe), engine, RunLog(folder, main=False), resume=False)
    teachers: dict[str, VideoModel] = {
        name: context.build(getattr(recipe.teachers, name), name).eval() for name in context.teachers_needed
    }

    def student(distill: DistillConfig) -> Phase:
        read = teachers if distill is recipe.distill else {}
        return context.student_phase(context.build(recipe.student, "student"), read, distill)

    phases = {name: student(context.plain) for name in ("memory", "alone")} | {"cached": student(recipe.distill)}
    phases["memory"].loader = list(phases["memory"].loader)
    optimizers = {name: make_optimizer(phase.config, phase.task) for name, phase in phases.items()}
    if (cache := phases["cached"].taught) is not None:
        for view in range(recipe.teachers.views):
            cache.set_epoch(view)
    steps = len(phases["alone"].loader)
    seconds: dict[str, list[float]] = {name: [] for name in phases}
    with progress("epochs", len(phases) * steps * (turns + 1), hidden=not engine.main) as bar:
        for turn in range(turns + 1):
            for name in phases if turn % 2 else reversed(phases):
                began = clock()
                train_epoch(phases[name], optimizers[name], turn, turn * steps, steps, bar, context.log)
                if turn:
                    seconds[name].append(clock() - began)
    return seconds, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="quickstart")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write every epoch's seconds there")
    parser.add_argument("--cpu-time", action="store_true", help="of this process, on one thread, instead of the clock's")
    options = parser.parse_args()
    recipe = recipes.load(options.recipe, [*options.overrides, f"train.epochs={options.turns + 1}"])
    if options.cpu_time or recipe.threads:
        torch.set_num_threads(1 if options.cpu_time else recipe.threads or 1)
    engine = Engine("cpu" if options.cpu_time else recipe.device, recipe.precision)
    clock = time.process_time if options.cpu_time else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        measured, steps = measure(recipe, engine, options.turns, Path(folder), clock)
    seconds = {name: np.array(values) for name, values in measured.items()}
    where = device_name(engine.device)
    print(
        f"{recipe.name}, {recipe.distill.method}: {steps} steps of {recipe.train.batch_size} clips, {recipe.precision}, {where}"
    )
    for name, values in seconds.items():
        print(f"{name:15s} {np.median(values):8.3f} s   {1e3 * np.median(values) / steps:9.2f} ms a step")
    ratios: dict[str, Any] = {}
    for name, below in (("alone", "memory"), ("cached", "alone")):
        low, middle, high = np.quantile(seconds[name] / seconds[below], [0.25, 0.5, 0.75])
        ratios[f"{name} / {below}"] = [low, middle, high]
        print(f"{name + ' / ' + below:15s} {middle:8.3f}   ({low:.3f} to {high:.3f})")
    if options.json:
        write_json(options.json, {"recipe": recipe.name, "device": where, "steps": steps, "seconds": measured, "ratios": ratios})


if __name__ == "__main__":
    reported(main)
