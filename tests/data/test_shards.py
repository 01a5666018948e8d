"""`dtkd-edge data pack --shards` and kind `shards`: whole sets, from a folder and over HTTP, and everything that can be wrong."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import official_trees as trees
import pytest
from web_server import serve

from dtkd_edge.data import members
from dtkd_edge.data.catalogue import Catalogue, open_split
from dtkd_edge.data.check import check
from dtkd_edge.data.dataset import ClipDataset
from dtkd_edge.data.loader import make_loader
from dtkd_edge.data.pack import Settings, pack
from dtkd_edge.data.pack_shards import pack_shards
from dtkd_edge.errors import DataError, NotHereError, RecipeError
from dtkd_edge.preprocess import Preprocess, Sampling
from dtkd_edge.recipe import DataConfig
from dtkd_edge.train.command import train
from dtkd_edge.train.eval_command import evaluate
from dtkd_edge.train.teacher_cache import cache_key
from dtkd_edge.video import read_input

SMALL = Settings(short=32)
PREPROCESS = Preprocess(resize_short=24, crop=24, sampling=Sampling(frames=4))


@pytest.fixture(scope="module")
def shards(motion_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 training and 16 validation clips, as they are, in shards of 12."""
    out = tmp_path_factory.mktemp("shards") / "out"
    pack_shards("folder", out, overrides=[f"data.root={motion_folder}"], settings=SMALL, per_shard=12, copy=True)
    return out


@pytest.fixture
def own(shards: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(shards, tmp_path / "own"))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "FIRST_WAIT_S", 0.01)


def opened(root: Path | str, side: str = "train") -> Catalogue:
    return open_split(DataConfig.model_validate({"kind": "shards", "root": root}), side)  # type: ignore[arg-type]


def dataset(catalogue: Catalogue) -> ClipDataset:
    return ClipDataset(
        catalogue, sampling=PREPROCESS.sampling, size=24, resize_short=24, augment=None, seed=0, cache_mb=0
    )  # fmt: skip


def edit(root: Path, change: object) -> None:
    index = json.loads((root / "index.json").read_text())
    change(index)  # type: ignore[operator]
    (root / "index.json").write_text(json.dumps(index))


def test_copied_clips_are_the_source_in_its_order_from_a_folder_and_over_http(motion_folder: Path, shards: Path) -> None:
    with serve(shards) as site:
        for side in ("train", "val"):
            source = open_split(DataConfig(kind="folder", root=motion_folder), side)  # type: ignore[arg-type]
            for made in (opened(shards, side), opened(f"{site.url}/", side)):
                assert made.classes == source.classes and made.labels().tolist() == source.labels().tolist()
                for i in range(0, len(source), 5):
                    member = made[i].member
                    assert member is not None and member.read() == source.path(i).read_bytes()
                    assert (read_input(made[i].open(), PREPROCESS) == read_input(source.path(i), PREPROCESS)).all()
    clips = sum(size for path, size in site.served if path.endswith(".tar"))
    assert clips < 4 * 16_000 * 12  # parts, not whole shards


def test_other_tools_read_the_tar_files(shards: Path) -> None:
    """By WebDataset's rule: a sample is what has one key, the name up to the first dot of its last part."""
    samples: dict[str, dict[str, bytes]] = {}
    sizes = Counter[str]()
    for file in sorted(shards.glob("*.tar")):
        with tarfile.open(file) as tar:
            for member in tar:
                folder, _, last = member.name.rpartition("/")
                stem, _, ending = last.partition(".")
                stream = tar.extractfile(member)
                assert stream is not None
                samples.setdefault(f"{folder}/{stem}", {})[ending] = stream.read()
                sizes[file.name] += ending == "mp4"
    assert sizes == {
        "train-000000.tar": 12, "train-000001.tar": 12, "train-000002.tar": 12, "train-000003.tar": 4,
        "val-000000.tar": 12, "val-000001.tar": 4,
    }  # fmt: skip
    names = (shards / "classes.txt").read_text().split()
    assert len(samples) == 56
    for sample in samples.values():
        about = json.loads(sample["json"])
        assert int(sample["cls"]) == about["labels"]["action"] == names.index(about["classes"]["action"])
    first = json.loads((shards / "index.json").read_text())["shards"][0]["labels"]["action"]
    assert len(set(first)) > 3 and first != sorted(first)  # classes are mixed for readers from front to back


