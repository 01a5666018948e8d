"""Several targets or precisions of one run in one command: one after another, each with its verdict. No torch at module level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dtkd_edge.artifact import MANIFEST
from dtkd_edge.console import say
from dtkd_edge.errors import DtkdEdgeError, UsageError
from dtkd_edge.export import targets
from dtkd_edge.export.command import export
from dtkd_edge.runs import find_run

# Exit codes, the gravest first: a defect, a wrong result, a bad input, something missing (an engine is never built where there
# is no GPU), a wrong use. One that failed gravely is not hidden by one that had to be left to another machine.
GRAVEST_FIRST = (1, 5, 3, 4, 2)


def export_each(
    run: Path | None = None,
    *,
    target: list[str] | None = None,
    precision: list[str] | None = None,
    mode: str = "clip",
    batch: int = 1,
    dynamic_batch: bool = False,
    out: Path | None = None,
    verify_only: bool = False,
    workspace: int | None = None,
    optimization_level: int | None = None,
    hardware_compatible: bool = False,
    version_compatible: bool = False,
    dla: int | None = None,
    calibration_clips: int | None = None,
    max_drop: float | None = None,
    **common: Any,
) -> list[Path]:
    """`command.export` of every target in every precision → the artefacts' folders, in the order asked for.

    target, precision: names, or comma separated names; none: onnx, and each target's own default precision. All combinations are
    checked before the first is built. An option of one target or precision goes to those that have it.

    When one fails the others are still built, and then the gravest error's class is raised with the names of all that failed.
    """
    wanted = targets.names(target or ["onnx"])
    precisions: list[str | None] = [*targets.names(precision or [])] or [None]
    options: dict[str, Any] = {
        "workspace": workspace, "optimization_level": optimization_level, "hardware_compatible": hardware_compatible,
        "version_compatible": version_compatible, "dla": dla,
        "calibration_clips": calibration_clips, "max_drop": max_drop,
    }  # fmt: skip
    shape: dict[str, Any] = {"mode": mode, "batch": batch, "dynamic_batch": dynamic_batch}
    several = len(wanted) * len(precisions) > 1
    if verify_only or not several:
        return [
            export(run, target=wanted[0], precision=precisions[0], out=out, verify_only=verify_only, **shape, **options, **common)
        ]
    if out is not None:
        raise UsageError(
            f"--out {out}: each of several exports has a folder of its own",
            "leave --out away, or name one --target and one --precision",
        )
    if run is not None and (run / MANIFEST).is_file():
        raise UsageError(f"{run}: an exported artefact; several targets are exported from a run", "give the run folder instead")
    requests = [
        (targets.request(name, one, **shape, **taken), taken)
        for name in wanted
        for one in precisions
        for taken in [targets.taken(name, one, options, wanted, precisions)]
    ]
    folder = find_run(run)  # once: a training that ends meanwhile must not change which run the later ones are of
    made: list[Path] = []
    failed: dict[str, DtkdEdgeError] = {}
    for request, taken in requests:
        try:
            made.append(export(folder, target=request.target.name, precision=request.precision, **shape, **taken, **common))
        except Exception as raised:  # a defect of ours, or of a converter, costs this one and not the others
            defect = DtkdEdgeError(f"{type(raised).__name__}: {raised}", "export it alone, with --debug")
            error = raised if isinstance(raised, DtkdEdgeError) else defect
            say(f"error: {request.folder}: {error.message}")
            if error.hint:
                say(f"  fix: {error.hint}")
            failed[request.folder] = error
    if failed:
        worst = min(failed.values(), key=lambda error: GRAVEST_FIRST.index(error.exit_code))
        done = f"; finished: {', '.join(str(path) for path in made)}" if made else ""
        raise type(worst)(
            f"{len(failed)} of {len(requests)} exports did not end well: {', '.join(failed)}{done}", "see the lines above"
        )
    return made
