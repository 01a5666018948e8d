"""What `dtkd-edge models` says: sizes against published ones, and the page in docs/ against the registry."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dtkd_edge.models import create_model, list_models
from dtkd_edge.models.count import EXAMPLES, count, count_all
from dtkd_edge.models.measure import count_macs, count_parameters
from dtkd_edge.models.table import ModelTable, listed

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
AGAIN = "run: python -m dtkd_edge.models.count"

# name → size (None: its own), parameters in millions, multiply-accumulates of one view in billions
PUBLISHED = {
    # PySlowFast's model zoo and table 4 of the X3D paper
    "x3d_xs": (None, 3.8, 0.60),
    "x3d_s": (None, 3.8, 1.96),
    "x3d_m": (None, 3.8, 4.73),
    "x3d_l": (None, 6.2, 18.37),
    # the SlowFast paper's table 2 counts at 256²
    "slowfast_r50_4x16": (256, 34.5, 36.1),
    "slowfast_r50_8x8": (256, 34.5, 65.7),
    # the meta of torchvision's weights; that of Swin3D counts 16 frames, half of its clip
    "mvit_v1_b": (None, 36.610672, 70.599),
    "mvit_v2_s": (None, 34.537744, 64.224),
    "swin3d_t": (None, 28.158070, 2 * 43.882),
    "swin3d_s": (None, 49.816678, 2 * 82.841),
    "swin3d_b": (None, 88.048984, 2 * 140.667),
    "r2plus1d_18": (None, 31.505325, 40.519),
    "s3d": (None, 8.320048, 17.979),
    # mmaction2's model zoo (parameters); eight times MobileNetV2's 300 M without its classifier (Sandler et al., 2018, table 4)
    "tsm_mobilenetv2_100": (None, 2.736, 8 * (0.3008 - 0.00128)),
    # mmaction2's model zoo: TSM on ResNet-50, 8 frames of 224²; timm's own table of ResNet-50
    "tsm_resnet50": (None, 24.327, 8 * 4.09),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(name: str) -> None:
    size, parameters, macs = PUBLISHED[name]
    with torch.device("meta"):
        model = create_model(name, 400, size=size)
    assert count_parameters(model) == pytest.approx(parameters * 1e6, rel=0.01)
    assert count_macs(model) == pytest.approx(macs * 1e9, rel=0.01)


@pytest.mark.parametrize(
    ("name", "size", "printed"),
    [
        ("tsm_mobilenetv2_100", 256, "3.269"),
        ("tsm_resnet50", 224, "32.88"),
        ("slowfast_r50_4x16", 256, "36.3"),
        ("slowfast_r50_8x8", 256, "66.1"),
    ],
)
def test_figures_with_batch_norms_are_ours_and_two_per_value(name: str, size: int, printed: str) -> None:
    """mmaction2's tool counts so. Its figure of MobileNetV2 is of 256², as docs/models.md says."""
    values = 0

    def count(_: torch.nn.Module, __: object, out: torch.Tensor) -> None:
        nonlocal values
        values += out.numel()

    with torch.device("meta"):
        model = create_model(name, 400, size=size)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
            module.register_forward_hook(count)
    macs = count_macs(model)
    assert values > 5e7
    assert f"{(macs + 2 * values) / 1e9:.{len(printed.partition('.')[2])}f}" == printed


def test_counting_changes_nothing_and_needs_no_data() -> None:
    """A convolution by hand: 3 → 16 channels, 3 × 3, over 8 frames of 24²; and the model keeps its weights and mode."""
    model = create_model("tsm_tiny", 3, size=48)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    small = count_macs(model)
    assert model.training and all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    wider = create_model("tsm_tiny", 4, size=48)
    assert count_macs(wider) - small == model.info.taps["stage3"]  # one more row of the classifier
    assert small > 8 * 24 * 24 * 16 * 27


@pytest.mark.slow
def test_the_stored_figures_are_the_registrys() -> None:
    pytest.importorskip("transformers", reason="the list has VideoMAE, which needs transformers")
    assert ModelTable.read() == count_all(), AGAIN  # makes every model


def test_the_list_is_of_every_model_as_the_page_in_docs_is() -> None:
    page = ModelTable.read().to_markdown()
    assert page == PAGE.read_text(encoding="utf-8"), AGAIN
    names = set(re.findall(r"^\| `(\w+)` \|", page, re.M))
    assert names == {example for name in list_models() for example in EXAMPLES.get(name, [name])}, AGAIN


def test_the_list_builds_no_model() -> None:
    code = """
import sys
from dtkd_edge import cli
sys.argv = ["dtkd-edge", "models"]
try:
    cli.main()
finally:
    print("HEAVY", sorted({"torch", "timm", "transformers"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "tsm_tiny " in done.stdout and "HEAVY []" in done.stdout, done.stderr


def test_a_name_of_the_list_stands_whole_in_its_line_at_any_width() -> None:
    row = count("tsm_mobilenetv3_large_100")
    assert row in ModelTable.read().rows, AGAIN
    for width in (60, 80, 200):
        first, *more = listed(row, width).splitlines()
        assert first.split()[0] == "tsm_mobilenetv3_large_100" and first.endswith("4.71 M     1.72 G")
        assert all(line.startswith("    ") and len(line) <= width for line in more)
        words = " ".join(" ".join(more).split())
        assert "taps: stage1 16," in words and "final 960" in words and "mean, std: (0.485 0.456 0.406)" in words
        assert "checkpoints: files of timm" in words


def test_the_command_shows_one(main: Callable[..., tuple[int, str, str]]) -> None:
    code, out, said = main("models", "x3d_s")
    assert code == 0, said
    for text in ("13 frames, stride 6, 160 × 160", "432 channels, 13 × 5 × 5", "1.96 G", "PySlowFast", "0.45"):
        assert text in out