@pytest.mark.parametrize("frames", [False, True])
def test_two_heads_ids_and_parts_survive(tmp_path: Path, frames: bool) -> None:
    root = trees.epic100(tmp_path / "set", frames=frames, clips=3)
    given = [f"data.root={root}", *(["data.frame_names=frame_%010d.jpg"] if frames else [])]
    result = pack_shards("epic100", tmp_path / "out", overrides=given, settings=SMALL, per_shard=4)
    assert result["shards"] == {"train": 2, "val": 2} and result["clips"] == {"train": 6, "val": 6}
    pack("epic100", tmp_path / "files", overrides=given, settings=SMALL)
    for side in ("train", "val"):
        config = DataConfig.model_validate(dict(part.removeprefix("data.").split("=") for part in given) | {"kind": "epic100"})
        source, made = open_split(config, side), opened(tmp_path / "out", side)  # type: ignore[arg-type]
        files = open_split(DataConfig(kind="folder", root=tmp_path / "files"), side)  # type: ignore[arg-type]
        assert made.classes == source.classes
        for head in ("verb", "noun"):
            assert made.labels(head).tolist() == source.labels(head).tolist()
        assert made.ids is not None and source.ids is not None and made.ids.tolist() == source.ids.tolist()
        assert {p: {h: m.tolist() for h, m in masks.items()} for p, masks in made.parts.items()} == {
            p: {h: m.tolist() for h, m in masks.items()} for p, masks in source.parts.items()
        }
        for i in range(len(source)):
            shard, file = (read_input(clips[i].open(), PREPROCESS).astype(int) for clips in (made, files))
            assert np.abs(shard - file).mean() < 2
    with tarfile.open(tmp_path / "out/val-000000.tar") as tar:
        assert not [name for name in tar.getnames() if name.endswith(".cls")]
        stream = tar.extractfile(next(m for m in tar if m.name.endswith(".json")))
        assert stream is not None
        about = json.load(stream)
    assert set(about["labels"]) == set(about["classes"]) == {"verb", "noun"} and about["id"] == "P01_02_0"


def test_ranks_and_workers_read_every_clip_once_an_epoch(shards: Path) -> None:
    """Two ranks, two reading threads each, as the training loop starts them."""
    with serve(shards) as site:
        data = dataset(opened(site.url))
        loaders = [make_loader(data, 5, train=True, workers=2, seed=3, shard=(rank, 2)) for rank in (0, 1)]
        before: list[int] = []
        for epoch in (0, 1):
            data.set_epoch(epoch)
            batches = [list(loader) for loader in loaders]
            read = [[int(i) for batch in side for i in batch["index"]] for side in batches]
            assert sorted(read[0] + read[1]) == list(range(40))
            assert len(read[0]) == len(read[1]) == 20 and read[0] != before
            before = read[0]
            for batch in batches[0] + batches[1]:
                for frames, number, label in zip(batch["frames"], batch["index"], batch["labels"]["action"], strict=True):
                    assert label == data.catalogue.labels()[int(number)]
                    if int(number) % 8 == 0:
                        assert (frames.numpy() == read_input(data.catalogue[int(number)].open(), PREPROCESS)[0]).all()
    ranges = [path for path, _ in site.served if path.endswith(".tar")]
    assert len(ranges) == 4 + 2 * (40 + 5)  # the shards are looked at once, every clip is fetched once an epoch (and to compare)


def test_passing_trouble_is_waited_out_and_lasting_trouble_is_named(shards: Path) -> None:
    with serve(shards) as site:
        catalogue = opened(site.url)
        good = opened(shards)[7].member
        member = catalogue[7].member
        assert good is not None and member is not None
        site.trouble[:] = [503, "cut", 429]
        assert member.read() == good.read()
        site.trouble[:] = [500] * 8
        with pytest.raises(NotHereError, match=r"train-00000\d\.tar: no answer after 8 tries: HTTP 500"):
            member.read()
        site.trouble[:] = [403]
        with pytest.raises(DataError, match=r"train-00000\d\.tar: the server refuses \(HTTP 403\)"):
            member.read()
        site.ranges = False
        with pytest.raises(DataError, match=r"train-00000\d\.tar: the server does not serve parts of files"):
            opened(site.url)
    with pytest.raises(NotHereError, match=r"index\.json: no answer after 3 tries: .*refused"):
        opened(site.url)


