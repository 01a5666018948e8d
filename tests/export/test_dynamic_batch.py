"""--dynamic-batch through the whole export, for every target and precision that has it: any number of clips in one inference."""

from pathlib import Path

import numpy as np
import pytest

from dtkd_edge.artifact import Artifact
from dtkd_edge.deploy.backends import open_backend
from dtkd_edge.export import verify
from dtkd_edge.export.command import export
from dtkd_edge.export.golden import Golden
from dtkd_edge.export.targets import TARGETS

ROWS = [(t.name, precision) for t in TARGETS.values() if t.dynamic_batch for precision in t.precisions]
# Between one batch size and another, in spreads of the logits. Only the order of float sums may differ: half a step of the
# precision's own rounding, where the kernels round in between.
SAME = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 0.1, "int8": 1e-2}


@pytest.mark.parametrize(("target", "precision"), ROWS)
def test_one_clip_or_three_at_once_give_the_same_logits(run: Path, tmp_path: Path, target: str, precision: str) -> None:
    options = {"max_drop": 100.0} if precision == "int8" else {}  # an untrained network has no accuracy to lose
    folder = export(run, target=target, precision=precision, dynamic_batch=True, clips=4, **options)
    assert folder == run / "export" / f"{target}-{precision}-dynamic"
    artifact = Artifact.open(folder)
    manifest = artifact.manifest
    assert manifest.input.shape[0] == -1 and manifest.verify is not None and manifest.verify.passed
    golden = Golden.load(artifact)
    clips, seen = golden.frames[:3], list[int]()
    with open_backend(artifact, device="cpu", threads=1) as backend:
        infer = backend._infer
        backend._infer = lambda inputs: seen.append(len(inputs["frames"])) or infer(inputs)  # type: ignore[method-assign, func-returns-value]
        together = backend.run(clips)["action"]
        alone = np.concatenate([backend.run(clip[None])["action"] for clip in clips])
    assert seen == [3, 1, 1, 1] and together.shape == (3, 2)  # really at once
    spread = golden.scales["action"][:3, None]
    assert (np.abs(together[0] - together[1:]) > 0.1 * spread[0]).any()  # the clips differ, or one could stand for all
    assert (np.abs(together - alone) <= SAME[precision] * spread).all(), np.abs(together - alone) / spread
    assert SAME[precision] < verify.TOLERANCE[precision]
    if precision == "fp32":  # of all others test_every_row_of_the_support_table holds it
        export(folder, verify_only=True)
