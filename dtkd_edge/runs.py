"""The run folder: where everything of one training lies, and which one is the newest. No torch.

recipe.yaml  validation.txt (clips held out)  log.jsonl  tensorboard/  checkpoints/  metrics.json
teachers/{cnn,vit}.safetensors + .json
student.safetensors + student.json (already stripped)  export/TARGET-PRECISION[-stream]/
bench/DATE.jsonl (every bench)  bench.jsonl  bench.html (the newest of each row)
"""

from __future__ import annotations

import shlex
from pathlib import Path

from dtkd_edge.artifact import MANIFEST
from dtkd_edge.decoder import EXTENSIONS, UNREAD
from dtkd_edge.errors import InputError, UsageError
from dtkd_edge.files import check_place, is_foreign

RUNS = Path("runs")
METRICS = "metrics.json"  # of a run that is finished
# What lies in a folder of ours from the first moment on: of a run, of a comparison, of one run per split.
RUN, COMPARISON, SPLITS = ("recipe.yaml", ".lock"), ("compare.json", "seed-*"), ("splits.json", "split-*")


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


def check_out(folder: Path, marks: tuple[str, ...] = RUN) -> None:
    """InputError where a training cannot write; UsageError where it would write among other folders or videos: a run in a folder
    of videos would be read as one of their classes. A job's own log, say, may lie there. marks: what a folder of the same kind
    has, which may go on."""
    check_place(folder / marks[0])
    if is_foreign(folder, *marks) and any(map(_is_in_the_way, folder.iterdir())):
        raise UsageError(f"{folder}: holds other folders or videos, and no run", "name a new or an empty folder with --out")


def _is_in_the_way(path: Path) -> bool:
    if any(path.match(mark) for mark in (*RUN, *COMPARISON, *SPLITS)):  # of another kind of folder of ours
        return True
    hidden = path.name.startswith(".") or path.name == "lost+found"  # a new volume's
    return not hidden and (path.is_dir() or path.suffix.lower() in (*EXTENSIONS, *UNREAD))


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
            raise _nothing_exported(run)
        return found
    out: list[Path] = []
    for path in given:
        if (path / MANIFEST).is_file() or not (path / "recipe.yaml").is_file():
            out.append(path)
            continue
        found = run_artifacts(path)
        if not found:
            raise _nothing_exported(path)
        out += found
    return out


def _nothing_exported(run: Path) -> InputError:
    command = shlex.join(["dtkd-edge", "export", str(run), "--target", "onnx"])  # a run's name may have spaces
    return InputError(f"{run}: nothing exported yet", f"export it with: {command}")
