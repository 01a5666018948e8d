"""`dtkd-edge train` as its user runs it: the run folder, exact resume after kills, broken clips, bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from train_cases import SMALL, command, run_cli, with_sets

from dtkd_edge import recipe_reader as recipes
from dtkd_edge.benchmarks.plan import find_data
from dtkd_edge.data.catalogue import open_split
from dtkd_edge.errors import CheckpointError, DataError, DtkdEdgeError, InputError, RecipeError, UsageError
from dtkd_edge.models import create_model
from dtkd_edge.recipe import DataConfig, OptimConfig
from dtkd_edge.recipe_reader import load
from dtkd_edge.train import loop
from dtkd_edge.train.best import Best
from dtkd_edge.train.checkpoint import TrainState, load_state, save_state
from dtkd_edge.train.command import train
from dtkd_edge.train.engine import Engine
from dtkd_edge.train.eval_command import evaluate, parse_views
from dtkd_edge.train.log import RunLog
from dtkd_edge.train.loss_check import Step, check_loss
from dtkd_edge.train.phases import RunData, check_models
from dtkd_edge.train.scores import Scores

Main = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, motion_root: Path) -> Path:
    """One whole run through the command line."""
    folder = tmp_path_factory.mktemp("run")
    done = run_cli("train", *with_sets([f"data.root={motion_root}", *SMALL]), "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "student" in done.stdout
    return folder / "run"


class Stop(Exception): ...


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, motion_root: Path) -> Path:
    """A run that ended right after the second of the student's three epochs was saved."""

    def save_then_stop(path: Path, state: TrainState) -> None:
        save_state(path, state)
        if path.stem == "student" and state.epoch == 2:
            raise Stop

    run = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_state", save_then_stop)
        with pytest.raises(Stop):
            train("quickstart", overrides=[f"data.root={motion_root}", *SMALL], out=run)
    return run


