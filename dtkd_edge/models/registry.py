"""The one table of models: a name, or a family such as `tsm_<timm CNN>`, to its constructor."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from dtkd_edge.errors import DtkdEdgeError, RecipeError, did_you_mean
from dtkd_edge.models.base import Role, VideoModel

# Modules that register models. Adding a model is one file and one line here.
MODULES = ("tiny", "tsm", "x3d", "slowfast", "mvit", "tv", "vit", "vit_timm", "vit_hybrid", "videomae")

Build = Callable[..., VideoModel]


@dataclass(frozen=True)
class Entry:
    name: str  # exact, or 'prefix_*' for a family
    roles: tuple[Role, ...]
    about: str
    build: Build


_entries: dict[str, Entry] = {}


def register(name: str, roles: tuple[Role, ...], about: str) -> Callable[[Build], Build]:
    """Decorate `build(name, heads, frames, size, **options) -> VideoModel`."""

    def add(build: Build) -> Build:
        _entries[name] = Entry(name, roles, about, build)
        return build

    return add


def entries() -> list[Entry]:
    for module in MODULES:
        importlib.import_module(f"dtkd_edge.models.{module}")
    # In the order of MODULES, whichever of them somebody imported first.
    return sorted(_entries.values(), key=lambda entry: MODULES.index(entry.build.__module__.rpartition(".")[2]))


def list_models() -> list[str]:
    """Names that create_model takes; a family is shown as 'tsm_*'."""
    return [entry.name for entry in entries()]


def create_model(
    name: str,
    num_classes: int | dict[str, int],
    *,
    frames: int | None = None,
    size: int | None = None,
    stride: int | None = None,
    **options: object,
) -> VideoModel:
    """Build a model. `num_classes`: one number (head `action`), or a number per head. `frames`, `size`, `stride`: instead of its
    own."""
    heads = {"action": num_classes} if isinstance(num_classes, int) else dict(num_classes)
    known = {entry.name: entry for entry in entries()}
    entry = known.get(name)
    if entry is None:
        families = [e for e in known.values() if e.name.endswith("*") and name.startswith(e.name[:-1])]
        entry = max(families, key=lambda e: len(e.name), default=None)
    if entry is None:
        raise RecipeError(f"{name}: no model of that name", f"{did_you_mean(name, known)}see: dtkd-edge models")
    try:
        model = entry.build(name, heads, frames=frames, size=size, **options)
    except DtkdEdgeError:
        raise
    except Exception as error:  # whatever a builder makes of sizes and options that do not go together
        given = {"frames": frames, "size": size, **options}
        said = ", ".join(f"{key} {value!r}" for key, value in given.items() if value is not None)
        reason = str(error) or type(error).__name__
        unknown = re.search(r"unexpected keyword argument '(\w+)'", reason)
        if unknown and unknown[1] in options:
            raise RecipeError(
                f"{name}: it has no option {unknown[1]}", "take it out of the model's options in the recipe"
            ) from error
        raise RecipeError(f"{name}: cannot be built with {said}: {reason}", "check the model's options in the recipe") from error
    if stride is not None:
        model.info = replace(model.info, stride=stride)
    return model
