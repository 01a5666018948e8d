"""Names of classes on plots: what does not fit loses its middle, and can be read in full under the pointer."""

from __future__ import annotations

from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from dtkd_edge.plots import Row, fitted, intervals, matrix

LONG = "counterclockwise-then-zoom-out-and-back-again-slowly"


@given(name=st.text(max_size=80), room=st.integers(3, 40))
def test_a_fitted_name_keeps_both_ends_and_never_needs_more_room(name: str, room: int) -> None:
    shown = fitted(name, room * 8.0, 8.0)
    assert len(shown) <= room
    if len(name) <= room:
        assert shown == name
    else:
        start, end = shown.split("…", 1) if "…" not in name else (shown[: room // 2], shown[room // 2 + 1 :])
        assert name.startswith(start) and name.endswith(end) and start


def test_a_matrix_shows_short_names_and_tells_long_ones_in_full() -> None:
    root = ElementTree.fromstring(matrix([[3, 1], [0, 4]], [LONG, "a & b"], "t"))
    texts = [element.text or "" for element in root.iter() if element.tag.endswith("text")]
    assert "a & b" in texts and LONG not in texts and any(text.startswith("counter") and "…" in text for text in texts)
    tips = [element.text or "" for element in root.iter() if element.tag.endswith("title")]
    assert f"{LONG} → a & b: 1 of 4" in tips


def test_rows_of_intervals_start_inside_the_picture() -> None:
    root = ElementTree.fromstring(intervals([Row(LONG, [1.0], 1.0, 0.1, 1), Row("short", [2.0], 2.0, None, 2)], "x", "t"))
    for element in root.iter():
        if element.tag.endswith("text") and element.get("class") == "name":
            assert float(element.get("x", "0")) - 8.0 * len(element.text or "") >= 0
