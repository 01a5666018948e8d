"""The phases of a run: what is built from the recipe, and in which order it is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import dtkd_edge
from dtkd_edge.console import counted
from dtkd_edge.data.catalogue import Catalogue, open_split, student_subset
from dtkd_edge.data.dataset import ClipDataset, FrameCache
from dtkd_edge.data.folder import require_classes
from dtkd_edge.data.loader import make_loader
from dtkd_edge.distill import datw, rivals
from dtkd_edge.distill.methods import find_method, needed_teachers, require_teachers
from dtkd_edge.distill.task import DistillationTask
from dtkd_edge.errors import CheckpointError, DataError, RecipeError
from dtkd_edge.models.base import VideoModel
from dtkd_edge.models.registry import create_model
from dtkd_edge.models.saved import ModelCard, load_model, save_model
from dtkd_edge.models.weights import load_weights
from dtkd_edge.preprocess import JointSampling
from dtkd_edge.recipe import AugmentConfig, DistillConfig, ModelConfig, OptimConfig, Recipe, TeacherConfig
from dtkd_edge.train.engine import Engine
from dtkd_edge.train.evaluate import evaluate
from dtkd_edge.train.log import RunLog
from dtkd_edge.train.loop import Phase, fit
from dtkd_edge.train.run_report import Predictions
from dtkd_edge.train.scores import Scores
from dtkd_edge.train.teacher_cache import TeacherCache

M = TypeVar("M", bound=nn.Module)

PHASE_SEEDS = {"cnn": 1, "vit": 2, "student": 3}


def check_models(recipe: Recipe, folder: Path, methods: Sequence[DistillConfig] = ()) -> list[str]:
    """Refuse what cannot be built or loaded before anything is written or trained, not after the teachers' hour.

    folder: of the run, which may have finished teachers. methods: those that will train the student; none: the recipe's.
    Returns a line about each network in a role that its model is not listed for: that works, and is hardly ever meant.
    """
    teachers = {name: c for name in ("cnn", "vit") if (c := getattr(recipe.teachers, name)) is not None}
    methods = methods or [recipe.distill]
    for method in methods:
        require_teachers(method, teachers)
    networks = {}
    for name in sorted(set().union(*map(needed_teachers, methods))):
        networks[name] = _try_to_build(recipe, teachers[name], f"teachers.{name}", weights=not _has_teacher(folder, name))
        if not _has_teacher(folder, name):
            _check_teacher(name, teachers[name], networks[name])
    student = _try_to_build(recipe, recipe.student, "student")
    for method in methods:
        DistillationTask(student, networks, method)
    return [line for name, network in {"student": student, **networks}.items() if (line := _unlisted_role(name, network))]


def _unlisted_role(name: str, network: VideoModel) -> str:
    role, section = (name, name) if name == "student" else (f"{name}-teacher", f"teachers.{name}")
    if role in network.info.roles:
        return ""
    listed = " and ".join(network.info.roles)
    return f"{section}.model: {network.info.name} is listed as {listed}, not as {role}: see dtkd-edge models"


def _try_to_build(recipe: Recipe, config: ModelConfig, section: str, *, weights: bool = True) -> VideoModel:
    model = build_model(recipe, config, 2)
    if recipe.data.sampling == "dense" and recipe.stride(config) is None and model.info.stride == 1:
        raise RecipeError(
            f"{section}: data.sampling dense needs a stride, and {config.model} was published with none",
            f"--set {section}.stride=8, for example, or --set data.sampling=uniform",
        )
    if weights:
        load_weights(model, config.weights)
    return model


def _has_teacher(folder: Path, name: str) -> bool:
    """Whether the run has finished it, and needs its weights no more."""
    return (folder / "teachers" / f"{name}.json").is_file()


def _check_teacher(name: str, config: TeacherConfig, model: VideoModel) -> None:
    """RecipeError for a teacher that nobody taught."""
    if config.weights != "none":
        return
    if config.train is None:
        raise RecipeError(f"teachers.{name}: neither weights nor train", "give a finished teacher's weights, or train it")
    if getattr(model, "frozen", False):
        raise RecipeError(
            f"teachers.{name}: {config.model} trains on a frozen CNN, and weights: none leaves that one random",
            f"--set teachers.{name}.weights=timm, or --set teachers.{name}.options.freeze=false",
        )


def check_heads(recipe: Recipe, folder: Path, data: RunData) -> None:
    """CheckpointError for a teacher that is not trained here and has another head than these classes."""
    heads = {head: len(names) for head, names in data.train.classes.items()}
    for name in needed_teachers(recipe.distill):
        config: TeacherConfig = getattr(recipe.teachers, name)
        if config.train is None and not _has_teacher(folder, name):
            report = load_weights(build_model(recipe, config, heads), config.weights)
            if report is not None and report.head_replaced:
                raise CheckpointError(
                    f"teachers.{name}.weights: {config.weights} has another head than these {heads} classes",
                    f"give teachers.{name}.train so that its new head is trained",
                )


def build_model(recipe: Recipe, config: ModelConfig, classes: int | dict[str, int]) -> VideoModel:
    """One network of a recipe, without weights; its info says how this recipe feeds it."""
    stride = recipe.stride(config)
    return create_model(config.model, classes, frames=config.frames, size=config.size, stride=stride, **config.options)


def joint_sampling(recipe: Recipe, networks: Iterable[VideoModel]) -> JointSampling:
    """Of the clips that these networks share."""
    return JointSampling.of(recipe.sampling(network.info.frames, network.info.stride) for network in networks)


@dataclass
class RunData:
    """The clips of a run; opening them writes nothing into its folder."""

    train: Catalogue
    val: Catalogue
    student: Catalogue

    @classmethod
    def open(cls, recipe: Recipe) -> RunData:
        train, val = open_split(recipe.data, "train"), open_split(recipe.data, "val")
        require_classes(train)
        return cls(train, val, student_subset(train, recipe.data.student_clips, recipe.seed))


class RunContext:
    """What every phase works with: the recipe, the folder, the data, the engine, the log."""

    def __init__(self, recipe: Recipe, folder: Path, data: RunData, engine: Engine, log: RunLog, resume: bool) -> None:
        self.recipe, self.folder, self.engine, self.log, self.resume = recipe, folder, engine, log, resume
        self.device = engine.device
        self.teachers_needed = [n for n in ("cnn", "vit") if n in needed_teachers(recipe.distill)]
        self.train, self.val, self.student_clips = data.train, data.val, data.student
        self.labels = {head: list(names) for head, names in self.train.classes.items()}
        self.cache = FrameCache(recipe.data.cache_mb)
        self._val_sets: dict[tuple[JointSampling, int], ClipDataset] = {}
        self._val_broken: set[str] = set()
        self.kept: dict[str, int] = {}  # phase → epoch, where it is not the last

    def describe(self) -> str:
        words = {head: ("class", "classes") if head == "action" else (head,) for head in self.labels}
        classes = ", ".join(counted(len(names), *words[head]) for head, names in self.labels.items())
        train, val = counted(len(self.train), "training clip"), counted(len(self.val), "validation clip")
        return (
            f"{self.recipe.name}: {train} ({len(self.student_clips)} of them for the student), "
            f"{val}, {classes}, method {self.recipe.distill.method}, {self.device.type}, "
            f"{counted(self.engine.world, 'process', 'processes')}"
        )

    def build(self, config: ModelConfig, phase: str) -> VideoModel:
        """A model with this data set's heads, seeded, with the recipe's weights, channels last."""
        torch.manual_seed(self.recipe.seed * 10 + PHASE_SEEDS[phase])
        heads = {head: len(names) for head, names in self.labels.items()}
        model = build_model(self.recipe, config, heads)
        report = load_weights(model, config.weights)
        if report is not None:
            self.log.note(f"{phase}: {report.line()}", phase=phase)
        return channels_last(model).to(self.device)

    def dataset(
        self, clips: Catalogue, sampling: JointSampling, size: int, augment: AugmentConfig | None, views: int | None = None
    ) -> ClipDataset:
        short = self.recipe.preprocess(sampling.parts[0].frames, size).resize_short
        return ClipDataset(
            clips,
            sampling=sampling,
            size=size,
            resize_short=short,
            augment=augment,
            seed=self.recipe.seed,
            cache_mb=self.recipe.data.cache_mb,
            cache=self.cache,
            views=views,
        )

    def score(self, model: VideoModel, batch_size: int) -> Scores:
        """On the validation clips, in the deploy preprocessing of that model; every rank takes a part of them and gets the
        scores of all. Clips that do not decode are named in the log once; DataError where they are all, or more than
        data.max_broken allows."""
        shape = (joint_sampling(self.recipe, [model]), model.info.size)
        part = np.array_split(np.arange(len(self.val)), self.engine.world)[self.engine.rank]
        if shape not in self._val_sets:
            self._val_sets[shape] = self.dataset(self.val.subset(part), *shape, None)
        loader = make_loader(self._val_sets[shape], batch_size, train=False, workers=self.recipe.data.workers, seed=0)
        own = evaluate(model, loader, self.device)
        own.index = part[own.index]
        scores = Scores.join(self.engine.gather(own))
        for message in sorted(set(scores.broken) - self._val_broken):
            self.log.skipped(message)
        self._val_broken |= set(scores.broken)
        if len(scores.broken) > self.recipe.data.max_broken * len(self.val) or len(scores.broken) == len(self.val):
            raise DataError(
                f"{len(scores.broken)} of {counted(len(self.val), 'validation clip')} do not decode, more than data.max_broken "
                f"= {self.recipe.data.max_broken:g} allows",
                f"look at them with: {self.recipe.data.check_command}   (or raise data.max_broken)",
            )
        return scores

    def phase(
        self, name: str, config: OptimConfig, task: DistillationTask, clips: Catalogue, sampling: JointSampling, size: int
    ) -> Phase:
        """One training, ready to begin. sampling, size: what the clips are read with; every network then takes its own."""
        torch.manual_seed((self.recipe.seed * 10 + PHASE_SEEDS[name]) + 1_000_003 * self.engine.rank)  # dropout differs by rank
        views = self.recipe.teachers.views if name == "student" else None
        data = self.dataset(clips, sampling, size, self.recipe.augment, views)
        shard = (self.engine.rank, self.engine.world)
        workers = self.recipe.data.workers
        loader = make_loader(data, config.batch_size, train=True, workers=workers, seed=self.recipe.seed, shard=shard)
        phase = Phase(
            name,
            config,
            task,
            data,
            loader,
            lambda model: self.score(model, config.batch_size),
            self.engine,
            self.recipe.data,
            self.folder / "checkpoints" / f"{name}.pt",
            augment=self.recipe.augment,
        )
        if views is not None and task.teachers:
            folder = self.recipe.teachers.cache or self.folder / "teachers" / "cache"
            phase.taught = TeacherCache(folder, task, data, self.engine, workers)
        return phase

    def student_phase(self, student: VideoModel, teachers: Mapping[str, VideoModel], distill: DistillConfig) -> Phase:
        """The student's training under those settings."""
        networks = [student, *teachers.values()]
        sampling, size = joint_sampling(self.recipe, networks), max(network.info.size for network in networks)
        task = DistillationTask(student, teachers, distill, self.recipe.train.label_smoothing, sampling)
        task = channels_last(task).to(self.device)
        return self.phase("student", self.recipe.train, task, self.student_clips, sampling, size)

    def fit(self, phase: Phase) -> None:
        epoch = fit(phase, self.log, resume=self.resume)
        if epoch != phase.config.epochs:
            self.kept[phase.name] = epoch

    def save(self, stem: Path, model: VideoModel, config: ModelConfig, scores: Scores) -> None:
        if not self.engine.main:
            return
        info = model.info
        preprocess = self.recipe.preprocess(info.frames, info.size, info.stride)
        card = ModelCard(
            version=dtkd_edge.__version__,
            model=config.model,
            frames=info.frames,
            stride=preprocess.sampling.stride,
            size=info.size,
            options=config.options,
            labels=self.labels,
            preprocess=preprocess,
            metrics=scores.table(),
            epoch=self.kept.get(stem.name),
        )
        save_model(stem, model, card)

    @cached_property
    def plain(self) -> DistillConfig:
        """Cross-entropy alone: how a teacher is trained."""
        return DistillConfig(method="ce")


