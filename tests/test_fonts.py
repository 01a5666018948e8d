"""Labels of any script in the pictures: by an installed font that has their letters, or said."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dtkd_edge import fonts
from dtkd_edge.deploy import overlay
from dtkd_edge.train.scores import _picture


def shown_live(name: str) -> np.ndarray:
    live: Any = SimpleNamespace(certain=[SimpleNamespace(label=name, score=0.9)], age=0.0)
    return overlay.draw(np.zeros((240, 320, 3), np.uint8), live, 30.0)


def confusion(name: str) -> np.ndarray:
    return np.asarray(_picture(np.eye(2, dtype=np.int64), [name, "no"]))


@pytest.mark.parametrize("draw", [shown_live, confusion])
def test_labels_that_pillows_own_font_lacks_are_drawn(draw: Any) -> None:
    if fonts._lacking(fonts._file_for(frozenset("дано")), "дано"):
        pytest.skip("no font with Cyrillic letters is installed")
    assert fonts._file_for(fonts._lacking(fonts.OWN, "left")) == fonts.OWN
    one, other = draw("дн"), draw("ао")  # as boxes they would be alike
    assert one.shape != other.shape or (one != other).any()


def test_what_no_font_has_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")  # no fontconfig
    monkeypatch.setattr(fonts, "USUAL", ("no such font.ttf",))
    monkeypatch.setattr(fonts, "_found", [])
    fonts._file_for.cache_clear()
    fonts.say_boxes(["left", "да", "но", "и", "или"])
    assert capsys.readouterr().err.startswith(
        "no font here has all letters of да, но, и and 1 more: boxes are drawn; install one"
    )
    fonts.say_boxes(["left", "a·b"])
    assert capsys.readouterr().err == ""
    fonts._file_for.cache_clear()
