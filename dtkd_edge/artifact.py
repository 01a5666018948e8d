"""The artefact folder and its manifest: the contract between export, deploy and benchmarks. No torch.

An artefact is a folder with the model in its target's own format and `manifest.json`. The folder alone is enough to run
it anywhere. Whatever does not fit (a changed file, an unknown schema, a missing field) is an ArtifactError, never a guess.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dtkd_edge.errors import ArtifactError
from dtkd_edge.files import atomic_folder, sha256, write_json
from dtkd_edge.preprocess import Preprocess

SCHEMA: Final = "dtkd-edge/artifact/1"
MANIFEST = "manifest.json"

Precision = Literal["fp32", "bf16", "fp16", "int8"]
Mode = Literal["clip", "stream"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ModelPart(_Part):
    name: str
    frames: int
    stride: int
    size: int
    parameters: int
    macs: int = Field(..., description="multiply-accumulates of one clip (stream: of one frame)")


class StatePart(_Part):
    name: str
    shape: list[int]
    dtype: str


class InputPart(_Part):
    name: Literal["frames"] = "frames"
    dtype: Literal["uint8"] = "uint8"
    shape: list[int] = Field(..., description="[N, T, H, W, 3]; N is -1 where the batch is dynamic; stream: [N, H, W, 3]")
    color: Literal["RGB"] = "RGB"
    states: list[StatePart] = []


class OutputPart(_Part):
    name: str
    head: str
    classes: int


class BuiltFrom(_Part):
    onnx_sha256: str | None = None
    run: str | None = None


class EngineKey(_Part):
    """An engine runs only where it was built: the same GPU, the same TensorRT; or a little further, where it was built so."""

    gpu: str
    compute_capability: str
    tensorrt: str
    hardware_compatible: bool = Field(False, description="runs on other GPUs too, from Ampere on")
    version_compatible: bool = Field(False, description="runs on newer TensorRT versions too")
    dla: int | None = Field(None, description="the deep learning accelerator that it was built for")


class VerifyPart(_Part):
    passed: bool
    reason: str | None = Field(None, description="why the logits are not verified, as a clause")
    reference: str
    clips: int
    max_abs: float = Field(..., description="largest error of a logit")
    mean_abs: float
    error: float | None = Field(
        None, description="root mean square, in units of how far the logits spread over clips, of the head that is off most"
    )
    worst: float | None = Field(None, description="the same of the clip that is off most")
    in_fp32: float | None = Field(None, description="bf16 alone: the error of the same file computed in fp32")
    top1_agreement: float
    tolerance: float = Field(..., description="the largest `error` that is allowed when this is repeated elsewhere")
    speedup: float | None = Field(None, description="latency of the reference / latency of the artefact")


class QuantizationPart(_Part):
    """How an int8 graph was made: on which clips, and what stayed out of it."""

    method: str
    clips: int = Field(..., description="training clips that the ranges were measured on")
    seed: int
    clips_sha256: str = Field(..., description="of the list of those clips: path, start and end, a line each")
    layers: int = Field(..., description="convolutions and matrix products of the graph")
    kept: list[str] = Field([], description="those of them that stay out of int8 because they cost too much accuracy")
    excluded: list[str] = Field([], description="those that stay out of it because the runtime has no faster int8 for them")
    rest: Precision = Field("fp32", description="what everything outside of int8 is computed in")


class AccuracyPart(_Part):
    """Top-1 on the validation split beside the float32 network's on the same clips, of the head that loses most."""

    head: str
    clips: int
    top1_reference: float
    top1: float
    drop: float = Field(..., description="points of top-1")
    stderr: float = Field(..., description="of the drop, from the clips on which the two differ")
    max_drop: float
    passed: bool


class StreamPart(_Part):
    """What a stream's labels are about."""

    delay: int = Field(0, description="frames that have to come after the last frame of a clip before its label does")
    accuracy: AccuracyPart | None = Field(
        None, description="of the float32 stream beside the clip model's; none where both are one function"
    )
    accuracy_of: str | None = Field(None, description="sha256 of the weights and the list of clips that it was measured with")


