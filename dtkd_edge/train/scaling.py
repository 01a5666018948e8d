"""How training scales over the processes of one machine, beside what the machine allows.

    python -m dtkd_edge.train.scaling [RECIPE] [--set A.B=V] [--processes 2] [--turns 5] [--seconds 10] [--json FILE]

With the recipe's student, batch size (of each process), precision and method, on random frames in memory and stored random
teachers' outputs, each process with one torch thread (or a GPU of its own):

    one         one process, the machine to itself
    apart       so many processes, each training a network of its own: what cores, caches and memory allow
    together    so many processes, as `torchrun` starts them: gradients averaged, batch norms shared

Processes that run at the same time begin at the same time and count their steps for so many seconds. Printed are the clips per
second of all processes and their ratios turn by turn (median, least and most): together / one is the scaling, together / apart
what the processes' talking to each other leaves of what the machine allows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from dtkd_edge import recipe_reader as recipes
from dtkd_edge.distill.task import DistillationTask
from dtkd_edge.errors import NotHereError
from dtkd_edge.exits import reported
from dtkd_edge.files import write_json
from dtkd_edge.recipe import Recipe
from dtkd_edge.train.engine import Engine
from dtkd_edge.train.phases import channels_last
from dtkd_edge.train.step_cost import random_batch, random_network, random_teachers, training_step

CLASSES, STEPS = 8, 4  # steps before the count, and between two looks at the clock


def work(recipe: Recipe, seconds: float, folder: Path, processes: int) -> float:
    """Clips per second of this process; it begins to count when so many have left a file in the folder."""
    torch.set_num_threads(1)
    engine = Engine(recipe.device, recipe.precision)
    teachers = random_teachers(recipe, engine, CLASSES)
    student = random_network(recipe, recipe.student, engine, CLASSES)
    sampling, frames, labels = random_batch(recipe, engine, [student, *teachers.values()], CLASSES)
    task = channels_last(DistillationTask(student, teachers, recipe.distill, sampling=sampling)).to(engine.device)
    with engine.autocast():
        taught = task.teach(frames)
    step = training_step(recipe, engine, task, frames, labels, taught)

    def several() -> None:
        for _ in range(STEPS):
            step()
        if engine.device.type == "cuda":
            torch.cuda.synchronize()

    several()
    (folder / str(os.getpid())).touch()
    while len(list(folder.iterdir())) < processes:
        time.sleep(0.01)
    began, count = time.perf_counter(), 0
    while engine.agree(time.perf_counter() < began + seconds):
        several()
        count += STEPS
    speed = count * len(frames) / (time.perf_counter() - began)
    engine.close()
    return speed


def run(arguments: list[str], seconds: float, processes: int, together: bool) -> float:
    """Clips per second of so many processes that run at the same time."""
    with tempfile.TemporaryDirectory() as folder:
        asked = ["-m", "dtkd_edge.train.scaling", *arguments, "--seconds", str(seconds), "--processes", str(processes)]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if together else []
        command = [sys.executable, *launcher, *asked, "--worker", folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        started = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(1 if together else processes)
        ]
        while any(child.poll() is None for child in started) and not any(child.poll() for child in started):
            time.sleep(0.05)
        failed = [child for child in started if child.poll()]
        for child in started:
            if child.poll() is None:
                child.terminate()  # it would wait for the one that failed
        said = [child.communicate() for child in started]
        if failed:
            last = said[started.index(failed[0])][1].strip().splitlines()[-1:]
            raise NotHereError("a process of the measurement ended with an error", *last)
        return sum(json.loads(line)["clips_per_second"] for out, _ in said for line in out.splitlines() if line.startswith("{"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="quickstart")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path, help="write every turn's figures there")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    recipe = recipes.load(options.recipe, options.overrides)
    if options.worker:
        speed = work(recipe, options.seconds, options.worker, options.processes)
        print(json.dumps({"clips_per_second": speed}), flush=True)
        return
    arguments = [options.recipe, *(f"--set={override}" for override in options.overrides)]
    ways = {"one": (1, False), "apart": (options.processes, False), "together": (options.processes, True)}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.turns):
        for name in ways if turn % 2 else reversed(ways):
            speeds[name].append(run(arguments, options.seconds, *ways[name]))
    print(
        f"{recipe.name}, {recipe.distill.method}: batches of {recipe.train.batch_size} a process, {options.processes} processes"
    )
    for name, values in speeds.items():
        print(f"{name:16s} {np.median(values):9.1f} clips/s")
    ratios = {}
    for name, below in (("apart", "one"), ("together", "one"), ("together", "apart")):
        values = np.array(speeds[name]) / np.array(speeds[below])
        ratios[f"{name} / {below}"] = [float(values.min()), float(np.median(values)), float(values.max())]
        print(f"{name + ' / ' + below:16s} {np.median(values):9.2f}   ({values.min():.2f} to {values.max():.2f})")
    if options.json:
        write_json(options.json, {"recipe": recipe.name, "clips_per_second": speeds, "ratios": ratios})


if __name__ == "__main__":
    reported(main)
