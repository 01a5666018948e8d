"""The trainings of a comparison: one after the other or side by side, and how far they are."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from dtkd_edge.console import Bar, progress, say
from dtkd_edge.errors import DtkdEdgeError
from dtkd_edge.exits import Interrupted
from dtkd_edge.recipe import Recipe
from dtkd_edge.recipe_reader import HELD_OUT, quoted
from dtkd_edge.train.children import Children, sigterm_unwinds

TEACHERS = "teachers"
GOES_ON = "the same command goes on after the last checkpoints"
LOOK_EVERY = 1.0  # seconds
SAY_EVERY = 600.0  # seconds between two lines where there is no terminal to draw a bar on


@dataclass(frozen=True)
class Job:
    """One training in a process of its own; epochs: of all its phases together."""

    seed: int
    method: str  # or TEACHERS
    folder: Path
    overrides: tuple[str, ...]
    epochs: int

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.method}"

    @property
    def finished(self) -> bool:
        return (self.folder / "metrics.json").is_file()

    def held_out(self) -> Path | None:
        """What the seed's teachers, or another run of it, held out: a new run holds out the same, whatever was added since."""
        if (self.folder / "recipe.yaml").is_file():  # it goes on with its own
            return None
        others = sorted(run for run in self.folder.parent.glob("*") if run.name != TEACHERS)
        lists = [run / HELD_OUT for run in (self.folder.parent / TEACHERS, *others)]
        return next((listed.absolute() for listed in lists if listed.is_file()), None)

    def arguments(self, recipe: str) -> list[str]:
        listed = self.held_out()
        overrides = self.overrides if listed is None else (f"data.held_out={quoted(listed)}", *self.overrides)
        sets = [part for override in overrides for part in ("--set", override)]
        return ["train", recipe, *sets, "--out", str(self.folder), "--resume"]


def epochs_of(recipe: Recipe) -> int:
    """Of one job: of its teachers where it trains them alone, else of its student."""
    if recipe.phases == "all":
        return recipe.train.epochs
    teachers = (recipe.teachers.cnn, recipe.teachers.vit)
    return sum(teacher.train.epochs for teacher in teachers if teacher is not None and teacher.train is not None)


