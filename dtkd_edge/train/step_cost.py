"""What distillation costs beside the networks themselves: one training step, and one with stored teacher outputs.

    python -m dtkd_edge.train.step_cost [RECIPE] [--set A.B=V] [--steps 20] [--device auto] [--classes 8] [--json FILE]
        [--cpu-time]

With the student, teachers, batch size and precision of the recipe (weights do not matter), on random frames in memory:

    student   forward, cross-entropy, backward, optimiser: `ce`'s step
    teacher   forward alone, without graph, of either one
    step      the method's whole step, teachers asked
    cached    the same with the teachers' outputs given, as from the teacher cache

--cpu-time counts this process's time on one CPU thread instead of the clock's: what else runs on the machine then matters less.

All take turns, so that a busy machine slows them alike; a turn gives one ratio, printed are the median and the middle half.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dtkd_edge import recipe_reader as recipes
from dtkd_edge.distill.task import DistillationTask, TeacherOutput
from dtkd_edge.exits import reported
from dtkd_edge.files import write_json
from dtkd_edge.models import VideoModel
from dtkd_edge.preprocess import JointSampling
from dtkd_edge.recipe import DistillConfig, ModelConfig, Recipe
from dtkd_edge.train.engine import Engine
from dtkd_edge.train.phases import build_model, channels_last, joint_sampling
from dtkd_edge.train.schedule import make_optimizer


def random_network(recipe: Recipe, config: ModelConfig, engine: Engine, classes: int) -> VideoModel:
    torch.manual_seed(0)
    return channels_last(build_model(recipe, config, classes)).to(engine.device)


def random_teachers(recipe: Recipe, engine: Engine, classes: int) -> dict[str, VideoModel]:
    given = {name: config for name in ("cnn", "vit") if (config := getattr(recipe.teachers, name)) is not None}
    return {name: random_network(recipe, config, engine, classes) for name, config in given.items()}


def random_batch(
    recipe: Recipe, engine: Engine, networks: list[VideoModel], classes: int
) -> tuple[JointSampling, Tensor, dict[str, Tensor]]:
    """How the networks share frames, frames as they come from the loader, and labels."""
    sampling, size, batch = joint_sampling(recipe, networks), max(n.info.size for n in networks), recipe.train.batch_size
    frames = torch.randint(0, 256, (batch, sampling.frames, size, size, 3), dtype=torch.uint8, device=engine.device)
    return sampling, frames, {"action": torch.randint(0, classes, (batch,), device=engine.device)}


def training_step(
    recipe: Recipe,
    engine: Engine,
    task: DistillationTask,
    frames: Tensor,
    labels: dict[str, Tensor],
    taught: dict[str, TeacherOutput] | None,
) -> Callable[[], None]:
    """A step of training on one batch, which is in memory: see `DistillationTask.forward`."""
    module = engine.distribute(task.train(), recipe.train.sync_bn)
    optimizer = make_optimizer(recipe.train, task)
    trained = [p for p in task.parameters() if p.requires_grad]

    def step() -> None:
        with engine.autocast():
            loss = module(frames, labels, taught=taught)["loss"]
        engine.scaler.scale(loss).backward()
        engine.scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(trained, 5.0, foreach=True)
        engine.scaler.step(optimizer)
        engine.scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(
    recipe: Recipe, engine: Engine, steps: int, classes: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of every turn, by name; bytes of a clip as the device receives it, and of what the teacher cache keeps of it."""

    teachers = random_teachers(recipe, engine, classes)

    def build() -> VideoModel:
        return random_network(recipe, recipe.student, engine, classes)

    sampling, frames, labels = random_batch(recipe, engine, [build(), *teachers.values()], classes)

    def stepper(config: DistillConfig, cached: bool) -> Callable[[], None]:
        task = DistillationTask(build(), teachers, config, sampling=sampling)
        task = channels_last(task).to(engine.device)
        with engine.autocast():
            taught = task.teach(frames) if cached else None
        return training_step(recipe, engine, task, frames, labels, taught)

    everything = DistillationTask(build(), teachers, recipe.distill, sampling=sampling).to(engine.device)

    def asker(name: str) -> Callable[[], None]:
        def ask() -> None:
            with engine.autocast():
                everything.teach(frames, only={name})

        return ask

    turns: dict[str, Callable[[], None]] = {"student": stepper(DistillConfig(method="ce"), False)}
    turns |= {f"teacher {name}": asker(name) for name in everything.teachers}
    turns |= {"step": stepper(recipe.distill, False), "cached": stepper(recipe.distill, True)}
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    warm = min(steps, 3)
    for number in range(steps + warm):
        for name in turns if number % 2 else reversed(turns):
            began = clock()
            turns[name]()
            if engine.device.type == "cuda":
                torch.cuda.synchronize()
            if number >= warm:
                seconds[name].append(clock() - began)
    said = [
        value
        for output in everything.teach(frames[:2]).values()
        for value in (*output.features.values(), output.pooled, *output.logits.values())
    ]
    sizes = {"clip": frames[0].numel(), "stored": sum(2 * value[0].numel() + 4 for value in said)}
    return seconds, sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="quickstart")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--classes", type=int, default=8)
    parser.add_argument("--json", type=Path, help="write the medians there, for dtkd_edge.train.budget")
    parser.add_argument("--cpu-time", action="store_true", help="of this process, on one thread, instead of the clock's")
    options = parser.parse_args()
    recipe = recipes.load(options.recipe, options.overrides)
    if options.cpu_time and options.device == "cuda":
        parser.error("--cpu-time is of the CPU: leave out --device cuda")
    if options.cpu_time or recipe.threads:
        torch.set_num_threads(1 if options.cpu_time else recipe.threads or 1)
    engine = Engine("cpu" if options.cpu_time else options.device, recipe.precision)
    clock = time.process_time if options.cpu_time else time.perf_counter
    measured, sizes = measure(recipe, engine, options.steps, options.classes, clock)
    seconds = {name: np.array(values) for name, values in measured.items()}
    print(
        f"{recipe.name}, {recipe.distill.method}: batches of {recipe.train.batch_size}, {recipe.precision}, {engine.device.type}"
    )
    for name, values in seconds.items():
        print(f"{name:12s} {1e3 * np.median(values):9.2f} ms")
    parts = sum(values for name, values in seconds.items() if name == "student" or name.startswith("teacher"))
    for name, ratio in {
        "step / parts": seconds["step"] / parts,
        "cached / student": seconds["cached"] / seconds["student"],
    }.items():
        low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
        print(f"{name:18s} {middle:6.3f}   ({low:.3f} to {high:.3f})")
    if options.json:
        medians = {name: float(np.median(values)) for name, values in seconds.items()}
        told = {
            "recipe": recipe.name,
            "method": recipe.distill.method,
            "precision": recipe.precision,
            "device": device_name(engine.device),
            "batch": recipe.train.batch_size,
            "teachers": sum(value for name, value in medians.items() if name.startswith("teacher ")),
            **{name: medians[name] for name in ("student", "step", "cached")},
            **sizes,
        }
        write_json(options.json, told)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU thread{'s' * (torch.get_num_threads() > 1)}"


if __name__ == "__main__":
    reported(main)
