"""Typed recipes: every key of what one training does, with its range, default and meaning. No torch.

`recipe_reader` makes them out of YAML and of `--set a.b=value`; docs/recipes.md is generated from them.
"""

from __future__ import annotations

import shlex
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from dtkd_edge.errors import RecipeError
from dtkd_edge.preprocess import Preprocess, Sampling

_Side = Annotated[int, Field(ge=1, le=64)]


# Of a data section: how clips are read, not which.
_READING = {"student_clips", "sampling", "stride", "fps", "eval_crop", "workers", "cache_mb", "max_broken"}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class DataConfig(_Section):
    """Where the clips come from and how one clip is cut out of a video."""

    kind: str = Field("motion", description="motion | order (generated), folder, csv, or a data set by its official files")
    root: Path | str | None = Field(
        None, description="folder of the data set; generated sets: where to write them; shards: also http(s)://…"
    )
    train: str | None = Field(None, description="training list, relative to root (csv)")
    val: str | None = Field(None, description="validation list, relative to root (csv)")
    split: int = Field(1, ge=1, le=3, description="official split (hmdb51, ucf101)")
    annotations: str | None = Field(None, description="folder of the official lists, relative to root; none: looked for")
    videos: str | None = Field(None, description="folder of the videos or raw frames, relative to root; none: looked for")
    frame_names: str | None = Field(
        None, pattern=r"^[^/%]*%(0[0-9]+)?d[^/%]*$", description="raw frames instead of videos: their names, such as img_%05d.jpg"
    )
    first_frame: int = Field(1, ge=0, le=1, description="number of a folder's first raw frame (frame-list)")
    frame_rate: float | None = Field(None, gt=0, description="raw frames per second, where the data set does not say")
    max_missing: float = Field(0.2, ge=0, le=1, description="share of listed videos that may be missing (official sets)")
    val_share: float = Field(0.2, gt=0, lt=1, description="share held out where the data set has no validation list")
    held_out: Path | None = Field(
        None, description="file that names the clips to hold out, as a run's validation.txt does; none: val_share is drawn"
    )
    clips: int = Field(2000, ge=16, description="generated sets: training clips")
    val_clips: int = Field(400, ge=16, description="generated sets: validation clips")
    frame_size: int = Field(48, ge=24, le=256, multiple_of=2, description="generated sets: pixels of the written videos' side")
    seed: int = Field(0, ge=0, description="of generated clips and of splits")
    student_clips: int | None = Field(
        None, ge=2, description="labelled clips the student may see (class-balanced, seeded); teachers see all of them"
    )
    sampling: Literal["uniform", "dense"] = Field(
        "uniform", description="frames of a clip: spread over all of it (TSM), or `stride` apart (X3D, SlowFast, MViT)"
    )
    stride: int | None = Field(
        None,
        ge=1,
        le=64,
        description="dense: frames from one to the next, for networks whose section says none; none: each as published",
    )
    fps: float | None = Field(None, gt=0, description="dense: the rate that strides are counted at; none: the video's own")
    eval_crop: float = Field(1.0, gt=0.3, le=1.0, description="crop / short side at evaluation")
    workers: int | None = Field(None, ge=0, le=256, description="threads that read ahead; none: chosen from the cores")
    cache_mb: int = Field(2048, ge=0, description="keep decoded clips in memory while they fit; 0: decode every time")
    max_broken: float = Field(0.05, ge=0, le=1, description="share of undecodable clips that stops the run")
    _list_of_run: Path | None = PrivateAttr(None)
    _all_scored: bool = PrivateAttr(False)

    @field_validator("root")
    @classmethod
    def _from_anywhere(cls, root: Path | str | None) -> Path | str | None:
        """A run's recipe is read again by eval and export, perhaps from another folder. A text is a URL from here on."""
        if root is None:
            return None
        scheme, colon, _ = str(root).partition("://")
        if not colon:
            return Path(root).expanduser().absolute()
        if scheme.lower() not in ("http", "https"):
            raise ValueError(f"{scheme}:// is not read: expected a folder, or http:// or https://")
        try:
            parts = urlsplit(str(root))
            named = bool(parts.hostname) and parts.port != 0
        except ValueError as error:
            raise ValueError(f"no URL: {error}") from error
        if not named or parts.username is not None:
            raise ValueError("expected https://HOST/PATH, without a user or password in it")
        return str(root)

    @field_validator("held_out")
    @classmethod
    def _list_from_anywhere(cls, listed: Path | None) -> Path | None:
        return None if listed is None else listed.expanduser().absolute()

    @model_validator(mode="after")
    def _only_dense_clips_have_a_stride(self) -> DataConfig:
        if self.sampling == "uniform":
            self.stride = None
        return self

    def as_of_run(self, listed: Path, *, same: bool = True) -> DataConfig:
        """This data for a run that held out the clips which `listed` names; same: it is the data that the run was trained on."""
        data = self.model_copy(update={"held_out": listed if same else None})
        data._list_of_run = listed
        return data

    def as_test(self) -> DataConfig:
        """This data with all clips on the validation side, or those of the validation side that a folder has of its own."""
        data = self.model_copy()
        data._all_scored = True
        return data

    @property
    def list_of_run(self) -> Path | None:
        """The list that a run wrote down: it is held_out, or of other data than this."""
        return self._list_of_run

    @property
    def all_scored(self) -> bool:
        return self._all_scored

    @property
    def check_command(self) -> str:
        """The command that looks this very data through."""
        own = self.model_dump(mode="json", exclude_defaults=True, exclude={"kind", *_READING})
        sets = [word for key, value in own.items() for word in ("--set", f"data.{key}={value}")]
        return shlex.join(["dtkd-edge", "data", "check", self.kind, *sets])

    @property
    def folder(self) -> Path | None:
        """The root of a kind that reads a folder."""
        if isinstance(self.root, str):
            raise RecipeError(f"data.root: kind {self.kind} reads a folder, not a URL", "kind shards reads URLs")
        return self.root


