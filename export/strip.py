"""Leave behind what only training needs: the branch, the projections, the teachers.

A training task holds the student under `student.` and everything else beside it (`branch.*`, `matching.*`, …), so that what is
deployed is decided by where a weight lives and not by a list of names to drop.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from dtkd_edge.errors import CheckpointError, VerificationError

PREFIX = "student."
# Where a training task keeps what it does not deploy. No key of a stripped student may start so.
TRAINING_ONLY = ("branch.", "align.", "matching.", "teachers.", "projection.", "sdb.", "student.")

V = TypeVar("V")


def strip_state(state: Mapping[str, V]) -> dict[str, V]:
    """A training task's state dict → the student's, without the prefix. A state dict of the bare student passes unchanged.

    Raises CheckpointError when no student is in it, VerificationError when a training-only key would be left.
    """
    student = {key[len(PREFIX) :]: value for key, value in state.items() if key.startswith(PREFIX)}
    if not student:
        if not state or any(key.startswith(TRAINING_ONLY) for key in state):
            raise CheckpointError("no student weights in the state dict", "is this a checkpoint of dtkd-edge train?")
        student = dict(state)
    left = [key for key in student if key.startswith(TRAINING_ONLY)]
    if left:
        raise VerificationError(f"training-only weights are left after stripping: {', '.join(left[:3])}", "report this")
    return student


def strip(run: str | Path) -> tuple[Any, Any]:
    """The student of a run, stripped and proven so → (VideoModel in eval mode on the CPU, ModelCard).

    The finished student (`student.safetensors`) is the source; when the run also holds it inside a training state
    (`checkpoints/`), nothing of that is read. Raises CheckpointError when the run has not finished.
    """
    from dtkd_edge.models.saved import load_model

    model, card = load_model(Path(run) / "student")
    left = [key for key in model.state_dict() if key.startswith(TRAINING_ONLY)]
    if left:
        raise VerificationError(f"{run}: training-only weights in the student: {', '.join(left[:3])}", "train it again")
    return model, card


def prove_stripped(task: Any, student: Any, clips: Any) -> None:
    """Hold a stripped student against the task it came from: the same keys, and logits that are equal bit for bit.

    task: a module with the trained `.student`; clips: normalised float `[B, 3, T, H, W]`. VerificationError says what differs.
    """
    import torch

    before_keys = set(strip_state(task.state_dict()))
    if before_keys != set(student.state_dict()):
        odd = sorted(before_keys ^ set(student.state_dict()))
        raise VerificationError(f"the stripped student has other weights than the trained one: {odd[0]}", "report this")
    modes = task.student.training, student.training
    try:
        task.student.eval(), student.eval()
        with torch.no_grad():
            before, after = task.student(clips), student(clips)
    finally:
        task.student.train(modes[0]), student.train(modes[1])
    for head, logits in before.items():
        if not torch.equal(logits, after[head]):
            raise VerificationError(f"head {head}: logits change when the training-only parts are stripped", "report this")
