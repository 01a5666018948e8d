"""`dtkd-edge train`: the run folder, its phases (teachers, then student), its table of results."""

from __future__ import annotations

import json
import shlex
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import dtkd_edge
from dtkd_edge import recipe_reader as recipes
from dtkd_edge.artifact import now
from dtkd_edge.console import counted, print_table, say
from dtkd_edge.data.lists import write_held_out
from dtkd_edge.data.mirror import flip_warning
from dtkd_edge.distill.methods import LOSSES
from dtkd_edge.errors import CheckpointError, RecipeError, UsageError
from dtkd_edge.exits import Interrupted
from dtkd_edge.files import disk_errors, sole_writer, write_json, write_text
from dtkd_edge.models.base import VideoModel
from dtkd_edge.recipe import Recipe
from dtkd_edge.runs import METRICS, RUNS, check_out
from dtkd_edge.train.engine import Engine
from dtkd_edge.train.log import RunLog
from dtkd_edge.train.memory import memory_errors
from dtkd_edge.train.phases import RunContext, RunData, check_heads, check_models, predictions, train_student, train_teacher
from dtkd_edge.train.run_report import save_predictions, write_run_report
from dtkd_edge.train.scores import Scores


def train(
    recipe: str, *, overrides: list[str], out: Path | None = None, resume: bool = False, engine: Engine | None = None
) -> Path:
    """Train what the recipe says into a run folder and return it. With `resume`, continue (or start) that run. engine: of several
    trainings one after the other; it stays open."""
    config = recipes.load(recipe, overrides)
    own = engine or Engine(config.device, config.precision)
    try:
        with own.others_end():
            folder, config = _open_run(out or RUNS / config.name, config, overrides, out is not None, resume, own)
            if own.agree(_finished(folder, config)):
                if own.main:
                    say(f"{folder}: this run is finished; nothing to do")
            else:
                _train(folder, config, own, resume)
    finally:
        if engine is None:
            own.close()
    return folder


def _finished(folder: Path, config: Recipe) -> bool:
    """Whether the run has all that its recipe asks for: one that trained its teachers alone may go on to the student."""
    try:
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    return config.phases == "teachers" or "student" in metrics


def _open_run(
    folder: Path, config: Recipe, overrides: list[str], named: bool, resume: bool, engine: Engine
) -> tuple[Path, Recipe]:
    """The run's folder and recipe: this one's, the next free one's, or an interrupted run's."""
    if engine.main:
        check_out(folder)
    if not engine.agree((folder / "recipe.yaml").is_file()):
        return folder, config
    if resume:
        return folder, _same_run(folder, config, overrides)
    if named:
        raise UsageError(f"{folder}: holds a run already", "continue it with --resume, or give another --out")
    return engine.agree(_next_free(folder)), config


def _train(folder: Path, config: Recipe, engine: Engine, resume: bool) -> None:
    # Whatever the recipe or the data may lack is said before the folder is made: the mended command can then use it.
    unusual = check_models(config, folder)
    data = RunData.open(recipes.keep_held_out(config, folder) if resume else config)
    check_heads(config, folder, data)
    for line in unusual if engine.main else ():
        say(line)
    saved = folder / "recipe.yaml"
    before: str | None = None
    refused: UsageError | None = None
    engine.wait()
    with ExitStack() as held:
        if engine.main:
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                refused = _hold(held, folder, saved.is_file() and not resume)
        if refused := engine.agree(refused):  # or the other ranks would wait for this one
            raise refused
        if engine.main:
            with disk_errors(folder):
                before = saved.read_text(encoding="utf-8") if saved.is_file() else None
                if before is None and data.val.held_out:
                    write_held_out(folder / recipes.HELD_OUT, data.val)
                write_text(saved, config.to_yaml())
        try:
            with disk_errors(folder), memory_errors(config.name):
                run_phases(config, folder, data, engine, resume=resume)
        except (CheckpointError, RecipeError):
            if before is not None and engine.main:  # what this call changed does not fit the run: leave it as it was
                write_text(saved, before)
            raise
        except KeyboardInterrupt as stop:
            if not engine.main:
                raise
            again = shlex.join(["dtkd-edge", "train", str(folder / "recipe.yaml"), "--out", str(folder), "--resume"])
            raise Interrupted(f"to go on after the last checkpoint: {again}") from stop


def _hold(held: ExitStack, folder: Path, taken: bool) -> UsageError | None:
    """Keep others from writing the run; or why this training may not. taken: another one has ended there since we looked."""
    try:
        held.enter_context(sole_writer(folder))
    except UsageError as error:
        return error
    return UsageError(f"{folder}: holds a run already", "continue it with --resume, or give another --out") if taken else None


