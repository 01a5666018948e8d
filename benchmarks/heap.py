"""What it brings to keep freed memory: a training step with and without, in processes that take turns.

    python -m dtkd_edge.benchmarks.heap [RECIPE] [--set A.B=V] [--rounds 5] [--steps 8]

Each round starts one process with the C library's own rule and one that keeps what it frees (train/memory.py), and times the
steps and forward passes of `dtkd_edge.train.step_cost` in CPU time on one thread. Printed are the median over rounds of the
ratio, with the smallest and largest, and the largest memory of either.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import numpy as np

from dtkd_edge import recipe_reader as recipes
from dtkd_edge.exits import reported

_CHILD = """
import json, resource, sys, time
import torch
from dtkd_edge import recipe_reader
from dtkd_edge.train import engine
from dtkd_edge.train.step_cost import measure
if sys.argv[1] == "default":
    engine.keep_freed_memory = lambda: False
torch.set_num_threads(1)
recipe = recipe_reader.load(sys.argv[2], json.loads(sys.argv[4]))
seconds, _ = measure(recipe, engine.Engine("cpu", recipe.precision), int(sys.argv[3]), 8, time.process_time)
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"seconds": seconds, "mb": usage.ru_maxrss / 1024}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="quickstart")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    recipes.load(options.recipe, options.overrides)  # what is wrong with it is said once, and not by a child

    def once(rule: str) -> dict[str, float]:
        arguments = [rule, options.recipe, str(options.steps), json.dumps(options.overrides)]
        done = subprocess.run([sys.executable, "-c", _CHILD, *arguments], check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout)
        return {name: 1e3 * float(np.median(values)) for name, values in found["seconds"].items()} | {"MB": found["mb"]}

    rounds = []
    for number in range(options.rounds):
        order = ("default", "kept") if number % 2 else ("kept", "default")
        rounds.append({rule: once(rule) for rule in order})
    print(f"{options.recipe}: CPU ms of one thread, {options.rounds} rounds of {options.steps} steps")
    print(f"{'':12s} {'default':>9s} {'kept':>9s}   default / kept")
    for name in rounds[0]["kept"]:
        default, kept = (np.array([r[rule][name] for r in rounds]) for rule in ("default", "kept"))
        ratio = default / kept
        spread = f"{np.median(ratio):.2f} ({ratio.min():.2f}-{ratio.max():.2f})"
        print(f"{name:12s} {np.median(default):9.1f} {np.median(kept):9.1f}   {spread}")


if __name__ == "__main__":
    reported(main)