def test_a_url_keeps_its_token_and_messages_do_not_show_it(shards: Path) -> None:
    with serve(shards) as site:
        assert len(opened(f"{site.url}?token=secret")) == 40
        assert all(path.endswith("?token=secret") for path, _ in site.served)
        with pytest.raises(DataError) as failed:
            opened(f"{site.url}/nowhere?token=secret")
        assert "nowhere/index.json: file missing (HTTP 404)" in str(failed.value) and "secret" not in str(failed.value)


def _cut(root: Path) -> None:
    path = root / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:9000])


def _grow(root: Path) -> None:
    with (root / "train-000001.tar").open("ab") as stream:
        stream.write(b"\0" * 512)


BROKEN = [
    (lambda root: (root / "train-000001.tar").unlink(), r"train-000001\.tar: shard missing"),
    (_cut, r"train-000001\.tar: shard cut off: 9000 bytes, the index says \d+"),
    (_grow, r"train-000001\.tar: not the shard of this index: \d+ bytes, the index says \d+"),
    (
        lambda root: edit(root, lambda index: index["shards"][1]["labels"]["action"].__setitem__(2, 99)),
        r"index\.json: train-000001\.tar: \S+\.mp4: label 99 of head action is outside its 8 classes",
    ),
    (
        lambda root: edit(root, lambda index: index["shards"][1]["sizes"].__setitem__(2, 10**9)),
        r"index\.json: train-000001\.tar: \S+\.mp4 ends at byte \d+ of \d+",
    ),
    (
        lambda root: edit(root, lambda index: index["shards"][1]["offsets"].pop()),
        r"index\.json: train-000001\.tar: 11 offsets of 12 clips",
    ),
    (lambda root: edit(root, lambda index: index.update(version=9)), r"index\.json: version 9, known is 1"),
    (lambda root: edit(root, lambda index: index.pop("classes")), r"index\.json: no index of shards: classes Field required"),
    (
        lambda root: edit(root, lambda index: index.update(classes={})),
        r"index\.json: train-000000\.tar: the index names no classes",
    ),
    (
        lambda root: edit(root, lambda index: index["shards"][1].update(parts={"tail": {"action": [True] * 12}})),
        r"index\.json: train-000001\.tar: other parts than train-000000\.tar",
    ),
    (
        lambda root: edit(root, lambda index: index["shards"][0].update(groups=[2**70] * 12)),
        r"index\.json: no index of shards: shards\.0\.groups\.0 Input should be less than",
    ),
    (lambda root: (root / "index.json").write_text("{"), r"index\.json: no index of shards"),
    (lambda root: (root / "index.json").unlink(), r"index\.json: no index of shards|index\.json: file missing"),
]


@pytest.mark.parametrize("number", range(len(BROKEN)))
@pytest.mark.parametrize("web", [False, True])
def test_bad_shards_and_indexes_are_named(own: Path, number: int, web: bool) -> None:
    spoil, said = BROKEN[number]
    spoil(own)
    with serve(own) as site, pytest.raises(DataError, match=said.replace("9000 bytes, ", r"9000 bytes, ")) as failed:
        opened(site.url if web else own)
    assert failed.value.hint and failed.value.exit_code == 3


def test_a_shard_that_goes_while_it_is_read_stops_the_training(own: Path) -> None:
    data = dataset(opened(own))
    _cut(own)
    with pytest.raises(DataError, match=r"train-000001\.tar: shard cut off"):
        list(make_loader(data, 8, train=True, workers=2, seed=0))


def test_check_reads_them_and_finds_a_changed_byte(own: Path, dtkd_edge: object) -> None:
    report = check("shards", overrides=[f"data.root={own}"], json="-", sums=True)
    assert (report["shards"], report["train"]["files"], report["val"]["files"]) == (6, 40, 16)
    assert report["train"]["broken"] == {} and report["train"]["width"]["max"] == 48
    with serve(own) as site:
        assert check("shards", overrides=[f"data.root={site.url}"], json="-", sums=True)["root"] == site.url
    path = own / "val-000001.tar"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    done = dtkd_edge("data", "check", "shards", "--set", f"data.root={own}", "--sums")  # type: ignore[operator]
    assert done.returncode == 3
    assert f"error: {path}: its bytes are not those of the index (sha256)\n  fix: " in done.stderr
    done = dtkd_edge("data", "check", "folder", "--set", f"data.root={own}", "--sums")  # type: ignore[operator]
    assert done.returncode == 3 and "error: " in done.stderr


