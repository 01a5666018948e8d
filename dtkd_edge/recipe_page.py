"""`dtkd-edge recipes`: the shipped recipes, and every key that a recipe can have. No torch."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.table import Table

from dtkd_edge import recipe_reader as recipes
from dtkd_edge.console import print_table
from dtkd_edge.recipe import Recipe


def show(name: str | None, *, markdown: bool = False) -> None:
    """Print the list, one recipe as it stands in its file, or the documentation's page."""
    if name is not None:
        print(recipes.text_of(name), end="")
    elif markdown:
        print(to_markdown(), end="")
    else:
        table = Table()
        for column in ("recipe", "data", "student", "teachers", "about"):
            table.add_column(column)
        for row in rows():
            table.add_row(*row)
        print_table(table)


def rows() -> list[tuple[str, str, str, str, str]]:
    """Name, kind of data, student, teachers and the file's first words, for every shipped recipe."""
    found = []
    for name in recipes.shipped():
        config = recipes.load(name)
        teachers = [teacher.model for teacher in (config.teachers.cnn, config.teachers.vit) if teacher]
        found.append((name, config.data.kind, config.student.model, ", ".join(teachers), about(recipes.text_of(name))))
    return found


def about(text: str) -> str:
    """The first sentence of the comment that a recipe starts with."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines).split(". ")[0].removesuffix(".")


def to_markdown() -> str:
    parts = [
        "# Recipes\n\n"
        "`dtkd-edge train NAME` takes a recipe that ships with the package, or a YAML file; `--set a.b=value` changes a key.\n"
        "`dtkd-edge recipes folder > mine.yaml` starts a file. This page is the output of `dtkd-edge recipes --markdown`.\n\n"
        "| recipe | data | student | teachers | |\n|---|---|---|---|---|\n",
        "".join(f"| `{n}` | {data} | `{student}` | {teachers} | {words} |\n" for n, data, student, teachers, words in rows()),
    ]
    for path, model in sections():
        parts.append(f"\n## {path or 'top level'}\n\n{_lead(model)}| key | value | default | |\n|---|---|---|---|\n")
        for key, info in model.model_fields.items():
            if _section(info.annotation) is None:
                cells = (value_of(info), default_of(info), info.description or "")
                parts.append(f"| `{key}` | {' | '.join(cell.replace('|', '/') for cell in cells)} |\n")
    return "".join(parts)


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section of a recipe with its dotted path, the top level first. A section that stands in several places comes once."""
    places: dict[type[BaseModel], list[str]] = {}

    def walk(model: type[BaseModel], path: str) -> None:
        places.setdefault(model, []).append(path)
        for key, info in model.model_fields.items():
            if (inner := _section(info.annotation)) is not None:
                walk(inner, f"{path}.{key}" if path else key)

    walk(Recipe, "")
    for model, paths in places.items():
        yield ", ".join(paths), model


def value_of(info: FieldInfo) -> str:
    """What a key takes: its type, or its choices, and its bounds."""
    bounds = []
    for limit in info.metadata:
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            if (value := getattr(limit, name, None)) is not None:
                bounds.append(f"{sign} {value:,}" if isinstance(value, int) else f"{sign} {value}")
    return " ".join([_type(info.annotation), ", ".join(bounds)]).strip()


def default_of(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(str(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(part) for part in arguments if part is not type(None))
    if origin in (tuple, list):
        inner = ", ".join(_type(part) for part in arguments) if origin is tuple else f"{_type(arguments[0])}, …"
        return f"[{inner}]"
    if origin is dict:
        return "keys and values"
    return {int: "integer", float: "number", bool: "true or false", str: "text", Path: "path"}[annotation]


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a key opens, if it does."""
    candidates = [annotation, *get_args(annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _lead(model: type[BaseModel]) -> str:
    return f"{inspect.cleandoc(model.__doc__)}\n\n" if model.__doc__ and model.__doc__ != BaseModel.__doc__ else ""
