"""`dtkd-edge train RECIPE --splits 1,2,3`: one run per official split (HMDB51, UCF101), and the mean of their scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from dtkd_edge import recipe_reader as recipes
from dtkd_edge.console import print_table, say
from dtkd_edge.errors import RecipeError, UsageError
from dtkd_edge.files import write_json
from dtkd_edge.runs import RUNS
from dtkd_edge.train.command import train

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

    Finished splits are left alone with `resume`. Returns what splits.json holds.
    """
    config = recipes.load(recipe, overrides)
    if config.data.kind not in WITH_SPLITS:
        raise RecipeError(f"data.kind: {config.data.kind} has no official splits", f"--splits is for {' and '.join(WITH_SPLITS)}")
    numbers = parse_splits(splits)
    folder = out or RUNS / f"{config.name}-splits"
    if not resume and any((folder / f"split-{number}").exists() for number in numbers):
        raise UsageError(f"{folder}: holds runs of these splits already", "go on with --resume, or give another --out")
    scores: dict[int, dict[str, dict[str, float]]] = {}
    for number in numbers:
        say(f"split {number} ({numbers.index(number) + 1} of {len(numbers)})")
        run = train(recipe, overrides=[*overrides, f"data.split={number}"], out=folder / f"split-{number}", resume=resume)
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        scores[number] = {**{f"teacher {name}": row for name, row in metrics["teachers"].items()}}
        if "student" in metrics:
            scores[number]["student"] = metrics["student"]
    result = {
        "recipe": config.name,
        "splits": {str(number): rows for number, rows in scores.items()},
        "mean": {model: _mean([rows[model] for rows in scores.values()]) for model in scores[numbers[0]]},
    }
    write_json(folder / "splits.json", result)
    _print(result)
    say(f"runs: {folder}")
    return result


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if key != "n"}


def _print(result: dict[str, Any]) -> None:
    table = Table(title=f"{result['recipe']}: top-1 of {len(result['splits'])} official splits, views=1x1")
    table.add_column("model")
    for number in result["splits"]:
        table.add_column(f"split {number}", justify="right")
    table.add_column("mean", justify="right")
    for model, mean in result["mean"].items():
        row = [f"{rows[model]['action_top1']:.4f}" for rows in result["splits"].values()]
        table.add_row(model, *row, f"{mean['action_top1']:.4f}")
    print_table(table)
