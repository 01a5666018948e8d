"""The one table of export targets. Validation, `--help`, the support table in the docs and the tests all read it. No torch.

To add a target: a row here, and a module `export/<name>.py` with a branch in build.py's `_write`.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from dtkd_edge.errors import MissingDependency, UsageError

OPSET = (
    18  # fixed: what the exporter speaks natively, ONNX Runtime >= 1.17 and TensorRT >= 10.3 read it, recorded in the manifest
)
IR_VERSION = 8  # the file format that belongs to opset 18; a newer one shuts out older runtimes for nothing


# How a cell of the support table was proven: run, or by what it was checked instead.
RUN = "run"
HOW = {
    RUN: "the tests export it, verify it against float32 torch and run it on such a device",
    "same file": "nobody has run it there for this project. The tests export, verify and run the same file by the same runtime "
    "on x86-64, and `scripts/check_wheels.py --extra openvino` finds binary wheels of both runtimes for aarch64; "
    "`dtkd-edge export --verify-only FOLDER` repeats the proof there",
    "bindings": "no such device was at hand. The tests run the engine's graph with ONNX Runtime, hold it against the operators "
    "that TensorRT's parser takes, and hold builder and runner against the real Python bindings of TensorRT 10.3, 10.16 and 11.4 "
    "over stub libraries; where TensorRT-RTX is installed, a sibling that builds engines without a GPU, its parser and builder "
    "make one of a graph of each family of students in each precision; `pytest -m gpu` builds and verifies engines on a machine "
    "that has TensorRT",
    "other device": "nobody has run it there for this project. The tests export, verify and run the same file by the same "
    "runtime on x86-64, and hold that a `--device` that is not there is refused by name; "
    "`dtkd-edge export --verify-only FOLDER` repeats the proof where it is",
}


@dataclass(frozen=True)
class Target:
    """One row.

    precisions: legal ones, the default first
    devices:    those that run it → how that was proven, one of HOW
    needs:      Python module → the extra that brings it, for making an artefact
    runtime:    what a machine needs to run one
    """

    name: str
    about: str
    files: tuple[str, ...]
    precisions: tuple[str, ...]
    modes: tuple[str, ...]
    devices: dict[str, str]
    needs: dict[str, str]
    runtime: str
    dynamic_batch: bool
    options: tuple[str, ...] = ()
    int8_needs: dict[str, str] = field(default_factory=dict)  # as `needs`, of the int8 precision alone
    auto: bool = True  # --precision auto: the artefacts run where they are made, so that they can be timed

    @property
    def default_precision(self) -> str:
        return self.precisions[0]


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            name="onnx",
            about="the portable artefact, for ONNX Runtime",
            files=("model.onnx",),
            precisions=("fp32", "fp16", "int8"),
            modes=("clip", "stream"),
            devices={"x86-64 CPU": RUN, "ARM CPU": "same file", "cuda": "other device"},
            needs={"onnxruntime": ""},
            runtime="base install",
            dynamic_batch=True,
        ),
        Target(
            name="openvino",
            about="Intel and other x86 CPUs, ARM CPUs, Intel GPUs and NPUs",
            files=("model.xml", "model.bin"),
            precisions=("fp32", "bf16", "fp16", "int8"),
            modes=("clip", "stream"),
            devices={"x86-64 CPU": RUN, "ARM CPU": "same file", "gpu": "other device", "npu": "other device"},
            needs={"openvino": "openvino"},
            runtime="`openvino`",
            dynamic_batch=True,
            int8_needs={"nncf": "int8"},
        ),
        Target(
            name="tensorrt",
            about="NVIDIA GPUs and Jetson, TensorRT 10.3 to 11.x",
            files=("model.onnx", "model.engine"),
            precisions=("fp16", "fp32", "int8"),
            modes=("clip", "stream"),
            devices={"cuda": "bindings", "jetson": "bindings"},
            runtime="`tensorrt`; on a Jetson JetPack's",
            needs={},  # without TensorRT the engine-ready ONNX is still written; the engine is built on the device
            dynamic_batch=False,
            options=("workspace", "optimization_level", "hardware_compatible", "version_compatible", "dla"),
            auto=False,
        ),
    )
}


AUTO = "auto"
# Options of the precisions that are held against accuracy.
ACCURACY_OPTIONS = ("calibration_clips", "max_drop")

# The command line's help, out of the table.
TARGET_HELP = ", ".join(TARGETS) + "; repeatable, or comma separated. [default: onnx]"
PRECISION_HELP = (
    "; ".join(f"{t.name}: {', '.join(t.precisions)}" for t in TARGETS.values())
    + "; the first is the default; auto: the fastest that holds --max-drop; repeatable, or comma separated"
)
MODE_HELP = "clip (whole clips) or stream (frame by frame: causal TSM, X3D)"


@dataclass(frozen=True)
class Request:
    """A legal combination, ready to be built. The TensorRT options mean nothing to the other targets."""

    target: Target
    precision: str
    mode: str = "clip"
    batch: int = 1
    dynamic_batch: bool = False
    workspace: int = 1024  # MiB
    optimization_level: int = 3
    hardware_compatible: bool = False  # any GPU from Ampere on; not JetPack's
    version_compatible: bool = False  # newer TensorRT versions too
    dla: int | None = None  # number of the accelerator core
    calibration_clips: int = 300  # training clips that int8's ranges are measured on
    max_drop: float = 1.0  # points of top-1 that int8 may cost

    @property
    def folder(self) -> str:
        """The artefact's folder below RUN/export."""
        batch = "-dynamic" if self.dynamic_batch else f"-b{self.batch}" if self.batch != 1 else ""
        return f"{self.target.name}-{self.precision}{'-stream' if self.mode == 'stream' else ''}{batch}"