class AugmentConfig(_Section):
    """Training augmentation; the same crop, flip and colour for every frame of a clip and for every network."""

    scale: tuple[float, float] = Field((0.7, 1.0), description="area of the random crop")
    ratio: float = Field(1.0, ge=1.0, le=2.0, description="largest aspect ratio of the random crop")
    flip: bool = Field(False, description="mirror half of the clips: only where left and right mean the same")
    color: float = Field(0.0, ge=0, le=1, description="strength of brightness, contrast and saturation jitter")
    rand_ops: int = Field(0, ge=0, le=14, description="RandAugment: operations drawn for each clip; 0: off")
    rand_magnitude: int = Field(9, ge=0, le=30, description="RandAugment: their strength, of 30")
    mixup: float = Field(0.0, ge=0, le=10, description="α of mixup: clips blended in pairs; 0: off")
    cutmix: float = Field(0.0, ge=0, le=10, description="α of CutMix: a rectangle of one clip put into another; 0: off")

    @model_validator(mode="after")
    def _ordered(self) -> AugmentConfig:
        low, high = self.scale
        if not 0.05 <= low <= high <= 1.0:
            raise ValueError("scale: expected 0.05 <= low <= high <= 1")
        return self


class OptimConfig(_Section):
    """One training: schedule and optimiser."""

    epochs: int = Field(20, ge=1, le=10_000, description="passes over the clips")
    batch_size: int = Field(32, ge=2, le=65_536, description="per process; at least 2: one clip has no statistics")
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(2e-3, gt=0, le=100, description="largest learning rate")
    weight_decay: float = Field(0.02, ge=0, le=1, description="of weights, not of biases and norms")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps with a rising learning rate")
    schedule: Literal["cosine", "step", "constant"] = Field("cosine", description="of the learning rate after the warm-up")
    milestones: list[float] = Field([0.5, 0.75], description="schedule step: shares of the training after which the rate falls")
    gamma: float = Field(0.1, gt=0, lt=1, description="schedule step: what the rate is multiplied by")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="learning rate of a block, as a share of the next one's: 0.65 to 0.9 to fine-tune a ViT"
    )
    accumulate: int = Field(1, ge=1, le=4096, description="batches that one step of the optimiser adds up")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the moving average of weights that is evaluated and kept; 0: none")
    clip_grad: float = Field(5.0, ge=0, description="largest gradient norm; 0: no clipping")
    max_rise: float = Field(
        100.0, ge=0, description="loss that stops the training, as a multiple of the first steps' median (at least 1); 0: none"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target that all classes have alike")
    freeze_bn: bool = Field(False, description="keep the batch norms' loaded statistics")
    sync_bn: bool = Field(
        True,
        description="several processes: batch norms over all their clips, as if one had them; false: over each one's own, faster",
    )
    head_lr: float = Field(1.0, gt=0, le=1000, description="the head's learning rate, as a multiple of lr")
    checkpoint_every: int = Field(1, ge=1, description="epochs between two checkpoints")
    eval_every: int = Field(1, ge=1, description="epochs between two evaluations; the last epoch is always evaluated")
    keep: Literal["last", "best"] = Field(
        "last",
        description="the epoch whose weights are kept; best: the one of the highest validation top-1 among those evaluated, "
        "whose score then flatters a little, since these clips chose it",
    )

    @field_validator("milestones")
    @classmethod
    def _rising(cls, milestones: list[float]) -> list[float]:
        if not all(a < b for a, b in pairwise([0.0, *milestones, 1.0])):
            raise ValueError("expected rising shares between 0 and 1, such as [0.5, 0.75]")
        return milestones


class ModelConfig(_Section):
    """One network; the list of names is `dtkd-edge models`."""

    model: str = Field(..., description="its name")
    weights: str = Field("none", description="none, a .safetensors or .pth file, torchvision, timm, hf-hub:OWNER/NAME")
    frames: int | None = Field(None, ge=1, le=512, description="of a clip; none: the model's own")
    stride: int | None = Field(
        None,
        ge=1,
        le=64,
        description="dense: frames from one to the next; none: data.stride, else what the model was published with",
    )
    size: int | None = Field(None, ge=8, le=1024, description="pixels of a side; none: the model's own")
    options: dict[str, Any] = Field({}, description="what the model's constructor takes besides, such as {width: 28}")

    @field_validator("options")
    @classmethod
    def _own_keys_only(cls, options: dict[str, Any]) -> dict[str, Any]:
        beside = ("frames", "stride", "size")
        for key in ("name", "model", "num_classes", "heads", *beside):
            if key in options:
                raise ValueError(f"{key} is no option of a model" + (": it stands beside options" * (key in beside)))
        return options


class TeacherConfig(ModelConfig):
    train: OptimConfig | None = Field(None, description="how to train it in this run; none: `weights` is finished")


class TeachersConfig(_Section):
    cnn: TeacherConfig | None = None
    vit: TeacherConfig | None = None
    views: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="fixed views of each clip, with stored teacher outputs; none: ask every step",
    )
    cache: Path | None = Field(None, description="folder of those outputs; none: in the run's folder")

    @field_validator("cache")
    @classmethod
    def _from_anywhere(cls, cache: Path | None) -> Path | None:
        return None if cache is None else cache.expanduser().absolute()


