"""Weights from elsewhere into a model: published names are mapped, a head of another size is replaced, a poor match refused."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dtkd_edge.errors import CheckpointError
from dtkd_edge.models.base import Tensors, VideoModel

MIN_MATCH = 0.9  # share of the backbone's values that a file must bring
WRAPPERS = ("module.", "model.", "student.", "backbone.")
PUBLISHERS = ("torchvision", "timm", "hf-hub")
CONTAINERS = ("state_dict", "model_state", "model", "ema_state_dict")
# What training tools store beside the weights, mmengine above all: read as empty boxes, so that none of it is imported or called.
BESIDE = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray", "builtins.getattr", "argparse.Namespace", "pathlib.PosixPath", "datetime.datetime"),
    *("mmengine.logging.history_buffer.HistoryBuffer", "yacs.config.CfgNode"),
)


@dataclass
class LoadReport:
    """What a checkpoint gave: names loaded, missing from it, unexpected in it, and those left out for their shape."""

    source: str
    layout: str = "own"
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    head_replaced: bool = False

    def line(self) -> str:
        layout = "" if self.layout == "own" else f" ({self.layout})"
        head = ", head replaced" if self.head_replaced else ""
        return (
            f"{self.source}{layout}: {len(self.loaded)} tensors loaded, {len(self.missing)} missing, "
            f"{len(self.unexpected)} unexpected{head}"
        )


def load_weights(model: VideoModel, source: str) -> LoadReport | None:
    """Load `weights:` of a recipe: 'none' leaves the model as it is; 'torchvision', 'timm' or 'hf-hub:OWNER/NAME' where the model
    has such a source; else a .safetensors, .pth or .pt file, or a saved model.

    Raises CheckpointError for a file that is missing, not readable, holds code, or fits less than 90 % of the backbone.
    """
    if source == "none":
        return None
    publisher, _, detail = source.partition(":")
    if publisher in PUBLISHERS and not Path(source).exists():
        fetch = model.sources().get(publisher)
        if fetch is None:
            known = ", ".join(model.sources()) or "none"
            raise CheckpointError(
                f"weights: {publisher} has none of {model.info.name}", f"give a file (publishers here: {known})"
            )
        return fit(model, fetch(detail), source)
    path = Path(source)
    if path.suffix == ".json" or path.with_suffix(".json").is_file():
        path = path.with_suffix(".safetensors")
    return fit(model, _read(path), str(path))


class _Box:
    """Stands for an object that is no tensor, and does nothing."""

    def __new__(cls, *_: object, **__: object) -> _Box:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None: ...


def fit(model: VideoModel, tensors: Tensors, source: str) -> LoadReport:
    """Load tensors into a model in the layout, its own or a published one, that names most of them."""
    own = model.state_dict()
    layouts = {"own": tensors, **{name: convert(tensors) for name, convert in model.layouts().items()}}
    layout = max(layouts, key=lambda name: len(own.keys() & layouts[name].keys()))
    tensors = layouts[layout]
    report = LoadReport(source, layout)
    head = {id(parameter) for parameter in model.head_parameters()}
    head_names = {name for name, parameter in model.named_parameters() if id(parameter) in head}
    taken: Tensors = {}
    for name, value in own.items():
        found = tensors.get(name)
        if found is not None and found.shape == value.shape:
            taken[name] = found.to(value.dtype)
            report.loaded.append(name)
        elif not name.endswith("num_batches_tracked"):
            report.missing.append(name)
    report.unexpected = sorted(set(tensors) - set(own))
    report.head_replaced = any(name in head_names for name in report.missing)
    backbone = {n: v.numel() for n, v in own.items() if n not in head_names and not n.endswith("num_batches_tracked")}
    share = sum(size for name, size in backbone.items() if name in taken) / max(sum(backbone.values()), 1)
    if share < MIN_MATCH:
        lost = next(name for name in backbone if name not in taken)
        unknown = f", such as {report.unexpected[0]}" if report.unexpected else ""
        raise CheckpointError(
            f"{source}: fits only {share:.0%} of {model.info.name}: {len(report.loaded)} tensors fit, {len(report.missing)} are "
            f"missing or of another shape, such as {lost}; {len(report.unexpected)} are unexpected{unknown}",
            "give weights of that very model, or weights: none",
        )
    model.load_state_dict({**own, **taken})
    return report


def _read(path: Path) -> Tensors:
    """A flat state dict. Pickled code is never run: .pth is read with weights_only=True and nothing else."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file", "check the path, or set weights: none")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            raw: Any = load_file(path)
        else:
            boxes: list[Any] = [(_Box, name) for name in BESIDE]
            with torch.serialization.safe_globals(boxes), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Detected pickle protocol")
                raw = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path}: not readable as weights: {refusal(str(error))}", "give a .safetensors file or a plain state dict"
        ) from error
    for container in CONTAINERS:
        if isinstance(raw, dict) and isinstance(raw.get(container), dict):
            raw = raw[container]
    tensors = {k: v for k, v in raw.items() if isinstance(v, Tensor)} if isinstance(raw, dict) else {}
    if not tensors:
        raise CheckpointError(f"{path}: no tensors in it", "give a state dict")
    changed = True
    while changed:
        changed = False
        for prefix in WRAPPERS:
            if all(key.startswith(prefix) for key in tensors):
                tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
                changed = True
    return tensors


def refusal(said: str) -> str:
    """What torch or safetensors say of a file they refuse, without their advice to load it all the same."""
    code = re.search(r"GLOBAL (\S+)", said)
    if code is not None:
        return f"it wants to call {code[1]}, and code in a file is never run"
    if "Weights only load failed" in said:
        return "it holds more than tensors and plain values"
    first = said.strip().partition("\n")[0]
    # torch's unpickler says of a file that is none at all only the first byte it does not know.
    return first.partition(". ")[0][:160] if " " in first else "no safetensors or PyTorch file"
