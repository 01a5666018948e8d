"""The distillation task: student, teachers and every loss term behind one `forward`, for DTKD and for its rivals."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtkd_edge.distill import datw, kd, rivals, rkd, sdd
from dtkd_edge.distill.matching import Matching, Projections, mean_distance, tap_pairs
from dtkd_edge.distill.methods import (
    MATCHED,
    RAMPED,
    find_method,
    needed_teachers,
    require_tap,
    require_teachers,
    resolve,
    term_weights,
)
from dtkd_edge.distill.precision import full_precision
from dtkd_edge.distill.ranks import gather_batch
from dtkd_edge.errors import RecipeError, UsageError
from dtkd_edge.models import VideoModel, fit_clip
from dtkd_edge.preprocess import JointSampling
from dtkd_edge.recipe import DistillConfig

ORDER = ("cnn", "vit")  # of teachers wherever they stand in columns

M = TypeVar("M", bound=nn.Module)

_cross_entropy = full_precision(F.cross_entropy)


def _aside(build: Callable[[], M]) -> M:
    """Build a training-only module without moving the random state: a seed gives the same student, the same data order and
    the same alignment whatever else a method trains."""
    with torch.random.fork_rng(devices=[]):
        return build()


@dataclass
class TeacherOutput:
    """What a teacher says about a batch: `logits` `{head: [B, K]}`; `features` by tap, the one that the branch reads first, in
    float32 `[B, C, T, H, W]`, pooled to `branch.grid` where they are finer; `pooled` `[B, C]`, the mean of all of the last tap
    (the cells of a grid may overlap)."""

    logits: dict[str, Tensor]
    features: dict[str, Tensor]
    pooled: Tensor


class DistillationTask(nn.Module):
    """Loss of a student under `config.method`; wraps all that trains, and nothing that does not.

    student:  a submodule, with `student.` before its keys. Whatever else is in the state dict (`branch.`, `matching.`,
              `stages.`) is for training only.
    teachers: "cnn" and "vit", or those of them that the method reads. They are frozen here, stay in eval mode, move along with
              `.to()`, and are neither in `state_dict()` nor in `parameters()`.
    sampling: what the networks share the frames by; none: each takes its number of frames evenly out of all.
    """

    def __init__(
        self,
        student: VideoModel,
        teachers: Mapping[str, VideoModel],
        config: DistillConfig,
        label_smoothing: float = 0.0,
        sampling: JointSampling | None = None,
    ) -> None:
        super().__init__()
        self.config = resolve(config)
        self.method = find_method(config.method)
        self.weights = term_weights(config)
        self.needs_teachers = needed_teachers(config)
        self.label_smoothing = label_smoothing
        self.sampling = sampling
        self.student = student
        self._teachers = {name: teachers[name] for name in ORDER if name in self.needs_teachers and name in teachers}
        self._check()
        for teacher in self._teachers.values():
            teacher.eval().requires_grad_(False)
        self.tap = self.config.branch.tap or student.info.last_tap
        self._build()

    def _check(self) -> None:
        student = self.student
        require_teachers(self.config, self._teachers)
        for name, teacher in self._teachers.items():
            if teacher.heads != student.heads:
                raise RecipeError(
                    f"teachers.{name}: heads {teacher.heads} are not the student's {student.heads}",
                    "train the teacher on the same labels",
                )
        require_tap(self.config, student.info.name, student.info.taps)

    def _build(self) -> None:
        options, taps = self.config.branch, self.student.info.taps
        pairs = {name: tap_pairs(self.student.info, t.info, name, self.config) for name, t in self._teachers.items()}
        matched = {name for term in self.weights for name in MATCHED.get(term, ())}
        # All that a cache keeps, so that other methods find it there too; and of that what this method reads.
        self.stored_taps = {name: list(pair.values()) for name, pair in pairs.items()}
        last = int("sdd" in self.weights)
        self.read_taps = {name: all_of if name in matched else all_of[:last] for name, all_of in self.stored_taps.items()}
        info, config = self.student.info, self.config
        self.phi = nn.ModuleDict(
            {n: Projections(n, self._teachers[n].info, read, config) for n, read in self.read_taps.items() if read}
        )
        if "sdd" in self.weights:
            self.branch = _aside(partial(sdd.build_branch, taps[self.tap], options))
        self.matching = nn.ModuleDict({n: _aside(partial(Matching, info, pairs[n], config)) for n in ORDER if n in matched})
        if "ofa" in self.weights:
            heads = self.student.heads
            stages = {tap: _aside(partial(rivals.StageLogits, width, heads)) for tap, width in taps.items()}
            self.stages = nn.ModuleDict(stages)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DistillationTask:
        super()._apply(fn, recurse)
        for teacher in self._teachers.values():
            teacher._apply(fn, recurse)
        return self

    @property
    def teachers(self) -> Mapping[str, VideoModel]:
        """Those that the method reads."""
        return self._teachers

    def regressor_parameters(self) -> Iterator[nn.Parameter]:
        """Of the linear maps by which features are matched. One that lags behind the student may teach it to fit an old map,
        so that they can learn at a rate of their own (`distill.regressor_lr`)."""
        return self.matching.parameters()

    def clips(self, frames: Tensor, network: VideoModel) -> Tensor:
        """A network's own input `[B, 3, T', H', W']` out of the frames `[B, T, H, W, 3]` of all."""
        if self.sampling is not None:
            frames = frames[:, self.sampling.picks(network.info.frames, network.info.stride)]
        return fit_clip(frames, network.info)

    @torch.no_grad()  # and not inference_mode: its tensors may not be saved for the student's backward
    def teach(self, frames: Tensor, only: Collection[str] = ORDER, *, to_store: bool = False) -> dict[str, TeacherOutput]:
        """Outputs of the teachers that the method reads for uint8 RGB `[B, T, H, W, 3]`, under the ambient autocast; to_store:
        with the taps that other methods read, too."""
        taught = {}
        for name, teacher in self._teachers.items():
            if name not in only:
                continue
            features = teacher.forward_features(self.clips(frames, teacher))
            wanted = (self.stored_taps if to_store else self.read_taps)[name]
            read = {tap: sdd.shrink_to_grid(features[tap].float(), self.config.branch.grid) for tap in wanted}
            pooled = features[teacher.info.last_tap].float().mean((2, 3, 4))
            taught[name] = TeacherOutput(teacher.forward_head(features), read, pooled)
        return taught

    def forward(
        self,
        frames: Tensor,
        labels: Mapping[str, Tensor],
        *,
        taught: Mapping[str, TeacherOutput] | None = None,
        shared: tuple[Mapping[str, Tensor], float] | None = None,
        progress: float = 1.0,
    ) -> dict[str, Any]:
        """Loss of one batch; nothing in here waits for the device.

        frames: uint8 RGB `[B, T, H, W, 3]`; labels: `{head: long [B]}`; taught: the teachers' outputs, where a cache has them;
        shared: of mixed clips, the labels of the other clip in each, and the share in [0, 1] that `labels` keep of cross-entropy;
        progress: share of the training done, in [0, 1], by which the ramped terms rise.

        Returns `loss` (scalar), `output` (`{head: logits}`), `terms` (name → detached, unweighted scalar), `omega` (`[B, k]`,
        mean over heads, columns cnn, vit, where the method weighs teachers per sample, else None) and `residual_var` (the
        variance of the branch's target before scaling, or None).
        """
        if taught is None:
            taught = self.teach(frames)
        elif missing := self.needs_teachers - set(taught):
            raise UsageError(f"taught: no output of {', '.join(sorted(missing))}", f"method {self.config.method} reads it")
        features = self.student.forward_features(self.clips(frames, self.student))
        output = self.student.forward_head(features)

        terms, omega = self._logit_terms(features, output, labels, taught, shared)
        feature_terms, residual_var = self._feature_terms(features, taught, omega)
        terms.update(feature_terms)

        warmup = self.config.warmup
        ramp = min(max(progress, 0.0) / warmup, 1.0) if warmup > 0 else 1.0
        loss = sum(self.weights[name] * (ramp if name in RAMPED else 1.0) * value for name, value in terms.items())
        return {
            "loss": loss,
            "output": output,
            "terms": {name: value.detach() for name, value in terms.items()},
            "omega": omega,
            "residual_var": residual_var,
        }

    def _logit_terms(
        self,
        features: Mapping[str, Tensor],
        output: Mapping[str, Tensor],
        labels: Mapping[str, Tensor],
        taught: Mapping[str, TeacherOutput],
        shared: tuple[Mapping[str, Tensor], float] | None,
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """The terms on logits, each the mean over heads, and ω."""
        rival, active = self.config.rivals, self.weights
        stages = {tap: stage(features[tap]) for tap, stage in self.stages.items()} if "ofa" in active else {}
        per_head: dict[str, list[Tensor]] = {}
        omegas = []
        for head, logits in output.items():
            y = labels[head]
            teachers = [taught[name].logits[head] for name in ORDER if name in taught]
            found: dict[str, Tensor] = {}
            if "ce" in active:
                found["ce"] = _cross_entropy(logits, y, label_smoothing=self.label_smoothing)
                if shared is not None:
                    other = _cross_entropy(logits, shared[0][head], label_smoothing=self.label_smoothing)
                    found["ce"] = shared[1] * found["ce"] + (1 - shared[1]) * other
            if shared is not None and shared[1] < 0.5:  # rules that know one label take that of the larger part
                y = shared[0][head]
            if "kd" in active:
                found["kd"], omega = self._kd(logits, head, y, taught)
                omegas += [] if omega is None else [omega]
            if {"dkd", "dist", "ofa"} & set(active):
                if rival.target == "mean":
                    target = datw.fused_logits(teachers, teachers[0].new_full((len(y), len(teachers)), 1 / len(teachers)))
                else:
                    target = taught[rival.target].logits[head]
                if "dkd" in active:
                    found["dkd"] = rivals.dkd_loss(
                        logits, target, y, alpha=rival.dkd_alpha, beta=rival.dkd_beta, temperature=self.config.temperature
                    )
                if "dist" in active:
                    found["dist"] = rivals.dist_loss(
                        gather_batch(logits),
                        gather_batch(target),
                        beta=rival.dist_beta,
                        gamma=rival.dist_gamma,
                        temperature=rival.dist_temperature,
                    )
                if "ofa" in active:
                    ofa = {"epsilon": rival.ofa_epsilon, "temperature": rival.ofa_temperature}
                    staged = [rivals.ofa_loss(stage[head], target, y, **ofa) for stage in stages.values()]
                    found["ofa"] = rivals.ofa_loss(logits, target, y, **ofa) + torch.stack(staged).mean()
            for name, value in found.items():
                per_head.setdefault(name, []).append(value)
        terms = {name: torch.stack(values).mean() for name, values in per_head.items()}
        return terms, torch.stack(omegas).mean(0) if omegas else None

    def _kd(self, logits: Tensor, head: str, labels: Tensor, taught: Mapping[str, TeacherOutput]) -> tuple[Tensor, Tensor | None]:
        """The term kd of one head under the method's rule, and ω where the rule gives one per sample."""
        rule, temperature = self.method.target, self.config.temperature
        if rule in ORDER:
            return kd.kd_loss(logits, taught[rule].logits[head], temperature), None
        teachers = [taught[name].logits[head] for name in ORDER]
        if rule == "mean":
            equal = teachers[0].new_full((len(labels), len(teachers)), 1 / len(teachers))
            return kd.kd_loss(logits, datw.fused_logits(teachers, equal), temperature), None
        if rule == "datw":
            options = self.config.weights.model_dump(exclude={"standardize"})
            omega = datw.teacher_weights(logits, teachers, **options)
            target = datw.fused_logits(teachers, omega, self.config.weights.standardize)
            return kd.kd_loss(logits, target, temperature), omega
        omega = rivals.entropy_weights(teachers) if rule == "entropy" else rivals.label_weights(teachers, labels)
        return kd.weighted_kd_loss(logits, teachers, omega, temperature), omega

    def _feature_terms(
        self, features: Mapping[str, Tensor], taught: Mapping[str, TeacherOutput], omega: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """The terms on features and relations, and the variance of the branch's target."""
        active, kind = self.weights, self.config.branch.distance
        matching, projections = cast(Mapping[str, Matching], self.matching), cast(Mapping[str, Projections], self.phi)
        # Pooled once, as far as that makes it smaller, for the branch and the projections, which all read the same grid.
        wanted = {tap for match in matching.values() for tap in match.pairs} | ({self.tap} if "sdd" in active else set())
        read = {tap: sdd.shrink_to_grid(features[tap], self.config.branch.grid) for tap in wanted}
        phi = {name: project(taught[name].features) for name, project in projections.items()}
        pairs = {name: match(read, phi[name]) for name, match in matching.items()}
        terms: dict[str, Tensor] = {}
        residual_var = None
        if "sdd" in active:
            raw = self._sdd_target({name: next(iter(taps.values())) for name, taps in phi.items()})
            (target,), (residual_var,) = sdd.unit_variances([raw])
            terms["sdd"] = sdd.feature_distance(self.branch(read[self.tap]), target, kind)
        for term in ("align", "fitnet-cnn", "fitnet-vit"):
            if term in active:
                predictions, targets = pairs[MATCHED[term][0]]
                terms[term] = mean_distance(predictions, targets, kind)
        if "feature" in active and omega is not None:
            both = [pairs[name] for name in ORDER]
            terms["feature"] = rivals.weighted_feature_loss([p for p, _ in both], [t for _, t in both], omega)
        if "rkd" in active:
            relation = self.config.relation
            sources = ORDER if relation.source == "both" else (relation.source,)
            pooled = gather_batch(features[self.student.info.last_tap].float().mean((2, 3, 4)))
            own = [taught[name].pooled.float() for name in sources]
            references = gather_batch(torch.cat(own, 1)).split([reference.shape[1] for reference in own], 1)
            shares = {"distance": relation.distance, "angle": relation.angle}
            terms["rkd"] = torch.stack([rkd.relational_loss(pooled, r, **shares) for r in references]).mean()
        return terms, residual_var

    def _sdd_target(self, phi: Mapping[str, Tensor]) -> Tensor:
        """What the branch predicts, before scaling; all but `residual` are controls."""
        kind = self.config.branch.target
        if kind == "both":
            return torch.cat([phi[name] for name in ORDER], 1)
        if kind in ORDER:
            return phi[kind]
        difference = sdd.residual(phi["vit"], phi["cnn"], self.config.branch.residual)
        return difference.roll(1, 0) if kind == "shuffled" else difference
