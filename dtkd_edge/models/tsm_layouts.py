"""The names of published TSM checkpoints (mit-han-lab, mmaction2), turned into timm's names of the same network."""

from __future__ import annotations

import re

from dtkd_edge.models.layouts import Pattern

MOBILENETV2 = (1, 2, 3, 4, 3, 3, 1)  # blocks of a stage
# What stands at each place of an inverted residual's list of layers; the first stage's blocks have no expansion.
_LAYERS = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
_FIRST = ("conv_dw", "bn1", "conv_pw", "bn2")
HEAD = "new_fc."  # mit-han-lab's, and no name of timm's: an ImageNet classifier is nobody's here


def _flat(match: re.Match[str]) -> str:
    """mit-han-lab numbers all blocks of MobileNetV2 through, and puts an activation at every third place of their layers."""
    block, place = int(match[1]) - 1, int(match[2])
    for stage, depth in enumerate(MOBILENETV2):  # noqa: B007
        if block < depth:
            break
        block -= depth
    layers = _FIRST if stage == 0 else _LAYERS
    return f"blocks.{stage}.{block}.{layers[place - place // 3]}."


def _staged(match: re.Match[str]) -> str:
    """mmaction2 numbers stages from 1, and has a convolution and its norm at each place."""
    stage, layers = int(match[1]) - 1, _FIRST if match[1] == "1" else _LAYERS
    return f"blocks.{stage}.{match[2]}.{layers[2 * int(match[3]) + (match[4] == 'bn')]}."


MIT: dict[str, list[Pattern]] = {
    "resnet": [(r"^base_model\.", "")],
    "mobilenetv2": [
        (r"^base_model\.", ""),
        (r"^features\.0\.0\.", "conv_stem."),
        (r"^features\.0\.1\.", "bn1."),
        (r"^features\.18\.0\.", "conv_head."),
        (r"^features\.18\.1\.", "bn2."),
        (r"^features\.(\d+)\.conv\.(\d)\.", _flat),
    ],
}
MMACTION2: dict[str, list[Pattern]] = {
    "resnet": [
        (r"^backbone\.", ""),
        (r"\bconv(\d)\.bn\.", r"bn\1."),
        (r"\bconv(\d)\.conv\.", r"conv\1."),
        (r"\.downsample\.conv\.", ".downsample.0."),
        (r"\.downsample\.bn\.", ".downsample.1."),
        (r"^cls_head\.fc_cls\.", HEAD),
    ],
    "mobilenetv2": [
        (r"^backbone\.", ""),
        (r"^conv1\.conv\.", "conv_stem."),
        (r"^conv1\.bn\.", "bn1."),
        (r"^conv2\.conv\.", "conv_head."),
        (r"^conv2\.bn\.", "bn2."),
        (r"^layer(\d)\.(\d)\.conv\.(\d)\.(conv|bn)\.", _staged),
        (r"^cls_head\.fc_cls\.", HEAD),
    ],
}