def test_a_clip_of_garbage_is_counted_and_skipped(own: Path) -> None:
    member = opened(own)[0].member
    assert member is not None and isinstance(member.shard.place, Path)
    data = bytearray(member.shard.place.read_bytes())
    data[member.offset + 8 : member.offset + member.size] = bytes(member.size - 8)
    member.shard.place.write_bytes(data)
    batches = list(make_loader(dataset(opened(own)), 8, train=False, workers=0, seed=0))
    broken = [why for batch in batches for why in batch["broken"]]
    assert [number for number, _ in broken] == [0] and "cut off" in broken[0][1]
    report = check("shards", overrides=[f"data.root={own}"], json="-")
    assert next(iter(report["train"]["broken"])).endswith("000000.mp4")


def test_only_what_changed_is_packed_again(motion_folder: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "set", tmp_path / "out"
    shutil.copytree(motion_folder, source)
    given = {"overrides": [f"data.root={source}"], "settings": SMALL, "per_shard": 8, "copy": True}
    assert pack_shards("folder", out, **given)["made"] == 7  # type: ignore[arg-type]
    before = {p.name: p.read_bytes() for p in out.glob("*.tar")}
    assert pack_shards("folder", out, **given)["made"] == 0  # type: ignore[arg-type]
    shutil.copy(source / "videos/train/000001.mp4", source / "videos/train/000000.mp4")
    (out / "val-000001.tar").write_bytes(b"half")
    (out / ".clips-left").mkdir()
    (out / ".train-000009.tar.left").write_bytes(b"half")
    assert pack_shards("folder", out, **given)["made"] == 2  # type: ignore[arg-type]
    changed = {p.name for p in out.glob("*.tar") if p.read_bytes() != before[p.name]}
    assert len(changed) == 1 and changed.pop().startswith("train-")
    assert not list(out.glob(".*")) and not (out / "shards.jsonl").exists()
    assert len(opened(out)) == 40
    lines = (source / "train.csv").read_text().splitlines()
    (source / "train.csv").write_text("\n".join(lines[:25]) + "\n")
    pack_shards("folder", out, **given)  # type: ignore[arg-type]
    assert len(opened(out)) == 24 and len(list(out.glob("train-*.tar"))) == 3
    with pytest.raises(DataError, match=r"packed with other settings: shards 8 \(now 9\)"):
        pack_shards("folder", out, **given | {"per_shard": 9})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"packed with other settings"):
        pack("folder", out, overrides=[f"data.root={source}"], settings=SMALL)


