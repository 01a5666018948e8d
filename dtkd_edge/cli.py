"""The command line: each command is a thin call of an ordinary function, imported only when it runs.

`dtkd-edge --help` must stay quick, so nothing heavier than typer is imported at the top.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from dtkd_edge import __version__
from dtkd_edge.errors import UsageError
from dtkd_edge.exits import ended_by_others, goes_on, reported
from dtkd_edge.export.targets import MODE_HELP, PRECISION_HELP, TARGET_HELP

if TYPE_CHECKING:
    from collections.abc import Callable

    from dtkd_edge.recipe import Recipe


class _Group(TyperGroup):
    """typer would end Ctrl-C and a closed pipe in its own way, without a word or with the wrong code."""

    def make_context(self, *args: Any, **more: Any) -> Any:  # --help and --version end here
        with ended_by_others():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        with ended_by_others():
            return super().invoke(ctx)


app = typer.Typer(
    name="dtkd-edge",
    cls=_Group,
    help="Train a light video CNN from a ViT and a CNN teacher, export it, measure it, run it live.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # drawing --help with rich costs twice its time
    context_settings={"help_option_names": ["-h", "--help"]},  # of every command below, too
)
data_app = typer.Typer(help="Check and make data sets.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")

_WHERE_IT_STOPPED = "the same command goes on where it stopped"
_METHODS = "ce,kd-vit,kd-cnn,kd-mean,dtkd"
Set = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=V", help="Change a recipe's value; repeatable.")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"dtkd-edge {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options that stand before the command."""


def _check_recipe(recipe: str, overrides: list[str] | None, begun: Callable[[Recipe], bool]) -> Recipe:
    """Refuse a mistyped recipe, or data that is not there, at once, before torch is imported: that takes seconds.

    begun: whether runs of it are there; these have recipes of their own, and need no data any more where they are finished.
    """
    from dtkd_edge.console import say
    from dtkd_edge.data.catalogue import check_root
    from dtkd_edge.distill.methods import find_method
    from dtkd_edge.recipe_reader import load

    config = load(recipe, overrides or [], **({"tell": say} if _speaks() else {}))
    find_method(config.distill.method)
    if not begun(config):
        check_root(config.data)
    return config


def _speaks() -> bool:
    """Whether this is the one process of a training that speaks and writes."""
    return os.environ.get("RANK", "0") == "0"


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name or a YAML file.")] = "quickstart",
    set_: Set = None,
    out: Annotated[Path | None, typer.Option(help="The run folder. [default: runs/NAME]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was interrupted.")] = False,
    splits: Annotated[str | None, typer.Option(help="hmdb51, ucf101: a run per official split, such as 1,2,3.")] = None,
) -> None:
    """Train the teachers, then the student with both of them.

    The recipe says which of them are finished and need no training."""
    from dtkd_edge.runs import RUNS, check_out

    begun = "recipe.yaml" if splits is None else "split-*/recipe.yaml"
    default = "" if splits is None else "-splits"
    config = _check_recipe(recipe, set_, lambda own: resume and any((out or RUNS / f"{own.name}{default}").glob(begun)))
    if splits is not None:
        from dtkd_edge.train.splits import train_splits

        train_splits(recipe, splits, overrides=set_ or [], out=out, resume=resume)
        return
    if _speaks():
        check_out(out or RUNS / config.name)
    from dtkd_edge.train.command import train as run

    run(recipe, overrides=set_ or [], out=out, resume=resume)


@app.command("eval")
def evaluate(
    target: Annotated[Path | None, typer.Argument(help="A run or an artefact. [default: the newest run]")] = None,
    set_: Set = None,
    views: Annotated[str, typer.Option(metavar="TxS", help="Temporal × spatial views per video.")] = "1x1",
    data: Annotated[
        Path | None, typer.Option(help="Labelled videos, all scored: a folder per class, or a csv. [default: the run's]")
    ] = None,
    confusion: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the confusion matrix there: a picture (.png), or .csv.")
    ] = None,
    submission: Annotated[
        Path | None, typer.Option(metavar="FILE", help="epic100: write the challenge's result file there (.json or .zip).")
    ] = None,
    sls: Annotated[
        str, typer.Option(metavar="PT,TL,TD", help="--submission: supervision of pre-training, labels and data, 0 to 5 each.")
    ] = "2,3,3",
    splits: Annotated[
        str | None, typer.Option(help="The runs of train --splits, such as 1,2,3, each on its own, and the mean.")
    ] = None,
    json: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write JSON there; - for stdout.")] = None,
) -> None:
    """Accuracy of a run's student, or of an artefact.

    On the run's validation clips, or on other labelled videos."""
    if splits is not None:
        for option, given in (("--data", data), ("--confusion", confusion), ("--submission", submission)):
            if given is not None:
                raise UsageError(f"{option}: not with --splits", "evaluate one of its runs: dtkd-edge eval FOLDER/split-1")
        from dtkd_edge.train.splits import evaluate_splits

        evaluate_splits(target, splits, overrides=set_ or [], views=views, json_file=json)
        return
    from dtkd_edge.train.eval_command import evaluate as run

    run(
        target, overrides=set_ or [], views=views, json=json, data=data, confusion=confusion, submission=submission, sls=sls
    )  # fmt: skip


