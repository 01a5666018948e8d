"""How a command ends: an error as its two lines and its exit code. No torch.

The console script and the modules that are run by `python -m` go through `reported`.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from dtkd_edge.errors import DtkdEdgeError

EXTRAS = {  # which extra brings a library that the base does not have
    "train": ("torch", "torchvision", "timm", "onnx", "onnxscript", "safetensors", "tensorboard"),
    "openvino": ("openvino",),
    "demo": ("starlette", "uvicorn", "websockets", "av"),
    "tensorrt": ("tensorrt", "cuda"),
}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a command that can go on: `str()` says how."""


@contextmanager
def goes_on(how: str) -> Iterator[None]:
    """Ctrl-C in this block is said together with how the command goes on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Interrupted(how) from stop


@contextmanager
def ended_by_others() -> Iterator[None]:
    """Ctrl-C: one line, exit code 130. A reader of standard output that left (`| head`): not a word, 141, as others do."""
    try:
        yield
        print(end="", flush=True)  # a reader that left is noticed now, not by the interpreter on its way out
    except KeyboardInterrupt as stop:
        print(f"interrupted: {stop}" if isinstance(stop, Interrupted) else "interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        if not any(_reader_left(stream) for stream in (sys.stdout, sys.stderr)):
            raise  # another pipe's
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be written
        sys.exit(128 + signal.SIGPIPE)


def _reader_left(stream: Any) -> bool:
    """Whether nobody can read any more what is written there."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # closed, or no file of the system
        return False


def reported(call: Callable[[], int | None]) -> None:
    """Run a command; what it raises becomes two lines on standard error and the exit code of errors.py.

    --debug, wherever it stands among the arguments, is taken out of them and shows the traceback besides.
    """
    debug = "--debug" in sys.argv[1:]
    sys.argv[1:] = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        with ended_by_others():
            code = call()
    except DtkdEdgeError as error:
        _fail(error.message, error.hint, error.exit_code, debug)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library == "dtkd_edge":
            _fail(f"unexpected: {error}", "a defect of dtkd-edge: please report it with the output of --debug", 1, debug)
        extra = next((name for name, brought in EXTRAS.items() if library in brought), "all")
        _fail(f"the Python library {library} is not installed", f'pip install "dtkd-edge[{extra}]"', 4, debug)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG):
            _fail(f"unexpected: {error}", "a defect of dtkd-edge: please report it with the output of --debug", 1, debug)
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{os.strerror(error.errno or 0).lower()}", "give another path, or make room there", 3, debug)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        _fail(f"unexpected: {said}", "a defect of dtkd-edge: please report it with the output of --debug", 1, debug)
    else:
        if code:
            sys.exit(code)


def _fail(message: str, hint: str, code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    with suppress(BrokenPipeError):  # the code says it still
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        if hint:
            print(f"  fix: {' '.join(hint.split())}", file=sys.stderr)
    sys.exit(code)