def run_phases(config: Recipe, folder: Path, data: RunData, engine: Engine, *, resume: bool) -> None:
    """Teachers that the method reads, the student, the results."""
    began = time.perf_counter()
    if config.threads:
        torch.set_num_threads(config.threads)
    log = RunLog(folder, engine.main)
    try:
        context = RunContext(config, folder, data, engine, log, resume)
        log.note(context.describe(), started=now())
        for line in dict.fromkeys([*data.train.notes, *data.val.notes, *flip_warning(config.augment.flip, data.train.classes)]):
            log.note(line)
        teachers: dict[str, VideoModel] = {}
        scores: dict[str, Scores] = {}
        for name in context.teachers_needed:
            teachers[name], scores[name] = train_teacher(context, name)
        if config.phases == "all":
            scores["student"] = train_student(context, teachers)
        metrics = {
            **({"student": scores["student"].table()} if "student" in scores else {}),
            "teachers": {name: scores[name].table() for name in teachers},
            **({"kept_epochs": context.kept} if context.kept else {}),
            "method": config.distill.method,
            "views": "1x1",
            "clips": {"train": len(context.train), "student": len(context.student_clips), "val": len(context.val)},
            "losses": LOSSES,
            "seconds": round(time.perf_counter() - began, 1),
            "tools": {"dtkd-edge": dtkd_edge.__version__, "torch": torch.__version__},
        }
        if engine.main:
            if "student" in scores:
                heads = predictions(context, scores)
                save_predictions(folder, heads)
                write_run_report(folder, config.name, metrics, heads)
            write_json(folder / METRICS, metrics)  # last: it says that the run is finished
    finally:
        log.close()
    engine.wait()
    if engine.main:
        print_results(metrics)
        report = folder / "report.html"
        say(f"run: {folder}" + (f"   report: {report}" if report.is_file() else ""))


def print_results(metrics: dict[str, Any]) -> None:
    rows = {f"teacher {name}": row for name, row in metrics["teachers"].items()}
    if "student" in metrics:
        rows["student"] = metrics["student"]
    columns = list(dict.fromkeys(key for row in rows.values() for key in row if key != "n"))
    scored = min((int(row["n"]) for row in rows.values()), default=0)  # without those that do not decode
    table = Table(title=f"validation accuracy, {counted(scored, 'clip')}, views={metrics['views']}")
    table.add_column("model")
    alone = all(column.startswith("action_") for column in columns)  # no other head to tell it from
    for column in columns:
        table.add_column(column.removeprefix("action_") if alone else column, justify="right")
    kept = metrics.get("kept_epochs", {})
    for name, row in rows.items():
        epoch = kept.get(name.removeprefix("teacher "))
        table.add_row(
            f"{name}, epoch {epoch}" if epoch else name, *[f"{row[column]:.3f}" if column in row else "" for column in columns]
        )
    print_table(table)


def _next_free(folder: Path) -> Path:
    number = 2
    while (candidate := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    say(f"{folder} holds a run already; this one goes to {candidate}")
    return candidate


def _same_run(folder: Path, config: Recipe, overrides: list[str]) -> Recipe:
    """The run's own recipe, with this call's overrides; refuses a run of another recipe, and changes to a finished one."""
    before, saved = recipes.load(folder / "recipe.yaml"), recipes.load(folder / "recipe.yaml", overrides)
    if saved.name != config.name:
        raise RecipeError(f"{folder}: a run of recipe {saved.name}, not of {config.name}", "give another --out")
    if saved.data.held_out != before.data.held_out:
        raise UsageError(
            f"--set data.held_out: {folder} keeps to the clips that it held out when it began",
            "leave it out, or train another run: give another --out",
        )
    for name in ("cnn", "vit"):
        was, wanted = (getattr(recipe.teachers, name) for recipe in (before, saved))
        if was != wanted and (folder / "teachers" / f"{name}.json").is_file():
            raise RecipeError(
                f"{folder}: its teacher {name} is finished; teachers.{name} cannot be changed any more",
                "train it in another run: give another --out",
            )
    done = _finished(folder, saved)
    if done and (changed := recipes.differences(before.model_dump(), saved.model_dump())):
        raise RecipeError(
            f"{folder}: this run is finished, with {recipes.first_of(changed)}; it cannot be changed any more",
            "train another run: give another --out",
        )
    found, wanted = saved.model_dump(), config.model_dump()
    recipes.forget_given_list(found, wanted)
    if other := recipes.differences(found, wanted):
        goes_on = "has a recipe of its own" if done else "goes on with its own recipe"
        say(f"{folder}: {goes_on}, with {recipes.first_of(other)}" + ("" if done else "; change it with --set"))
    return saved