@app.command()
def compare(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name or a YAML file.")] = "quickstart",
    methods: Annotated[
        str, typer.Option(help="Comma separated, each NAME or NAME@KEY=VALUE (KEY below distill); all against dtkd, or the last.")
    ] = _METHODS,
    seeds: Annotated[
        str, typer.Option(help="Trainings of every method: how many (3: seeds 0 to 2), or which (5-9; 0,3,7).")
    ] = "3",
    set_: Set = None,
    out: Annotated[Path | None, typer.Option(help="Where the runs go. [default: runs/compare-NAME]")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Trainings side by side.")] = 1,
    resplit: Annotated[bool, typer.Option("--resplit", help="Each seed holds out other clips: for small data sets.")] = False,
    json: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write JSON there; - for stdout.")] = None,
) -> None:
    """The same student under several methods and seeds, side by side.

    Mean ± standard error and paired differences; an interrupted comparison goes on where it was."""
    from dtkd_edge.runs import RUNS

    _check_recipe(recipe, set_, lambda own: any((out or RUNS / f"compare-{own.name}").glob("seed-*/*/recipe.yaml")))
    from dtkd_edge.train.compare import compare as run

    run(recipe, methods=methods, seeds=seeds, overrides=set_ or [], out=out, jobs=jobs, json_file=json, resplit=resplit)


@app.command()
def export(
    run: Annotated[
        Path | None, typer.Argument(help="A run, or an artefact to verify or build. [default: the newest run]")
    ] = None,
    target: Annotated[list[str] | None, typer.Option(help=TARGET_HELP)] = None,
    precision: Annotated[list[str] | None, typer.Option(help=PRECISION_HELP)] = None,
    mode: Annotated[str, typer.Option(help=MODE_HELP)] = "clip",
    batch: Annotated[int, typer.Option(help="Clips per inference.")] = 1,
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch", help="Any number of clips per inference.")] = False,
    out: Annotated[Path | None, typer.Option(help="The artefact's folder. [default: RUN/export/TARGET-PRECISION]")] = None,
    clips: Annotated[int, typer.Option(min=1, help="Real clips to verify on.")] = 64,
    set_: Set = None,
    verify_only: Annotated[bool, typer.Option("--verify-only", help="Check an artefact against its stored clips.")] = False,
    workspace: Annotated[int | None, typer.Option(min=1, metavar="MIB", help="tensorrt: memory for the build. [1024]")] = None,
    optimization_level: Annotated[int | None, typer.Option(min=0, max=5, help="tensorrt: 0 quick … 5 thorough. [3]")] = None,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="tensorrt: an engine for every GPU from Ampere on; slower.")
    ] = False,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="tensorrt: an engine for newer TensorRT too; larger, slower.")
    ] = False,
    dla: Annotated[
        int | None, typer.Option(min=0, metavar="CORE", help="tensorrt: build for that DLA core; the rest on the GPU.")
    ] = None,
    calibration_clips: Annotated[
        int | None, typer.Option(min=32, metavar="N", help="int8: training clips to measure its ranges on. [300]")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(min=0, metavar="POINTS", help="int8, auto: top-1 that it may cost on the validation clips. [1]"),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Export nothing: the table of what can be exported.")] = False,
) -> None:
    """Make an artefact of a run: strip, trace, build, verify on clips."""
    if markdown:
        from dtkd_edge.export.support import support_table

        typer.echo(support_table(), nl=False)
        return
    from dtkd_edge.export.several import export_each

    export_each(
        run, target=target, precision=precision, mode=mode, batch=batch, dynamic_batch=dynamic_batch, out=out, clips=clips,
        overrides=set_ or [], verify_only=verify_only, workspace=workspace, optimization_level=optimization_level,
        hardware_compatible=hardware_compatible, version_compatible=version_compatible, dla=dla,
        calibration_clips=calibration_clips, max_drop=max_drop,
    )  # fmt: skip


