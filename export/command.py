"""`dtkd-edge export`: what was asked for, where it goes, and whether that can be. The work: build.py, engine.py, stored.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dtkd_edge.artifact import MANIFEST, Artifact
from dtkd_edge.console import say
from dtkd_edge.errors import ArtifactError, MissingDependency, NotHereError, UsageError
from dtkd_edge.export import build, engine, targets, verify
from dtkd_edge.export.golden import CLIPS
from dtkd_edge.export.stored import latency, refuse, stored_clips, verify_stored
from dtkd_edge.export.targets import Request
from dtkd_edge.files import is_foreign
from dtkd_edge.runs import find_run


def export(
    run: Path | None = None,
    *,
    target: str = "onnx",
    precision: str | None = None,
    mode: str = "clip",
    batch: int = 1,
    dynamic_batch: bool = False,
    out: Path | None = None,
    clips: int = CLIPS,
    overrides: list[str] | None = None,
    verify_only: bool = False,
    workspace: int | None = None,
    optimization_level: int | None = None,
    hardware_compatible: bool = False,
    version_compatible: bool = False,
    dla: int | None = None,
    calibration_clips: int | None = None,
    max_drop: float | None = None,
) -> Path:
    """Export a run's student, or build the engine of an engine-ready folder; returns the artefact's folder.

    run:       a run folder (None: the newest), or an artefact folder for `verify_only` and for building its engine
    clips:     real validation clips to verify on; overrides: `data.…=value` where the data has moved since the training
    precision: "auto" builds all of the target's, and returns the fastest that loses no more than `max_drop` points of top-1
    workspace: MiB that TensorRT may use while it builds; the four after it: see targets.Request
    calibration_clips: training clips that int8's ranges are measured on

    Raises UsageError (a combination the table does not have), CheckpointError (no finished student), MissingDependency,
    VerificationError (the artefact is kept and marked).
    """
    is_artifact = run is not None and (run / MANIFEST).is_file()
    options: dict[str, Any] = {
        "workspace": workspace, "optimization_level": optimization_level, "hardware_compatible": hardware_compatible,
        "version_compatible": version_compatible, "dla": dla,
    }  # fmt: skip
    of_runs = {  # what a graph that is there already has, or has no use for
        "out": out, "batch": None if batch == 1 else batch, "dynamic_batch": dynamic_batch,
        "clips": None if clips == CLIPS else clips, "calibration_clips": calibration_clips, "max_drop": max_drop,
        "set": overrides or None,
    }  # fmt: skip
    if verify_only:
        if run is None or not is_artifact:
            raise UsageError(
                "--verify-only needs an artefact folder", "dtkd-edge export --verify-only RUN/export/TARGET-PRECISION"
            )
        for flag in map(_flag, _given(options | of_runs)):
            raise UsageError(f"{flag}: --verify-only checks a folder as it is", f"leave {flag} away")
        return verify_artifact(run)
    if run is not None and is_artifact:
        for flag in map(_flag, _given(of_runs)):
            raise UsageError(
                f"{flag}: {run} holds a graph already, and an engine is built in its folder, of it as it is",
                f"leave {flag} away, or export the run again",
            )
        return _from_artifact(_named(run), target, precision, mode, options)
    again = "".join(f" {_flag(name)}" + ("" if value is True else f" {value}") for name, value in _given(options).items())
    options |= {"calibration_clips": calibration_clips, "max_drop": max_drop}
    request = targets.request(target, precision, mode, batch=batch, dynamic_batch=dynamic_batch, **options)
    targets.check_needs(request.target, request.precision)
    folder = find_run(run)
    if request.precision == targets.AUTO:
        if out is not None:
            raise UsageError(
                f"--out {out}: --precision auto makes a folder for each", "leave --out away, or name one --precision"
            )
        from dtkd_edge.export import auto

        def one_of(one: Request) -> Artifact:
            return build.build(folder, folder / "export" / one.folder, one, clips, overrides or [], gated=True)[0]

        return auto.fastest(request, one_of)
    if out is not None:
        out = _named(out)
        _check_out(out)
    place = out or folder / "export" / request.folder
    artifact, _ = build.build(folder, place, request, clips, overrides or [])
    if request.target.name == "tensorrt":
        try:
            engine.build(artifact, request)
        except NotHereError as error:
            raise MissingDependency(
                f"{place}: the engine-ready ONNX is there, the engine is not: {error.message}",
                f"copy that folder to the device and run there: dtkd-edge export {place.name} --target tensorrt{again}",
            ) from error
    return place


def verify_artifact(folder: Path) -> Path:
    """Repeat the verification from the stored clips, on this machine, without torch. The artefact is not changed."""
    artifact = Artifact.open(folder)
    golden = stored_clips(artifact)
    part = verify_stored(artifact, golden)
    say(verify.verdict(artifact, part, latency(artifact, golden) if part.passed else None))
    refuse(artifact, part, "it computes something else on this machine: export it again, or use another device or --precision")
    return folder


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given. 0 is one: `--dla 0`."""
    return {name: value for name, value in options.items() if value is not None and value is not False}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _named(folder: Path) -> Path:
    """'.' and '..' by their real name: a folder is replaced by one that is made beside it."""
    return folder.resolve() if folder.name in ("", "..") else folder


def _check_out(out: Path) -> None:
    """An export replaces its folder whole: UsageError where that would delete something that is no artefact."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        what = "a link" if out.is_symlink() else "a file"
        raise UsageError(f"--out {out}: {what}, and would be replaced by the artefact's folder", "name a new folder")
    if not (out.is_dir() and is_foreign(out)):
        return
    try:
        Artifact.open(out, check_files=False)
    except ArtifactError as error:
        raise UsageError(
            f"--out {out}: the folder holds something else than an artefact, and would be replaced", "name a new folder"
        ) from error


def _from_artifact(folder: Path, target: str, precision: str | None, mode: str, options: dict[str, Any]) -> Path:
    artifact = Artifact.open(folder)
    have = artifact.manifest
    if target != "tensorrt" or have.target != "tensorrt":
        raise UsageError(
            f"{folder}: an exported artefact (target {have.target}); only engines are built from one",
            f"its engine: dtkd-edge export {folder} --target tensorrt"
            if have.target == "tensorrt"
            else "give the run folder instead, or: dtkd-edge export RUN --target tensorrt",
        )
    if mode == "stream" != have.mode:
        raise UsageError(f"--mode stream: {folder} holds a graph for whole clips", "export the run again with --mode stream")
    if precision not in (None, have.precision):
        raise UsageError(
            f"--precision {precision}: that folder's graph is {have.precision}", "export the run again for another one"
        )
    if have.engine_key is not None:  # built again as it was built
        kept = have.engine_key.model_dump(include={"hardware_compatible", "version_compatible", "dla"})
        options = {**options, **kept, **_given(options)}
    request = targets.request("tensorrt", have.precision, have.mode, batch=max(have.input.shape[0], 1), **options)
    return engine.build(artifact, request).folder