def test_broken_clips_are_left_out_or_stop_it(broken_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.mktemp("pack") / "out"
    given = [f"data.root={broken_folder}"]
    for copy in (True, False):
        with pytest.raises(DataError, match=r"(train|val): \d of \d+ do not decode, more than data\.max_broken = 0\.05"):
            pack_shards("folder", out, overrides=given, settings=SMALL, per_shard=2, copy=copy)
        with pytest.raises(DataError, match="no index of shards"):
            opened(out)
        result = pack_shards("folder", out, overrides=[*given, "data.max_broken=1"], settings=SMALL, per_shard=2, copy=copy)
        assert (result["made"], len(result["broken"])) == (0, 5)
        assert len(opened(out)) + len(opened(out, "val")) == 8
        shutil.rmtree(out)


def test_part_of_a_file_is_not_copied(tmp_path: Path) -> None:
    root = trees.epic100(tmp_path / "set", clips=3)
    with pytest.raises(DataError, match=r"the clip is not a whole file"):
        pack_shards("epic100", tmp_path / "out", overrides=[f"data.root={root}"], settings=SMALL, per_shard=4, copy=True)


def test_keys_are_what_webdataset_can_tell_apart(tmp_path: Path) -> None:
    for name in ("a/x.1.mp4", "a/x.2.mp4", "a/x_1.mp4", "b.c/.y.mp4", "b.c/z.mp4", "b.c/[ä] &;.mp4"):
        trees.video(tmp_path / "set" / name)
    shutil.copy(tmp_path / "set/a/x_1.mp4", tmp_path / "set/a/x_1.mkv")
    given = [f"data.root={tmp_path / 'set'}"]
    pack_shards("folder", tmp_path / "out", overrides=given, settings=SMALL, per_shard=99, copy=True)
    keys = []
    for file in (tmp_path / "out").glob("*.tar"):
        with tarfile.open(file) as tar:
            names = [name for name in tar.getnames() if name.endswith(".json")]
        keys += [name.removesuffix(".json") for name in names]
        assert all("." not in key.rpartition("/")[2] for key in keys)
    assert len(set(keys)) == len(keys) == 6 and "b.c/[ä] &;" in keys  # hidden files are no clips


def test_stored_teacher_outputs_are_those_of_the_shard(own: Path, shards: Path) -> None:
    from dtkd_edge.models.registry import create_model

    model = create_model("tsm_tiny", 8, frames=4, size=24)
    keys = [cache_key(model, dataset(opened(shards))) for _ in range(2)]
    edit(own, lambda index: index["shards"][0].update(sha256="0" * 64))
    assert keys[0] == keys[1]
    with serve(shards) as site:
        assert cache_key(model, dataset(opened(site.url))) != keys[0]  # other places, as in every kind
    before = [clip.state() for clip in (opened(own)[i] for i in range(40))]
    assert sum(state != opened(shards)[i].state() for i, state in enumerate(before)) == 12


def test_urls_belong_to_kind_shards(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.root: kind folder reads a folder, not a URL"):
        open_split(DataConfig.model_validate({"kind": "folder", "root": "https://host/set"}), "train")
    with pytest.raises(RecipeError, match=r"s3:// is not read: expected a folder, or http:// or https://"):
        check("shards", overrides=["data.root=s3://bucket/set"], json=None)
    for root in ("https://me:secret@host/set", "https:///set", "http://host:port/set", "http://[bad/set"):
        with pytest.raises(RecipeError, match=r"data\.root: (expected https://HOST/PATH|no URL: )"):
            check("shards", overrides=[f"data.root={root}"], json=None)
    with pytest.raises(DataError, match=r"data\.root: kind shards needs the folder or URL"):
        check("shards", overrides=[], json=None)
    config = DataConfig.model_validate({"kind": "shards", "root": "https://host/set/"})
    assert DataConfig.model_validate(config.model_dump(mode="json")).root == "https://host/set/"


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_pack_goes_on(tmp_path: Path, stop: signal.Signals) -> None:
    clip = trees.video(tmp_path / "clip.mp4", frames=30, height=192, width=256)
    for i in range(48):
        (tmp_path / "set" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, tmp_path / "set" / "ab"[i % 2] / f"{i}.mp4")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "dtkd_edge", "data", "pack", "folder", str(out), "--set", f"data.root={tmp_path / 'set'}"]
    command += ["--short", "96", "--shards", "4", "--json", str(tmp_path / "result.json")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while len(list(out.glob("train-*.tar"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(stop)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == (130 if stop == signal.SIGINT else -9)
    assert "Traceback" not in said
    finished = {p.name: p.stat().st_mtime_ns for p in out.glob("*.tar")}
    assert 3 <= len(finished) < 12 and not (out / "index.json").exists()
    for name in finished:  # a name is given to whole shards only
        with tarfile.open(out / name) as tar:
            assert len(tar.getnames()) % 3 == 0
    subprocess.run(command, check=True, capture_output=True)
    result = json.loads((tmp_path / "result.json").read_text())
    rest = sum(result["shards"].values()) - len(finished)
    assert rest <= result["made"] <= rest + 1  # a killed one may have lost its last line
    same = [name for name, changed in finished.items() if (out / name).stat().st_mtime_ns == changed]
    assert len(same) >= len(finished) - 1
    assert len(opened(out)) + len(opened(out, "val")) == 48 and not list(out.glob(".*"))


@pytest.mark.slow
def test_train_and_eval_over_http_give_what_the_folder_gives(motion_folder: Path, shards: Path, tmp_path: Path) -> None:
    tiny = [
        "student.model=tsm_tiny", "student.frames=4", "student.size=24", "distill.method=ce", "train.epochs=1",
        "train.batch_size=8", "threads=1", "data.cache_mb=0",
    ]  # fmt: skip
    numbers = {}
    with serve(shards) as site:
        for name, root, kind in (("files", motion_folder, "folder"), ("web", site.url, "shards")):
            run = train("folder", overrides=[*tiny, f"data.kind={kind}", f"data.root={root}"], out=tmp_path / name)
            log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
            numbers[name] = ([entry["loss"] for entry in log if "loss" in entry], evaluate(run, overrides=[])["heads"])
        assert numbers["files"] == numbers["web"] and numbers["web"][0]
        assert sum(path.endswith(".tar") for path, _ in site.served) > 56
