"""A bench record: one JSON line per artefact × device × scenario, with everything that moves the number written beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dtkd_edge.console import counted
from dtkd_edge.errors import InputError
from dtkd_edge.files import write_text

SCHEMA: Final = "dtkd-edge/bench/1"
Status = Literal["ok", "unsupported", "failed", "lost"]
NO_ACCURACY = "no accuracy: "
NOISY = 0.05
NO_MLPERF = "Scenario names and percentiles are MLPerf's; these are no MLPerf results."


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), populate_by_name=True)


class Device(_Part):
    """Where it ran. `details` is what the telemetry sources found: cores, governor, driver, JetPack …"""

    kind: str = Field(..., description="cpu, cuda or jetson")
    name: str
    unit: str = Field("", description="the runtime's name of the part that computes: cpu, cuda:0, gpu …")
    threads: int | None = Field(None, description="what was asked for; none: the runtime's own choice")
    host: str | None = Field(None, description="user@addr of a far device")
    details: dict[str, Any] = {}


class Latency(_Part):
    """Milliseconds per query. Percentiles are nearest-rank; intervals are 95 %, None where the queries are too few."""

    n: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float
    min: float
    interval: tuple[float | None, float | None] = Field((None, None), description="of the scenario's percentile")
    outliers: int = Field(0, description="far outliers by Tukey; they are kept")
    quantiles: list[float] = Field([], description="0, 1, … 100 %")
    blocks: list[float] = Field([], description="medians of the blocks that artefacts took turns in, in time order")


class HeadAccuracy(_Part):
    top1: float
    top5: float


class Accuracy(_Part):
    """Shares in [0, 1] over `n` clips, of the first head; `heads` has each where there are several, and `action`, the pair,
    where they are verb and noun."""

    top1: float
    top5: float
    n: int
    top1_interval: tuple[float, float] = Field(..., description="Wilson, 95 %")
    top5_interval: tuple[float, float]
    data: str
    broken: int = 0
    unknown: int = Field(0, description="clips whose class is not among the artefact's labels; left out")
    agreement: float | None = Field(None, description="share of clips to which the run's torch student gives the same class")
    agreement_n: int = Field(0, description="clips that both were asked")
    heads: dict[str, HeadAccuracy] = {}


class Live(_Part):
    """What a camera's viewer would have: frames that were never looked at, and how old a label is when it appears."""

    camera_fps: float
    frames: int
    dropped: int
    age_p50_ms: float
    age_p90_ms: float
    labels_per_second: float


class Roofline(_Part):
    """The least time that the machine's own rates allow for a query, and how near the median comes."""

    gflops: float = Field(..., description="float32 matrix products, 10⁹ operations per second")
    gbs: float = Field(..., description="memory, 10⁹ bytes per second")
    macs: int = Field(..., description="of a query")
    bytes: int = Field(..., description="weights, input and states of a query: what has to be moved at least")
    limit_ms: float
    bound: Literal["compute", "memory"]
    share: float = Field(..., description="limit / median; above 1 where a runtime computes in less than float32")


class Telemetry(_Part):
    clocks_mhz: dict[str, float] = {}
    temperatures_c: dict[str, float] = {}
    power_mode: str | None = None
    throttled: Literal["yes", "no", "unknown"] = "unknown"
    throttle_reasons: list[str] = []
    other_load: float | None = Field(None, description="share of all CPUs that other processes (or other virtual machines) took")
    timeline: list[dict[str, float]] = Field([], description="samples while it ran: t in seconds, and every reading by name")
    notes: list[str] = Field([], description="what could not be read, and why")


class Asked(_Part):
    """What a bench was asked for. With the artefact, the scenario, the host and the tools it makes a row (see `identity`)."""

    manifest: str = Field(..., description="sha256 of the artefact's manifest, which has those of its files")
    device: str
    include: list[str] = []
    threads: int | None = None
    min_queries: int
    min_seconds: float
    max_seconds: float
    warmup: float = 0.5
    camera_fps: float
    clips: int | None = None
    data: str = Field("", description="--data and --set as given; empty: the run's own")
    roofline: bool = False
    hint: str = Field("latency", description="what the runtime is to be set up for; rows older than this field: latency")