def request(
    target: str,
    precision: str | None = None,
    mode: str = "clip",
    *,
    batch: int = 1,
    dynamic_batch: bool = False,
    **options: object,
) -> Request:
    """Check a combination against the table. UsageError names the nearest legal one. `options` that are None are left out."""
    if target not in TARGETS:
        near = difflib.get_close_matches(target, TARGETS, 1, cutoff=0.5)
        advice = f"nearest: --target {near[0]}" if near else f"one or several of them: --target {','.join(TARGETS)}"
        raise UsageError(f"--target {target}: no such target", advice)
    row = TARGETS[target]
    precision = precision or row.default_precision
    if precision == AUTO:
        if not row.auto:
            raise UsageError(
                f"--precision auto: {target} artefacts are built elsewhere and cannot be timed here",
                f"nearest: --target {target} --precision {row.default_precision}",
            )
    elif precision not in row.precisions:
        has = next((f", or --target {t.name} --precision {precision}" for t in TARGETS.values() if precision in t.precisions), "")
        raise UsageError(
            f"--precision {precision}: the {target} target does not have it",
            f"nearest: --target {target} --precision {_nearest_precision(precision, row.precisions)}{has}",
        )
    if mode not in row.modes:
        if not any(mode in t.modes for t in TARGETS.values()):
            near = difflib.get_close_matches(mode, row.modes, 1, cutoff=0.0)
            raise UsageError(f"--mode {mode}: no such mode", f"nearest: --target {target} --mode {near[0]}")
        other = [name for name, t in TARGETS.items() if mode in t.modes]
        raise UsageError(
            f"--mode {mode}: the {target} target does not have it",
            f"nearest: --target {other[0]} --mode {mode}" if other else f"nearest: --target {target} --mode {row.modes[0]}",
        )
    if batch < 1:
        raise UsageError(f"--batch {batch}: at least 1 clip per inference", "nearest: --batch 1")
    if dynamic_batch and not row.dynamic_batch:
        raise UsageError(f"--dynamic-batch: the {target} target is built for one batch size", f"nearest: --batch {batch}")
    if dynamic_batch and mode == "stream":
        raise UsageError("--dynamic-batch: a stream's states have one batch size", f"nearest: --mode stream --batch {batch}")
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    for name in given:
        if name in ACCURACY_OPTIONS:
            if precision not in ("int8", AUTO):
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{flag}: {precision} is neither calibrated nor gated", "nearest: --precision int8")
        elif name not in row.options:
            owner = next((t.name for t in TARGETS.values() if name in t.options), "")
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag}: not an option of the {target} target", f"nearest: --target {owner or target}")
    if "dla" in given and precision == "fp32":
        advice = f"nearest: --target {target} --precision fp16 --dla {given['dla']}"
        raise UsageError("--dla: the accelerator computes in fp16 and int8 only", advice)
    return Request(row, precision, mode, batch, dynamic_batch, **given)  # type: ignore[arg-type]


def names(given: list[str]) -> list[str]:
    """A repeatable option's values, each of which may be comma separated, once each."""
    return list(dict.fromkeys(part.strip() for value in given for part in value.split(",")))


def taken(
    target: str, precision: str | None, options: dict[str, Any], all_targets: list[str], all_precisions: Sequence[str | None]
) -> dict[str, Any]:
    """Those of the options that are given to this one of several combinations.

    An option that no other combination has stays, so that `request` refuses it with its own words.
    """

    def has(name: str, one: str, which: str | None) -> bool:
        return which in ("int8", AUTO) if name in ACCURACY_OPTIONS else one in TARGETS and name in TARGETS[one].options

    def anywhere(name: str) -> bool:
        return any(has(name, one, which) for one in all_targets for which in all_precisions)

    return {name: value for name, value in options.items() if has(name, target, precision) or not anywhere(name)}


def check_needs(row: Target, precision: str) -> None:
    """MissingDependency, with the install line, when a library of the target or of the precision is not here or too old."""
    for module, extra in row.needs.items():
        _check_library(module, extra or "train", f"--target {row.name}")
    for module, extra in row.int8_needs.items() if precision == "int8" else ():
        _check_library(module, extra, f"--target {row.name} --precision int8")


def _check_library(module: str, extra: str, needed_by: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise MissingDependency(f"{needed_by} needs {module}, which is not installed", extra=extra)
    try:
        found, oldest = metadata.version(module), _oldest(module)
    except metadata.PackageNotFoundError:  # the module of another distribution, as onnxruntime-gpu brings it: nothing to compare
        return
    from dtkd_edge.deploy.backends.tensorrt import version_numbers

    if version_numbers(found) < version_numbers(oldest):
        raise MissingDependency(
            f"{needed_by} needs {module} {oldest} or newer, {found} is installed", f'pip install --upgrade "{module}>={oldest}"'
        )


def _oldest(package: str) -> str:
    """The oldest version that this package says it works with."""
    for line in metadata.requires("dtkd-edge") or ():
        if found := re.match(rf"{re.escape(package)}\s*>=\s*([\d.]+)", line):
            return found[1]
    return "0"


def _nearest_precision(asked: str, legal: tuple[str, ...]) -> str:
    """The legal precision closest in bits, and the wider one of two as close."""
    order = ["int8", "bf16", "fp16", "fp32"]
    if asked not in order:
        near = difflib.get_close_matches(asked, legal, 1, cutoff=0.0)
        return near[0]
    return min(legal, key=lambda p: (abs(order.index(p) - order.index(asked)), -order.index(p)))
