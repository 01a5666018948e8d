"""Several processes that train together, started as a user starts them; two ranks on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train_cases import SMALL, with_sets

from dtkd_edge.files import sole_writer
from dtkd_edge.train.command import train

# Dropout is off: ranks draw their own. SGD, because AdamW's first steps are the sign of the gradient and blow rounding up. A
# small rate, because behind batch norms float32 leaves a thousandth of a gradient to rounding, in one process too; that the norms
# are exact is shown in float64 (test_rank_norm.py).
FAIR = [
    "teachers.cnn.train.epochs=1",
    "teachers.vit.train.epochs=1",
    "student.options={width: 8, dropout: 0.0}",
    "train.optimizer=sgd",
    "train.lr=0.0005",
    "train.epochs=2",
    "distill.warmup=0",
]


def run_ranks(
    count: int, *arguments: str, cwd: Path, program: tuple[str, ...] = ("-m", "dtkd_edge")
) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *program]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launch, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.fixture(scope="module")
def trained(motion_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that start from two trained teachers and a trained student."""
    run = tmp_path_factory.mktemp("trained") / "run"
    base = [f"data.root={motion_root}", *SMALL, *FAIR]
    train("quickstart", overrides=base, out=run)
    given = [
        f"teachers.{name}.{key}"
        for name in ("cnn", "vit")
        for key in (f"weights={run}/teachers/{name}.safetensors", "train=null")
    ]
    return [*base, *given, f"student.weights={run}/student.safetensors"]


@pytest.mark.slow
def test_two_ranks_make_the_steps_of_one_process_with_twice_the_batch(trained: list[str], tmp_path: Path) -> None:
    train("quickstart", overrides=[*trained, "train.batch_size=16"], out=tmp_path / "one")
    two = run_ranks(2, "train", "quickstart", "--out", "two", *with_sets([*trained, "train.batch_size=8"]), cwd=tmp_path)
    assert two.returncode == 0, two.stderr
    alone, together = (load_file(tmp_path / name / "student.safetensors") for name in ("one", "two"))
    assert alone.keys() == together.keys()
    start = load_file(trained[-1].partition("=")[2])
    steps = []
    for key, value in alone.items():
        statistics = "running_" in key  # they move by far more than a weight does
        step = float((value - start[key]).abs().max()) if value.is_floating_point() else 0.0
        steps.append(0.0 if statistics else step)
        # One process whose first weights differ in their last bit ends up to 2.4 % of its way elsewhere, its norms 0.1 %.
        atol = max(1e-5, (0.001 if statistics else 0.05) * step)
        torch.testing.assert_close(together[key], value, atol=atol, rtol=0, msg=lambda text, key=key: f"{key}: {text}")
    assert max(steps) > 5e-4
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("one", "two")]
    first, second = ([e for e in log if e.get("phase") == "student" and "epoch" in e] for log in logs)
    assert len(first) == len(second) == 2  # one rank alone writes
    assert first[-1]["val_action_top1"] == second[-1]["val_action_top1"]
    assert first[-1]["loss"] == pytest.approx(second[-1]["loss"], abs=1e-4)
    assert two.stderr.count("student  epoch   1/2") == 1 and "Warning" not in two.stderr
    assert logs[0][0]["note"].endswith("cpu, 1 process") and logs[1][0]["note"].endswith("cpu, 2 processes")


LOOKED_AT = """
import os
import torch
from dtkd_edge.cli import main
from dtkd_edge.train import loop
from dtkd_edge.train.engine import Engine

distribute, average, save, seen = Engine.distribute, Engine.average_norms, loop.save, []

def look(engine, model):
    assert not seen[0].will_sync_module_buffers()  # rank 0's would be everybody's
    before = {k: v.clone() for k, v in model.state_dict().items()}
    average(engine, model)
    seen.append((before, {k: v.clone() for k, v in model.state_dict().items()}))

def keep(phase, *arguments):
    state = [{k: v.clone() for k, v in m.state_dict().items()} for m in (phase.task.student, phase.model)]
    torch.save((seen[-2:], state), f"rank{os.environ['RANK']}.pt")
    save(phase, *arguments)

def remember(*arguments):
    seen.append(distribute(*arguments))
    return seen[0]

Engine.distribute, Engine.average_norms, loop.save = remember, look, keep
main()
"""