class Record(_Part):
    schema_: Literal["dtkd-edge/bench/1"] = Field(SCHEMA, alias="schema")
    created: str
    status: Status = Field(
        "ok", description="unsupported: not on that device; failed: a bad artefact or data; lost: device or host went away"
    )
    reason: str | None = Field(None, description="why it is not ok")
    asked: Asked | None = None

    artifact: str = Field(..., description="name/folder")
    path: str = ""
    files: dict[str, str] = Field({}, description="sha256 of the measured files")
    model: dict[str, Any] = {}
    target: str
    mode: str = "clip"
    precision: str
    effective_precision: str | None = None
    verified: bool | None = None
    agreement: float | None = Field(None, description="top-1 agreement with the torch reference, from the export's verification")

    backend: str | None = None
    device: Device
    scenario: str
    runtime: dict[str, str] = Field({}, description="its settings as it reports them: hint, streams, threads, requests …")
    timed_region: str = ""
    input_source: str = ""
    clips_per_query: int = 1
    views: str = "1x1"
    warmup_s: float = 0.0
    seconds: float = 0.0
    latency_ms: Latency | None = None
    throughput: float | None = Field(None, description="clips per second (stream: frames per second)")
    live: Live | None = None
    noisy: float | None = Field(None, description="how far the two halves disagree; above 0.05 the row is flagged")
    drift: float | None = Field(None, description="clip's p50 / that of the last bench of the same thing, minus 1; flagged too")
    accuracy: Accuracy | None = Field(None, description="of the model set up for latency, whatever the scenario")
    roofline: Roofline | None = None
    power_w: float | None = None
    energy_mj: float | None = Field(None, description="per clip")
    memory_mb: float | None = Field(
        None, description="resident memory that opening and first use took, without the runtime's library"
    )
    load_ms: float | None = Field(None, description="opening the artefact")
    telemetry: Telemetry = Field(default_factory=Telemetry)
    notes: list[str] = []
    tools: dict[str, str] = {}
    command: str = ""

    @property
    def label(self) -> str:
        """`artifact` for a person: the folder's name only where the artefact's own does not end in it."""
        name, _, folder = self.artifact.partition("/")
        return name if name.endswith(folder) else self.artifact

    @property
    def per_clip(self) -> float | None:
        """Median, ms per clip: a query's clips depend on what the runtime makes of the machine."""
        return None if self.latency_ms is None else self.latency_ms.p50 / self.clips_per_query

    @property
    def is_noisy(self) -> bool:
        return max(self.noisy or 0.0, abs(self.drift or 0.0)) > NOISY

    @property
    def identity(self) -> str | None:
        """Equal for rows that need not be measured twice; None for one that is not finished."""
        if self.status != "ok" or self.asked is None:
            return None
        return identity(self.artifact, self.asked, self.device.host, self.scenario, self.tools)

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)


def input_of(record: Record) -> str:
    """The clips that a row's accuracy is of; of a row without accuracy, what it was fed."""
    if record.accuracy is None:
        return record.input_source
    return f"{counted(record.accuracy.n, 'clip')} of {record.accuracy.data}"


def several_inputs(records: Sequence[Record]) -> bool:
    """Whether these rows are of more than one data set, or of more and of fewer clips of one: a run's page keeps those of all
    its benches."""
    ok = [r for r in records if r.status == "ok"]
    sources = {r.accuracy.data if r.accuracy else r.input_source for r in ok} - {""}
    return len(sources) > 1 or len({r.accuracy.n for r in ok if r.accuracy}) > 1


def identity(artifact: str, asked: Asked, host: str | None, scenario: str, tools: dict[str, str]) -> str:
    """Everything that a row depends on and that is known before it is measured, as one string."""
    return json.dumps([artifact, asked.model_dump(), host, scenario, tools], sort_keys=True)


def write_records(path: Path, records: list[Record]) -> None:
    """JSON lines, put in place whole."""
    write_text(path, "".join(json.dumps(r.to_json(), ensure_ascii=False) + "\n" for r in records))


def parse_records(text: str, where: str) -> list[Record]:
    """Records from JSON lines, or from one JSON list; raises InputError that names the line."""
    text = text.strip()
    if not text:
        raise InputError(f"{where}: no bench record in it", "write one with: dtkd-edge bench --json FILE")
    try:
        raws = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise InputError(f"{where}: not JSON lines: {error}", "give a file that dtkd-edge bench --json wrote") from error
    records = []
    for number, raw in enumerate(raws, 1):
        found = raw.get("schema") if isinstance(raw, dict) else None
        if found != SCHEMA:
            raise InputError(f"{where}: record {number}: schema is {found!r}, this version reads {SCHEMA!r}", "bench again")
        try:
            records.append(Record.model_validate(raw))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{where}: record {number}: {key}: {first['msg']}", "bench again") from error
    return records


def read_records(path: Path) -> list[Record]:
    try:
        return parse_records(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable: {error}", "give a file that dtkd-edge bench --json wrote") from error
