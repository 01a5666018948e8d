"""Another source, another artefact, while the page looks on."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from deploy_cases import LABELS, edit_manifest, until, write_mp4
from test_web import browser, serving  # noqa: F401

import dtkd_edge
from dtkd_edge.deploy.camera import Grabber
from dtkd_edge.deploy.live import Settings
from dtkd_edge.deploy.pipeline import Pipeline
from dtkd_edge.deploy.session import Session, artifacts_beside, source_name
from dtkd_edge.deploy.sources import SourceOptions, open_source


@pytest.fixture
def models(onnx_artifact: Path, tmp_path: Path) -> list[Path]:
    """The tiny student; the same with other labels; one whose file is damaged; and a folder that is none."""
    one, two, broken = (tmp_path / "models" / name for name in ("a-one", "b-two", "c-broken"))
    for folder in (one, two, broken):
        shutil.copytree(onnx_artifact, folder)
    edit_manifest(two, labels={"action": [f"other {i}" for i in range(len(LABELS))]})
    (broken / "model.onnx").write_bytes(b"no model")
    (tmp_path / "models" / "notes").mkdir()
    shutil.copytree(onnx_artifact, tmp_path / "models" / ".half-written")
    assert artifacts_beside(one) == [one, two, broken]
    return [one, two, broken]


def test_the_page_switches(models: list[Path], tmp_path: Path, browser: Any) -> None:  # noqa: F811
    video = write_mp4(tmp_path / "secret-folder-clip.mp4", frames=60, size=(96, 64))
    with serving(models[0], others=(str(video), "rtsp://me:s3cret@127.0.0.1:9/live?pw=x"), artifacts=models) as web:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(web.url)
        assert until(lambda: page.locator("#label").inner_text() in LABELS)
        names = page.locator("#source option").all_inner_texts()
        assert names == ["test pattern", "secret-folder-clip.mp4", "127.0.0.1/live"]

        page.select_option("#source", "1")
        assert until(lambda: web.session.source == 1 and page.evaluate("document.getElementById('picture').width") == 96)
        # A picture comes before what is known of it: wipe out the label that still stands there from the source before.
        page.evaluate("document.getElementById('label').textContent = ''")
        assert until(lambda: page.locator("#label").inner_text() in LABELS)

        page.select_option("#artifact", "1")
        assert until(lambda: page.locator("#label").inner_text().startswith("other "))
        assert page.locator("#artifact").input_value() == "1" and page.locator("#source").input_value() == "1"

        for box, what in (("#source", "127.0.0.1:9/live"), ("#source", "127.0.0.1:9/live"), ("#artifact", "c-broken")):
            before = web.pipeline.inferences.count
            page.select_option(box, "2")
            assert until(lambda what=what: what in page.locator("#trouble").inner_text())
            assert until(lambda box=box: page.locator(box).input_value() == "1")  # it shows what still runs
            assert until(lambda before=before: web.pipeline.inferences.count > before + 3)
            assert "s3cret" not in page.content() and "pw=" not in page.content() and str(tmp_path) not in page.content()
        page.select_option("#source", "0")
        assert until(lambda: web.session.source == 0 and page.locator("#trouble").is_hidden())
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert problems == []
        page.close()


def test_a_page_names_numbers_of_the_list_and_nothing_else(models: list[Path], tmp_path: Path) -> None:
    from websockets.sync.client import connect

    outside = write_mp4(tmp_path / "outside.mp4", frames=10, size=(96, 64))
    with serving(models[0], others=("pattern",), artifacts=models) as web:
        wishes: list[Any] = [{"source": 2}, {"source": -1}, {"source": True}, {"source": str(outside)}, {"artifact": 1.0}]
        wishes += [{"artifact": str(models[1])}, ["source", 1], 1, None, {"source": {"source": 1}}, {"token": 1}]
        with connect(web.url.replace("http", "ws") + "ws") as socket:
            for wish in wishes:
                socket.send(json.dumps(wish))
            for text in ("{", "x" * 101, '{"source": 1' + " " * 100 + "}", "\0"):
                socket.send(text)
            socket.send('{"artifact": 1}')  # and one that counts, after all of them
            assert until(lambda: web.session.number == 1)
            assert (web.session.source, web.session.artifact) == (0, 1)


def test_switching_for_ever_leaves_nothing_behind(models: list[Path]) -> None:
    """Threads, the end of the running event, and that nobody takes a switch for the end."""
    before = threading.active_count()
    ends: list[bool] = []
    with dtkd_edge.load(models[0], device="cpu", threads=1) as classifier:
        pipeline = Pipeline(classifier, Grabber(open_source("pattern")), Settings(clip_seconds=0.3, threshold=0.0, release=0.0))
        session = Session(pipeline, sources=["pattern", "pattern"], artifacts=models, options=SourceOptions(), device="cpu")
        ended: list[Any] = []
        pipeline.listeners.append(lambda live: ended.append(live.ended) if live.ended else None)
        session.start()
        over = threading.Event()

        def watch() -> None:
            while not over.is_set():
                ends.append(session.wait(0.01))

        watcher = threading.Thread(target=watch)
        watcher.start()
        running = threading.active_count()
        for number in range(1, 9):
            assert until(lambda: bool(session.pipeline.current()))
            session.switch(*[("source", number // 2 % 2), ("artifact", (number + 1) // 2 % 2)][number % 2])
            assert session.number == number and session.trouble == "" and len(ended) >= number
        assert threading.active_count() == running
        session.switch("artifact", 2)
        assert "c-broken" in session.trouble and session.pipeline.running
        over.set()
        watcher.join()
        assert not any(ends)
        session.stop()
        assert session.wait(0)
    assert threading.active_count() == before


def test_how_a_page_names_a_source() -> None:
    for spec, name in [
        ("0", "camera 0"), ("pattern", "test pattern"), ("/home/me/clip.mp4", "clip.mp4"), ("/dev/video2", "video2"),
        ("rtsp://me:pw@10.0.0.7:554/live?password=x", "10.0.0.7/live"), ("csi:1", "csi:1"),
    ]:  # fmt: skip
        assert source_name(spec) == name