class DatwConfig(_Section):
    """Discrepancy-aware teacher weighting: what ω is made of."""

    confidence: Literal["entropy", "max", "exp-entropy", "none"] = Field(
        "entropy", description="C: 1 − H / log K, max p, exp(−H), 1"
    )
    discrepancy: Literal["cosine", "kl", "js", "l1", "none"] = Field(
        "cosine", description="D between teacher and student; none: 1"
    )
    combine: Literal["product", "sum"] = Field("product", description="e: C · D, or C + λ D")
    discrepancy_weight: float = Field(1.0, ge=0, description="λ of combine: sum")
    normalize: Literal["share", "softmax"] = Field("share", description="ω: e / Σ e, or softmax(e / τ)")
    temperature: float = Field(0.5, gt=0, description="τ of normalize: softmax")
    standardize: bool = Field(False, description="standardise each teacher's logits per sample before they are mixed")


class SddConfig(_Section):
    """Structure-discrepancy distillation: the branch and its target."""

    target: Literal["residual", "vit", "cnn", "both", "shuffled"] = Field(
        "residual", description="φ(ViT) − φ(CNN); one of them, or both; shuffled: residuals of other clips, a control"
    )
    residual: Literal["fitted", "plain"] = Field(
        "fitted", description="φ(CNN) as the best linear guess of φ(ViT) from it, or as it is"
    )
    distance: Literal["mse", "smooth-l1"] = "mse"
    kind: Literal["linear", "deep"] = Field(
        "linear", description="linear: a 1×1×1 convolution; deep: layers of its own, the paper's non-local block among them"
    )
    tap: str | None = Field(None, description="student feature the branch reads; none: the model's last tap")
    grid: tuple[_Side, _Side, _Side] = Field((4, 5, 5), description="space-time grid T, H, W that features are pooled to")
    channels: int = Field(48, ge=1, le=4096, description="channels of the fixed projection φ")
    hidden: int = Field(64, ge=1, le=4096, description="kind deep: its width")
    non_local: bool = Field(True, description="kind deep: with the non-local block")
    squeeze_excite: bool = Field(True, description="kind deep: with gates of its channels")

    @model_validator(mode="after")
    def _layers_are_of_the_deep_kind(self) -> SddConfig:
        fields = type(self).model_fields
        given = [key for key in ("hidden", "non_local", "squeeze_excite") if getattr(self, key) != fields[key].default]
        if self.kind == "linear" and given:
            raise ValueError(f"{given[0]} says how a deep branch is made: set distill.branch.kind=deep too")
        return self


class RkdConfig(_Section):
    """Relational distillation."""

    source: Literal["vit", "cnn", "both"] = Field("vit", description="whose features' relations the student's follow")
    distance: float = Field(1.0, ge=0, description="share of pairwise distances")
    angle: float = Field(2.0, ge=0, description="share of angles of triples")