@pytest.mark.slow
def test_ranks_share_the_storing_of_teacher_outputs_and_resume(trained: list[str], tmp_path: Path) -> None:
    """With norms of their own, too, whose running statistics become one, in the moving average as well."""
    stored = [*trained, "teachers.views=1", f"teachers.cache={tmp_path}/two", "train.sync_bn=false", "train.ema=0.9"]
    sets = [*with_sets([*stored, "train.batch_size=8"]), "--set", "train.epochs=1"]
    (tmp_path / "looked_at.py").write_text(LOOKED_AT)
    first = run_ranks(2, "train", "quickstart", "--out", "run", *sets, cwd=tmp_path, program=("looked_at.py",))
    assert first.returncode == 0, first.stderr
    (ours, kept), (theirs, kept_there) = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    saved = load_file(tmp_path / "run/student.safetensors")
    for (before, after), (others, agreed), here, there in zip(ours, theirs, kept, kept_there, strict=True):
        for key, value in after.items():
            assert torch.equal(value, agreed[key]) and torch.equal(value, here[key]) and torch.equal(value, there[key])
            if "running_" in key:
                assert not torch.equal(before[key], others[key])
                torch.testing.assert_close(value, (before[key] + others[key]) / 2)
            else:
                assert torch.equal(value, before[key])
    student, average = (after for _, after in ours)
    assert all(torch.equal(saved[key], value) for key, value in average.items())
    assert any(not torch.equal(student[key], value) for key, value in average.items())
    alone = [*stored, f"teachers.cache={tmp_path}/one", "train.batch_size=16", "train.epochs=1"]
    train("quickstart", overrides=alone, out=tmp_path / "alone")
    files = {side: sorted((tmp_path / side).rglob("*.npy")) for side in ("one", "two")}
    assert len(files["one"]) == len(files["two"]) == 2 * (5 + 3)  # three taps of the CNN, one of the ViT, mean, logits; scales
    for one, two in zip(files["one"], files["two"], strict=True):
        assert one.relative_to(tmp_path / "one") == two.relative_to(tmp_path / "two")
        assert one.read_bytes() == two.read_bytes()
    for name in ("metrics.json", "student.json", "student.safetensors"):
        (tmp_path / "run" / name).unlink()
    again = run_ranks(2, "train", "quickstart", "--out", "run", "--resume", "--set", "train.epochs=2", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "resumed after epoch 1 of 2" in again.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["student"]["n"] == 32


BAD = """
import os, sys
from dtkd_edge.cli import main
from dtkd_edge.distill.task import DistillationTask

forward, steps, factor = DistillationTask.forward, [], float(sys.argv.pop(1))

def bad(task, *arguments, **named):
    result = forward(task, *arguments, **named)
    steps.append(0)
    if os.environ["RANK"] == "1" and len(steps) == 3:
        result = {**result, "loss": factor * result["loss"], "terms": {n: factor * v for n, v in result["terms"].items()}}
    return result

DistillationTask.forward = bad
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "said"), [("1e5", "the loss rose to"), ("nan", "ce is not finite")])
def test_a_loss_that_goes_wrong_in_one_process_is_said_with_its_own_clips(
    factor: str, said: str, trained: list[str], tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "bad.py", factor]
    arguments = ["train", "quickstart", "--out", "run", *with_sets([*trained, "distill.method=ce", "train.batch_size=8"])]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert any(f"student: {said}" in line for line in lines), done.stderr
    (own,) = [line for line in lines if f"student: {said}" in line]
    assert "at epoch 1, step 3" in own and "a defect" not in done.stderr
    others = ("gradient is not finite at epoch 1, step 3 in process 0; see", "another process of this training has ended")
    assert all(line == own or any(other in line for other in others) for line in lines), lines
    (stopped,) = [entry for entry in map(json.loads, (tmp_path / "run/log.jsonl").read_text().splitlines()) if "clips" in entry]
    assert len(stopped["clips"]) == 8 and stopped["clips"][0] in own


@pytest.mark.slow
def test_all_ranks_leave_a_run_alone_that_another_process_writes(trained: list[str], tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    with sole_writer(tmp_path / "held"):
        refused = run_ranks(2, "train", "quickstart", *with_sets(trained), "--out", "held", cwd=tmp_path)
    lines = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert refused.returncode != 0 and lines and all("writes here" in line for line in lines), refused.stderr
