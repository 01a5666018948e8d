"""`dtkd-edge compare`: the same student under several methods, the same teachers, splits and seeds for all; resumable.

A method is a name, or a name with settings of its own below `distill`: `dtkd@sdd=0`, `dtkd@branch.target=cnn@rkd=0`. That is how
a method is taken apart: one row for each part switched off or exchanged.

OUT/seed-S/teachers/     one run that trains both teachers and nothing else
OUT/seed-S/METHOD/       one run per method, which reads those teachers
OUT/compare.json         every run's score, means and paired differences
OUT/compare.csv, .html   the scores, one line per run; the same as a page with plots
"""

from __future__ import annotations

import io
import json
import math
import re
import shlex
import sys
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from dtkd_edge import recipe_reader as recipes
from dtkd_edge.console import check_result, counted, print_table, say, write_result
from dtkd_edge.data.catalogue import GENERATED, open_split
from dtkd_edge.distill.methods import LOSSES, find_method, needed_teachers
from dtkd_edge.errors import RecipeError, UsageError
from dtkd_edge.files import write_json, write_text
from dtkd_edge.recipe import Recipe
from dtkd_edge.runs import COMPARISON, RUNS, check_out
from dtkd_edge.train.compare_report import cells, columns, compare_page, csv_text
from dtkd_edge.train.jobs import TEACHERS, Job, epochs_of, mean_top1, run_jobs

METHODS = "ce,kd-vit,kd-cnn,kd-mean,dtkd"
_OF_STUDENTS = ("student", "train", "distill")  # sections that teachers are not trained with


def compare(
    recipe: str,
    *,
    methods: str = METHODS,
    seeds: int | str = 3,
    overrides: list[str] | None = None,
    out: Path | None = None,
    jobs: int = 1,
    json_file: str | None = None,
    resplit: bool = False,
) -> dict[str, Any]:
    """Train every method with every seed; print mean ± standard error and paired differences to `dtkd`, or to the last method.

    seeds: how many (5 is 0 to 4), or which: "5-9", "0,3,7". jobs: trainings side by side, each with its share of the CPU
    cores. What has finished before is not trained again. resplit: each seed holds out other clips for validation, from the
    teachers that are trained too (repeated hold-out): on few clips, which ones are held out matters more than anything else.
    """
    numbers = seed_numbers(seeds)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names or len(set(names)) != len(names):
        raise UsageError(f"--methods {methods}: expected different methods, comma separated", f"for example: {METHODS}")
    variants = {name: settings(name) for name in names}
    base = list(overrides or [])
    _refuse_what_compare_gives(base)
    config = recipes.load(recipe, base)
    needed = {name: needed_teachers(recipes.load(recipe, [*base, *sets]).distill) for name, sets in variants.items()}
    trained = sorted(set().union(*needed.values()))
    folder = out or RUNS / f"compare-{config.name}"
    check_out(folder, COMPARISON)
    for teacher in trained:
        if getattr(config.teachers, teacher) is None:
            raise RecipeError(
                f"{recipe}: has no teachers.{teacher}", "add it to the recipe, or leave out the methods that read it"
            )

    jobs_to_do = _jobs(recipe, base, folder, numbers, variants, needed, config, resplit)
    for job in jobs_to_do:
        _refuse_another_run(job, recipe)
    if not all(job.finished for job in jobs_to_do):
        if resplit:
            _check_resplit(recipe, base, numbers)
        _check_methods(recipe, base, variants, folder / f"seed-{numbers[0]}" / TEACHERS)
    check_result(json_file)
    run_jobs(recipe, jobs_to_do, jobs)
    result = summarise(folder, names, numbers, trained)
    result |= {"recipe": recipe, "resplit": resplit, "overrides": base, "command": shlex.join(["dtkd-edge", *sys.argv[1:]])}
    write_json(folder / "compare.json", result)
    write_text(folder / "compare.csv", csv_text(result))
    write_text(folder / "compare.html", compare_page(result))
    if json_file:
        write_result(result, json_file)
    if json_file != "-":
        print_table(table(result))
        say(f"all runs: {folder}   report: {folder / 'compare.html'}")
    return result


