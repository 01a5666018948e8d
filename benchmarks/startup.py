"""How long the command line takes to answer: `python -m dtkd_edge.benchmarks.startup`.

`dtkd-edge --help` against a bare `python -c "import typer"`, taking turns; and whether it imports torch.
Exits 1 beyond the limit.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from dtkd_edge.exits import reported

LIMIT = 2.0
ROUNDS = 15
HELP = [sys.executable, "-m", "dtkd_edge", "--help"]
BARE = [sys.executable, "-c", "import typer"]
HEAVY = ("torch", "numpy", "onnxruntime", "openvino", "pydantic", "rich")


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def imported() -> list[str]:
    """Which of HEAVY `--help` has imported when it ends."""
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print(*[m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr))\n"
        "sys.argv = ['dtkd-edge', '--help']\n"
        "from dtkd_edge.cli import main\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stderr.split()


def main(rounds: int = ROUNDS) -> int:
    times: dict[str, list[float]] = {"help": [], "bare": []}
    for command in (HELP, BARE):
        seconds(command)  # byte code and file cache
    for turn in range(rounds):
        for name, command in [("help", HELP), ("bare", BARE)][:: 1 if turn % 2 else -1]:
            times[name].append(seconds(command))
    for name, words in (("bare", 'python -c "import typer"'), ("help", "dtkd-edge --help")):
        ms = sorted(1e3 * t for t in times[name])
        print(f"{words:28s} median {statistics.median(ms):7.1f} ms   min {ms[0]:7.1f}   max {ms[-1]:7.1f}   n={len(ms)}")
    ratios = [a / b for a, b in zip(times["help"], times["bare"], strict=True)]
    ratio = statistics.median(ratios)
    heavy = imported()
    print(f"ratio {ratio:.2f} (limit {LIMIT:g}); of {', '.join(HEAVY)} it imports: {', '.join(heavy) or 'none'}")
    return 0 if ratio <= LIMIT and "torch" not in heavy else 1


if __name__ == "__main__":
    reported(main)