@app.command()
def bench(
    artifacts: Annotated[
        list[Path] | None, typer.Argument(help="Artefacts or runs, or a YAML list. [default: the newest run's]")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, jetson; several with commas.")] = "auto",
    host: Annotated[str | None, typer.Option(metavar="USER@ADDR", help="Measure there over ssh; commas; here: here too.")] = None,
    scenario: Annotated[
        list[str] | None, typer.Option(help="single-stream, multi-stream, offline, live; repeatable. [default: the 1st and 3rd]")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Labelled videos, all scored: a folder per class, or a csv. [default: the run's]")
    ] = None,
    set_: Set = None,
    include: Annotated[str, typer.Option(metavar="STEPS", help="Time preprocess, or preprocess,decode, too.")] = "",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the runtime. [default: its own choice]")] = None,
    min_seconds: Annotated[float, typer.Option(min=0.01, help="Measure each at least this long.")] = 10.0,
    min_queries: Annotated[int, typer.Option(min=1, help="… and with at least so many queries.")] = 200,
    max_seconds: Annotated[float, typer.Option(min=0.01, help="… but no longer than this.")] = 60.0,
    warmup: Annotated[float, typer.Option(min=0.0, metavar="SECONDS", help="Run each untimed before.")] = 1.0,
    clips: Annotated[int | None, typer.Option(min=0, help="Most clips for accuracy; 0: none. [default: all]")] = None,
    camera_fps: Annotated[float, typer.Option(min=0.1, help="Frame rate of the live scenario's camera.")] = 30.0,
    roofline: Annotated[bool, typer.Option("--roofline", help="Also what arithmetic and memory would allow.")] = False,
    json: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write the records there; - for stdout.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write the report there.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE.md", help="Write the table there.")] = None,
    resume: Annotated[
        bool | None, typer.Option("--resume/--again", help="Measure no finished row again. [default: --resume for a YAML file]")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="OLD NEW", help="Measure nothing: compare two files of records.")
    ] = None,
    limit: Annotated[float, typer.Option(min=0, help="--compare: percent of latency that is a regression.")] = 5.0,
    accuracy_limit: Annotated[float, typer.Option(min=0, help="--compare: points of top-1 that are one.")] = 1.0,
    tool_versions: Annotated[bool, typer.Option("--tool-versions", hidden=True)] = False,  # asked for over ssh
) -> None:
    """Latency, throughput and accuracy of artefacts on a device."""
    if tool_versions:
        from dtkd_edge.benchmarks.rows import versions
        from dtkd_edge.console import write_result

        write_result(versions(), "-")
        return
    if compare is not None:
        from dtkd_edge.benchmarks.compare import compare_files

        compare_files(*compare, latency_limit=limit / 100, accuracy_limit=accuracy_limit, json=json)
        return
    from dtkd_edge.benchmarks.command import bench as run

    run(
        artifacts or [],
        device=device,
        host=host,
        scenarios=scenario or [],
        overrides=set_ or [],
        json=json,
        data=data,
        include=include,
        threads=threads,
        min_seconds=min_seconds,
        min_queries=min_queries,
        max_seconds=max_seconds,
        warmup=warmup,
        clips=clips,
        camera_fps=camera_fps,
        roofline=roofline,
        report=report,
        md=markdown,
        resume=resume,
    )


@app.command()
def predict(
    paths: Annotated[list[Path], typer.Argument(metavar="[ARTIFACT] VIDEO...", help="An artefact (or run), then videos.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON line per video.")] = False,
    top: Annotated[int, typer.Option(min=1, help="How many labels.")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, gpu or npu.")] = "auto",
) -> None:
    """The most likely labels of videos."""
    from dtkd_edge.deploy.command import predict as run

    run(paths, json=json, top=top, device=device)


@app.command()
def demo(
    artifact: Annotated[Path | None, typer.Argument(help="An artefact or run. [default: the newest]")] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(help="Camera number, csi, file, URL, pattern, or browser; several: the page can switch. [default: 0]"),
    ] = None,
    view: Annotated[str, typer.Option(help="web, window or none.")] = "web",
    host: Annotated[str, typer.Option(help="Address that the web view listens on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the web view; 0 takes a free one.")] = 8080,
    token: Annotated[str | None, typer.Option(help="What a viewer must know. [default: made when not on loopback]")] = None,
    record: Annotated[Path | None, typer.Option(help="Write the annotated picture to this .mp4.")] = None,
    events: Annotated[Path | None, typer.Option(help="Write label events to this .jsonl.")] = None,
    webhook: Annotated[str | None, typer.Option(metavar="URL", help="Post events as JSON there (this machine).")] = None,
    webhook_host: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Another host that --webhook may name.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, gpu or npu.")] = "auto",
    loop: Annotated[bool | None, typer.Option("--loop/--no-loop", help="Play a file again at its end. [web view: yes]")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="A file as fast as it goes, no frame dropped.")] = False,
    clip_seconds: Annotated[float | None, typer.Option(help="What a live clip spans. [default: as trained, or 2]")] = None,
    smoothing: Annotated[float, typer.Option(min=0, help="Seconds that the labels are averaged over.")] = 0.5,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Probability from which a label is shown.")] = 0.5,
    rate: Annotated[float | None, typer.Option(help="At most so many labels a second. [default: one per frame]")] = None,
    width: Annotated[int | None, typer.Option(min=16, help="Picture asked of the camera.")] = None,
    height: Annotated[int | None, typer.Option(min=16)] = None,
    fps: Annotated[float | None, typer.Option(min=1, help="Frame rate asked of the camera.")] = None,
) -> None:
    """Live labels of a camera, a stream or a file."""
    from dtkd_edge.deploy.command import demo as run
    from dtkd_edge.deploy.live import Settings
    from dtkd_edge.deploy.sources import SourceOptions

    run(
        artifact, source=source or ["0"], view=view, host=host, port=port, token=token, record=record, events=events,
        webhook=webhook, webhook_hosts=webhook_host, device=device, loop=loop,
        source_options=SourceOptions(width, height, fps, fast=fast),
        settings=Settings(clip_seconds, smoothing, threshold, rate=rate),
    )  # fmt: skip


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="One model, in full.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="The list as a page for the documentation.")] = False,
) -> None:
    """The models that a recipe can name: sizes, taps, checkpoints."""
    from dtkd_edge.models.command import show

    show(name, markdown=markdown)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="One recipe, as its file is: the start of your own.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="All recipes and keys as a page for the documentation.")] = False,
) -> None:
    """The recipes that ship with the package, and one as a file."""
    from dtkd_edge.recipe_page import show

    show(name, markdown=markdown)


