from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dtkd_edge.console import counted

Main = Callable[..., tuple[int, str, str]]
Run = Callable[..., "subprocess.CompletedProcess[str]"]

COMMANDS = ["train", "eval", "export", "bench", "predict", "demo", "models", "doctor", "data"]


def test_help_names_every_command_and_cuts_no_summary(dtkd_edge: Run) -> None:
    done = dtkd_edge("--help", env={"COLUMNS": "80"})
    assert done.returncode == 0
    for command in COMMANDS:
        assert f" {command} " in done.stdout
    for said in (done.stdout, dtkd_edge("data", "-h", env={"COLUMNS": "80"}).stdout):
        listed = said.partition("Commands:\n")[2].splitlines()
        assert len(listed) >= 3 and all(line.endswith(".") and "..." not in line and len(line) <= 80 for line in listed), said


@pytest.mark.parametrize("command", [*COMMANDS, "data synth", "data check"])
def test_every_command_explains_itself(main: Main, command: str) -> None:
    code, out, err = main(*command.split(), "--help")
    assert code == 0
    assert main(*command.split(), "-h") == (code, out, err)
    assert "Usage" in out
    assert err == ""


def test_version(dtkd_edge: Run) -> None:
    assert re.fullmatch(r"dtkd-edge \d+\.\d+\.\d+\n", dtkd_edge("--version").stdout)


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["train", "--nonsense"],
        ["train", "a", "b"],
        ["export", "--batch", "0"],
        ["export", "--batch", "x"],
        ["predict"],
    ],
)
def test_wrong_usage_exits_2(main: Main, args: list[str]) -> None:
    code, out, err = main(*args)
    assert code == 2
    assert out == ""
    assert err and "Traceback" not in err


