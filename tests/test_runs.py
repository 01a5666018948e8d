from __future__ import annotations

import os
from pathlib import Path

import pytest

from dtkd_edge.artifact import MANIFEST
from dtkd_edge.errors import InputError, UsageError
from dtkd_edge.runs import COMPARISON, RUN, SPLITS, check_out, find_artifacts, find_run, run_artifacts


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name: str, *, finished: bool = True, age: float = 0, artifacts: tuple[str, ...] = ()) -> Path:
    folder = Path("runs", name)
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("name: x")
    if finished:
        (folder / "student.json").write_text("{}")
        os.utime(folder / "student.json", (1e9 - age, 1e9 - age))
    for order, artifact in enumerate(artifacts):
        (folder / "export" / artifact).mkdir(parents=True)
        (folder / "export" / artifact / MANIFEST).write_text("{}")
        os.utime(folder / "export" / artifact / MANIFEST, (1e9 + order, 1e9 + order))
    return folder


def test_the_newest_finished_run_is_found() -> None:
    run("old", age=100)
    newest = run("new", age=10)
    run("running", finished=False)
    assert find_run(None) == newest
    assert find_run(Path("runs/running")) == Path("runs/running")


def test_no_run_says_how_to_make_one() -> None:
    with pytest.raises(InputError, match="no finished run") as caught:
        find_run(None)
    assert "dtkd-edge train" in caught.value.hint
    run("running", finished=False)
    with pytest.raises(InputError, match="no finished run"):
        find_run(None)


def test_a_folder_that_is_no_run() -> None:
    with pytest.raises(InputError, match="nowhere: not a run folder"):
        find_run(Path("nowhere"))


def test_artefacts_of_a_run_oldest_first_without_half_written_ones() -> None:
    folder = run("a", artifacts=("openvino-fp32", "onnx-fp32", ".onnx-fp16.x1"))
    (folder / "export" / "empty").mkdir()
    assert [p.name for p in run_artifacts(folder)] == ["openvino-fp32", "onnx-fp32"]


def test_find_artifacts_takes_runs_artefacts_and_nothing() -> None:
    old = run("old", age=100, artifacts=("onnx-fp32",))
    new = run("new", artifacts=("onnx-fp32", "openvino-fp32"))
    assert find_artifacts([]) == run_artifacts(new)
    assert find_artifacts([old]) == run_artifacts(old)
    one = new / "export" / "onnx-fp32"
    assert find_artifacts([one, old]) == [one, *run_artifacts(old)]
    assert find_artifacts([Path("nowhere")]) == [Path("nowhere")]  # Artifact.open says what is wrong with it


@pytest.mark.parametrize(
    ("marks", "file"),
    [(RUN, "recipe.yaml"), (RUN, ".lock"), (COMPARISON, "seed-3/teachers/.lock"), (SPLITS, "split-2/recipe.yaml")],
)
def test_what_a_kill_left_of_ours_is_no_other_folder(marks: tuple[str, ...], file: str) -> None:
    for folder in (Path("new"), Path("deep/new")):
        check_out(folder, marks)
        assert not folder.exists()
    made = Path("ours", file)
    made.parent.mkdir(parents=True)
    made.touch()
    check_out(Path("ours"), marks)
    with pytest.raises(UsageError, match="ours: holds other folders or videos"):
        check_out(Path("ours"), COMPARISON if marks == RUN else RUN)


def test_a_training_may_write_beside_a_jobs_own_files_but_not_beside_videos() -> None:
    job = Path("job")
    (job / "lost+found").mkdir(parents=True)
    for name in ("train.log", "job.sh", ".gitignore"):
        (job / name).touch()
    check_out(job)
    for name in ("clip.MP4", "clip.mts"):
        (job / name).touch()
        with pytest.raises(UsageError, match="job: holds other folders or videos"):
            check_out(job)
        (job / name).unlink()


def test_nothing_exported_yet_says_how() -> None:
    folder = run("a")
    for given in ([], [folder]):
        with pytest.raises(InputError, match="nothing exported yet") as caught:
            find_artifacts(given)
        assert f"dtkd-edge export {folder}" in caught.value.hint