def entries(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_run_folder_is_whole(finished: Path) -> None:
    wanted = "recipe.yaml log.jsonl metrics.json student.safetensors student.json checkpoints/student.pt report.html"
    for name in wanted.split():
        assert (finished / name).is_file(), name
    assert list((finished / "tensorboard").glob("events.*"))
    for teacher in ("cnn", "vit"):
        assert (finished / "teachers" / f"{teacher}.safetensors").is_file()
    metrics = json.loads((finished / "metrics.json").read_text())
    assert set(metrics["teachers"]) == {"cnn", "vit"}
    assert metrics["clips"] == {"train": 64, "student": 48, "val": 32}
    assert 0 <= metrics["student"]["action_top1"] <= 1


def test_log_has_every_term_omega_and_the_variance_of_the_residual(finished: Path) -> None:
    student = [e for e in entries(finished) if e.get("phase") == "student" and "epoch" in e]
    assert [e["epoch"] for e in student] == [1, 2, 3]
    for entry in student:
        assert {"loss", "loss_ce", "loss_kd", "loss_sdd", "loss_align", "loss_rkd", "residual_var", "lr"} <= set(entry)
        assert entry["omega_cnn"] + entry["omega_vit"] == pytest.approx(1, abs=1e-4)  # type: ignore[operator]
        assert entry["residual_var"] > 0.01  # type: ignore[operator]
    assert {e["phase"] for e in entries(finished) if "epoch" in e} == {"cnn", "vit", "student"}


def test_student_is_saved_without_the_training_only_branches(finished: Path) -> None:
    from dtkd_edge.models.saved import load_model

    saved = load_file(finished / "student.safetensors")
    task = torch.load(finished / "checkpoints" / "student.pt", weights_only=True)["task"]
    assert any(key.startswith("branch.") for key in task)
    assert set(saved) == {key.removeprefix("student.") for key in task if key.startswith("student.")}
    model, _ = load_model(finished / "student")
    assert all(torch.equal(value, task[f"student.{key}"]) for key, value in model.state_dict().items())


def test_a_finished_run_is_left_alone(finished: Path, main: Main) -> None:
    before = (finished / "student.safetensors").read_bytes()
    code, _, said = main("train", "--out", finished, "--resume")
    assert code == 0 and "finished" in said
    code, _, said = main("train", "--out", finished)
    assert code == 2 and "--resume" in said
    recipe = (finished / "recipe.yaml").read_bytes()
    changes = with_sets(["train.epochs=15", "student.options.width=20"])
    code, _, said = main("train", finished / "recipe.yaml", "--out", finished, "--resume", *changes)
    assert code == 3 and "this run is finished, with student.options.width = None, not 20, train.epochs = 3, not 15;" in said
    assert "another --out" in said and (finished / "recipe.yaml").read_bytes() == recipe
    assert (finished / "student.safetensors").read_bytes() == before


def test_eval_repeats_the_runs_accuracy(finished: Path) -> None:
    done = run_cli("eval", str(finished), "--json", "-", cwd=finished.parent)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    metrics = json.loads((finished / "metrics.json").read_text())
    assert result["heads"]["action"]["top1"] == pytest.approx(metrics["student"]["action_top1"])
    assert result["n"] == 32 and result["views"] == "1x1"


def test_resume_keeps_the_log_of_every_finished_epoch(stopped: Path, finished: Path, tmp_path: Path) -> None:
    run = copy_of(stopped, tmp_path / "run")
    with (run / "log.jsonl").open("a") as log:
        log.write('{"phase": "student", "epo')  # a kill in the middle of a line
    train("quickstart", overrides=[], out=run, resume=True)
    said = entries(run)
    assert [e["epoch"] for e in said if e.get("phase") == "student" and "epoch" in e] == [1, 2, 3]
    assert any("resumed after epoch 2 of 3" in str(e.get("note")) for e in said)
    assert sum("started" in e for e in said) == 2
    ours, theirs = load_file(run / "student.safetensors"), load_file(finished / "student.safetensors")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_best_epoch_is_kept_over_a_stop(small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the scores are made up; of the two equal ones the later epoch is the best."""
    averages: dict[int, dict[str, torch.Tensor]] = {}
    look = Best.look

    def look_at(self: Best, epoch: int, scores: Scores, model: torch.nn.Module | None) -> None:
        right = np.arange(20) < (8, 12, 12, 4)[epoch - 1]
        look(self, epoch, Scores({"action": np.eye(2)[right.astype(int)]}, {"action": np.ones(20, int)}), model)  # type: ignore[arg-type]

    def save_then_stop(path: Path, state: TrainState) -> None:
        save_state(path, state)
        assert state.ema is not None
        averages[state.epoch] = {name: value.clone() for name, value in state.ema.items()}
        if state.epoch == 3 and len(averages) == 3:
            raise Stop

    monkeypatch.setattr(Best, "look", look_at)
    monkeypatch.setattr(loop, "save_state", save_then_stop)
    sets = [*small, "distill.method=ce", "train.epochs=4", "train.ema=0.9", "train.keep=best"]
    with pytest.raises(Stop):
        train("quickstart", overrides=sets, out=tmp_path / "run")
    averages[0] = {}
    train("quickstart", overrides=[], out=tmp_path / "run", resume=True)
    saved = load_file(tmp_path / "run" / "student.safetensors")
    assert all(torch.equal(value, averages[3][name]) for name, value in saved.items())
    assert any(not torch.equal(value, averages[4][name]) for name, value in saved.items())
    said = "student: kept: the best, validation top-1 0.600 in epoch 3; the last: 0.200"
    assert said in [entry.get("note") for entry in entries(tmp_path / "run")]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["kept_epochs"] == {"student": 3}


def test_which_epoch_of_a_teacher_was_kept_is_known_after_a_stop(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, scores = Best.look, [0.6, 0.2, 0.6]  # of the teacher's two epochs and of the student's

    def look_at(self: Best, epoch: int, _: Scores, model: torch.nn.Module | None) -> None:
        right = np.arange(20) < 20 * scores.pop(0)
        look(self, epoch, Scores({"action": np.eye(2)[right.astype(int)]}, {"action": np.ones(20, int)}), model)  # type: ignore[arg-type]

    monkeypatch.setattr(Best, "look", look_at)
    sets = ["distill.method=kd-cnn", "phases=teachers", "teachers.cnn.train.epochs=2", "teachers.cnn.train.keep=best"]
    run = train("quickstart", overrides=[*small, *sets, "train.epochs=1"], out=tmp_path / "run")
    assert json.loads((run / "metrics.json").read_text())["kept_epochs"] == {"cnn": 1}
    train("quickstart", overrides=["phases=all"], out=run, resume=True)
    assert json.loads((run / "metrics.json").read_text())["kept_epochs"] == {"cnn": 1}


@pytest.mark.parametrize(
    ("best", "said"),
    [
        (
            Best(17, 0.75, 0.55, 100),
            "best validation top-1 0.750 in epoch 17, kept: the last, 0.550 (train.keep=best keeps the best)",
        ),
        (Best(17, 0.75, 0.67, 100), ""),  # as many clips may well differ so much by chance
        (Best(20, 0.75, 0.75, 100), ""),
        (Best(17, 0.75, 0.75, 100, {}), "kept: the best, validation top-1 0.750 in epoch 17; the last: 0.750"),
        (Best(), ""),
    ],
)
def test_that_another_epoch_than_the_last_was_the_best_is_said(best: Best, said: str) -> None:
    assert best.words(20, "train") == said
    assert Best.read(vars(best), "last").words(20, "train") == ("" if best.weights is not None else said)


def test_resume_takes_a_changed_learning_rate(stopped: Path, tmp_path: Path) -> None:
    run = copy_of(stopped, tmp_path / "run")
    train("quickstart", overrides=["train.lr=1e-9"], out=run, resume=True)
    assert entries(run)[-1]["epoch"] == 3 and entries(run)[-1]["lr"] < 1e-9  # type: ignore[operator]


@pytest.mark.parametrize(
    "change",
    [
        "student.options={width: 24}",
        "distill.sdd=0",
        "train.optimizer=sgd",
        "distill.branch.tap=x",
        "teachers.cnn.train.epochs=7",  # it is finished
    ],
)
def test_resume_of_another_model_or_method_is_refused_and_the_run_stays_as_it_was(
    stopped: Path, tmp_path: Path, change: str
) -> None:
    run = copy_of(stopped, tmp_path / "run")
    kept = {name: (run / name).read_bytes() for name in ("recipe.yaml", "checkpoints/student.pt")}
    with pytest.raises((CheckpointError, RecipeError)) as refused:
        train("quickstart", overrides=[change], out=run, resume=True)
    assert len(refused.value.message) < 400 and refused.value.hint
    assert {name: (run / name).read_bytes() for name in kept} == kept


def test_a_run_of_teachers_alone_goes_on_to_its_student(small: list[str], finished: Path, tmp_path: Path, main: Main) -> None:
    run = train("quickstart", overrides=[*small, "phases=teachers"], out=tmp_path / "run")
    code, _, said = main("train", "quickstart", "--out", run, "--resume")
    assert code == 0 and "finished; nothing to do" in said
    train("quickstart", overrides=["phases=all"], out=run, resume=True)
    assert (run / "student.safetensors").read_bytes() == (finished / "student.safetensors").read_bytes()
    assert "student" in json.loads((run / "metrics.json").read_text())


@pytest.mark.parametrize("damage", ["empty", "cut off", "one byte"])
def test_of_a_damaged_checkpoint_the_one_before_it_is_taken(stopped: Path, finished: Path, tmp_path: Path, damage: str) -> None:
    run = copy_of(stopped, tmp_path / "run")
    file = run / "checkpoints" / "student.pt"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes({"empty": b"", "cut off": bytes(raw[:1000]), "one byte": bytes(raw)}[damage])
    kept = file.with_name("student.pt.previous")
    if damage == "empty":
        kept.unlink()
        with pytest.raises(CheckpointError, match=r"student\.pt: not a checkpoint"):
            train("quickstart", overrides=[], out=run, resume=True)
        return
    train("quickstart", overrides=[], out=run, resume=True)
    notes = " ".join(str(entry.get("note")) for entry in entries(run))
    assert "student.pt: damaged; the state before it is whole" in notes and "resumed after epoch 1 of 3" in notes
    assert [e["epoch"] for e in entries(run) if e.get("phase") == "student" and "epoch" in e] == [1, 2, 3]
    assert not kept.exists()  # of a finished phase
    assert (run / "student.safetensors").read_bytes() == (finished / "student.safetensors").read_bytes()


def test_code_in_a_checkpoint_is_never_run(stopped: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, (f"open({str(marker)!r}, 'w').close()",)

    run = copy_of(stopped, tmp_path / "run")
    file = run / "checkpoints" / "student.pt"
    torch.save({**torch.load(file, weights_only=True), "ema": Hostile()}, file)
    with pytest.raises(
        CheckpointError, match=r"student\.pt: not a checkpoint .*it wants to call exec, and code in a file is never"
    ):
        train("quickstart", overrides=[], out=run, resume=True)
    assert not marker.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk_loses_nothing(finished: Path, tmp_path: Path, small: list[str]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3000k", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("may not mount")
    try:
        full = run_cli("train", *with_sets(small), "--out", str(disk / "run"), cwd=tmp_path)
        assert full.returncode == 3 and "student.pt: the disk is full" in full.stderr, full.stderr
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        train("quickstart", overrides=[], out=disk / "run", resume=True)
        assert (disk / "run" / "student.safetensors").read_bytes() == (finished / "student.safetensors").read_bytes()
    finally:
        subprocess.run(["umount", "--lazy", disk], check=False)


@pytest.mark.gpu
def test_the_devices_random_state_is_kept_too(tmp_path: Path) -> None:
    device, layer = torch.device("cuda"), torch.nn.Linear(2, 2).cuda()
    task = SimpleNamespace(student=layer, state_dict=layer.state_dict, load_state_dict=layer.load_state_dict)
    phase = loop.Phase("student", OptimConfig(), task, None, [], None, Engine("cuda"), DataConfig(), tmp_path / "state.pt")  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(layer.parameters())
    loop.save(phase, optimizer, 1, 1)
    drawn = torch.rand(8, device=device)
    state = load_state(phase.checkpoint)
    assert state is not None
    loop.restore(phase, optimizer, state)
    assert torch.equal(torch.rand(8, device=device), drawn)


@pytest.mark.slow
def test_interrupt_says_how_to_go_on(tmp_path: Path, small: list[str]) -> None:
    run = tmp_path / "run"
    arguments = command("train", *with_sets([*small, "train.epochs=500"]), "--out", str(run))
    with subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (run / "checkpoints" / "student.pt").is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in errors and "Traceback" not in errors


def test_student_alone_trains_no_teacher(tmp_path: Path, small: list[str]) -> None:
    run = train("quickstart", overrides=[*small, "distill.method=ce", "train.epochs=1"], out=tmp_path / "ce")
    assert not (run / "teachers").exists()
    assert json.loads((run / "metrics.json").read_text())["teachers"] == {}


def test_finished_teachers_are_read_from_files(finished: Path, tmp_path: Path, small: list[str]) -> None:
    weights = [f"teachers.{n}.weights={finished / 'teachers' / n}.safetensors" for n in ("cnn", "vit")]
    overrides = [*small, *weights, "teachers.cnn.train=null", "teachers.vit.train=null", "train.epochs=1"]
    run = train("quickstart", overrides=overrides, out=tmp_path / "again")
    assert not (run / "checkpoints" / "cnn.pt").exists()
    ours = json.loads((run / "metrics.json").read_text())["teachers"]
    assert ours == json.loads((finished / "metrics.json").read_text())["teachers"]


def copy_of(root: Path, to: Path) -> Path:
    shutil.copytree(root, to)
    return to


@pytest.mark.usefixtures("finished")  # the set is there
def test_broken_clips_are_named_counted_and_skipped(motion_root: Path, tmp_path: Path, small: list[str], main: Main) -> None:
    root = copy_of(motion_root, tmp_path / "set")
    rows = (root / "train.csv").read_text().splitlines()[1:]
    clips = [root / row.split(",")[0] for row in rows]
    clips[3].write_bytes(b"")
    clips[5].write_bytes(clips[5].read_bytes()[:200])
    folder = [f"data.root={root}", "data.kind=folder", "data.student_clips=null"]
    overrides = [*[s for s in small if not s.startswith("data.")], *folder, "distill.method=ce", "train.epochs=1"]
    run = train("quickstart", overrides=overrides, out=tmp_path / "run")
    named = [e["broken"] for e in entries(run) if "broken" in e]
    assert len(named) == 2 and any(clips[3].name in str(n) for n in named) and any(clips[5].name in str(n) for n in named)
    for clip in clips[:16]:
        clip.write_bytes(b"")
    code, _, said = main("train", *with_sets(overrides), "--out", "many")
    assert code == 3 and "max_broken" in said and "Traceback" not in said
    assert f"look at them with: dtkd-edge data check folder --set data.root={root} " in said
    assert "the file is empty (copy or download it again" in said and "(its index" not in said


def test_a_clip_that_is_met_in_every_phase_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path)
    for phase in ("cnn", "vit", "cnn"):
        log.skipped("a.mp4: the file is empty", phase=phase)
    log.close()
    assert capsys.readouterr().err.splitlines() == ["skipped: a.mp4: the file is empty"]
    assert [entry["phase"] for entry in entries(tmp_path)] == ["cnn", "vit", "cnn"]


def folders_of(motion_root: Path, root: Path) -> Path:
    """train/ and val/ with 16 clips each, in two classes."""
    for number, row in enumerate((motion_root / "train.csv").read_text().splitlines()[1:33]):
        clip = root / ("train", "val")[number % 2] / ("left", "right")[number // 2 % 2] / f"{number}.mp4"
        clip.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(motion_root / row.split(",")[0], clip)
    return root


TINY = ["student.model=tsm_tiny", "student.size=24", "student.options={}", "distill.method=ce", "train.epochs=1", "threads=1"]


@pytest.mark.usefixtures("finished")  # the set is there
def test_broken_validation_clips_are_named_and_stop_the_run(motion_root: Path, tmp_path: Path) -> None:
    root = folders_of(motion_root, tmp_path / "set")
    (root / "val" / "left" / "1.mp4").write_bytes(b"")
    overrides = [f"data.root={root}", *TINY]
    with pytest.raises(DataError, match="1 of 16 validation clips do not decode"):
        train("folder", overrides=overrides, out=tmp_path / "strict")
    run = train("folder", overrides=[*overrides, "data.max_broken=0.1"], out=tmp_path / "lax")
    named = [str(e["broken"]) for e in entries(run) if "broken" in e]
    assert len(named) == 1 and "1.mp4: the file is empty" in named[0]
    assert json.loads((run / "metrics.json").read_text())["student"]["n"] == 15
    for clip in (root / "val").rglob("*.mp4"):
        clip.write_bytes(b"")
    with pytest.raises(DataError, match="16 of 16"):
        train("folder", overrides=[*overrides, "data.max_broken=1"], out=tmp_path / "none")


@pytest.mark.usefixtures("finished")
def test_clips_that_come_later_move_none_that_was_held_out(
    motion_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = folders_of(motion_root, tmp_path / "sides")
    root = Path(shutil.copytree(sides / "train", tmp_path / "set"))
    run = train("folder", overrides=[f"data.root={root}", *TINY], out=tmp_path / "run")
    assert "classes 'left' and 'right': augment.flip mirrors" in capsys.readouterr().err
    held = (run / "validation.txt").read_text().splitlines()
    assert 0 < len(held) == json.loads((run / "metrics.json").read_text())["clips"]["val"] < 16
    shutil.copytree(sides / "val", root, dirs_exist_ok=True)
    drawn_now = open_split(recipes.load(run / "recipe.yaml").data, "val").names()
    assert set(drawn_now) - set(held)  # what the student was trained on among them
    assert evaluate(run, overrides=[])["heads"]["action"]["top1"] == pytest.approx(
        json.loads((run / "metrics.json").read_text())["student"]["action_top1"]
    )
    data, _ = find_data(run / "export" / "any", None, [])
    again = RunData.open(recipes.keep_held_out(recipes.load(run / "recipe.yaml"), run))  # as --resume and export open it
    assert data is not None and data.clips.names() == again.val.names() == held
    assert len(again.train) == 32 - len(held) and not set(again.train.names()) & set(held)
    with pytest.raises(UsageError, match=r"--set data\.seed=1: another draw would take clips that the run was trained on"):
        evaluate(run, overrides=["data.seed=1"])
    evaluate(run, overrides=[], data=root)
    line = f"{32 - len(held)} of these 32 clips were trained on, if they were there then; leave out --data for those held out"
    assert line in capsys.readouterr().err
    data, _ = find_data(run / "export" / "any", root, [])
    assert data is not None and line in data.clips.notes
    (tmp_path / "mine.txt").write_text(f"./{held[0]}\r\n")
    assert evaluate(run, overrides=[f"data.held_out={tmp_path / 'mine.txt'}"])["n"] == 1
    with pytest.raises(UsageError, match="run keeps to the clips that it held out when it began"):
        train("folder", overrides=[f"data.held_out={tmp_path / 'mine.txt'}"], out=run, resume=True)
    (root / held[0]).unlink()
    evaluate(run, overrides=[])
    assert f"validation.txt: 1 of its {len(held)} clips are no longer in {root}" in capsys.readouterr().err
    other = Path(shutil.copytree(root, tmp_path / "other"))  # where an equal name may be another clip
    (other / held[1]).unlink()
    evaluate(run, overrides=[f"data.root={other}"])
    said = capsys.readouterr().err
    assert f"validation.txt: not used: it is of other data than {other}; validation clips are drawn anew" in said
    evaluate(run, overrides=[f"data.root={other}", f"data.held_out={run / 'validation.txt'}"])
    assert f"validation.txt: 2 of its {len(held)} clips are no longer in {other}" in capsys.readouterr().err
    shutil.rmtree(root)
    evaluate(run, overrides=[], data=sides / "val")  # the run's own data need not be there any more


def test_a_finished_run_needs_no_data(motion_root: Path, tmp_path: Path, main: Main) -> None:
    root = Path(shutil.copytree(folders_of(motion_root, tmp_path / "sides") / "train", tmp_path / "set"))
    compared = ["compare", "folder", "--methods", "ce", "--seeds", "1", "--resplit", "--out", tmp_path / "all"]
    sets = with_sets([f"data.root={root}", *(s for s in TINY if not s.startswith("distill"))])
    assert main(*compared, *sets)[0] == 0
    shutil.rmtree(root)
    assert main(*compared, *sets)[0] == 0
    assert main("train", "folder", "--out", tmp_path / "all" / "seed-0" / "ce", "--resume")[0] == 0
    code, _, said = main("train", "folder", "--out", tmp_path / "new", "--resume")
    assert code == 3 and "data.root: kind folder needs" in said


@pytest.mark.parametrize(
    "bad",
    [
        "data.root=absent",
        "student.weights=absent.pth",
        "teachers.vit.weights=absent.pth",
        "teachers.vit.train=null",
        "distill.branch.tap=stage9",
    ],
)
def test_what_is_missing_is_said_before_anything_is_written(tmp_path: Path, small: list[str], bad: str) -> None:
    out = tmp_path / "run"
    kind = ["data.kind=folder"] if bad.startswith("data") else []
    with pytest.raises(DtkdEdgeError):
        train("quickstart", overrides=[*small, *kind, bad], out=out)
    assert not out.exists()


def test_a_model_in_a_role_that_it_is_not_listed_for_is_named(small: list[str], tmp_path: Path) -> None:
    assert check_models(load("quickstart", small), tmp_path) == []
    changed = ["student.model=vit_tubelet_tiny", "teachers.vit.model=tsm_tiny", "teachers.vit.options={}", "distill.sdd=0"]
    assert check_models(load("quickstart", [*small, *changed]), tmp_path) == [
        "student.model: vit_tubelet_tiny is listed as vit-teacher, not as student: see dtkd-edge models",
        "teachers.vit.model: tsm_tiny is listed as student and cnn-teacher, not as vit-teacher: see dtkd-edge models",
    ]


def test_views() -> None:
    assert parse_views("10x3") == (10, 3)
    for text in ("x", "1", "0x1", "1x0", "65x1", "1x9", "²x1", "-1x1"):
        with pytest.raises(DtkdEdgeError, match="expected TxS"):
            parse_views(text)


@pytest.mark.parametrize(
    ("override", "code", "said"),
    [
        ("train.epoch=3", 3, "unknown key train.epoch"),
        ("train.epochs=many", 3, "train.epochs"),
        ("train.lr=-1", 3, "train.lr"),
        ("student.model=resnet", 3, "no model of that name"),
        ("student.weights=absent.safetensors", 3, "absent.safetensors"),
        ("distill.method=magic", 3, "magic"),
        ("data.kind=films", 3, "films"),
        ("train.batch_size=1", 3, "train.batch_size"),
        ("data.frame_size=25", 3, "data.frame_size"),
        ("distill.branch.grid=[0, 5, 5]", 3, "distill.branch.grid"),
        ("student.options={size: 3}", 3, "size is no option"),
        ("device=cuda", 4, "CUDA"),
    ],
)
def test_bad_recipes(main: Main, small: list[str], override: str, code: int, said: str) -> None:
    ended, _, told = main("train", *with_sets([*small, "distill.method=ce", "train.epochs=1", override]), "--out", "x")
    assert ended == code, told
    lines = [line for line in told.splitlines() if line.startswith(("error:", "  fix:"))]
    assert len(lines) == 2 and said in lines[0], told
    assert "Traceback" not in told


def test_an_exploding_loss_stops_with_the_step_the_term_and_the_clips(tmp_path: Path, small: list[str]) -> None:
    sets = ["distill.method=ce", "train.lr=100", "train.optimizer=sgd", "train.clip_grad=0", "train.epochs=60"]
    with pytest.raises(InputError) as stopped:
        train("quickstart", overrides=[*small, *sets], out=tmp_path / "run")
    assert stopped.value.hint.startswith("lower train.lr") and "train.max_rise=100" in stopped.value.hint
    look_at_the_stop(stopped.value, tmp_path / "run", r"the loss rose to [\de+.]+, most of it ce, at {where}, from \d\.\d+")


def test_a_loss_that_is_no_number_stops_with_the_step_the_term_and_the_clips(tmp_path: Path, small: list[str]) -> None:
    student = create_model("tsm_tiny", 8, frames=8, size=24)
    with torch.no_grad():
        for parameter in student.head_parameters():
            parameter.fill_(3e38)
    save_file(student.state_dict(), tmp_path / "huge.safetensors")
    given = [f"student.weights={tmp_path / 'huge.safetensors'}", "distill.method=ce"]
    with pytest.raises(InputError) as stopped:
        train("quickstart", overrides=[*small, *given], out=tmp_path / "run")
    look_at_the_stop(stopped.value, tmp_path / "run", "ce is not finite at {where}")


def look_at_the_stop(error: InputError, run: Path, what: str) -> None:
    found = re.match(rf"student: {what.format(where='epoch ([0-9]+), step ([0-9]+)')} [(]clips: ", error.message)
    assert found is not None, error.message
    logged = entries(run)[-1]
    assert logged["step"] == int(found[2]) and f"student: {logged['stopped']} (" in error.message
    clips = logged["clips"]
    assert isinstance(clips, list) and len(clips) == 16 and all(str(clip).endswith(".mp4") for clip in clips)
    assert ", ".join(clips[:3]) in error.message and clips[3] not in error.message


def test_a_loss_that_begins_near_nothing_may_rise_to_a_hundred(small: list[str], tmp_path: Path) -> None:
    """A first batch that a taught network gets wrong is no explosion."""
    phase = SimpleNamespace(
        name="vit",
        section="teachers.vit.train",
        config=OptimConfig(),
        first_losses=[1e-4] * 3,
        task=SimpleNamespace(weights={"ce": 1.0}),
    )
    log = RunLog(tmp_path, main=False)

    def look(loss: float) -> None:
        values = {"loss": torch.tensor(loss), "ce": torch.tensor(loss)}
        check_loss(phase, Step(0, values, []), 0, log)  # type: ignore[arg-type]

    look(99.0)
    with pytest.raises(InputError, match=r"vit: the loss rose to 101, most of it ce, at epoch 1, step 1, from 1 "):
        look(101.0)
    assert phase.first_losses == [1e-4] * 3 + [99.0]