def train_teacher(run: RunContext, name: str) -> tuple[VideoModel, Scores]:
    """A teacher, frozen, and its scores: read from the run where it is finished, trained where the recipe says so, else from its
    weights."""
    config: TeacherConfig = getattr(run.recipe.teachers, name)
    stem = run.folder / "teachers" / name
    if run.resume and stem.with_suffix(".json").is_file():
        saved, card = load_model(stem)
        if card.epoch is not None:
            run.kept[name] = card.epoch
        model = channels_last(saved).to(run.device).eval().requires_grad_(False)
        return model, run.score(model, 32)
    model = run.build(config, name)
    if config.train is not None:
        sampling = joint_sampling(run.recipe, [model])
        task = DistillationTask(model, {}, run.plain, config.train.label_smoothing, sampling).to(run.device)
        run.fit(run.phase(name, config.train, task, run.train, sampling, model.info.size))
    scores = run.score(model, 32)
    run.save(stem, model, config, scores)
    return model.eval().requires_grad_(False), scores


def train_student(run: RunContext, teachers: dict[str, VideoModel]) -> Scores:
    """The student, taught; then it is saved alone, without the training-only branches. Returns its scores."""
    recipe = run.recipe
    student = run.build(recipe.student, "student")
    run.fit(run.student_phase(student, teachers, recipe.distill))
    scores = run.score(student, recipe.train.batch_size)
    run.save(run.folder / "student", student, recipe.student, scores)
    return scores


