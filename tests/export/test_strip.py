from pathlib import Path

import pytest
import torch
from torch import nn

from dtkd_edge.errors import CheckpointError, VerificationError
from dtkd_edge.export.strip import prove_stripped, strip, strip_state
from dtkd_edge.models import create_model


class Task(nn.Module):
    """What a training task looks like from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.student = create_model("tsm_tiny", 3, size=32)
        self.branch = nn.Conv3d(4, 4, 1)
        self.align = nn.Linear(4, 4)


def test_only_the_student_is_left_and_its_logits_are_the_same_bits() -> None:
    task = Task().train()
    state = strip_state(task.state_dict())
    assert not [key for key in state if key.startswith(("branch", "align", "student"))]
    assert len(state) < len(task.state_dict())
    student = create_model("tsm_tiny", 3, size=32)
    student.load_state_dict(state, strict=True)
    clips = torch.randn(2, 3, 8, 32, 32)
    prove_stripped(task, student, clips)
    assert task.student.training  # left as it was
    student.stem[1].bias.data += 1e-3
    with pytest.raises(VerificationError, match="logits change"):
        prove_stripped(task, student, clips)


def test_the_complete_methods_own_task_is_stripped() -> None:
    from dtkd_edge.distill.task import DistillationTask
    from dtkd_edge.recipe import DistillConfig

    teachers = {"cnn": create_model("tsm_resnet_tiny", 3, size=32), "vit": create_model("vit_tubelet_tiny", 3, size=32)}
    task = DistillationTask(create_model("tsm_tiny", 3, size=32), teachers, DistillConfig())
    trained_only = {key.split(".")[0] for key in task.state_dict()} - {"student"}
    assert {"branch", "matching"} <= trained_only
    student = create_model("tsm_tiny", 3, size=32)
    student.load_state_dict(strip_state(task.state_dict()), strict=True)
    prove_stripped(task, student, torch.randn(2, 3, 8, 32, 32))


def test_stripping_twice_changes_nothing() -> None:
    once = strip_state(Task().state_dict())
    assert strip_state(once) == once


@pytest.mark.parametrize("state", [{}, {"branch.weight": 1}, {"align.weight": 1, "head.weight": 2}])
def test_a_state_without_student_is_refused(state: dict) -> None:
    with pytest.raises(CheckpointError):
        strip_state(state)


def test_a_branch_hidden_inside_the_student_is_found() -> None:
    with pytest.raises(VerificationError, match=r"branch\.w"):
        strip_state({"student.branch.w": 1, "student.head.w": 2})


def test_an_unfinished_run_says_how_to_finish_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        strip(tmp_path)
    assert "--resume" in caught.value.hint
