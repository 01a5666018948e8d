"""What a run leaves to read: log.jsonl (one line per epoch and phase), TensorBoard events, lines or a bar for the person."""

from __future__ import annotations

import json
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from dtkd_edge.console import say
from dtkd_edge.files import disk_errors, write_text


class RunLog:
    """Appends to RUN/log.jsonl and RUN/tensorboard; a resumed phase first drops the lines of epochs that it will repeat.
    main: false in all processes of a training but one; they say nothing, and write no more than why they stopped."""

    def __init__(self, folder: Path, main: bool = True) -> None:
        self.path = folder / "log.jsonl"
        self.main = main
        self.events: Any = None
        self._skipped: set[str] = set()
        if not main:
            return
        from torch.utils.tensorboard import SummaryWriter

        self._drop_half_line()
        self.events = SummaryWriter(str(folder / "tensorboard"))

    def _drop_half_line(self) -> None:
        """Forget a last line that a kill left half written: the next one must not be glued to it."""
        if self.path.is_file() and not (text := self.path.read_bytes()).endswith(b"\n"):
            write_text(self.path, text[: text.rfind(b"\n") + 1].decode("utf-8"))

    def rewind(self, phase: str, finished: int) -> None:
        """Forget the epochs of a phase after the first `finished` ones (epochs are logged from 1 on)."""
        if not self.main or not self.path.is_file():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)

        def stays(line: str) -> bool:
            entry = json.loads(line)
            return entry.get("phase") != phase or entry.get("epoch", 0) <= finished

        kept = [line for line in lines if stays(line)]
        if len(kept) < len(lines):
            write_text(self.path, "".join(kept))

    def add_from_any(self, entry: dict[str, Any]) -> None:
        """A line by whichever process has it to say, the last one before it stops: its clips are known to it alone."""
        with nullcontext() if self.main else suppress(OSError):  # another host may not see the folder
            self._write(entry)

    def _write(self, entry: dict[str, Any]) -> None:
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def add(self, entry: dict[str, Any]) -> None:
        if not self.main:
            return
        self._write(entry)
        phase, epoch = entry.get("phase"), entry.get("epoch")
        if phase is not None and epoch is not None:
            for key, value in entry.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool) and key != "epoch":
                    self.events.add_scalar(f"{phase}/{key}", value, epoch)

    def note(self, text: str, **entry: Any) -> None:
        """A line for the person that also stands in the log."""
        if self.main:
            say(text)
        self.add({"note": text, **entry})

    def skipped(self, message: str, **entry: Any) -> None:
        """A clip that does not decode: in the log for every phase that meets it, for the person once."""
        text = f"skipped: {message}"
        if message in self._skipped:
            self.add({"note": text, **entry, "broken": message})
            return
        self._skipped.add(message)
        self.note(text, **entry, broken=message)

    def close(self) -> None:
        if self.main:
            self.events.close()
