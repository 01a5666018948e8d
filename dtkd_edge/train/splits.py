"""`dtkd-edge train RECIPE --splits 1,2,3`: one run per official split (HMDB51, UCF101), and the mean of their scores.

`dtkd-edge eval RUNS --splits 1,2,3 --views 10x3` scores these runs again, with several views of every clip.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from dtkd_edge import recipe_reader as recipes
from dtkd_edge.console import check_result, print_table, say, write_result
from dtkd_edge.errors import InputError, RecipeError, UsageError
from dtkd_edge.files import write_json
from dtkd_edge.runs import METRICS, RUNS, SPLITS, check_out
from dtkd_edge.train.eval_command import parse_views

WITH_SPLITS = ("hmdb51", "ucf101")


def parse_splits(text: str) -> list[int]:
    """'1,2,3' → [1, 2, 3]."""
    parts = [part.strip() for part in text.split(",")]
    if any(part not in ("1", "2", "3") for part in parts) or len(set(parts)) < len(parts):
        raise UsageError(f"--splits {text}: expected official splits, such as 1,2,3", "each once, of 1, 2 and 3")
    return [int(part) for part in parts]


def train_splits(
    recipe: str, splits: str, *, overrides: list[str], out: Path | None = None, resume: bool = False
) -> dict[str, Any]:
    """Train every split into OUT/split-N, then write OUT/splits.json: the scores of each, and mean and range over the splits.

    Finished splits are left alone with `resume`. Returns what splits.json holds; in all processes of a training but one, nothing.
    """
    config = recipes.load(recipe, overrides)
    if config.data.kind not in WITH_SPLITS:
        raise RecipeError(f"data.kind: {config.data.kind} has no official splits", f"--splits is for {' and '.join(WITH_SPLITS)}")
    numbers = parse_splits(splits)
    folder = out or RUNS / f"{config.name}-splits"
    if not resume and any((folder / f"split-{number}").exists() for number in numbers):
        raise UsageError(f"{folder}: holds runs of these splits already", "go on with --resume, or give another --out")
    from dtkd_edge.train.command import train  # with torch
    from dtkd_edge.train.engine import Engine

    engine = Engine(config.device, config.precision)  # of all splits: processes join each other once
    try:
        if engine.main:
            check_out(folder, SPLITS)
        for number in numbers:
            if engine.main:
                say(f"split {number} ({numbers.index(number) + 1} of {len(numbers)})")
            sets, run = [*overrides, f"data.split={number}"], folder / f"split-{number}"
            train(recipe, overrides=sets, out=run, resume=resume, engine=engine)
    finally:
        engine.close()
    return _summarise(config.name, folder, numbers) if engine.main else {}


def _summarise(name: str, folder: Path, numbers: list[int]) -> dict[str, Any]:
    scores: dict[int, dict[str, dict[str, float]]] = {}
    for number in numbers:
        metrics = json.loads((folder / f"split-{number}" / METRICS).read_text(encoding="utf-8"))
        scores[number] = {**{f"teacher {name}": row for name, row in metrics["teachers"].items()}}
        if "student" in metrics:
            scores[number]["student"] = metrics["student"]
    result = {
        "recipe": name,
        "splits": {str(number): rows for number, rows in scores.items()},
        "mean": {model: _mean([rows[model] for rows in scores.values()]) for model in scores[numbers[0]]},
    }
    write_json(folder / "splits.json", result)
    _print(result)
    say(f"runs: {folder}")
    return result


def evaluate_splits(
    target: Path | None, splits: str, *, overrides: list[str], views: str = "1x1", json_file: str | None = None
) -> dict[str, Any]:
    """Evaluate the students of TARGET/split-N, as train_splits leaves them, each on its own split's test side.

    target: by default the newest such folder below runs/. Returns, and writes to `json_file`, the scores of each split and their
    mean, per head.
    """
    from dtkd_edge.train.testing import evaluate_target

    check_result(json_file)
    numbers, wanted = parse_splits(splits), parse_views(views)
    folder = target or max(
        (file.parent for file in RUNS.glob("*/splits.json")), key=lambda found: found.stat().st_mtime, default=RUNS
    )
    for number in numbers:
        if not (folder / f"split-{number}/recipe.yaml").is_file():
            raise InputError(f"{folder}: has no run split-{number}", "give the folder of: dtkd-edge train RECIPE --splits 1,2,3")
    found = {}
    for number in numbers:
        say(f"split {number} ({numbers.index(number) + 1} of {len(numbers)})")
        found[str(number)] = evaluate_target(folder / f"split-{number}", overrides, wanted).result
    heads = {head: [result["heads"][head] for result in found.values()] for head in found[str(numbers[0])]["heads"]}
    result = {
        "target": str(folder),
        "views": f"{wanted[0]}x{wanted[1]}",
        "splits": found,
        "mean": {head: _mean(rows) for head, rows in heads.items()},
    }
    if json_file:
        write_result(result, json_file)
    if json_file != "-":
        table = _table(f"{folder}: {len(numbers)} official splits, views={result['views']}", numbers, "score")
        for head, rows in heads.items():
            for key, mean in _mean(rows).items():
                table.add_row(f"{head} {key}", *(f"{row[key]:.4f}" for row in rows), f"{mean:.4f}")
        print_table(table)
    return result


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if key != "n"}


def _print(result: dict[str, Any]) -> None:
    title = f"{result['recipe']}: top-1 of {len(result['splits'])} official splits, views=1x1"
    table = _table(title, result["splits"], "model")
    for model, mean in result["mean"].items():
        row = [f"{rows[model]['action_top1']:.4f}" for rows in result["splits"].values()]
        table.add_row(model, *row, f"{mean['action_top1']:.4f}")
    print_table(table)


def _table(title: str, numbers: Iterable[object], what: str) -> Table:
    table = Table(title=title)
    table.add_column(what)
    for column in (*(f"split {number}" for number in numbers), "mean"):
        table.add_column(column, justify="right")
    return table
