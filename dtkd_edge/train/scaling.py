"""How training scales over the processes of one machine, beside what the machine allows.

    python -m dtkd_edge.train.scaling [RECIPE] [--set A.B=V] [--processes 2] [--turns 5] [--seconds 10] [--json FILE]

With the recipe's student, batch size (of each process), precision and method, on random frames in memory and stored random
teachers' outputs, each process with one torch thread (or a GPU of its own):

    one         one process, the machine to itself
    apart       so many processes, each training a network of its own: what cores, caches and memory allow
    together    so many processes, as `torchrun` starts them: gradients averaged, batch norms shared

Processes that run at the same time begin at the same time and count their steps for so many seconds. Printed are the clips per
second of all processes and their ratios turn by turn (median, least and most): together / one is the scaling, together / apart
what the processes' talking to each other leaves of what the machine allows (every few steps they also agree on going on).
"""

from __future__ import annotations

import argparse
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
from dtkd_edge.errors import MissingDevice, NotHereError
from dtkd_edge.exits import reported
from dtkd_edge.files import write_json
from dtkd_edge.recipe import Recipe
from dtkd_edge.train.engine import Engine, find_device
from dtkd_edge.train.phases import build_model, channels_last
from dtkd_edge.train.step_cost import random_batch, random_network, random_teachers, training_step

CLASSES, STEPS = 8, 8  # steps before the count, and between two looks at the clock


def work(recipe: Recipe, seconds: float, folder: Path, processes: int) -> None:
    """Train, and leave a file with the clips per second of this process in the folder; it is empty at first, and the count begins
    when there are so many."""
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
    own = folder / str(os.getpid())
    own.touch()
    while len(list(folder.iterdir())) < processes:
        time.sleep(0.01)
    began, count = time.perf_counter(), 0
    while engine.agree(time.perf_counter() < began + seconds):
        several()
        count += STEPS
    own.write_text(str(count * len(frames) / (time.perf_counter() - began)))
    engine.close()


def run(arguments: list[str], seconds: float, processes: int, together: bool, gpus: list[str]) -> float:
    """Clips per second of so many processes that run at the same time. gpus: one for each of them; none: on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        ready, said = Path(folder, "ready"), Path(folder, "said")
        ready.mkdir()
        asked = ["-m", "dtkd_edge.train.scaling", *arguments, "--seconds", str(seconds), "--processes", str(processes)]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if together else []
        command = [sys.executable, *launcher, *asked, "--worker", str(ready)]
        started: list[subprocess.Popen[bytes]] = []
        with said.open("w+", encoding="utf-8", errors="replace") as output:  # a file, which takes as much as they say
            try:
                for number in range(1 if together else processes):
                    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                    if gpus:
                        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus) if together else gpus[number]
                    started.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
                while any(child.poll() is None for child in started) and not any(child.poll() for child in started):
                    time.sleep(0.05)
            finally:
                for child in started:
                    if child.poll() is None:
                        child.terminate()  # it would wait for one that failed
                for child in started:
                    child.wait()
        lines = said.read_text(encoding="utf-8", errors="replace").splitlines()
        if any(child.returncode for child in started):
            why = [line.partition("error: ")[2] for line in lines if line.startswith("error: ")] or lines[-1:]
            raise NotHereError(
                f"a process of the measurement ended with an error: {' '.join(why[:1])}", "try it with: dtkd-edge train"
            )
        return sum(float(file.read_text()) for file in ready.iterdir())


def find_gpus(recipe: Recipe, processes: int) -> list[str]:
    """A GPU for each process, as CUDA_VISIBLE_DEVICES names them; none where the recipe trains on the CPU."""
    if find_device(recipe.device).type == "cpu":
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(number) for number in range(torch.cuda.device_count())] if given is None else given.split(",")
    if processes > len(gpus):
        raise MissingDevice(f"--processes {processes}: there are {len(gpus)} GPUs here", "lower it, or --set device=cpu")
    return gpus[:processes]


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
        work(recipe, options.seconds, options.worker, options.processes)
        return
    if options.processes < 2 or options.turns < 1 or options.seconds <= 0:
        parser.error("--processes from 2, --turns from 1, --seconds above 0")
    gpus = find_gpus(recipe, options.processes)
    for config in (recipe.student, recipe.teachers.cnn, recipe.teachers.vit):
        if config is not None:
            build_model(recipe, config, CLASSES)  # what is wrong with the recipe is said here, and not by every process
    arguments = [options.recipe, *(f"--set={override}" for override in options.overrides)]
    ways = {"one": (1, False), "apart": (options.processes, False), "together": (options.processes, True)}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.turns):
        for name in ways if turn % 2 else reversed(ways):
            speeds[name].append(run(arguments, options.seconds, *ways[name], gpus))
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