def run_jobs(recipe: str, jobs: Sequence[Job], at_once: int) -> None:
    """Teachers first; a seed's methods as soon as its teachers are there. What is finished is not trained again. However this
    ends, no training goes on behind it."""
    threads = max(len(os.sched_getaffinity(0)) // at_once, 1)
    if (given := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():  # a lower number is the user's own choice
        threads = max(min(threads, int(given)), 1)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    state = _State(jobs, at_once)
    teachers = {job.seed: job for job in jobs if job.method == TEACHERS}
    waiting: dict[Future[None], Job] = {}
    failed = Event()
    with sigterm_unwinds(), ThreadPoolExecutor(at_once) as pool, Children() as children, _shown(state) as look:

        def start(job: Job) -> None:
            if failed.is_set():
                return
            state.running.append(job)
            try:
                _train(job, recipe, children, environment)
            except DtkdEdgeError:
                failed.set()  # before this thread takes the next one
                raise
            finally:
                state.running.remove(job)

        def submit(ready: Callable[[Job], bool]) -> None:
            for job in jobs:
                if ready(job) and not job.finished:
                    waiting[pool.submit(start, job)] = job

        def submit_students(seed: int) -> None:
            submit(lambda job: job.method != TEACHERS and job.seed == seed)

        try:
            submit(lambda job: job.method == TEACHERS)
            for seed in dict.fromkeys(job.seed for job in jobs):
                if seed not in teachers or teachers[seed].finished:
                    submit_students(seed)
            while waiting:
                done, _ = wait(waiting, timeout=LOOK_EVERY, return_when=FIRST_COMPLETED)
                for future in done:
                    job = waiting.pop(future)
                    future.result()
                    if not job.finished:  # left out: another has failed
                        continue
                    look(job)
                    if job.method == TEACHERS:
                        submit_students(job.seed)
                look(None)
        except DtkdEdgeError as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if state.running:
                say(f"failed: {error.message}; waiting for the trainings that still run")
                wait([future for future in waiting if not future.cancelled()])  # nobody is told of those
            raise
        except KeyboardInterrupt as stop:
            raise Interrupted(GOES_ON) from stop
        except SystemExit:  # SIGTERM
            say(f"interrupted: {GOES_ON}")
            raise


def _train(job: Job, recipe: str, children: Children, environment: dict[str, str]) -> None:
    say(str(job))
    code, said = children.run(job.arguments(recipe), environment)
    if code == 0:
        return
    lines = [line for line in said.splitlines() if line.strip()]
    error = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[-1] if lines else "?")
    if code < 0:  # its last words are of its progress
        error = f"ended by {signal.Signals(-code).name}"
    own = next((line.removeprefix("  fix: ") for line in lines if line.startswith("  fix: ")), "mend it")
    failure = DtkdEdgeError(f"seed {job.seed}, {job.method}: {error}", f"{own}; the same command then goes on from here")
    failure.exit_code = code if code > 0 else 1
    raise failure


@dataclass
class _State:
    """How far the trainings are, out of what their logs say."""

    jobs: Sequence[Job]
    at_once: int
    running: list[Job] = field(default_factory=list)

    def line(self) -> str:
        """'3 of 15 done; seed 0: dtkd, epoch 12 of 40; about 25 min left'."""
        running = list(self.running)
        parts = [f"{sum(job.finished for job in self.jobs)} of {len(self.jobs)} done"]
        parts += [f"{job}, epoch {len(epoch_seconds(job.folder))} of {job.epochs}" for job in running if not job.finished]
        left = self.seconds_left()
        return "; ".join(parts if not left else [*parts, f"about {duration(left)} left"])

    def seconds_left(self) -> float | None:
        """By the pace of each training so far, of the same method's with other seeds, or of all students; None while no student
        has finished an epoch."""
        spent = {job: epoch_seconds(job.folder) for job in self.jobs}
        of_kind: dict[str, list[float]] = {}
        for job, seconds in spent.items():
            of_kind.setdefault(job.method, []).extend(seconds)
        students = [second for kind, seconds in of_kind.items() if kind != TEACHERS for second in seconds]
        left = 0.0
        for job in self.jobs:
            if not job.finished:
                known = spent[job] or of_kind[job.method] or (students if job.method != TEACHERS else [])
                if not known:
                    return None
                left += max(job.epochs - len(spent[job]), 0) * float(np.mean(known))
        return left / min(self.at_once, max(sum(not job.finished for job in self.jobs), 1))


def epoch_seconds(run: Path) -> list[float]:
    """Of every finished epoch of a run, in all its phases."""
    try:
        lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:  # it is being written
            continue
        if "epoch" in entry and "seconds" in entry:
            found.append(float(entry["seconds"]))
    return found


def duration(seconds: float) -> str:
    """'40 s', '25 min', '3.5 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def mean_top1(row: dict[str, Any]) -> float:
    """Over the heads of one network's scores in metrics.json."""
    return float(np.mean([value for key, value in row.items() if key.endswith("_top1")]))


@contextmanager
def _shown(state: _State) -> Iterator[Callable[[Job | None], None]]:
    """What to call again and again, and with each job that has ended: a bar on a terminal, elsewhere a line now and then."""
    last = time.monotonic()
    drawn = sys.stderr.isatty()
    with progress("trainings", len(state.jobs), own_time=True) as bar:
        shown = 0

        def look(ended: Job | None) -> None:
            nonlocal last, shown
            if ended is None and not drawn and time.monotonic() - last < SAY_EVERY:
                return
            shown = _advance(bar, shown, state)
            line = state.line()
            bar.note(line.partition("; ")[2])
            if ended is not None:
                student = json.loads((ended.folder / "metrics.json").read_text(encoding="utf-8")).get("student")
                score = "" if student is None else f", top-1 {mean_top1(student):.3f}"
                say(f"{ended} is done{score} ({line})")
            elif not drawn:
                say(line)
            last = time.monotonic()

        look(None)
        yield look


def _advance(bar: Bar, shown: int, state: _State) -> int:
    done = sum(job.finished for job in state.jobs)
    bar.advance(done - shown)
    return done
