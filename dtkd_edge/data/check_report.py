"""What `dtkd-edge data check` has found, for a person. No torch."""

from __future__ import annotations

from typing import Any

from dtkd_edge.console import print_table, say
from dtkd_edge.data.catalogue import SIDES, Catalogue

NAMED = 10  # lines about copies of one kind, and files in such a line


def print_report(result: dict[str, Any], train: Catalogue) -> None:
    """A table on standard output, and a line on standard error for whatever is wrong with a file."""
    from rich.table import Table

    table = Table(title=f"{result['kind']}: {result['root']}")
    table.add_column("")
    for side in SIDES:
        table.add_column(side, justify="right")
    sides = [result[side] for side in SIDES]
    table.add_row("clips", *(str(side["clips"]) for side in sides))
    if any(side["missing"]["clips"] for side in sides):
        table.add_row("missing clips, of those listed", *("{clips} of {of}".format(**side["missing"]) for side in sides))
    table.add_row("broken files", *(str(len(side["broken"])) for side in sides))
    table.add_row("clips past the end of their file", *(str(len(side["past_the_end"])) for side in sides))
    table.add_row("copies of another file", *(str(sum(len(c) - 1 for c in side["copies"])) for side in sides))
    for key in ("frames", "fps", "width", "height"):
        table.add_row(f"{key}, min – median – max", *(_span(side[key]) for side in sides))
    for head, names in train.classes.items():
        table.add_section()
        rows = sorted(names, key=lambda name: -sides[0]["clips_per_class"][head][name])
        shown = rows if len(rows) <= 20 else [*rows[:10], *rows[-10:]]
        for name in shown:
            table.add_row(f"{head}: {name}", *(str(side["clips_per_class"][head][name]) for side in sides))
        if len(rows) > len(shown):
            table.add_row(f"… {len(rows) - len(shown)} more in between", "", "")
    print_table(table)
    for side, found in zip(SIDES, sides, strict=True):
        for path in found["missing"]["first"]:
            say(f"{side}: missing: {path}")
        for path, why in found["broken"].items():
            say(f"{side}: broken: {path}: {why}")
        for where in found["past_the_end"]:
            say(f"{side}: past the end: {where}")
        other = found["copies_with_another_label"]
        said_there = set(map(tuple, other))
        copies = [names for names in found["copies"] if tuple(names) not in said_there]
        _say_some(f"{side}: copies", [f"of {first}: {_some(others)}" for first, *others in copies])
        _say_some(f"{side}: the same clip with different labels:", [_some(names) for names in other])
    _say_some("on both sides:", [f"{one} is {other}" for one, other in result["on_both_sides"]])
    say(f"decoded at {result['decode']['frames_per_second_all_cores']:.0f} frames/s on all cores")


def _say_some(what: str, lines: list[str]) -> None:
    for line in lines[:NAMED]:
        say(f"{what} {line}")
    if len(lines) > NAMED:
        say(f"{what} … {len(lines) - NAMED} more (all of them: --json FILE)")


def _some(names: list[str]) -> str:
    more = f", … {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _span(values: dict[str, Any] | None) -> str:
    return "–" if values is None else f"{values['min']:g} – {values['median']:g} – {values['max']:g}"