class Manifest(_Part):
    schema_: Literal["dtkd-edge/artifact/1"] = Field(SCHEMA, alias="schema")
    name: str
    created: str
    mode: Mode = "clip"
    target: str
    precision: Precision
    effective_precision: str
    model: ModelPart
    input: InputPart
    preprocess: Preprocess
    outputs: list[OutputPart]
    labels: dict[str, list[str]]
    files: dict[str, str] = {}
    built_from: BuiltFrom = BuiltFrom()
    engine_key: EngineKey | None = None
    tools: dict[str, str] = {}
    verify: VerifyPart | None = None
    quantization: QuantizationPart | None = None
    accuracy: AccuracyPart | None = None
    stream: StreamPart | None = None
    sha256: str = Field("", description="of the manifest without this field: see `digest`")

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), populate_by_name=True)

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files:
            if name in ("", ".", "..", MANIFEST) or Path(name).name != name:
                raise ValueError(f"{name!r} is not the name of a file in the artefact's folder")
        return files

    @model_validator(mode="after")
    def _fits_together(self) -> Manifest:
        """What contradicts itself would end in a wrong label, or deep inside a runtime."""
        if not self.outputs:
            raise ValueError("outputs: there is none")
        for output in self.outputs:
            found = len(self.labels.get(output.head, []))
            if found != output.classes:
                raise ValueError(f"labels: head {output.head} has {found}, the output {output.name} has {output.classes}")
        frame = [self.preprocess.crop, self.preprocess.crop, 3]
        clip = frame if self.mode == "stream" else [self.preprocess.sampling.frames, *frame]
        if self.input.shape[1:] != clip:
            raise ValueError(f"input.shape: {self.input.shape} does not hold what preprocess makes, {['N', *clip]}")
        return self

    @property
    def delay(self) -> int:
        """Frames by which a label lags behind the frames that it is about: 0 but for some streams."""
        return self.stream.delay if self.stream else 0

    def to_json(self) -> dict[str, Any]:
        """What is written: everything, and its own digest."""
        raw = self.model_dump(mode="json", by_alias=True)
        return {**raw, "sha256": digest(raw)}


def digest(raw: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its field `sha256`, as JSON with sorted keys and no spaces, in UTF-8."""
    rest = {key: value for key, value in raw.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Artifact:
    """An artefact folder that was checked: the manifest is whole and every file has the hash it had when written."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: str | Path, *, check_files: bool = True) -> Artifact:
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.is_file():
            raise ArtifactError(f"{folder}: no artefact here ({MANIFEST} is missing)", "make one with: dtkd-edge export")
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError, OSError) as error:
            raise ArtifactError(f"{path}: not readable: {error}", "export the run again") from error
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
            found = raw.get("schema") if isinstance(raw, dict) else None
            raise ArtifactError(f"{path}: schema is {found!r}, this version reads {SCHEMA!r}", "export the run again")
        try:
            manifest = Manifest.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{part}: " for part in (".".join(str(part) for part in first["loc"]),) if part)
            raise ArtifactError(f"{path}: {where}{first['msg'].removeprefix('Value error, ')}", "export the run again") from error
        if manifest.sha256 != digest(raw):
            raise ArtifactError(f"{path}: changed since it was exported", "export the run again")
        if not manifest.files:
            raise ArtifactError(f"{path}: files: the manifest names no file", "export the run again")
        if check_files:
            for name, written in manifest.files.items():
                file = folder / name
                if not file.is_file():
                    raise ArtifactError(f"{file}: missing from the artefact", "copy the whole folder, or export again")
                if sha256(file) != written:
                    raise ArtifactError(f"{file}: changed since it was exported", "export the run again")
        return cls(folder, manifest)

    def file(self, suffix: str) -> Path:
        """The artefact's one file that ends in `suffix`, such as '.onnx'."""
        names = [name for name in self.manifest.files if name.endswith(suffix)]
        if len(names) != 1:
            raise ArtifactError(f"{self.folder}: {len(names)} {suffix} files in the manifest, expected one", "export again")
        return self.folder / names[0]

    def rewrite_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest (after verification, say); the files stay."""
        write_json(self.folder / MANIFEST, manifest.to_json())
        self.manifest = manifest


@contextmanager
def new_artifact(folder: Path, manifest: Manifest) -> Iterator[Path]:
    """Fill the yielded folder with the model's files; hashes and manifest are added and it replaces `folder` whole."""
    with atomic_folder(folder) as aside:
        yield aside
        files = {file.name: sha256(file) for file in sorted(aside.iterdir()) if file.is_file()}
        whole = manifest.model_copy(update={"files": files})
        write_json(aside / MANIFEST, whole.to_json())


def unfinished(folder: Path, manifest: Manifest, *, target: str | None = None) -> Artifact:
    """A folder that is being filled, as something that a backend opens (with another target's runtime, where one is named)."""
    files = {file.name: "" for file in folder.iterdir() if file.is_file()}
    return Artifact(folder, manifest.model_copy(update={"files": files, "target": target or manifest.target}))


def now() -> str:
    """The time of day in UTC, as manifests and logs record it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
