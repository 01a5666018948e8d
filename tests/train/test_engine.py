"""Precision, accumulated gradients and the moving average, in whole trainings of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dtkd_edge.errors import RecipeError, UsageError
from dtkd_edge.train import loop
from dtkd_edge.train.checkpoint import TrainState, load_state, save_state
from dtkd_edge.train.command import train
from dtkd_edge.train.engine import Engine

ALONE = ["distill.method=ce", "student.options={width: 8, dropout: 0.0}", "train.epochs=2"]


def student(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student.safetensors")


def test_accumulated_batches_make_the_step_of_one_large_batch(small: list[str], tmp_path: Path) -> None:
    """With batch norms that keep their statistics, else those differ; in float32 up to rounding."""
    fair = [
        *small,
        *ALONE,
        "train.freeze_bn=true",
        "train.optimizer=sgd",
        "train.lr=0.05",
        "train.schedule=constant",
        "train.warmup=0",
    ]
    whole = train("quickstart", overrides=[*fair, "train.batch_size=16"], out=tmp_path / "whole")
    parts = train("quickstart", overrides=[*fair, "train.batch_size=8", "train.accumulate=2"], out=tmp_path / "parts")
    other = train("quickstart", overrides=[*fair, "train.batch_size=8"], out=tmp_path / "other")
    for key, value in student(whole).items():
        torch.testing.assert_close(student(parts)[key], value, atol=1e-6, rtol=0)
    assert any((student(other)[key] - value).abs().max() > 1e-3 for key, value in student(whole).items())


def test_the_moving_average_is_what_is_kept_and_resumed(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    averaged = [*small, *ALONE, "train.ema=0.9"]
    run = train("quickstart", overrides=averaged, out=tmp_path / "run")
    state = load_state(run / "checkpoints" / "student.pt")
    assert state is not None and state.ema is not None
    kept = student(run)
    assert all(torch.equal(kept[key], value) for key, value in state.ema.items())
    assert any(not torch.equal(kept[key], state.task[f"student.{key}"]) for key in kept)

    class Stop(Exception): ...

    def save_then_stop(path: Path, state: TrainState) -> None:
        save_state(path, state)
        raise Stop

    monkeypatch.setattr(loop, "save_state", save_then_stop)
    with pytest.raises(Stop):
        train("quickstart", overrides=averaged, out=tmp_path / "again")
    monkeypatch.undo()
    again = student(train("quickstart", overrides=[], out=tmp_path / "again", resume=True))
    assert all(torch.equal(again[key], value) for key, value in kept.items())


def test_bf16_trains_nearly_as_fp32_and_keeps_fp32_weights(finished_teachers: list[str], tmp_path: Path) -> None:
    runs = {}
    for precision in ("fp32", "bf16"):
        run = train(
            "quickstart", overrides=[*finished_teachers, f"precision={precision}", "train.epochs=1"], out=tmp_path / precision
        )
        state = load_state(run / "checkpoints" / "student.pt")
        assert state is not None
        assert {value.dtype for value in state.task.values() if value.is_floating_point()} == {torch.float32}
        runs[precision] = student(run)
    difference = max(
        float((runs["bf16"][key] - value).abs().max()) for key, value in runs["fp32"].items() if "running" not in key
    )
    assert 0 < difference < 0.05


def test_fp16_is_refused_without_a_gpu(small: list[str], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="fp16"):
        train("quickstart", overrides=[*small, "precision=fp16", "device=cpu"], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_a_launcher_that_tells_the_processes_nothing_of_each_other_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv(name, "1")
    Engine("cpu")
    monkeypatch.setenv(name, "2")
    with pytest.raises(UsageError, match=r"each of its processes would train alone .*torchrun"):
        Engine("cpu")
