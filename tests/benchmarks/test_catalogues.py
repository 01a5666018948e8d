"""The sets of `benchmarks/catalogues.py` are what each kind reads, and none is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtkd_edge.benchmarks.catalogues import KINDS, open_one
from dtkd_edge.data.catalogue import GENERATED, SETS

ROWS = 800  # two clips of each of the 400 classes


@pytest.mark.parametrize("kind", KINDS)
def test_every_set_is_read_whole(tmp_path: Path, kind: str) -> None:
    found = open_one({"kind": kind, "root": tmp_path, **KINDS[kind](tmp_path, ROWS)})
    share = {"csv-held-out": (400, 400), "folder": (400, 400), "csv-groups": (300, 780)}.get(kind, (ROWS, ROWS))
    assert share[0] <= found["clips"] <= share[1]
    assert 0 <= found["mb"] <= found["peak_mb"] and found["peak_mb"] > 10


def test_no_kind_is_left_out() -> None:
    assert set(KINDS) >= set(SETS) - set(GENERATED) - {"kinetics600", "kinetics700"}  # those two are read as kinetics400