class RivalConfig(_Section):
    """What single rivals need beside the common weights; the defaults are those of their reference codes."""

    target: Literal["mean", "vit", "cnn"] = Field("mean", description="logits that dkd, dist and ofa learn from")
    dkd_alpha: float = Field(1.0, ge=0, description="α: weight of the target-class part")
    dkd_beta: float = Field(8.0, ge=0, description="β: weight of the part among the other classes")
    dist_beta: float = Field(1.0, ge=0, description="β: weight of the relation within a sample")
    dist_gamma: float = Field(1.0, ge=0, description="γ: weight of the relation within a class")
    dist_temperature: float = Field(1.0, gt=0, le=100)
    ofa_epsilon: float = Field(1.0, gt=0, le=10, description="ε: above 1 the target class weighs more")
    ofa_temperature: float = Field(1.0, gt=0, le=100)


class DistillConfig(_Section):
    """L = ce·CE + kd·T²KL + sdd·L_SDD + align·L_ALIGN + rkd·L_RKD; a weight of 0 switches a term off."""

    method: str = Field("dtkd", description="dtkd, or a rival: ce, kd-vit, kd-cnn, kd-mean, ebkd, ca-mkd, …")
    temperature: float = Field(4.0, gt=0, le=100, description="T of the soft targets")
    ce: float = Field(0.3, ge=0, description="weight of cross-entropy; method ce: always 1")
    kd: float = Field(0.3, ge=0, description="weight of the logits' term, a rival's too")
    sdd: float = Field(2.0, ge=0, description="weight of the branch that predicts the teachers' discrepancy")
    align: float = Field(4.0, ge=0, description="of features: align, fitnet-*, ca-mkd")
    align_taps: Literal["all", "last"] = Field(
        "all", description="where the CNN's features are matched: at every stage, paired from the last one back, or at the last"
    )
    vit_tap: Literal["last", "middle"] = Field(
        "last", description="which of the ViT's features the branch, fitnet-vit and ca-mkd read: the last, or those half-way up"
    )
    regressor_lr: float = Field(
        1.0, gt=0, le=1000, description="learning rate of the maps of align, fitnet-* and ca-mkd, as a multiple of train.lr"
    )
    rkd: float = Field(0.1, ge=0, description="weight of relations between the batch's clips")
    warmup: float = Field(0.2, ge=0, lt=1, description="share of the steps in which sdd, align and rkd rise from 0")
    weights: DatwConfig = Field(default_factory=DatwConfig)
    branch: SddConfig = Field(default_factory=SddConfig)
    relation: RkdConfig = Field(default_factory=RkdConfig)
    rivals: RivalConfig = Field(default_factory=RivalConfig)
    reference_weights: bool = Field(
        False, description="a rival's ce, kd, temperature and warmup as in its reference code, instead of the ones here"
    )


class Recipe(_Section):
    name: str = Field(..., description="the run's folder below runs/: any words, without a / in them")
    seed: int = Field(0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="what networks train in; losses and weights stay fp32")
    phases: Literal["all", "teachers"] = Field("all", description="teachers: train those that the method reads, no student")
    threads: int | None = Field(None, ge=1, description="CPU threads of torch; none: torch's own choice")
    data: DataConfig = Field(default_factory=DataConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    student: ModelConfig
    teachers: TeachersConfig = Field(default_factory=TeachersConfig)
    distill: DistillConfig = Field(default_factory=DistillConfig)
    train: OptimConfig = Field(default_factory=OptimConfig)

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not name.isprintable() or "/" in name or "\\" in name:
            raise ValueError("names a folder: leave out /, \\, line breaks and other control characters")
        if name != name.strip() or name[:1] in ("", ".", "-"):
            raise ValueError("names a folder: it begins with no dot, dash or space, and ends with no space")
        if len(name.encode()) > 200:
            raise ValueError("names a folder: it is too long")
        return name

    @model_validator(mode="after")
    def _stored_outputs_are_of_whole_clips(self) -> Recipe:
        if self.teachers.views is not None and (self.augment.mixup or self.augment.cutmix):
            raise ValueError("augment.mixup and augment.cutmix make new pictures in every step: leave teachers.views out")
        return self

    def stride(self, network: ModelConfig) -> int | None:
        """Of a network's clips, where the recipe says it."""
        return (network.stride or self.data.stride) if self.data.sampling == "dense" else None

    def sampling(self, frames: int, stride: int) -> Sampling:
        """How a network of that frames × stride samples a clip; the stride counts in dense sampling alone."""
        dense = self.data.sampling == "dense"
        return Sampling(kind=self.data.sampling, frames=frames, stride=stride if dense else 1, fps=self.data.fps)

    def preprocess(self, frames: int, size: int, stride: int = 1) -> Preprocess:
        """What evaluation and deployment do for a model of that many frames, that size and that stride."""
        sampling = self.sampling(frames, stride)
        return Preprocess(resize_short=max(round(size / self.data.eval_crop), size), crop=size, sampling=sampling)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
