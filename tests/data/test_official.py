"""Data sets by their official files: miniature trees in the official layouts."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import official_trees as trees
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtkd_edge.data.catalogue import Catalogue, open_split
from dtkd_edge.data.dataset import ClipDataset
from dtkd_edge.errors import DataError, DtkdEdgeError
from dtkd_edge.preprocess import Sampling
from dtkd_edge.recipe import AugmentConfig, DataConfig


def opened(kind: str, root: Path, side: str = "train", **more: object) -> Catalogue:
    return open_split(DataConfig.model_validate({"kind": kind, "root": root, **more}), side)  # type: ignore[arg-type]


def paths(catalogue: Catalogue) -> list[str]:
    return [catalogue.path(i).relative_to(catalogue.root).as_posix() for i in range(len(catalogue))]


def test_kinetics_classes_stand_in_the_order_of_torchvisions_heads(tmp_path: Path) -> None:
    """The recipe's ViT teacher has torchvision's 400 classes untrained, so the order has to be the same, capitals and all."""
    models = pytest.importorskip("torchvision.models")
    published = models.get_model_weights("mvit_v2_s").DEFAULT.meta["categories"]
    shuffled = [published[i] for i in np.random.default_rng(0).permutation(400)]
    source = trees.video(tmp_path / "clip.mp4", frames=4)
    rows = ["label,youtube_id,time_start,time_end,split\n"]
    for i, label in enumerate(shuffled):
        clip = f"{i:011d}"
        rows.append(f"{label},{clip},0,10,train\n")
        folder = tmp_path / "set" / "videos" / "train" / label
        folder.mkdir(parents=True)
        (folder / f"{clip}_000000_000010.mp4").hardlink_to(source)
    trees.text(tmp_path / "set" / "train.csv", "".join(rows))
    assert opened("kinetics400", tmp_path / "set").classes["action"] == published
    for other in ("mvit_v1_b", "swin3d_b", "r2plus1d_18", "s3d"):
        assert models.get_model_weights(other).DEFAULT.meta["categories"] == published


def edit(path: Path, line: int, new: str | None) -> int:
    """Replace (or append, line 0) one line, counting from 1."""
    lines = path.read_text().splitlines(keepends=True)
    if line == 0:
        lines.append("")
        line = len(lines)
    lines[line - 1] = "" if new is None else new + "\n"
    path.write_text("".join(lines))
    return line


def every_clip_reads(catalogue: Catalogue) -> None:
    for augment in (None, AugmentConfig()):
        data = ClipDataset(catalogue, sampling=Sampling(frames=4), size=24, resize_short=24, augment=augment, seed=0, cache_mb=0)
        for i in range(len(data)):
            item = data[i]
            assert "broken" not in item, item
            assert item["frames"].shape == (4, 24, 24, 3)


# --- HMDB51 ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hmdb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trees.hmdb51(tmp_path_factory.mktemp("hmdb51"))


def test_hmdb51(hmdb: Path) -> None:
    train, val = opened("hmdb51", hmdb), opened("hmdb51", hmdb, "val")
    assert train.classes == val.classes == {"action": list(trees.CLASSES)}
    assert np.bincount(train.labels()).tolist() == [6, 6, 6] and np.bincount(val.labels()).tolist() == [2, 2, 2]
    assert paths(val)[:2] == [f"brush_hair/[x] A!;&(b)_brush_hair_{i}.avi" for i in (6, 7)]
    every_clip_reads(val)
    seconds = [set(paths(opened("hmdb51", hmdb, side, split=2))) for side in ("train", "val")]
    assert seconds[1] == {f"{name}/[x] A!;&(b)_{name}_{i}.avi" for name in trees.CLASSES for i in (5, 6)}
    assert not seconds[0] & seconds[1]


def test_hmdb51_copies_of_another_ending_and_missing_ones(hmdb: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(hmdb, tmp_path / "set")
    (tmp_path / "set/videos").rename(tmp_path / "set/hmdb51_org")
    for file in (tmp_path / "set/hmdb51_org").rglob("*.avi"):
        file.rename(file.with_suffix(".mp4"))
    gone = tmp_path / "set/hmdb51_org/walk/[x] A!;&(b)_walk_0.mp4"
    gone.unlink()
    whole = opened("hmdb51", tmp_path / "set")
    assert len(whole) == 17 and all(path.endswith(".mp4") for path in paths(whole))
    assert "1 of 18 videos are missing and left out, for example" in capfd.readouterr().err
    with pytest.raises(DataError, match=r"1 of 18 videos are missing, more than data\.max_missing = 0\.01 allows"):
        opened("hmdb51", tmp_path / "set", max_missing=0.01)
    shutil.rmtree(tmp_path / "set/hmdb51_org/walk")
    (tmp_path / "set/hmdb51_org/walk").mkdir()
    with pytest.raises(DataError, match=r"6 of 18 videos are missing"):
        opened("hmdb51", tmp_path / "set")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a.avi 3", r"walk_test_split1\.txt:2: expected `name\.avi FLAG` with a flag of 0, 1 or 2; found 'a\.avi 3'"),
        ("a.avi", r"walk_test_split1\.txt:2: expected `name\.avi FLAG`"),
        (" 1", r"walk_test_split1\.txt:2: expected"),
        ("[x] A!;&(b)_walk_0.avi 2", r"walk_test_split1\.txt:2: expected each clip once, .* has another flag in line 1"),
    ],
)
def test_hmdb51_lines_that_do_not_fit(hmdb: Path, tmp_path: Path, line: str, said: str) -> None:
    shutil.copytree(hmdb, tmp_path / "set")
    edit(tmp_path / "set/testTrainMulti_7030_splits/walk_test_split1.txt", 2, line)
    with pytest.raises(DataError, match=said) as caught:
        opened("hmdb51", tmp_path / "set")
    assert caught.value.hint


def test_hmdb51_without_its_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.root: kind hmdb51 needs the folder"):
        open_split(DataConfig(kind="hmdb51"), "train")
    with pytest.raises(DataError, match=r"no split files CLASS_test_split1\.txt in testTrainMulti_7030_splits, "):
        opened("hmdb51", tmp_path)
    trees.text(tmp_path / "splits/walk_test_split1.txt", "a.avi 1 \n")
    with pytest.raises(DataError, match="no class folders with videos in videos, "):
        opened("hmdb51", tmp_path)
    (tmp_path / "videos/walk").mkdir(parents=True)
    with pytest.raises(DataError, match=r"none of its videos is there, for example .*walk/a"):
        opened("hmdb51", tmp_path)


# --- UCF101 ---------------------------------------------------------------------------------------------------------------


def test_ucf101(tmp_path: Path) -> None:
    root = trees.ucf101(tmp_path)
    train, val = opened("ucf101", root), opened("ucf101", root, "val")
    assert train.classes == {"action": ["ApplyEyeMakeup", "Archery"]}
    assert (train.labels().tolist(), val.labels().tolist()) == ([0, 0, 1, 1], [0, 1])
    assert train.groups is not None and len(set(train.groups)) == 4
    every_clip_reads(val)
    with pytest.raises(DataError, match=r"trainlist02\.txt: not found"):
        opened("ucf101", root, split=2)
    lists = root / "ucfTrainTestlist"
    for name, line, said in (
        ("trainlist01.txt", "Archery/v_Archery_g02_c01.avi 1", r":1: expected class number 2, that of Archery"),
        ("trainlist01.txt", "Archery/v_Archery_g02_c01.avi", r":1: expected"),
        ("trainlist01.txt", "Swim/v_Swim_g02_c01.avi 1", r":1: expected one of the 2 classes of classInd\.txt; found 'Swim'"),
        ("classInd.txt", "0 ApplyEyeMakeup", r"classInd\.txt:1: expected `NUMBER Class` counting from 1"),
        ("classInd.txt", "2 ApplyEyeMakeup", r"classInd\.txt:2: expected every class number and name once"),
        ("classInd.txt", "3 ApplyEyeMakeup", r"classInd\.txt: no class of number 0"),
    ):
        kept = (lists / name).read_text()
        edit(lists / name, 1, line)
        with pytest.raises(DataError, match=said):
            opened("ucf101", root)
        (lists / name).write_text(kept)


# --- Kinetics -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "is_cc", "spaces"), [("kinetics400", True, False), ("kinetics600", False, True)])
def test_kinetics(tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str, is_cc: bool, spaces: bool) -> None:
    root = trees.kinetics(tmp_path, is_cc=is_cc, spaces=spaces)
    train, val = opened(kind, root), opened(kind, root, "val")
    assert train.classes["action"] == ["abseiling", "air drumming", "massaging person's head (slow)"]
    assert np.bincount(train.labels()).tolist() == [5, 6, 6] and np.bincount(val.labels()).tolist() == [2, 2, 2]
    assert train.path(5).name == "-t1_00000000_000000_000010.mp4"
    every_clip_reads(val)
    said = capfd.readouterr().err
    assert "1 of 18 videos are missing and left out" in said and f"3 classes; the whole of {kind} has" in said
    with pytest.raises(DataError, match=r"more than data\.max_missing = 0 allows"):
        opened(kind, root, max_missing=0)


def test_kinetics_in_one_folder_and_named_lists(tmp_path: Path) -> None:
    root = trees.kinetics(tmp_path)
    (root / "all_train").mkdir()
    for file in (root / "videos/train").rglob("*.mp4"):
        file.rename(root / "all_train" / file.name)
    (root / "train.csv").rename(root / "k.csv")
    train = opened("kinetics400", root, train="k.csv", videos="all_{split}")
    assert len(train) == 17 and all("/" not in path for path in paths(train))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "swimming,abcdefghijk,0,10,train,0",
            r"validate\.csv:3: expected one of the 3 classes of the training list; found 'swimming'",
        ),
        ("abseiling,abcdefghijk,soon,10,train,0", r"validate\.csv:3: expected time_start and time_end in seconds; found 'soon'"),
        ("abseiling,abcdefghijk,0,10,train", r"validate\.csv:3: expected 6 columns"),
        ("abseiling,,0,10,train,0", r"validate\.csv:3: expected a youtube_id"),
        ("abseiling,../../x,0,10,train,0", r"validate\.csv:3: expected a youtube_id"),
        ('"abseiling,abc,0,10,train,0', r"validate\.csv:\d: expected csv"),
        ("air drumming,-v0_00000000,0,10,val,0", None),
    ],
)
def test_kinetics_lines_that_do_not_fit(tmp_path: Path, line: str, said: str | None) -> None:
    root = trees.kinetics(tmp_path, train=2, val=2)
    edit(root / "validate.csv", 3, line)
    if said is None:  # the same video under another class is another file name: it is missing there
        assert len(opened("kinetics400", root, "val", max_missing=0.5)) == 5
        return
    with pytest.raises(DataError, match=said):
        opened("kinetics400", root, "val", max_missing=0.5)


def test_a_list_without_labels_is_named(tmp_path: Path) -> None:
    root = trees.kinetics(tmp_path, train=2, val=2)
    trees.text(root / "test.csv", "youtube_id,time_start,time_end,split\nabc,0,10,test\n")
    with pytest.raises(
        DataError, match=r"test\.csv:1: expected the columns label,youtube_id,time_start,time_end; found 'youtube_id,"
    ):
        opened("kinetics400", root, "val", val="test.csv", max_missing=0.5)


# --- Something-Something --------------------------------------------------------------------------------------------------


def test_ssv2(tmp_path: Path) -> None:
    root = trees.ssv2(tmp_path)
    train, val = opened("ssv2", root), opened("ssv2", root, "val")
    assert train.classes == {"action": ["Approaching something with your camera", "Holding something"]}
    assert train.labels().tolist() == [1, 0, 1, 0]
    assert [path.partition(".")[0] for path in paths(train)] == ["10", "11", "12", "13"]
    every_clip_reads(val)
    shutil.copytree(root / "20bn-something-something-v2", tmp_path / "unused")
    for number in range(10, 14):
        trees.raw_frames(root / "rawframes" / str(number), "%06d.jpg", 5)
    framed = opened("ssv2", root, videos="rawframes", frame_names="%06d.jpg", frame_rate=12)
    assert framed[0].frames is not None and framed[0].frames.fps == 12
    assert len(framed[0].open()) == 5
    every_clip_reads(framed)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "train",
            '[{"id": "1", "template": "Eating [something]"}]',
            r"train\.json: entry 1: 'Eating \[something\]' is not one of the 2 classes",
        ),
        ("train", '[{"id": "x1", "template": "Holding [something]"}]', r"entry 1: expected a numeric id; found 'x1'"),
        ("train", '[{"id": "1"}]', r"entry 1: expected an object with id and template"),
        ("train", "[1]", r"entry 1: expected an object"),
        (
            "train",
            '[{"id": "10", "template": "Holding [something]"}, {"id": "11", "template": ""}]',
            r"train\.json: entry 2: expected an object with id and template .*mend that entry",
        ),
        ("train", '[{"id": "1",\n "template"', r"train\.json:2: not JSON"),
        ("train", '{"id": "1"}', r"train\.json:1: expected a list of clips"),
        ("train", "[]", r"the list is empty"),
        ("labels", "[]", r"labels\.json:1: expected an object of class name and number"),
        ("labels", '{"Holding something": "1"}', r"labels\.json: no class of number 0"),
        ("labels", '{"Holding something": "one"}', r"labels\.json:1: expected a class number: a number; found 'one'"),
    ],
)
def test_ssv2_files_that_do_not_fit(tmp_path: Path, name: str, content: str, said: str) -> None:
    root = trees.ssv2(tmp_path)
    trees.text(root / f"something-something-v2-{name}.json", content)
    with pytest.raises(DataError, match=said):
        opened("ssv2", root)


# --- EPIC-KITCHENS-100 ----------------------------------------------------------------------------------------------------


def test_epic100_videos_are_cut_by_time(tmp_path: Path) -> None:
    root = trees.epic100(tmp_path, clips=4)
    train, val = opened("epic100", root), opened("epic100", root, "val")
    assert {head: len(names) for head, names in train.classes.items()} == {"verb": 4, "noun": 5}  # not max(label) + 1
    assert train.classes["noun"][4] == "board:chopping"
    assert train.labels("verb").tolist() == [0, 1, 2, 0] * 2 and train.labels("noun").tolist() == [0, 1, 2, 3] * 2
    clip = train[1]
    assert (clip.start, clip.end, clip.path.name) == (0.5, 1.5, "P01_01.MP4")
    assert clip.open().span(clip.start, clip.end) == (10, 20)
    assert val.ids is not None and val.ids[0] == b"P01_02_0"
    assert val.parts["unseen"]["verb"].tolist() == [False] * 4 + [True] * 4
    assert val.parts["tail"]["verb"].tolist() == [False, False, True, False] * 2
    assert val.parts["tail"]["action"].tolist() == [False, False, True, False] * 2
    assert val.subset([5, 2]).parts["unseen"]["noun"].tolist() == [True, False]
    every_clip_reads(val)


def test_epic100_raw_frames(tmp_path: Path) -> None:
    root = trees.epic100(tmp_path, frames=True, clips=4)
    train = opened("epic100", root, frame_names="frame_%010d.jpg")
    clip = train[2]
    assert clip.path.as_posix().endswith("P01/rgb_frames/P01_01/frame_%010d.jpg")
    assert clip.frames is not None and (clip.frames.first, clip.frames.count) == (20, 21)
    assert clip.frames.fps == pytest.approx(20)  # from the csv's own frame numbers and times
    every_clip_reads(train)
    assert opened("epic100", root, frame_names="frame_%010d.jpg", frame_rate=50)[0].frames.fps == 50  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        (10, "4", r"EPIC_100_train\.csv:3: expected verb_class: a number below 4; found '4'"),
        (12, "-1", r"EPIC_100_train\.csv:3: expected noun_class: a number below 5; found '-1'"),
        (4, "1.5", r"EPIC_100_train\.csv:3: expected a time of the form 00:01:02\.345; found '1\.5'"),
        (5, "00:00:00.50", r"EPIC_100_train\.csv:3: expected stop_timestamp after start_timestamp"),
        (2, "", r"EPIC_100_train\.csv:3: expected participant_id and video_id"),
        (14, None, r"EPIC_100_train\.csv:3: expected 15 columns"),
    ],
)
def test_epic100_lines_that_do_not_fit(tmp_path: Path, column: int, value: str | None, said: str) -> None:
    import csv

    root = trees.epic100(tmp_path, clips=2)
    source = root / "epic-kitchens-100-annotations/EPIC_100_train.csv"
    with source.open(newline="") as stream:
        rows = list(csv.reader(stream))
    rows[2] = rows[2][:-1] if value is None else [*rows[2][:column], value, *rows[2][column + 1 :]]
    with source.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    with pytest.raises(DataError, match=said):
        opened("epic100", root)


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        ("30", "20", r"EPIC_100_train\.csv:3: expected stop_frame not before start_frame; found '30,20'"),
        ("ten", "20", r"EPIC_100_train\.csv:3: expected start_frame and stop_frame: a number; found 'ten'"),
        ("10", "20.5", r"EPIC_100_train\.csv:3: expected start_frame and stop_frame: a number; found '20\.5'"),
    ],
)
def test_epic100_frame_numbers_that_do_not_fit(tmp_path: Path, first: str, last: str, said: str) -> None:
    root = trees.epic100(tmp_path, frames=True, clips=2)
    source = root / "epic-kitchens-100-annotations/EPIC_100_train.csv"
    cells = source.read_text().splitlines()[2].split(",")
    edit(source, 3, ",".join([*cells[:6], first, last, *cells[8:]]))
    with pytest.raises(DataError, match=said):
        opened("epic100", root, frame_names="frame_%010d.jpg")


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("verb_classes", "one,open,\"['open']\",things", r":2: expected a class number: a number; found 'one'"),
        ("verb_classes", "1,open,\"['open']\",things", r":3: expected every class number and name once; found '1 put'"),
        ("noun_classes", "9,tap,\"['tap']\",things", r": no class of number 0"),
        ("noun_classes", "0,tap", r":2: expected 4 columns; found '0,tap'"),
        ("tail_verbs", "4", r":2: expected a verb class: a number below 4; found '4'"),
        ("tail_verbs", "two", r":2: expected a verb class: a number below 4; found 'two'"),
        ("tail_nouns", "1,2", r":2: expected 1 columns; found '1,2'"),
        ("unseen_participant_ids_validation", "P18,P32", r":2: expected 1 columns; found 'P18,P32'"),
    ],
)
def test_epic100_classes_and_parts_that_do_not_fit(tmp_path: Path, name: str, line: str, said: str) -> None:
    root = trees.epic100(tmp_path, clips=2)
    edit(root / f"epic-kitchens-100-annotations/EPIC_100_{name}.csv", 2, line)
    with pytest.raises(DataError, match=rf"EPIC_100_{name}\.csv" + said):
        opened("epic100", root, "val")


def test_epic100_names_may_be_of_any_letters(tmp_path: Path) -> None:
    root = trees.epic100(tmp_path, clips=2)
    source = root / "epic-kitchens-100-annotations/EPIC_100_train.csv"
    source.write_bytes(source.read_bytes().replace(b"P01_01_0,", b"P01_\xc3\xbc\xff_0,"))
    train = opened("epic100", root)
    assert train.ids is not None and train.ids[0] == b"P01_\xc3\xbc\xff_0"


def test_the_same_clip_twice(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = trees.epic100(tmp_path, clips=2)
    source = root / "epic-kitchens-100-annotations/EPIC_100_train.csv"
    again = source.read_text().splitlines()[1]
    edit(source, 0, again)
    assert len(opened("epic100", root)) == 4
    assert "1 lines stand there twice; each clip counts once" in capfd.readouterr().err
    edit(source, 6, again.replace(",0,cup:tea,", ",1,cup:tea,"))
    with pytest.raises(DataError, match=r"EPIC_100_train\.csv:6: P01/P01_01 has another label there than in line 2"):
        opened("epic100", root)


# --- mmaction2's lists ----------------------------------------------------------------------------------------------------


def test_video_list(tmp_path: Path) -> None:
    for name in ("a b/c 1.mp4", "a b/c 2.mp4", "d.mp4"):
        trees.video(tmp_path / "videos" / name)
    trees.text(tmp_path / "train.txt", "a b/c 1.mp4 1\nd.mp4 0\n")
    trees.text(tmp_path / "val.txt", "a b/c 2.mp4 1\n")
    lists = {"train": "train.txt", "val": "val.txt", "videos": "videos"}
    train, val = (opened("video-list", tmp_path, side, **lists) for side in ("train", "val"))
    assert (paths(train), train.labels().tolist()) == (["a b/c 1.mp4", "d.mp4"], [1, 0])
    assert train.classes == {"action": ["0", "1"]} and val.labels().tolist() == [1]
    every_clip_reads(val)
    trees.text(tmp_path / "label_map_mine.txt", "walk\nrun\nsit\n")
    assert opened("video-list", tmp_path, **lists).classes == {"action": ["walk", "run", "sit"]}
    for line, said in (
        ("d.mp4", r"train\.txt:2: expected `path label`; found 'd\.mp4'"),
        ("d.mp4 x", r"train\.txt:2: expected `path label`, label: a number below 3; found 'x'"),
        ("d.mp4 3", r"train\.txt:2: expected .* below 3"),
        ("a b/c 1.mp4 0", r"train\.txt:2: a b/c 1\.mp4 stands in line 1 already"),
    ):
        edit(tmp_path / "train.txt", 2, line)
        with pytest.raises(DataError, match=said):
            opened("video-list", tmp_path, **lists)


def test_frame_list(tmp_path: Path) -> None:
    trees.raw_frames(tmp_path / "frames/a b/c", "img_%05d.jpg", 7)
    trees.raw_frames(tmp_path / "frames/d", "img_%05d.jpg", 5)
    trees.text(tmp_path / "train.txt", "a b/c 7 1\nd 5 0\n")
    whole = opened("frame-list", tmp_path, train="train.txt", val="train.txt", videos="frames")
    clip = whole[0]
    assert clip.frames is not None and (clip.frames.first, clip.frames.count, clip.frames.fps) == (1, 7, 30)
    assert whole.labels().tolist() == [1, 0]
    every_clip_reads(whole)
    for line, said in (
        ("d 0 0", r"train\.txt:2: expected total_frames of at least 1"),
        ("d 0", r"train\.txt:2: expected `dir total_frames label`"),
        ("d five 0", r"train\.txt:2: expected `dir total_frames label`, total_frames: a number"),
    ):
        edit(tmp_path / "train.txt", 2, line)
        with pytest.raises(DataError, match=said):
            opened("frame-list", tmp_path, train="train.txt", val="train.txt", videos="frames")


@pytest.mark.parametrize(
    ("kind", "name", "content", "said"),
    [
        ("video-list", "train", "", r"train\.txt: the list is empty \(expected lines of `path label`\)"),
        ("frame-list", "train", "\n \n", r"train\.txt: the list is empty \(expected lines of `dir total_frames label`\)"),
        ("video-list", "val", "walk/val 0.mp4 2\n", r"val\.txt:1: expected `path label`, label: a number below 2; found '2'"),
        ("frame-list", "val", "walk/val 0 10 1\nwalk/val 1 10 2\n", r"val\.txt:2: expected .*, label: a number below 2"),
        ("video-list", "label_map", "jump\njump\n", r"label_map\.txt: class 'jump' stands there twice"),
    ],
)
def test_mmaction_lists_that_do_not_fit(tmp_path: Path, kind: str, name: str, content: str, said: str) -> None:
    root = trees.video_list(tmp_path) if kind == "video-list" else trees.frame_list(tmp_path)
    videos = "videos" if kind == "video-list" else "rawframes"
    trees.text(root / f"{name}.txt", content)
    with pytest.raises(DataError, match=said):
        opened(kind, root, "train" if name == "train" else "val", train="train.txt", val="val.txt", videos=videos)


def test_a_label_above_the_training_lists_where_nothing_names_the_classes(tmp_path: Path) -> None:
    root = trees.video_list(tmp_path)
    (root / "label_map.txt").unlink()
    trees.text(root / "val.txt", "walk/val 0.mp4 5\n")
    with pytest.raises(DataError, match=r"val\.txt:1: expected `path label`, label: a number below 2; found '5'"):
        opened("video-list", root, "val", train="train.txt", val="val.txt", videos="videos")


# --- all of them ----------------------------------------------------------------------------------------------------------

TEXTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "hmdb51": (trees.hmdb51, "testTrainMulti_7030_splits/walk_test_split1.txt"),
    "ucf101": (trees.ucf101, "ucfTrainTestlist/trainlist01.txt"),
    "kinetics400": (trees.kinetics, "train.csv"),
    "ssv2": (trees.ssv2, "something-something-v2-train.json"),
    "epic100": (trees.epic100, "epic-kitchens-100-annotations/EPIC_100_train.csv"),
}


@pytest.fixture(scope="module")
def all_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: make(tmp_path_factory.mktemp(kind)) for kind, (make, _) in TEXTS.items()}


@pytest.mark.parametrize("kind", [*TEXTS, "video-list"])
def test_a_folder_of_videos_that_is_not_there(all_sets: dict[str, Path], tmp_path: Path, kind: str) -> None:
    lists = {"train": "train.txt", "val": "val.txt"} if kind == "video-list" else {}
    root = trees.video_list(tmp_path) if kind == "video-list" else all_sets[kind]
    with pytest.raises(DataError, match=r"nowhere") as caught:
        opened(kind, root, videos="nowhere", **lists)
    assert "data.videos" in caught.value.hint or "data.root" in caught.value.hint


@pytest.mark.parametrize("kind", TEXTS)
def test_a_list_that_does_not_read(all_sets: dict[str, Path], kind: str) -> None:
    source = all_sets[kind] / TEXTS[kind][1]
    kept = source.rename(source.with_name("kept"))
    try:
        source.symlink_to("/proc/self/mem")  # opens, and does not read, not even as root
        with pytest.raises(DataError, match=rf"{source.name}: not readable: ") as caught:
            opened(kind, all_sets[kind])
        assert caught.value.hint
    finally:
        source.unlink()
        kept.rename(source)


@pytest.mark.parametrize("kind", TEXTS)
@given(data=st.data())
def test_a_damaged_list_is_read_or_refused_clearly(all_sets: dict[str, Path], kind: str, data: st.DataObject) -> None:
    source = all_sets[kind] / TEXTS[kind][1]
    good = source.read_bytes()
    at = data.draw(st.integers(0, len(good)))
    damaged = good[:at] + data.draw(st.binary(max_size=12)) + good[at + data.draw(st.integers(0, 40)) :]
    try:
        source.write_bytes(damaged)
        opened(kind, all_sets[kind], max_missing=1)
    except DtkdEdgeError as error:
        assert error.hint and "\n" not in str(error)
    finally:
        source.write_bytes(good)


def test_sets_are_told_apart_by_their_module_only_when_opened() -> None:
    import subprocess

    code = "import sys, dtkd_edge.data.catalogue as c; print(sorted(m for m in sys.modules if m.startswith('dtkd_edge.data.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['dtkd_edge.data.catalogue', 'dtkd_edge.data.members']"