def test_wrong_usage_exits_2_as_typed(dtkd_edge: Run) -> None:
    done = dtkd_edge("train", "--nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--nonsense" in done.stderr and "Traceback" not in done.stderr


BAD_INPUT = [
    (["train", "nowhere"], "nowhere: no recipe of that name", "shipped recipes: "),
    (["train", "nowhere.yaml"], "nowhere.yaml: no such recipe file", "shipped recipes: "),
    (["train", "--set", "trian.epochs=1"], "recipe quickstart: unknown key trian", "known keys there: "),
    (["train", "--set", "train.epochs=many"], "train.epochs: Input should be a valid integer", "--set"),
    (["train", "--set", "train.lr=-1"], "train.lr: Input should be greater than 0", "--set"),
    (["train", "--set", "train.lr"], "--set train.lr: expected a.b=value", "for example"),
    (["train", "--set", "student.model=tsm_tinny"], "tsm_tinny", ""),
    (["export"], "no finished run below ./runs", "dtkd-edge train"),
    (["export", "nowhere"], "nowhere: not a run folder", "dtkd-edge train"),
    (["bench"], "no finished run below ./runs", "dtkd-edge train"),
    (["bench", "nowhere"], "nowhere: no artefact here", "dtkd-edge export"),
    (["eval", "nowhere"], "nowhere", ""),
    (["predict", "nowhere", "clip.mp4"], "nowhere: no artefact here", "dtkd-edge export"),
    (["demo", "nowhere", "--source", "pattern", "--view", "none"], "nowhere", ""),
    (["models", "tsm_tinny"], "tsm_tinny", "dtkd-edge models"),
]


@pytest.mark.parametrize(("args", "message", "hint"), BAD_INPUT, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_bad_input_exits_3_with_two_lines(main: Main, tmp_path: Path, args: list[str], message: str, hint: str) -> None:
    code, out, err = main(*args)
    assert code == 3, err
    assert out == ""
    error, fix = err.splitlines()[-2:]
    assert error.startswith("error: ")
    assert message in error
    assert fix.startswith("  fix: ")
    assert hint in fix
    assert not list((tmp_path / "here").iterdir()), "a refused command leaves nothing behind"


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["eval", "--confusion", "x.pdf"], 2, "--confusion x.pdf: writes .png or .csv only"),
        (["data", "check", "--sheet", "x.foo"], 2, "--sheet x.foo: writes .png only"),
        (["demo", "--record", "rec.AVI"], 2, "--record rec.AVI: writes .mp4 only"),
        (["eval", "--confusion", "file/x.png"], 3, "--confusion file/x.png: a file stands where a folder is needed"),
        (["eval", "--json", "file/x.json"], 3, "--json file/x.json: a file stands where a folder is needed"),
        (["eval", "--splits", "1", "--json", "/proc/x.json"], 3, "--json /proc/x.json: not writable"),
        (["data", "check", "--sheet", "/proc/x.png"], 3, "--sheet /proc/x.png: not writable"),
        (["data", "check", "--json", "."], 3, "--json .: is a folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_said_before_the_work(main: Main, args: list[str], code: int, message: str) -> None:
    Path("file").write_text("")
    ended, out, err = main(*args)
    error, fix = err.splitlines()
    assert (ended, out, error) == (code, "", f"error: {message}")
    assert fix.startswith("  fix: ") and "--out" not in fix


@pytest.mark.parametrize(
    "command", [["train"], ["train", "hmdb51", "--set", "data.root=.", "--splits", "1"], ["compare"]], ids=" ".join
)
def test_a_training_writes_into_no_folder_of_other_files_and_no_file(main: Main, command: list[str]) -> None:
    clip, file = Path("my clips/wave/1.mp4"), Path("mk.py")
    clip.parent.mkdir(parents=True)
    clip.write_bytes(b"a video")
    file.write_bytes(b"a file")
    for out, code, said in (
        (clip.parents[1], 2, "my clips: holds other folders or videos, and no run"),
        (file, 3, "a file stands where a folder is needed"),
        (file / "below", 3, "a file stands where a folder is needed"),
    ):
        ended, _, err = main(*command, "--out", out)
        assert (ended, said in err) == (code, True), err
        assert "--out" in err.splitlines()[-1] or code == 3
    assert {path for path in Path().rglob("*") if path.is_file()} == {clip, file}


def test_one_is_no_plural() -> None:
    said = [counted(number, "class", "classes") for number in (0, 1, 2)] + [counted(1, "clip"), counted(3, "clip")]
    assert said == ["0 classes", "1 class", "2 classes", "1 clip", "3 clips"]


def test_debug_shows_the_traceback_anywhere_on_the_line(main: Main) -> None:
    for args in (["--debug", "export"], ["export", "--debug"]):
        code, _, err = main(*args)
        assert code == 3
        assert "Traceback" in err
        assert err.splitlines()[-2].startswith("error: no finished run")


def test_a_library_that_is_not_installed_exits_4_with_the_install_line(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "dtkd_edge", "train"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert done.stderr.splitlines()[-2:] == [
        "error: the Python library torch is not installed",
        '  fix: pip install "dtkd-edge[train]"',
    ]


# Less than a buffer, more than a pipe holds, a line at a time, a table of rich's.
@pytest.mark.parametrize("arguments", [("--help",), ("models", "--markdown"), ("models",), ("table",)], ids="-".join)
def test_a_reader_that_leaves_early_is_no_error(arguments: tuple[str, ...], tmp_path: Path) -> None:
    code = f"""
import sys
from dtkd_edge import cli
@cli.app.command()
def table() -> None:
    from dtkd_edge.console import print_table
    from rich.table import Table
    for _ in range(9):
        print_table(Table("a", "b", title="t"))
sys.argv = ["dtkd-edge", *{arguments}]
cli.main()
"""
    read, write = os.pipe()
    os.close(read)  # nobody reads, from the start
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_ctrl_c_exits_130_without_a_traceback(tmp_path: Path) -> None:
    code = """
import sys, time
from dtkd_edge import cli
from dtkd_edge.exits import goes_on
@cli.app.command()
def wait() -> None:
    with goes_on("the same command goes on"):
        print("waiting", flush=True)
        time.sleep(60)
sys.argv = ["dtkd-edge", "wait"]
cli.main()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "interrupted: the same command goes on\n"


def test_another_pipe_that_breaks_is_an_error(tmp_path: Path) -> None:
    """Only a reader of the output that left is none."""
    code = """
from dtkd_edge import exits
def call():
    raise BrokenPipeError(32, "Broken pipe")
exits.reported(call)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: unexpected: [Errno 32] Broken pipe")


@pytest.mark.parametrize(
    ("command", "ended", "said"),
    [
        ("train --set train.lrr=1", 3, "unknown key train.lrr"),
        ("compare --set train.lrr=1", 3, "unknown key train.lrr"),
        ("train folder", 3, "data.root: kind folder needs the folder"),
        ("train folder --set data.root=nope", 3, "nope: no such folder"),
        ("train --splits 1 hmdb51 --set data.root=nope", 3, "nope: no such folder"),
        ("compare folder --set data.root=nope", 3, "nope: no such folder"),
        ("train --set data.kind=films", 3, "'films' is no known data set"),
        ("train --set distill.method=magic", 3, "magic: no method of that name"),
        ("train --out clips", 2, "clips: holds other folders or videos"),
        ("compare --out clips", 2, "clips: holds other folders or videos"),
        ("eval nope", 3, "nope: no such run"),
        ("eval --data nope", 3, "--data nope: no such folder"),
    ],
)
def test_what_is_plainly_wrong_is_refused_before_torch_is_imported(tmp_path: Path, command: str, ended: int, said: str) -> None:
    code = f"""
import sys
from dtkd_edge import cli
sys.argv = ["dtkd-edge", *{command.split()}]
try:
    cli.main()
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""
    (tmp_path / "clips" / "wave").mkdir(parents=True)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == [str(ended), "False"] and said in done.stderr, done.stdout + done.stderr