def _jobs(
    recipe: str,
    base: list[str],
    folder: Path,
    seeds: list[int],
    variants: dict[str, tuple[str, ...]],
    needed: dict[str, set[str]],
    config: Recipe,
    resplit: bool,
) -> list[Job]:
    """All trainings: each seed's teachers, where a method reads any, then its methods."""
    # Both teachers where the recipe has both, so that methods can be added to a finished comparison.
    reads_all = "kd-vit" if config.teachers.cnn is None else "kd-cnn" if config.teachers.vit is None else "dtkd"

    def job(seed: int, name: str, own: tuple[str, ...]) -> Job:
        overrides = (*base, f"seed={seed}", *([f"data.seed={seed}"] if resplit else []), *own)
        return Job(seed, name, folder / f"seed-{seed}" / name, overrides, epochs_of(recipes.load(recipe, overrides)))

    def given(seed: int, name: str) -> list[str]:
        run = (folder / f"seed-{seed}" / TEACHERS).resolve()
        sets = [
            f"teachers.{teacher}.{key}"
            for teacher in sorted(needed[name])
            for key in (f"weights={recipes.quoted(run / TEACHERS / f'{teacher}.safetensors')}", "train=null")
        ]
        if needed[name] and config.teachers.views is not None and config.teachers.cache is None:
            sets.append(f"teachers.cache={recipes.quoted(run / 'cache')}")
        return sets

    jobs = []
    for seed in seeds:
        if any(needed.values()):
            jobs.append(job(seed, TEACHERS, (f"distill.method={reads_all}", "phases=teachers")))
        jobs += [job(seed, name, ("phases=all", *sets, *given(seed, name))) for name, sets in variants.items()]
    return jobs


def _refuse_what_compare_gives(overrides: list[str]) -> None:
    """UsageError for a value that every training gets its own of: it would be given in vain."""
    instead = {
        "seed": "use --seeds",
        "distill.method": "use --methods",
        "phases": "compare trains the teachers, then the students",
    }
    for key in (override.partition("=")[0].strip() for override in overrides):
        if key in instead:
            raise UsageError(f"--set {key}: compare gives each training its own", f"leave it out: {instead[key]}")


def _check_methods(recipe: str, base: list[str], variants: dict[str, tuple[str, ...]], teachers_run: Path) -> None:
    """What any of the trainings would refuse, before the first one begins."""
    from dtkd_edge.train.phases import check_models  # with torch, which a finished comparison does without

    configs = [recipes.load(recipe, [*base, *sets]) for sets in variants.values()]
    for line in check_models(configs[0], teachers_run, [config.distill for config in configs]):
        say(line)


def _check_resplit(recipe: str, overrides: list[str], seeds: list[int]) -> None:
    """UsageError where `data.seed` does not choose the validation clips; a line where seeds share them, or a teacher saw them."""
    if any(override.partition("=")[0].strip() == "data.seed" for override in overrides):
        raise UsageError("--set data.seed: --resplit gives each seed its own", "leave one of the two out")
    configs = [recipes.load(recipe, [*overrides, f"data.seed={seed}"]) for seed in seeds]
    for name in ("cnn", "vit"):
        teacher = getattr(configs[0].teachers, name)
        if teacher is not None and teacher.train is None:
            say(f"teachers.{name} is not trained here: if it saw these clips before, what --resplit holds out is not new to it")
    if configs[0].data.kind in GENERATED:  # each seed has clips of its own
        if configs[0].data.root is not None:
            raise UsageError("--resplit: each seed generates clips of its own, in one folder", "leave data.root out")
        return
    held: dict[frozenset[Any], list[int]] = {}
    for number, (seed, config) in enumerate(zip(seeds, configs, strict=True)):
        with redirect_stderr(io.StringIO()) if number else nullcontext():  # what the lists deserve to be told is said once
            one = open_split(config.data, "val")
        clips = frozenset(
            (clip.path, clip.start, clip.end, clip.frames, clip.member) for clip in (one[i] for i in range(len(one)))
        )
        held.setdefault(clips, []).append(seed)
    if len(held) == 1 < len(seeds):
        raise UsageError(
            "--resplit: every seed holds out the same clips: the data set says itself which, or has too few groups",
            "leave it out, or join its lists to one: --set data.kind=csv --set data.root=ROOT --set data.train=ONE.csv",
        )
    for same in held.values():
        if len(same) > 1:
            say(f"seeds {', '.join(map(str, same))} hold out the same clips")


