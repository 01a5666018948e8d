"""`dtkd-edge eval`: the table, the confusion matrix and the challenge's file of one evaluation. No torch at module level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from dtkd_edge.console import check_result, counted, print_table, say, write_result
from dtkd_edge.errors import UsageError
from dtkd_edge.files import check_output
from dtkd_edge.train import submission as challenge
from dtkd_edge.train.scores import write_confusion
from dtkd_edge.train.testing import evaluate_target


def evaluate(
    target: Path | None,
    *,
    overrides: list[str],
    views: str = "1x1",
    json: str | None = None,
    data: Path | None = None,
    confusion: Path | None = None,
    submission: Path | None = None,
    sls: str = "2,3,3",
) -> dict[str, Any]:
    """Scores of a run's student or of an artefact on the run's validation clips, or on `data` or `--set data.…`.

    confusion: where to write the confusion matrix, as a picture or as .csv; with several heads one file each, NAME-HEAD.png.
    submission: where to write EPIC-KITCHENS-100's result file, .json or .zip; sls: its levels of supervision. The segments then
    need no labels.
    """
    levels = challenge.parse_levels(sls)
    if submission is not None:
        challenge.check_file(submission)
    if confusion is not None:
        check_output("--confusion", confusion, ".png", ".csv")
    check_result(json)
    done = evaluate_target(target, overrides, parse_views(views), data, submission=submission is not None)
    result = done.result
    if submission is not None:
        missing = challenge.write_submission(submission, done.scores, done.catalogue, done.numbers, levels)
        result["submission"] = {"file": str(submission), "segments": result["n"], "missing": missing, **levels}
    if json:
        write_result(result, json)
    if json != "-" and result["heads"]:
        print_table(_eval_table(result))
    if submission is not None:
        scored = "" if result["heads"] else ", not scored: they have no labels, or of classes that the model lacks"
        say(f"submission: {submission}: {counted(result['n'], 'segment')}{scored}")
        if missing:
            lost = f"{counted(len(missing), 'segment')} that cannot be decoded, such as {missing[0]}"
            say(f"{submission}: lacks {lost}: the challenge wants all")
    if confusion is not None and result["heads"]:
        for head, names in done.labels.items():
            path = confusion if len(done.labels) == 1 else confusion.with_stem(f"{confusion.stem}-{head}")
            write_confusion(path, done.scores.confusion(head), names)
            say(f"confusion matrix of {head}: {path}")
    return result


def _eval_table(result: dict[str, Any]) -> Table:
    table = Table(title=f"{result['target']}: {counted(result['n'], 'clip')}, views={result['views']}")
    table.add_column("head")
    for column in ("top-1", "top-5", "mean class"):
        table.add_column(column, justify="right")
    tops = ("top1", "top5")
    parts = result.get("parts", {})
    for part in parts:
        for top in tops:
            table.add_column(f"{part} {top[:-1]}-{top[-1]}", justify="right")
    for head, row in result["heads"].items():
        own = [row.get(key) for key in (*tops, "mean_class")]
        own += [rows.get(head, {}).get(top) for rows in parts.values() for top in tops]
        table.add_row(head, *("" if value is None else f"{value:.4f}" for value in own))
    return table


def parse_views(text: str) -> tuple[int, int]:
    """'10x3' → (10, 3): temporal × spatial views."""
    temporal, x, spatial = text.lower().partition("x")
    if not (x and temporal.isdecimal() and spatial.isdecimal() and 1 <= int(temporal) <= 64 and 1 <= int(spatial) <= 8):
        raise UsageError(f"--views {text}: expected TxS, such as 1x1 or 10x3", "temporal up to 64, spatial up to 8")
    return int(temporal), int(spatial)
