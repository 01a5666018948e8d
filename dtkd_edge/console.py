"""Where words go: results to standard output, progress and messages to standard error. No torch."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dtkd_edge.files import check_output, write_text

if TYPE_CHECKING:
    from rich.table import Table

PIPE_WIDTH = 160  # characters of a table in a pipe or a file


def say(text: str) -> None:
    """One line for the person, never for a program. Bytes of a file name that are no UTF-8 are shown escaped."""
    print(text.encode("utf-8", "backslashreplace").decode(), file=sys.stderr, flush=True)


def counted(number: int, one: str, several: str = "") -> str:
    """ "1 clip", "3 clips"; several: where an s at the end does not make it."""
    return f"{number} {one if number == 1 else several or one + 's'}"


def output_width() -> int:
    """Characters of a line on standard output."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH


def print_table(table: Table) -> None:
    """A table on standard output; wide and plain where that is no terminal."""
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH, no_color=True)
    if table.title:  # as wide as its title, which would be folded over a narrow table
        table.min_width = min(len(str(table.title)), console.width)
    with console.capture() as lines:
        console.print(table)
    print(lines.get(), end="", flush=True)  # rich would end the program itself where the reader has left


def write_result(value: Any, where: str) -> None:
    """JSON to a file, or to standard output for '-'. A list becomes JSON lines."""
    lines = [json.dumps(v, ensure_ascii=False) for v in value] if isinstance(value, list) else [json.dumps(value, indent=2)]
    text = "\n".join(lines) + "\n"
    if where == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_text(Path(where), text)


def check_result(where: str | None) -> None:
    """Before a long work: InputError where `write_result` could not write in the end."""
    if where is not None and where != "-":
        check_output("--json", Path(where))


class Bar(Protocol):
    def advance(self, steps: int = 1) -> None: ...
    def note(self, text: str) -> None: ...


class _Silent:
    def advance(self, steps: int = 1) -> None: ...
    def note(self, text: str) -> None: ...


@contextmanager
def progress(title: str, total: int, hidden: bool = False, *, own_time: bool = False) -> Iterator[Bar]:
    """A bar on a terminal's standard error; nothing elsewhere (say the result as a line instead), nor where it is hidden.
    own_time: the caller's notes say what time is left; steps of very different lengths tell nothing of it."""
    if hidden or not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *([] if own_time else [TimeRemainingColumn()]),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title, total=total, note="")

        class _Rich:
            def advance(self, steps: int = 1) -> None:
                bars.advance(task, steps)

            def note(self, text: str) -> None:
                bars.update(task, note=text)

        yield _Rich()
