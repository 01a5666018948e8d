"""The run folder: where everything of one training lies, and which one is the newest. No torch.

recipe.yaml  validation.txt (clips held out)  log.jsonl  tensorboard/  checkpoints/  metrics.json
teachers/{cnn,vit}.safetensors + .json
student.safetensors + student.json (already stripped)  export/TARGET-PRECISION[-stream]/
bench/DATE.jsonl (every bench)  bench.jsonl  bench.html (the newest of each row)
"""

from __future__ import annotations

from pathlib import Path

from dtkd_edge.artifact import MANIFEST
from dtkd_edge.errors import InputError

RUNS = Path("runs")


def find_run(run: Path | None) -> Path:
    """The given run folder, or the newest one below ./runs that has a finished student."""
    if run is not None:
        if not (run / "recipe.yaml").is_file():
            raise InputError(f"{run}: not a run folder (no recipe.yaml)", "give a folder that dtkd-edge train wrote")
        return run
    finished = [p.parent for p in RUNS.glob("*/student.json")]
    if not finished:
        raise InputError("no finished run below ./runs", "train one with: dtkd-edge train   (or name a run folder)")
    return max(finished, key=lambda folder: (folder / "student.json").stat().st_mtime)


def run_artifacts(run: Path) -> list[Path]:
    """Artefact folders of one run, oldest first."""
    folders = [p.parent for p in run.glob(f"export/*/{MANIFEST}") if not p.parent.name.startswith(".")]
    return sorted(folders, key=lambda folder: (folder / MANIFEST).stat().st_mtime)


def find_artifacts(given: list[Path]) -> list[Path]:
    """The given artefact folders (a run folder stands for all of its artefacts), or all of the newest run's."""
    if not given:
        run = find_run(None)
        found = run_artifacts(run)
        if not found:
            raise InputError(f"{run}: nothing exported yet", f"export it with: dtkd-edge export {run} --target onnx")
        return found
    out: list[Path] = []
    for path in given:
        if (path / MANIFEST).is_file() or not (path / "recipe.yaml").is_file():
            out.append(path)
            continue
        found = run_artifacts(path)
        if not found:
            raise InputError(f"{path}: nothing exported yet", f"export it with: dtkd-edge export {path} --target onnx")
        out += found
    return out
