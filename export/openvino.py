"""OpenVINO IR from the ONNX graph. bf16 is the float32 IR with a hint that the runtime gets; fp16 stores half-size weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dtkd_edge.errors import DtkdEdgeError, InputError, MissingDependency


def convert(onnx_path: Path) -> Any:
    """The graph as a float32 `openvino.Model`."""
    try:
        import openvino as ov
    except ImportError as error:
        raise MissingDependency("--target openvino needs openvino, which is not installed", extra="openvino") from error
    try:
        return ov.convert_model(str(onnx_path))
    except Exception as error:  # the frontend raises classes of its own
        reason = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        raise DtkdEdgeError(f"OpenVINO cannot convert the graph: {reason}", "try --target onnx; see --debug") from error


def write_ir(model: Any, folder: Path, *, precision: str, entries: dict[str, str]) -> None:
    """Write model.xml and model.bin into `folder`; `entries` go into rt_info, where other OpenVINO tools look.

    precision: fp32, bf16 (same IR; the runtime is told), fp16 (weights stored as fp16), int8 (the model is quantised already).
    """
    import openvino as ov

    for key, value in {**entries, "dtkd_edge.precision": precision}.items():
        model.set_rt_info(value, key.split("."))
    try:
        ov.save_model(model, str(folder / "model.xml"), compress_to_fp16=precision == "fp16")
    except RuntimeError as error:  # all that it says of a full disk is 'iostream error'
        raise InputError(
            f"{folder}: OpenVINO cannot write there: {str(error).strip().splitlines()[-1]}",
            "is the disk full? free some space, or choose another folder with --out",
        ) from error


def has_bf16() -> bool:
    """Whether this CPU computes in bfloat16."""
    import openvino as ov

    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def version() -> str:
    import openvino as ov

    return str(ov.__version__).partition("-")[0]
