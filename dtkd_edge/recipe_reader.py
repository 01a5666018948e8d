"""Recipes out of YAML, changed by `--set a.b=value`. No torch.

A recipe is a file, or the name of one that ships in `dtkd_edge/recipes`. Every key is checked: an unknown key, a wrong type
or a value out of range is a RecipeError that names the key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from dtkd_edge.errors import InputError, RecipeError, UsageError, did_you_mean
from dtkd_edge.recipe import DataConfig, Recipe

HELD_OUT = "validation.txt"  # in a run's folder: the clips that were held out, where the data has no validation side of its own
# Besides its own error the parser lets those of impossible dates and numbers and of bottomless nesting through.
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("dtkd_edge.recipes")
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def load(source: str | Path, overrides: Iterable[str] = (), *, tell: Callable[[str], None] = lambda _: None) -> Recipe:
    """Read a shipped recipe by name, or a YAML file by path; `overrides` are 'a.b=value' with a YAML value.

    tell: is given a line about each value of the recipe that an override makes void.
    """
    text, where = _read(source)
    try:
        raw = yaml.safe_load(text)
    except _NOT_YAML as error:
        raise RecipeError(f"{where}: not YAML: {' '.join(str(error).split())}", "mend the file") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{where}: expected keys and values at the top level", "see: dtkd-edge train --help")
    overrides = list(overrides)
    _drop_options_of_other_models(raw, overrides, tell)
    for override in overrides:
        set_value(raw, override)
    return parse(raw, where)


def _drop_options_of_other_models(raw: dict[str, Any], overrides: list[str], tell: Callable[[str], None]) -> None:
    """`--set student.model=x3d_s`: the options in a recipe are those of the model that it names, and no other's."""
    teachers = raw.get("teachers")
    sections = {"student": raw.get("student")}
    if isinstance(teachers, dict):
        sections |= {f"teachers.{name}": section for name, section in teachers.items()}
    last = {key.strip(): (override, value) for override in overrides for key, _, value in [override.partition("=")]}
    for key, (override, value) in last.items():
        name = key.removesuffix(".model")
        section = sections.get(name)
        if key == name or not isinstance(section, dict) or section.get("model") == _yaml_or_text(value):
            continue
        options = section.pop("options", None)
        if isinstance(options, dict) and options:
            listed = ", ".join(f"{option}: {its}" for option, its in options.items())
            tell(f"--set {override}: {name}.options of {section.get('model')} do not apply and are left out ({listed})")


def _yaml_or_text(text: str) -> Any:
    """The value that `set_value` reads, or the text, which it then refuses."""
    try:
        return yaml.safe_load(text)
    except _NOT_YAML:
        return text


def parse(raw: dict[str, Any], where: str = "recipe") -> Recipe:
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        # A mistyped key comes first: it is why the right one is missing.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in first["loc"]) or "recipe"
        if first["type"] == "extra_forbidden":
            section, dot, last = key.rpartition(".")
            known = _keys_beside(first["loc"])
            hint = f"{did_you_mean(last, known, section + dot)}known keys there: {', '.join(known) or 'none'}"
            raise RecipeError(f"{where}: unknown key {key}", hint) from error
        message = first["msg"].removeprefix("Value error, ")
        given = first["input"]
        if isinstance(given, (str, int, float, bool, list)):
            message += f" (given: {given!r})"
        stands = f"{where}: {key}" if first["loc"] else where
        raise RecipeError(f"{stands}: {message}", "correct that value, or --set it") from error


def data_section(own: Mapping[str, Any], overrides: Iterable[str], where: str) -> DataConfig:
    """A data section without a recipe around it, changed by `data.a=value` overrides."""
    return around_data(own, overrides, where).data


def around_data(own: Mapping[str, Any], overrides: Iterable[str], where: str) -> Recipe:
    """A recipe that has that data section, changed by overrides, and else the defaults."""
    raw: dict[str, Any] = {"name": "data", "student": {"model": "none"}, "data": dict(own)}
    for override in overrides:
        set_value(raw, override)
    return parse(raw, where)


def load_run(run: Path, overrides: Iterable[str] = ()) -> Recipe:
    """A run's own recipe, changed by overrides. Clips that its training held out stay the validation side, unless
    the overrides name another list, or other data."""
    overrides = list(overrides)
    keys = [override.partition("=")[0].strip() for override in overrides]
    recipe, before = load(run / "recipe.yaml", overrides), load(run / "recipe.yaml").data
    if "data.held_out" in keys:
        return recipe
    same = all(getattr(recipe.data, key) == getattr(before, key) for key in ("kind", "root", "train", "val"))
    recipe = keep_held_out(recipe, run, same=same)
    drawn = [override for override, key in zip(overrides, keys, strict=True) if key in ("data.seed", "data.val_share")]
    if drawn and recipe.data.held_out == (run / HELD_OUT).absolute():
        raise UsageError(
            f"--set {drawn[0]}: another draw would take clips that the run was trained on; it held out those of {run / HELD_OUT}",
            "leave it out, or give clips that it has not seen: --data FOLDER",
        )
    return recipe