def seed_numbers(seeds: int | str) -> list[int]:
    """5 and "5" → 0 … 4; "5-9" → 5 … 9; "0,3,7" as it says. UsageError for anything else, or a seed twice."""
    text = str(seeds).replace(" ", "")
    if text.isdecimal() and int(text) > 0:
        return list(range(int(text)))
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            break
        numbers.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    else:
        if numbers and len(set(numbers)) == len(numbers) and text != "0":
            return numbers
    raise UsageError(f"--seeds {seeds}: expected how many, or which ones, each once", "for example 5, 5-9 or 0,3,7")


def settings(name: str) -> tuple[str, ...]:
    """The overrides that a row of the comparison stands for: "dtkd@sdd=0" → distill.method=dtkd, distill.sdd=0."""
    method, *own = name.split("@")
    find_method(method)
    for setting in own:
        if not re.fullmatch(r"[a-z_.]+=[\w.+-]+", setting) or setting.startswith("method="):
            raise UsageError(f"--methods {name}: expected METHOD@KEY=VALUE", "KEY is one below distill: dtkd@branch.target=cnn")
    return (f"distill.method={method}", *(f"distill.{setting}" for setting in own))


def _refuse_another_run(job: Job, recipe: str) -> None:
    """UsageError where the job's folder holds a run of other values, which would be taken for this one."""
    saved = job.folder / "recipe.yaml"
    if not saved.is_file():
        return
    lacking = recipes.missing_keys(saved)
    if job.method == TEACHERS:
        lacking = [key for key in lacking if key.partition(".")[0] not in _OF_STUDENTS]
    another = "give another --out, or remove that folder"
    if lacking:
        raise UsageError(f"{job.folder}: holds a run of an earlier version, whose recipe has no {lacking[0]}", another)
    if job.finished and job.method != TEACHERS:
        losses = json.loads((job.folder / "metrics.json").read_text(encoding="utf-8")).get("losses")
        if losses != LOSSES:
            raise UsageError(f"{job.folder}: holds a run of another version, whose losses were others", another)
    found = recipes.load(saved).model_dump()
    wanted = recipes.load(recipe, job.overrides).model_dump()
    recipes.forget_given_list(found, wanted)
    if job.method == TEACHERS:
        for values in (found, wanted):
            _forget_the_student(values)
    if other := recipes.differences(found, wanted):
        raise UsageError(f"{job.folder}: holds a run with {recipes.first_of(other)}", another)


def _forget_the_student(values: dict[str, Any]) -> None:
    """What teachers are not trained with: so that one comparison can go on with the teachers of another."""
    for section in _OF_STUDENTS:
        del values[section]
    for section, key in (("data", "student_clips"), ("teachers", "views"), ("teachers", "cache")):
        del values[section][key]


def summarise(folder: Path, names: list[str], seeds: list[int], teachers: list[str]) -> dict[str, Any]:
    """Scores per seed, mean, standard deviation, standard error, and the paired difference to `dtkd`, or to the last method."""

    def score(run: Path, *keys: str) -> float:
        value: Any = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        for key in keys:
            value = value[key]
        return mean_top1(value)

    rows: dict[str, Any] = {}
    for teacher in teachers:
        scores = [score(folder / f"seed-{s}" / "teachers", "teachers", teacher) for s in seeds]
        rows[f"teacher {teacher}"] = {"top1": scores, **spread(scores)}
    reference = "dtkd" if "dtkd" in names else names[-1]
    ours = [score(folder / f"seed-{s}" / reference, "student") for s in seeds]
    for name in names:
        scores = [score(folder / f"seed-{s}" / name, "student") for s in seeds]
        rows[name] = {"top1": scores, **spread(scores)}
        if name != reference:
            rows[name]["paired"] = spread([a - b for a, b in zip(ours, scores, strict=True)])
    return {"seeds": seeds, "reference": reference, "rows": rows}


def spread(values: list[float]) -> dict[str, float | None]:
    """mean, std (sample) and se (std / √n); none of one value has a spread."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std, "se": None if std is None else std / math.sqrt(len(values))}


def table(result: dict[str, Any]) -> Table:
    each = ", each with clips of its own held out" if result.get("resplit") else ""
    out = Table(
        title=f"{result['recipe']}: validation top-1, {counted(len(result['seeds']), 'seed')}{each}, mean ± standard error"
    )
    for number, column in enumerate(columns(result["reference"])):
        out.add_column(column, justify="right" if number else "left")
    for row in cells(result):
        out.add_row(*row)
    return out