def predictions(run: RunContext, scores: Mapping[str, Scores]) -> dict[str, Predictions]:
    """What every network said of the validation clips, and ω of them with the finished student, per head."""
    heads = {}
    # Networks of different lengths read different frames, so that a damaged clip may decode for one and not for another.
    numbers = {name: np.asarray(found.index) for name, found in scores.items()}
    read = reduce(np.intersect1d, numbers.values())
    both = {name: np.isin(found, read) for name, found in numbers.items()}
    for head, names in run.labels.items():
        logits = {name: np.asarray(found.logits[head][both[name]], np.float32) for name, found in scores.items()}
        labels = scores["student"].labels[head][both["student"]]
        omega = _omega(run.recipe.distill, logits, labels)
        index = numbers["student"][both["student"]]
        heads[head] = Predictions(names, labels, logits, omega, index)
    return heads


def _omega(config: DistillConfig, logits: Mapping[str, NDArray[np.float32]], labels: NDArray[np.int64]) -> Any:
    """ω `[n, 2]` as the method weighs the teachers of these clips, columns cnn, vit; None where it has no weight per clip."""
    if not {"cnn", "vit"} <= set(logits):
        return None
    student, *teachers = (torch.from_numpy(logits[name]) for name in ("student", "cnn", "vit"))
    rule = find_method(config.method).target
    if rule == "datw":
        return datw.teacher_weights(student, teachers, **config.weights.model_dump(exclude={"standardize"})).numpy()
    if rule == "entropy":
        return rivals.entropy_weights(teachers).numpy()
    if rule == "label":
        return rivals.label_weights(teachers, torch.from_numpy(labels)).numpy()
    return None


@torch.no_grad()
def channels_last(model: M) -> M:
    """Frames come with channels last; keeping them so saves copies and is the faster layout of convolutions on CPUs too."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in model.parameters():
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])
    return model
