"""`dtkd-edge export --markdown`: what can be exported for what, out of the table of targets. No torch."""

from __future__ import annotations

from dtkd_edge.export.targets import HOW, RUN, TARGETS, Target

COLUMNS = ("target", "for", "precision", "modes", "files", "runs on: how that was checked", "needed to export", "needed to run")


def support_table() -> str:
    """The table as Markdown, a row for each target and precision, and what its words mean; docs/export.md holds it."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(_cells(t, precision)) + " |" for t in TARGETS.values() for precision in t.precisions]
    used = {how for t in TARGETS.values() for how in t.devices.values()}
    lines += ["", *(f"- **{_word(how)}**: {words}." for how, words in HOW.items() if how in used)]
    return "\n".join(lines) + "\n"


def _word(how: str) -> str:
    """What was not run says so, and by what it was checked instead."""
    return how if how == RUN else f"not {RUN} ({how})"


def _cells(t: Target, precision: str) -> list[str]:
    extras = [extra for extra in t.needs.values() if extra]
    if precision == "int8" and t.int8_needs:
        extras = list(t.int8_needs.values())  # it brings what the others need
    devices = ", ".join(f"{device}: {_word(how)}" for device, how in t.devices.items())
    name = f"{precision} (default)" if precision == t.default_precision else precision
    makes = ", ".join(f"`{extra}`" for extra in ["train", *extras])
    return [t.name, t.about, name, ", ".join(t.modes), ", ".join(t.files), devices, makes, t.runtime]
