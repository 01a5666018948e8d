"""Rows that are kept: every bench of a run in RUN/bench/DATE.jsonl, the newest of each row in RUN/bench.jsonl. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dtkd_edge.artifact import now
from dtkd_edge.benchmarks.compare import Key, key_of
from dtkd_edge.benchmarks.record import Record, read_records, write_records
from dtkd_edge.console import say
from dtkd_edge.errors import InputError


def merge(old: Sequence[Record], new: Sequence[Record]) -> list[Record]:
    """Old and new rows, the newest of each. Gone are old rows of an artefact that has changed since, and old rows without a
    result where the same was tried again."""
    digests = {_where(r): r.asked.manifest for r in new if r.asked}
    tried = {(_where(r), r.device.host, r.scenario) for r in new}
    rows: dict[Key, Record] = {}
    for record in old:
        where = _where(record)
        changed = record.asked and record.asked.manifest != digests.get(where, record.asked.manifest)
        again = record.status != "ok" and (where, record.device.host, record.scenario) in tried
        if not changed and not again:
            rows[_key(record)] = record
    for record in new:
        rows[_key(record)] = record
    return list(rows.values())


def _where(record: Record) -> str:
    """The artefact, for which two runs may have one name."""
    return str(Path(record.path).resolve()) if record.path else record.artifact


def _key(record: Record) -> Key:
    # What benches of one matrix may differ in while the rows look alike.
    asked = (record.asked.data, f"{record.asked.camera_fps:g}") if record.asked else ()
    return (_where(record), *key_of(record)[1:], *asked)


def old_rows(path: Path) -> list[Record]:
    """The rows of a file, none where it does not exist; a file that is not of this version is begun anew."""
    if not path.is_file():
        return []
    try:
        return read_records(path)
    except InputError as error:
        say(f"begun anew: {error.message}")
        return []


def with_drift(record: Record, last: Record | None) -> Record:
    """The row beside the last bench's of the very same thing (see `identity`): how far its median per clip has moved."""
    if last is None or not record.per_clip or not last.per_clip or last == record:
        return record
    return record.model_copy(update={"drift": round(record.per_clip / last.per_clip - 1, 4)})


class History:
    """The rows of one run folder."""

    def __init__(self, run: Path) -> None:
        self.run, self.file = run, run / "bench.jsonl"
        self.before = old_rows(self.file)
        self.new: list[Record] = []
        self.broken = False
        stamp = now().replace("+00:00", "Z").replace(":", "-")
        self.own = run / "bench" / f"{stamp}.jsonl"
        number = 2
        while self.own.exists():  # two benches within a second
            self.own, number = run / "bench" / f"{stamp}.{number}.jsonl", number + 1

    def add(self, rows: list[Record]) -> None:
        """Keep rows as they come. Somebody else's run or a read-only disk is said, and no reason not to measure."""
        self.new += rows
        if self.broken or not rows:
            return
        try:
            write_records(self.own, self.new)
            write_records(self.file, self.rows)
        except InputError as error:
            say(f"not kept: {error.message}")
            self.broken = True

    @property
    def rows(self) -> list[Record]:
        """The newest of each row."""
        return merge(self.before, self.new)