@app.command()
def doctor(
    artifact: Annotated[Path | None, typer.Argument(help="An artefact or run to try. [default: the newest]")] = None,
) -> None:
    """What works on this machine, and the fix for what does not."""
    from dtkd_edge.deploy.doctor import doctor as run

    run(artifact)


@data_app.command("synth")
def data_synth(
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    kind: Annotated[str, typer.Option(help="motion or order.")] = "motion",
    clips: Annotated[int, typer.Option(min=16, help="Training clips.")] = 2000,
    val_clips: Annotated[int, typer.Option(min=16, help="Validation clips.")] = 400,
    size: Annotated[int, typer.Option(min=24, help="Pixels of a side.")] = 48,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write the generated motion set as mp4 files with two lists."""
    from dtkd_edge.data.command import synth

    synth(out, kind=kind, clips=clips, val_clips=val_clips, size=size, seed=seed)


@data_app.command("check")
def data_check(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or file: its data section is checked.")] = "quickstart",
    set_: Set = None,
    sheet: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Write a picture with frames of every class.")] = None,
    sums: Annotated[bool, typer.Option("--sums", help="kind shards: hash every shard, as the index says.")] = False,
    json: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write JSON there; - for stdout.")] = None,
) -> None:
    """Read every clip of a data set: counts, broken files, copies.

    Also class balance, clips on both sides, and how fast the files decode."""
    from dtkd_edge.data.check import check

    with goes_on(_WHERE_IT_STOPPED):
        check(recipe, overrides=set_ or [], json=json, sheet=sheet, sums=sums)


@data_app.command("pack")
def data_pack(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or file, or a kind of data set.")],
    out: Annotated[Path, typer.Argument(help="Folder to write to; an interrupted pack goes on there.")],
    set_: Set = None,
    short: Annotated[int, typer.Option(min=32, max=2160, help="Pixels of the short side; smaller videos keep theirs.")] = 256,
    crf: Annotated[int, typer.Option(min=0, max=51, help="h264 quality: 0 best … 51 worst.")] = 20,
    keyframes: Annotated[int, typer.Option(min=1, help="Frames between two that can be jumped to.")] = 12,
    jobs: Annotated[int | None, typer.Option(min=1, help="Files at a time. [default: the cores]")] = None,
    shards: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Tar shards (WebDataset) of N clips each, with an index, not files.")
    ] = None,
    copy: Annotated[bool, typer.Option("--copy", help="--shards: take whole files as they are, without encoding.")] = False,
    json: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write JSON there; - for stdout.")] = None,
) -> None:
    """Re-encode a data set for quick reading, in files or tar shards."""
    from dtkd_edge.data.pack import Settings, pack

    if copy and shards is None:
        raise UsageError("--copy: goes with --shards N only", "add --shards 1000, or leave it out")
    if shards is not None:
        from dtkd_edge.data.pack_shards import pack_shards

        options = Settings(short, crf, keyframes)
        with goes_on(_WHERE_IT_STOPPED):
            pack_shards(recipe, out, overrides=set_ or [], settings=options, per_shard=shards, copy=copy, jobs=jobs, json=json)
        return
    with goes_on(_WHERE_IT_STOPPED):
        pack(recipe, out, overrides=set_ or [], settings=Settings(short, crf, keyframes), jobs=jobs, json=json)


def main() -> None:
    """The console script."""
    reported(lambda: app(standalone_mode=True))
