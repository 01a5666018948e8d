"""Weights from files: published names are found, other heads replaced, poor and hostile files refused."""

import pickle
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from dtkd_edge.errors import CheckpointError
from dtkd_edge.models import create_model
from dtkd_edge.models.saved import ModelCard, load_model, save_model
from dtkd_edge.models.weights import load_weights
from dtkd_edge.preprocess import Preprocess, Sampling

SHARED = Path(__file__).parents[2].parent / "shared" / "weights"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "timm.safetensors"
    save_file(timm.create_model("mobilenetv2_035", num_classes=10).state_dict(), path)
    return path


def test_timm_checkpoint_loads_whole_and_the_head_is_replaced(published: Path) -> None:
    model = create_model("tsm_mobilenetv2_035", 4, size=64)
    report = load_weights(model, str(published))
    assert report is not None and report.head_replaced
    assert report.missing == ["head.linear.action.weight", "head.linear.action.bias"]
    assert report.unexpected == ["classifier.bias", "classifier.weight"]
    assert "head replaced" in report.line()
    # On a still clip whose shifted channels do not differ between inner frames, the first layer is the file's own.
    from safetensors.torch import load_file

    assert torch.equal(model.state_dict()["backbone.conv_stem.weight"], load_file(published)["conv_stem.weight"])


@pytest.mark.parametrize("prefix", ["module.", "module.backbone."])
def test_wrapped_names_in_a_pth(published: Path, tmp_path: Path, prefix: str) -> None:
    from safetensors.torch import load_file

    file = tmp_path / "wrapped.pth"
    torch.save({"state_dict": {prefix + k: v for k, v in load_file(published).items()}}, file)
    report = load_weights(create_model("tsm_mobilenetv2_035", 4, size=64), str(file))
    assert report is not None and len(report.missing) == 2


def test_weights_of_another_model_are_refused(published: Path) -> None:
    told = r"fits only \d+% of tsm_resnet18: \d+ tensors fit, \d+ are missing .*, such as backbone\.\S+; \d+ are unexpected, such"
    with pytest.raises(CheckpointError, match=told):
        load_weights(create_model("tsm_resnet18", 4, size=64), str(published))


@pytest.mark.parametrize(
    ("protocol", "told"), [(2, "it wants to call exec, and code in a file is never run"), (4, "it holds more than tensors")]
)
def test_code_in_a_pickle_is_never_run(tmp_path: Path, protocol: int, told: str) -> None:
    marker = tmp_path / "ran"

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, (f"open({str(marker)!r}, 'w').close()",)

    zipped, bare = tmp_path / "zipped.pth", tmp_path / "bare.pth"
    torch.save({"state_dict": Hostile()}, zipped, pickle_protocol=protocol)
    bare.write_bytes(pickle.dumps({"state_dict": Hostile()}, protocol))
    for file in (zipped, bare):
        with pytest.raises(CheckpointError, match=f"not readable as weights: {told}"):
            load_weights(create_model("tsm_tiny", 4), str(file))
    assert not marker.exists()


def test_what_training_tools_store_beside_the_weights_is_passed_over(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mmengine's checkpoints hold its log: objects of its own, bound methods, numpy's numbers and arrays."""
    from safetensors.torch import load_file

    made: list[object] = []

    class HistoryBuffer:
        __module__, __qualname__ = "mmengine.logging.history_buffer", "HistoryBuffer"

        def __init__(self) -> None:
            self.history, self.best = np.arange(3.0), np.float64(0.5)
            self.methods = {"mean": self.mean}

        def mean(self) -> float:
            return 0.0

        def __setstate__(self, state: object) -> None:
            made.append(state)

    module = ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    file = tmp_path / "epoch_100.pth"
    with monkeypatch.context() as patched:
        for name in ("mmengine", "mmengine.logging"):
            patched.setitem(sys.modules, name, ModuleType(name))
        patched.setitem(sys.modules, module.__name__, module)
        log = {"loss": HistoryBuffer()}
        torch.save({"message_hub": {"log": log, "best": np.float32(0.7)}, "state_dict": load_file(published)}, file)
        report = load_weights(create_model("tsm_mobilenetv2_035", 4, size=64), str(file))
    assert report is not None and len(report.missing) == 2
    assert not made


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02}q\x00."])
def test_unreadable_files(tmp_path: Path, content: bytes) -> None:
    for suffix in (".pth", ".safetensors"):
        file = tmp_path / f"bad{suffix}"
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"not readable as weights: .* ") as caught:  # words, not a byte's number
            load_weights(create_model("tsm_tiny", 4), str(file))
        assert "state dict" in caught.value.hint
    with pytest.raises(CheckpointError, match="no such"):
        load_weights(create_model("tsm_tiny", 4), str(tmp_path / "absent.pth"))


def test_saved_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = create_model("tsm_tiny", {"verb": 3, "noun": 2}, frames=4, size=32, width=12).eval()
    card = ModelCard(
        version="0",
        model="tsm_tiny",
        frames=4,
        stride=1,
        size=32,
        options={"width": 12},
        labels={"verb": ["a", "b", "c"], "noun": ["x", "y"]},
        preprocess=Preprocess(resize_short=32, crop=32, sampling=Sampling(frames=4)),
    )
    save_model(tmp_path / "student", model, card)
    again, read = load_model(tmp_path / "student")
    assert read == card
    clips = torch.randn(1, 3, 4, 32, 32)
    assert all(torch.equal(a, b) for a, b in zip(model(clips).values(), again(clips).values(), strict=True))
    (tmp_path / "student.safetensors").write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match="not readable"):
        load_model(tmp_path / "student")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real ImageNet weights are not beside this checkout")
@pytest.mark.parametrize(("name", "options"), [("100", {"pad_type": "same"}), ("035", {"pad_type": "same", "bn_eps": 1e-3})])
def test_real_imagenet_weights_give_timms_own_features(name: str, options: dict[str, object]) -> None:
    file = SHARED / f"mobilenetv2_{name}_imagenet.safetensors"
    model = create_model(f"tsm_mobilenetv2_{name}", 2, frames=1, size=96, mean=0.5, std=0.5, **options).eval()
    report = load_weights(model, str(file))
    assert report is not None and report.head_replaced
    from safetensors.torch import load_file

    reference = timm.create_model(f"mobilenetv2_{name}", num_classes=0, **options).eval()
    reference.load_state_dict({k: v.float() for k, v in load_file(file).items() if not k.startswith("classifier")})
    # With fold larger than every channel count the shift moves nothing, and only timm's network is left.
    for module in model.modules():
        if hasattr(module, "fold"):
            module.fold = 10**6
    image = torch.randn(1, 3, 96, 96)
    ours = model.forward_features(image[:, :, None])["final"][:, :, 0]
    torch.testing.assert_close(ours, reference.forward_features(image))
