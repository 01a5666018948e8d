"""The one table of methods: what `distill.method` takes, and which terms of the loss each is made of. No torch.

A method is a row: the loss terms it uses, each with the weight in DistillConfig that scales it, and the rule that makes one
target out of the teachers' logits. `dtkd` and its rivals run through the same task, so a comparison changes nothing but this row.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from dtkd_edge.errors import RecipeError, did_you_mean
from dtkd_edge.recipe import DistillConfig

LOSSES = 2  # raised when a term comes out otherwise than before: such runs are not averaged, nor gone on with

BOTH = frozenset({"cnn", "vit"})

# Terms that match features → the teachers whose.
MATCHED: dict[str, tuple[str, ...]] = {
    "align": ("cnn",), "fitnet-cnn": ("cnn",), "fitnet-vit": ("vit",), "feature": ("cnn", "vit"),
}  # fmt: skip

# Terms whose weight rises from 0 during distill.warmup: features and relations of a student that knows nothing yet are noise.
RAMPED = frozenset({"sdd", "align", "rkd", "dkd", "feature", "fitnet-vit", "fitnet-cnn"})


@dataclass(frozen=True)
class Method:
    """terms: loss term → the field of DistillConfig that weights it ("" is a weight of 1).
    target: of the term kd: vit, cnn, mean, datw (fused logits), entropy or label (one divergence per teacher, weighted).
    reference: fields of DistillConfig as in the method's reference code, for distill.reference_weights."""

    about: str
    terms: dict[str, str]
    target: str = ""
    reference: dict[str, float] = field(default_factory=dict)


_CE_KD = {"ce": "ce", "kd": "kd"}
_HINTON = {"ce": 0.1, "kd": 0.9, "temperature": 4.0}
_ONES = {"ce": 1.0, "kd": 1.0, "temperature": 4.0}
_HALF = {"ce": 1.0, "kd": 0.5, "temperature": 4.0}  # that code divides the weighted sum by the number of teachers

METHODS: dict[str, Method] = {
    "ce": Method("no teacher", {"ce": ""}),
    "kd-vit": Method("Hinton's KD from the ViT", _CE_KD, "vit", _HINTON),
    "kd-cnn": Method("Hinton's KD from the CNN", _CE_KD, "cnn", _HINTON),
    "kd-mean": Method("Hinton's KD from the mean of both teachers' logits", _CE_KD, "mean", _HINTON),
    "ebkd": Method("both teachers, weighted by low entropy", _CE_KD, "entropy", _HALF),
    "ca-mkd": Method("both teachers, weighted by the label", {**_CE_KD, "feature": "align"}, "label", _HALF),
    "dkd": Method("decoupled KD", {"ce": "ce", "dkd": "kd"}, reference={**_ONES, "warmup": 20 / 240}),
    "dist": Method("Pearson correlation within samples and classes", {"ce": "ce", "dist": "kd"}, reference=_ONES),
    "rkd": Method(
        "distances and angles within the batch", {"ce": "ce", "rkd": "kd"}, reference={"ce": 1.0, "kd": 25.0, "warmup": 0.0}
    ),
    "ofa": Method("stages of the student projected to logits", {"ce": "ce", "ofa": "kd"}, reference=_ONES),
    "fitnet-vit": Method("the ViT's features", {"ce": "ce", "fitnet-vit": "align"}),
    "fitnet-cnn": Method("the CNN's features", {"ce": "ce", "fitnet-cnn": "align"}),
    "kd-mean+fitnet-cnn": Method("kd-mean and the CNN's features", {**_CE_KD, "fitnet-cnn": "align"}, "mean", _HINTON),
    "dtkd": Method(
        "DATW, the structure-discrepancy branch, alignment and relations",
        {**_CE_KD, "sdd": "sdd", "align": "align", "rkd": "rkd"},
        "datw",
    ),
}


def find_method(name: str) -> Method:
    """The row of that name; RecipeError with all names where there is none."""
    if name not in METHODS:
        hint = f"{did_you_mean(name, METHODS)}methods: {', '.join(METHODS)}"
        raise RecipeError(f"distill.method: {name}: no method of that name", hint)
    return METHODS[name]


def resolve(config: DistillConfig) -> DistillConfig:
    """The config with the method's reference weights filled in where `reference_weights` asks for them."""
    method = find_method(config.method)
    return config.model_copy(update=method.reference) if config.reference_weights else config


def term_weights(config: DistillConfig) -> dict[str, float]:
    """Loss term → weight, without those switched off. RecipeError where nothing is left."""
    config = resolve(config)
    named = find_method(config.method).terms
    weights = {term: float(getattr(config, key)) if key else 1.0 for term, key in named.items()}
    weights = {term: weight for term, weight in weights.items() if weight > 0}
    if not weights:
        keys = ", ".join(f"distill.{key}" for key in dict.fromkeys(named.values()) if key)
        raise RecipeError(f"distill.method: {config.method}: every weight is 0", f"raise one of: {keys}")
    return weights


def needed_teachers(config: DistillConfig) -> set[str]:
    """Which of "cnn" and "vit" the method reads with these weights; what it does not read need not be trained or run."""
    needed: set[str] = set()
    for term in term_weights(config):
        if term == "ce":
            continue
        if term in MATCHED:
            needed.update(MATCHED[term])
            continue
        if term == "kd":
            source = find_method(config.method).target
        elif term == "sdd":
            source = config.branch.target
        elif term == "rkd":
            source = config.relation.source
        else:  # dkd, dist, ofa
            source = config.rivals.target
        needed |= {source} if source in BOTH else BOTH
    return needed


def require_teachers(config: DistillConfig, given: Collection[str]) -> None:
    """RecipeError where the method reads a teacher that is not among `given`; to be asked before anything is trained."""
    missing = [f"teachers.{name}" for name in sorted(needed_teachers(config) - set(given))]
    if missing:
        raise RecipeError(
            f"distill.method: {config.method} needs {' and '.join(missing)}", f"add {missing[0]}, or choose another method"
        )


def require_tap(config: DistillConfig, student: str, taps: Collection[str]) -> None:
    """RecipeError where the branch is to read a feature that the student does not have."""
    if config.branch.tap not in (None, *taps):
        raise RecipeError(f"distill.branch.tap: {config.branch.tap}: {student} has no such tap", f"its taps: {', '.join(taps)}")
