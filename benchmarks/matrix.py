"""What a bench is asked for, typed: one `Spec` from the command line, or several from a YAML file. No torch.

artifacts: [runs/quickstart, runs/other/export/onnx-fp32]     # these keys hold for every bench below
scenarios: [single-stream, offline]
benches:                                                      # without this key the file is one bench
  - {devices: [cpu, cuda]}
  - {devices: jetson, hosts: [user@orin], clips: 0}
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from dtkd_edge.benchmarks.devices import device_names
from dtkd_edge.benchmarks.queries import parse_include
from dtkd_edge.benchmarks.scenarios import DEFAULT, Budget, find_scenarios
from dtkd_edge.errors import InputError, UsageError

HERE = "here"  # among hosts: this machine
SUFFIXES = (".yaml", ".yml")


def _listed(value: Any) -> Any:
    """`cpu` and `cpu,cuda` are lists too, as on the command line."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(_listed)]


class Spec(BaseModel):
    """Artefacts × hosts × devices × scenarios, all measured with the same options."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    artifacts: Names = Field([], description="artefacts or runs, * as in the shell; none: the newest run's")
    devices: Names = Field(["auto"], min_length=1, description="auto, cpu, cuda, jetson")
    hosts: Names = Field([HERE], min_length=1, description="user@address; here: this machine")
    scenarios: Names = Field(list(DEFAULT), min_length=1)
    data: Path | None = Field(None, description="labelled videos: a folder per class, or a csv; none: the run's own")
    set: list[str] = Field([], description="data.key=value")
    include: Annotated[list[str], BeforeValidator(_listed)] = Field([], description="preprocess, decode: what is timed too")
    threads: int | None = Field(None, ge=1)
    min_seconds: float = Field(Budget.seconds, gt=0)
    min_queries: int = Field(Budget.queries, ge=1)
    max_seconds: float = Field(Budget.limit, gt=0)
    warmup: float = Field(Budget.warmup, ge=0, description="seconds that each artefact runs untimed first")
    clips: int | None = Field(None, ge=0, description="most clips for accuracy; 0: none")
    camera_fps: float = Field(30.0, gt=0)
    roofline: bool = False

    @field_validator("devices")
    @classmethod
    def _known_devices(cls, names: list[str]) -> list[str]:
        return _said(lambda: device_names(",".join(names)))

    @field_validator("scenarios")
    @classmethod
    def _known_scenarios(cls, names: list[str]) -> list[str]:
        return _said(lambda: [s.name for s in find_scenarios(names)])

    @field_validator("include")
    @classmethod
    def _known_steps(cls, names: list[str]) -> list[str]:
        return _said(lambda: list(parse_include(",".join(names))))

    @model_validator(mode="after")
    def _ends(self) -> Spec:
        if self.max_seconds < self.min_seconds:
            if "min_seconds" in self.model_fields_set:
                raise ValueError(f"max_seconds {self.max_seconds:g} is less than min_seconds {self.min_seconds:g}")
            self.min_seconds = self.max_seconds  # nobody asked for the default
        return self


def _said(work: Callable[[], list[str]]) -> list[str]:
    """The command line's own check; its error names an option first, which the file does not have."""
    try:
        return work()
    except UsageError as error:
        option, _, rest = error.message.partition(": ")
        raise ValueError(f"{option.removeprefix('--')}: {rest}; {error.hint}") from error


def load_matrix(path: Path) -> tuple[list[Spec], Path]:
    """The benches of a YAML file, and where its rows go (`output`; default: beside the file, with the suffix .jsonl).

    Raises InputError that names the line and the key.
    """
    try:
        text = path.read_text(encoding="utf-8")
        raw = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable: {error}", "give a YAML file of benches") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}", "mend the file") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected keys and values at the top level", f"known keys: {', '.join(_known())}")
    common = {key: value for key, value in raw.items() if key not in ("output", "benches")}
    output = raw.get("output", str(path.with_suffix(".jsonl")))
    if not isinstance(output, str):
        raise _wrong(path, text, ("output",), "expected the name of a file")
    benches = raw.get("benches", [{}])
    if not isinstance(benches, list) or not benches or not all(isinstance(b, dict) for b in benches):
        raise _wrong(path, text, ("benches",), "expected a list of benches, each with keys and values")
    specs = []
    for number, own in enumerate(benches):
        try:
            specs.append(Spec.model_validate({**common, **own}))
        except ValidationError as error:
            first = error.errors()[0]
            loc = first["loc"] if not first["loc"] or first["loc"][0] not in own else ("benches", number, *first["loc"])
            if first["type"] == "extra_forbidden":
                raise _wrong(path, text, loc, f"no such key; known: {', '.join(_known())}") from error
            raise _wrong(path, text, loc, first["msg"].removeprefix("Value error, ")) from error
    return specs, Path(output)


def _known() -> list[str]:
    return [*Spec.model_fields, "output", "benches"]


def _wrong(path: Path, text: str, loc: tuple[int | str, ...], message: str) -> InputError:
    key = ".".join(str(part) for part in loc)
    return InputError(f"{path}, line {_line(text, loc)}: {key + ': ' if key else ''}{message}", "mend that line")


def _line(text: str, loc: tuple[int | str, ...]) -> int:
    """Of the deepest node on the way to `loc` that the text has."""
    node, line = yaml.compose(text, Loader=yaml.SafeLoader), 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