def keep_held_out(recipe: Recipe, run: Path, *, same: bool = True) -> Recipe:
    """The recipe, with the very clips held out that the run's training wrote down, whatever has been added to the data since.

    same: whether it is the data that the run was trained on; in other data, an equal name is another clip.
    """
    listed = run / HELD_OUT
    if not listed.is_file():
        return recipe
    return recipe.model_copy(update={"data": recipe.data.as_of_run(listed.absolute(), same=same)})


def data_at(path: Path, overrides: Iterable[str] = ()) -> DataConfig:
    """What `--data PATH` means: a folder with one folder per class (or lists), or a csv list. All of its clips are scored; of a
    folder that has a validation side, those of that side."""
    if not path.exists():
        raise InputError(f"--data {path}: no such folder or list", "give a folder with one folder per class, or a csv list")
    own: dict[str, Any] = {"kind": "folder", "root": path}
    if path.is_file():
        own = {"kind": "csv", "root": path.parent, "train": path.name, "val": path.name}
    return data_section(own, overrides, "--data").as_test()


def text_of(source: str | Path) -> str:
    """A recipe as it stands in its file, comments and all."""
    return _read(source)[0]


def _read(source: str | Path) -> tuple[str, str]:
    path = Path(source)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise RecipeError(f"{path}: no such recipe file", f"shipped recipes: {', '.join(shipped())}")
        try:
            return path.read_text(encoding="utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: not readable: {error}", "check the file") from error
    if str(source) not in shipped():
        hint = f"{did_you_mean(str(source), shipped())}shipped recipes: {', '.join(shipped())}"
        raise RecipeError(f"{source}: no recipe of that name", hint)
    return resources.files("dtkd_edge.recipes").joinpath(f"{source}.yaml").read_text(encoding="utf-8"), f"recipe {source}"


def set_value(raw: dict[str, Any], override: str) -> None:
    """Write 'a.b=value' into nested dictionaries; the value is YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {override}: expected a.b=value", "for example: --set train.epochs=10")
    *parents, last = key.strip().split(".")
    node = raw
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise RecipeError(f"--set {override}: {parent} is a value, not a section", "check the key")
        node = child
    try:
        node[last] = yaml.safe_load(text)
    except _NOT_YAML as error:
        raise RecipeError(f"--set {override}: the value is not YAML", "quote it") from error


def quoted(path: Path) -> str:
    """A path as the value of an override: it may hold " #" or ": "."""
    return json.dumps(str(path), ensure_ascii=False)


def differences(found: Any, wanted: Any, key: str = "") -> list[str]:
    """'a.b = x, not y' for every value in which two recipes (as plain dictionaries) differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = dict.fromkeys([*found, *wanted])
        return [d for k in keys for d in differences(found.get(k), wanted.get(k), f"{key}.{k}" if key else k)]
    return [] if found == wanted else [f"{key} = {found}, not {wanted}"]


def forget_given_list(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """In recipes as plain dictionaries: compare gives a new run the list of clips to hold out, which no recipe asks for."""
    if wanted["data"]["held_out"] is None:
        found["data"]["held_out"] = None


def first_of(differences: list[str]) -> str:
    """As many as fit into a message."""
    more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
    return ", ".join(differences[:3]) + more


def missing_keys(path: Path) -> list[str]:
    """Keys that a run's own recipe.yaml lacks, of an earlier version then: what it was trained with is not today's default."""

    def missing(found: Any, wanted: Any, key: str = "") -> list[str]:
        if not (isinstance(found, dict) and isinstance(wanted, dict)):
            return []
        return [
            name
            for k, value in wanted.items()
            for name in ([f"{key}{k}"] if k not in found else missing(found[k], value, f"{key}{k}."))
        ]

    wanted = load(path).model_dump(mode="json")
    return missing(yaml.safe_load(text_of(path)), wanted)


def _keys_beside(loc: tuple[int | str, ...]) -> list[str]:
    """The keys that the section of an unknown key does have."""
    section: type[BaseModel] | None = Recipe
    for part in loc[:-1]:
        field = section.model_fields.get(str(part)) if section else None
        if field is None:
            return []
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        section = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
    return sorted(section.model_fields) if section else []
