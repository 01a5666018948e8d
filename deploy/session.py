"""The running pipeline, and what may take its place while it runs: another source, another artefact beside this one."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dtkd_edge.artifact import MANIFEST, Artifact
from dtkd_edge.console import say
from dtkd_edge.deploy.camera import Grabber
from dtkd_edge.deploy.classifier import Classifier
from dtkd_edge.deploy.pipeline import Pipeline
from dtkd_edge.deploy.sources import SourceOptions, open_source
from dtkd_edge.errors import DtkdEdgeError

WORDS = {"pattern": "test pattern", "browser": "your camera", "csi": "CSI camera"}


class Session:
    """`pipeline` is the one that runs now. Only what `sources` and `artifacts` list can take its place: a page sends a number.

    sources[0] is what the pipeline was made with; artifacts are folders, the pipeline's own among them.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        sources: list[str] | None = None,
        artifacts: list[Path] | None = None,
        options: SourceOptions | None = None,
        device: str = "auto",
    ) -> None:
        self.pipeline = pipeline
        self.sources = sources or [pipeline.grabber.source.name]
        self.artifacts = artifacts or [pipeline.classifier.artifact.folder]
        self.source = 0
        self.artifact = self.artifacts.index(pipeline.classifier.artifact.folder)
        self.number = 0  # grows with every switch
        self.trouble = ""  # why the last switch did not happen, without paths and passwords
        self.refused = 0  # switches that did not happen
        self._options, self._device = options, device
        self._lock = threading.Lock()
        self._switching = False

    def start(self) -> None:
        self.pipeline.start()

    def stop(self) -> None:
        with self._lock:
            self.pipeline.stop()
            self.pipeline.classifier.close()

    def wait(self, timeout: float) -> bool:
        """Until the source ended, or something failed; False after the timeout, or after a switch."""
        pipeline = self.pipeline
        if not pipeline.wait(timeout):
            return False
        if self._switching or pipeline is not self.pipeline:  # asked in this order: the new one is there before the flag goes
            time.sleep(0.05)
            return False
        return True

    def about(self) -> dict[str, str]:
        return {"source": source_name(self.sources[self.source]), "model": self.pipeline.classifier.artifact.manifest.name}

    def choices(self) -> dict[str, Any]:
        """What a page may choose from, without paths and passwords."""
        return {
            "sources": [source_name(spec) for spec in self.sources],
            "source_at": self.source,
            "artifacts": [folder.resolve().name for folder in self.artifacts],
            "artifact_at": self.artifact,
        }

    def switch(self, what: str, number: int) -> None:
        """`what`: 'source' or 'artifact', `number`: its place in the list. The old one goes on until the new one is open.

        What cannot be opened leaves everything as it is, and its reason in `trouble`.
        """
        count = {"source": len(self.sources), "artifact": len(self.artifacts)}.get(what, 0)
        if not 0 <= number < count:
            return
        with self._lock:  # somebody else may have asked for the same meanwhile
            if not self.pipeline.running or number == getattr(self, what):
                return
            try:
                self._to_source(number) if what == "source" else self._to_artifact(number)
                self.trouble = ""
            except DtkdEdgeError as error:
                place = str(self.sources[number] if what == "source" else self.artifacts[number])
                name = source_name(place) if what == "source" else Path(place).resolve().name
                self.trouble = error.message.replace(place, name) if "/" in place else error.message
                self.refused += 1
                say(f"not switched: {error.message}")

    def _to_source(self, number: int) -> None:
        grabber = Grabber(open_source(self.sources[number], self._options))
        grabber.start()
        self._replace(Pipeline(self.pipeline.classifier, grabber, self.pipeline.settings))
        self.source = number
        self.number += 1

    def _to_artifact(self, number: int) -> None:
        classifier, before = Classifier(Artifact.open(self.artifacts[number]), device=self._device), self.pipeline.classifier
        try:
            new = Pipeline(classifier, self.pipeline.grabber, self.pipeline.settings)
            new.warm_up()
        except BaseException:
            classifier.close()
            raise
        self._replace(new)
        before.close()
        self.artifact = number
        self.number += 1

    def _replace(self, new: Pipeline) -> None:
        old = self.pipeline
        new.listeners = old.listeners
        self._switching = True
        try:
            old.stop(grabber=new.grabber is not old.grabber)  # first: the model is used by one thread at a time
            new.start()
            self.pipeline = new
        finally:
            self._switching = False


def source_name(spec: str) -> str:
    """How a page names a source: no folder, no name or password, no query."""
    if "://" in spec:
        try:
            parts = urlsplit(spec)
            return (parts.hostname or "") + parts.path.rstrip("/")
        except ValueError:  # no address at all: it will not open either
            return "stream"
    if spec.isdigit():
        return f"camera {spec}"
    return WORDS.get(spec, Path(spec).name)


def artifacts_beside(folder: Path) -> list[Path]:
    """The artefact folders that lie beside one, and itself, in the order of their names."""
    return sorted({folder, *(other.parent for other in folder.parent.glob(f"[!.]*/{MANIFEST}"))})


def local_sources() -> list[str]:
    """What this machine has without being asked: its cameras (the nodes that give pictures), the test pattern, the page."""
    nodes = sorted(Path("/sys/class/video4linux").glob("video*/index"))
    cameras = [node.parent.name.removeprefix("video") for node in nodes if node.read_text().strip() == "0"]
    return [*cameras, "pattern", "browser"]
