"""Catalogues, lists, folders and splits."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtkd_edge.data.catalogue import Catalogue, Clip, hold_out, open_split, student_subset
from dtkd_edge.data.check import check
from dtkd_edge.data.folder import require_classes
from dtkd_edge.data.lists import read_rows, write_held_out
from dtkd_edge.errors import DataError, DtkdEdgeError, RecipeError
from dtkd_edge.recipe import DataConfig
from dtkd_edge.recipe_reader import data_at

FIGHT = Path(__file__).parents[2].parent / "shared/data/fight"


def config(**values: object) -> DataConfig:
    return DataConfig.model_validate(values)


def tree(root: Path, files: list[str]) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def paths(catalogue: Catalogue) -> list[str]:
    return [catalogue.path(i).relative_to(catalogue.root).as_posix() for i in range(len(catalogue))]


# --- catalogue ------------------------------------------------------------------------------------------------------------


def test_rows_and_subsets() -> None:
    times = np.array([[np.nan, np.nan], [1.0, 2.5]])
    whole = Catalogue("x", Path("/r"), ["a b/ü.mp4", "/abs/c.mp4"], {"verb": np.array([1, 0])}, {"verb": ["p", "q"]}, times=times)
    assert whole[0] == Clip(Path("/r/a b/ü.mp4"), {"verb": 1})
    assert whole[1] == Clip(Path("/abs/c.mp4"), {"verb": 0}, 1.0, 2.5)
    assert whole[-1] == whole[1]
    assert whole.subset([1])[0] == whole[1]
    assert whole.labels("verb").tolist() == whole.labels().tolist() == [1, 0]
    with pytest.raises(IndexError):
        whole[2]


def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    name = b"clip-\xff.mp4".decode("utf-8", "surrogateescape")
    catalogue = Catalogue("x", tmp_path, [name], {"action": np.array([0])}, {"action": ["a"]})
    assert catalogue[0].path == tmp_path / name


def test_100_000_rows_are_cheap(tmp_path: Path) -> None:
    text = "path,label\n" + "".join(f"videos/class{i % 400}/clip_{i:08d}.mp4,class{i % 400}\n" for i in range(100_000))
    (tmp_path / "train.csv").write_text(text)
    tree(tmp_path, ["videos/class0/clip_00000000.mp4"])
    began = time.process_time()
    whole = open_split(config(kind="csv", root=tmp_path, train="train.csv", val="train.csv"), "train")
    assert time.process_time() - began < 6  # seconds of this process; twice the same list
    assert len(whole) == 100_000
    assert whole._paths.nbytes < 20e6
    assert len(whole.classes["action"]) == 400


def test_no_clips() -> None:
    with pytest.raises(DataError, match="no clips"):
        Catalogue("x", Path("r"), [], {"action": np.array([], int)}, {"action": ["a"]})


def test_unknown_kind() -> None:
    with pytest.raises(RecipeError, match=r"data\.kind: 'hdmb' is no known data set .*folder"):
        open_split(config(kind="hdmb"), "train")


# --- subset and split -----------------------------------------------------------------------------------------------------

labelled = st.lists(st.integers(0, 4), min_size=1, max_size=80).map(lambda v: np.unique(v, return_inverse=True)[1].reshape(-1))


@given(labelled, st.integers(1, 90), st.integers(0, 3))
def test_student_subset_is_balanced(labels: np.ndarray, clips: int, seed: int) -> None:
    names = [str(i) for i in range(labels.max() + 1)]
    whole = Catalogue("x", Path(), [f"{i}" for i in range(len(labels))], {"a": labels}, {"a": names})
    if clips < len(names) and clips < len(labels):
        with pytest.raises(DataError, match="student_clips"):
            student_subset(whole, clips, seed)
        return
    chosen = student_subset(whole, clips, seed)
    assert len(chosen) == min(clips, len(labels))
    assert len(set(paths(chosen))) == len(chosen)
    taken, there = (np.bincount(c.labels(), minlength=len(names)) for c in (chosen, whole))
    most = taken.max()
    assert all(t >= most - 1 or t == n for t, n in zip(taken, there, strict=True))  # short only where there are no more
    assert paths(chosen) == paths(student_subset(whole, clips, seed))


def test_no_limit_takes_everything() -> None:
    whole = Catalogue("x", Path(), ["a", "b"], {"a": np.array([0, 1])}, {"a": ["p", "q"]})
    assert student_subset(whole, None, 0) is whole


@settings(max_examples=60)
@given(labelled, st.floats(0.05, 0.9), st.integers(0, 5), st.booleans())
def test_hold_out_keeps_every_class_and_every_group_whole(labels: np.ndarray, share: float, seed: int, grouped: bool) -> None:
    groups = np.random.default_rng(seed).integers(0, 12, len(labels)) if grouped else None
    held = hold_out(labels, share, seed, groups)
    assert set(labels[~held]) == set(labels)
    if groups is not None:
        assert not set(groups[held]) & set(groups[~held])
    else:
        for label in set(labels):
            total = (labels == label).sum()
            assert abs(held[labels == label].sum() - share * total) <= 1
    assert (held == hold_out(labels, share, seed, groups)).all()
    assert (held == held_out_by_definition(labels, share, seed, groups)).all()


def held_out_by_definition(labels: np.ndarray, share: float, seed: int, groups: np.ndarray | None) -> np.ndarray:
    """One group after the other, with a count for every group and class."""
    names, group_of = np.unique(np.arange(len(labels)) if groups is None else groups, return_inverse=True)
    counts = np.zeros((len(names), labels.max() + 1), int)
    np.add.at(counts, (group_of.reshape(-1), labels), 1)
    total = counts.sum(0)
    wanted = np.maximum(share * total, np.minimum(1, total - 1))
    chosen = np.zeros(len(names), bool)
    for group in np.random.default_rng([seed, 2]).permutation(len(names)):
        before, after = counts[chosen].sum(0), counts[chosen].sum(0) + counts[group]
        mine = counts[group] > 0
        nearer = np.abs(wanted - before)[mine].sum() - np.abs(wanted - before - counts[group])[mine].sum() > 0
        chosen[group] = nearer and (after < total)[mine].all()
    return chosen[group_of.reshape(-1)]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.25, 0.5, 0.9])
def test_what_is_held_out_does_not_change_with_the_number_of_classes(share: float, grouped: bool) -> None:
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 40, 600) * 3  # of 120 classes most have no clip, as where a list has no clip of a noun
    groups = rng.integers(0, 90, 600) * 5 - 100 if grouped else None  # about seven clips each, of several classes
    assert (hold_out(labels, share, 3, groups) == held_out_by_definition(labels, share, 3, groups)).all()


def test_holding_out_of_100_000_clips_takes_no_table_of_classes() -> None:
    labels = np.arange(100_000) % 400
    for groups in (None, np.arange(100_000) // 3):
        tracemalloc.start()
        assert hold_out(labels, 0.2, 0, groups).mean() == pytest.approx(0.2, abs=0.01)
        assert tracemalloc.get_traced_memory()[1] < 20e6  # bytes; clips × classes would be 320 MB
        tracemalloc.stop()


# --- lists ----------------------------------------------------------------------------------------------------------------


def csv_set(root: Path, text: str, **more: object) -> DataConfig:
    (root / "list.csv").write_text(text)
    return config(kind="csv", root=root, train="list.csv", **more)


def test_columns_in_any_order_groups_and_times(tmp_path: Path) -> None:
    tree(tmp_path, ["a,1.mp4", "b.mp4"])
    text = (
        '\ufefflabel,end,path,start,group,note\nrun,2.5,"a,1.mp4",1,g,hi\n\nwalk,,b.mp4,,,\nrun,,b.mp4,0.5,g,\nwalk,,b.mp4,,,\n'
    )
    settings_ = csv_set(tmp_path, text, val="list.csv")
    whole = open_split(settings_, "train")
    assert whole.classes == {"action": ["run", "walk"]}
    assert whole[0] == Clip(tmp_path / "a,1.mp4", {"action": 0}, 1.0, 2.5)
    assert whole[1] == Clip(tmp_path / "b.mp4", {"action": 1})
    assert whole[2].start == 0.5 and whole[2].end is None
    assert whole.groups is not None
    assert len(set(whole.groups[[1, 3]])) == 2  # no group: each clip by itself
    assert whole.groups[0] == whole.groups[2]


@pytest.mark.parametrize(
    "text",
    [
        "Video,Class\na.mp4,run",
        "category,FILE\nrun,a.mp4",
        "clip,note,label\na.mp4,-,run",
        "video_path,filename,class\na.mp4,-,run",
    ],
)
def test_other_usual_names_of_columns(tmp_path: Path, text: str) -> None:
    tree(tmp_path, ["a.mp4"])
    whole = open_split(csv_set(tmp_path, text, val="list.csv"), "train")
    assert (paths(whole), whole.classes) == (["a.mp4"], {"action": ["run"]})


def test_without_a_header_and_numbers_in_order(tmp_path: Path) -> None:
    tree(tmp_path, ["a.mp4"])
    whole = open_split(csv_set(tmp_path, "a.mp4,10\na.mp4,9\n", val="list.csv"), "train")
    assert whole.classes["action"] == ["9", "10"]


def test_a_list_in_utf16(tmp_path: Path) -> None:
    tree(tmp_path, ["ü.mp4"])
    settings_ = csv_set(tmp_path, "", val="list.csv")
    (tmp_path / "list.csv").write_bytes("path,label\r\nü.mp4,бег\r\n".encode("utf-16"))
    assert open_split(settings_, "train").classes == {"action": ["бег"]}
    (tmp_path / "list.csv").write_bytes("path,label\r\nü.mp4,бег\r\n".encode("utf-16-le"))  # nothing says so
    with pytest.raises(DataError, match=r"list\.csv: not a text in UTF-8 \(save the list as csv in UTF-8\)"):
        open_split(settings_, "train")


def test_classes_file_fixes_the_order(tmp_path: Path) -> None:
    tree(tmp_path, ["a.mp4"])
    (tmp_path / "classes.txt").write_text("walk\nrun\n")
    settings_ = csv_set(tmp_path, "a.mp4,run\na.mp4,walk\n", val="list.csv")
    assert open_split(settings_, "train").classes["action"] == ["walk", "run"]
    (tmp_path / "classes.txt").write_text("walk\nrun\nsit\n")
    with pytest.raises(DataError, match="no clip of class 'sit'"):
        open_split(settings_, "train")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the list is empty"),
        ("path,label\n", "the list is empty"),
        ("path,label\na.mp4,run\na.mp4\n", r"list\.csv:3: expected path,label; found 'a\.mp4'"),
        ("path,label\n,run\n", r"list\.csv:2: empty path"),
        ("path,label\na.mp4, \n", r"list\.csv:2: empty label"),
        ("path,label,start\na.mp4,run,soon\n", r"list\.csv:2: start 'soon' is not a number"),
        ("path,label,start\na.mp4,run,nan\n", r"list\.csv:2: start 'nan' is not a time"),
        ("path,label,start\na.mp4,run,-1\n", r"list\.csv:2: start '-1' is not a time"),
        ("path,label,start,end\na.mp4,run,3,2\n", r"list\.csv:2: end 2 is not after start 3"),
        ('path,label\n"a.mp4,run\n', r"list\.csv:\d: not csv"),
        ("recording,action\na.mp4,run\n", r"list\.csv:1: recording: no such file, while .* names its columns path,label"),
        ("path,label\nb.mp4,run\nc.mp4,sit\n", r"none of its files is there, for example .*b\.mp4"),
    ],
)
def test_lists_that_do_not_fit(tmp_path: Path, text: str, said: str) -> None:
    tree(tmp_path, ["a.mp4"])
    with pytest.raises(DataError, match=said) as caught:
        open_split(csv_set(tmp_path, text), "train")
    assert caught.value.hint


@given(st.text(max_size=200))
def test_any_text_is_a_list_or_a_clear_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    root = tmp_path_factory.getbasetemp() / "any"
    root.mkdir(exist_ok=True)
    (root / "list.csv").write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        open_split(config(kind="csv", root=root, train="list.csv"), "val")
    except DtkdEdgeError as error:
        assert error.hint


def test_clips_that_stand_in_a_list_twice_are_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path, ["a.mp4", "b.mp4"])
    text = "path,label,start\na.mp4,run,\nb.mp4,walk,\na.mp4,run,1\na.mp4,walk,\na.mp4,run,1\n"
    assert len(open_split(csv_set(tmp_path, text, val="list.csv"), "train")) == 5
    said = capfd.readouterr().err.splitlines()
    assert said[0].endswith("list.csv:5: a.mp4 stands in line 2 already, with another label (2 such lines in all)")


def test_a_label_only_in_val(tmp_path: Path) -> None:
    tree(tmp_path, ["a.mp4"])
    (tmp_path / "val.csv").write_text("a.mp4,run\na.mp4,fly\n")
    with pytest.raises(DataError, match=r"val\.csv:2: label 'fly' is not one of the 1 training classes"):
        open_split(csv_set(tmp_path, "a.mp4,run\n", val="val.csv"), "train")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"classes.txt": "walk\n"},
            r"list\.csv:2: label 'run' is not one of the 1 training classes .*classes\.txt where there is one",
        ),
        ({"classes.txt": "run\nwalk\nrun\n"}, r"classes\.txt: class 'run' stands there twice"),
        ({"classes.txt": b"run\xff\nwalk\n"}, r"classes\.txt: not readable: .*expected one class name per line, in UTF-8"),
        ({"val.csv": "path,label.verb\na.mp4,run\n"}, r"val\.csv:1: expected the training list's columns label "),
        ({"val.csv": "path,label\n"}, r"val\.csv: the list is empty"),
        ({"val.csv": "/proc/self/mem"}, r"val\.csv: not readable: .*check the path and its permissions"),
    ],
)
def test_lists_and_classes_at_odds(tmp_path: Path, files: dict[str, str | bytes], said: str) -> None:
    tree(tmp_path, ["a.mp4"])
    (tmp_path / "val.csv").write_text("path,label\na.mp4,run\n")
    for name, content in files.items():
        (tmp_path / name).unlink(missing_ok=True)
        if content == "/proc/self/mem":  # opens, and does not read, not even as root
            (tmp_path / name).symlink_to("/proc/self/mem")
        else:
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=said):
        open_split(csv_set(tmp_path, "path,label\na.mp4,run\na.mp4,walk\n", val="val.csv"), "val")


def test_missing_lists(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.train: kind csv needs"):
        open_split(config(kind="csv"), "train")
    with pytest.raises(DataError, match=r"data\.train: no\.csv: no such list"):
        open_split(config(kind="csv", root=tmp_path, train="no.csv"), "train")
    with pytest.raises(DataError, match="nothing to hold out"):
        tree(tmp_path, ["a.mp4"])
        open_split(csv_set(tmp_path, "a.mp4,run\na.mp4,walk\n"), "val")


# --- folders --------------------------------------------------------------------------------------------------------------


def test_class_folders_are_split_by_class(tmp_path: Path) -> None:
    files = [f"{name}/{i} [x].MP4" for name in ("walk", "run fast") for i in range(10)]
    tree(tmp_path, [*files, "run fast/deep/er.avi", "run fast/notes.txt", ".cache/x/y.mp4", "walk/.hidden.mp4"])
    settings_ = config(kind="folder", root=tmp_path, val_share=0.3)
    train, val = open_split(settings_, "train"), open_split(settings_, "val")
    assert train.classes == {"action": ["run fast", "walk"]}
    assert sorted(paths(train) + paths(val)) == sorted([*files, "run fast/deep/er.avi"])
    assert np.bincount(val.labels()).tolist() == [3, 3]
    other = open_split(config(kind="folder", root=tmp_path, val_share=0.3, seed=1), "val")
    assert paths(other) != paths(val)


def test_train_and_val_folders(tmp_path: Path) -> None:
    tree(tmp_path, ["train/a/1.mp4", "train/b/1.mp4", "valid/b/2.mp4"])
    settings_ = config(kind="folder", root=tmp_path)
    assert paths(open_split(settings_, "train")) == ["a/1.mp4", "b/1.mp4"]
    val = open_split(settings_, "val")
    assert (paths(val), val.labels().tolist()) == (["b/2.mp4"], [1])
    tree(tmp_path, ["valid/c/2.mp4"])
    with pytest.raises(DataError, match="valid/c: a class that the training folder does not have"):
        open_split(settings_, "val")


def test_all_of_a_named_folder_is_scored_or_its_own_validation_side(tmp_path: Path) -> None:
    classes = [f"{name}/{i}.mp4" for name in ("a", "b") for i in range(5)]
    assert sorted(paths(open_split(data_at(tree(tmp_path / "plain", classes)), "val"))) == classes
    listed = tree(tmp_path / "listed", classes)
    (listed / "train.csv").write_text("".join(f"{name},{name[0]}\n" for name in classes))
    assert paths(open_split(data_at(listed), "val")) == classes
    sides = tree(tmp_path / "sides", [f"train/{name}" for name in classes] + ["test/b/9.mp4"])
    val = open_split(data_at(sides), "val")
    assert (paths(val), val.labels().tolist()) == (["b/9.mp4"], [1])
    assert val.notes == (f"{sides}: only its validation side is scored: {sides}/test",)
    assert len(open_split(data_at(sides), "train")) == 10


def test_data_may_be_asked_to_hold_out_clips_by_name(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", [f"{name}/{i}.mp4" for name in "ab" for i in range(5)])
    listed = tmp_path / "mine.txt"
    listed.write_bytes(b"./a/1.mp4\r\nb/2.mp4\r\n")
    wanted = config(kind="folder", root=root, held_out=listed)
    assert sorted(paths(open_split(wanted, "val"))) == ["a/1.mp4", "b/2.mp4"]
    listed.write_text("c/1.mp4\n")
    with pytest.raises(DataError, match=r"data\.held_out: .*mine\.txt: none of its clips is in .*such as a/0\.mp4"):
        open_split(wanted, "train")
    assert len(open_split(wanted.as_of_run(listed), "val")) == 2  # a run's own: its clips may have gone
    tree(root, ["train/a/1.mp4", "train/b/1.mp4", "val/a/2.mp4"])
    (note,) = open_split(wanted, "val").notes
    assert note == f"data.held_out: {listed}: not used: the data says itself which clips are for validation"


@pytest.mark.parametrize("column", ["", ",group"])
def test_a_clip_that_is_listed_twice_is_on_one_side(tmp_path: Path, column: str) -> None:
    rows = [f"{name}/{i}.mp4,{name}" + column.replace("group", f"{name}{i}") for name in "ab" for i in range(20)]
    again = ["./" + row + "-again" * bool(column) for row in rows]
    tree(tmp_path, [row.split(",")[0] for row in rows])
    (tmp_path / "all.csv").write_text("\n".join([f"path,label{column}", *rows, *again]))
    for seed in range(3):
        drawn = config(kind="csv", root=tmp_path, train="all.csv", seed=seed)
        train, val = (open_split(drawn, side) for side in ("train", "val"))
        assert not set(paths(train)) & set(paths(val)) and len(val) == 16
        write_held_out(tmp_path / "held.txt", val)
        named = config(kind="csv", root=tmp_path, train="all.csv", held_out=tmp_path / "held.txt")
        assert open_split(named, "val").names() == val.names()


def test_all_of_it_is_no_kind_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'test-folder' is no known data set"):
        open_split(config(kind="test-folder", root=tmp_path), "train")
    assert data_at(tmp_path).check_command == f"dtkd-edge data check folder --set data.root={tmp_path}"


def test_a_head_by_name_comes_before_what_else_may_be_a_label(tmp_path: Path) -> None:
    tree(tmp_path, ["a.mp4", "b.mp4"])
    (tmp_path / "all.csv").write_text("path,class,label.verb\na.mp4,x,cut\nb.mp4,x,put\n")
    assert read_rows(tmp_path / "all.csv").labels == {"verb": ["cut", "put"]}


def test_capitals_of_the_sides_do_not_matter(tmp_path: Path) -> None:
    tree(tmp_path, ["Train/a/1.mp4", "Train/b/1.mp4", "VALIDATION/b/2.mp4"])
    assert paths(open_split(config(kind="folder", root=tmp_path), "train")) == ["a/1.mp4", "b/1.mp4"]
    assert paths(open_split(config(kind="folder", root=tmp_path), "val")) == ["b/2.mp4"]


def test_a_validation_folder_beside_classes_is_no_class(tmp_path: Path) -> None:
    tree(tmp_path, ["a/1.mp4", "a/2.mp4", "test/1.mp4", "test/2.mp4"])  # a class of that name
    assert open_split(config(kind="folder", root=tmp_path), "train").classes == {"action": ["a", "test"]}
    tree(tmp_path, ["val/a/3.mp4"])
    with pytest.raises(DataError, match=r"val: a folder for validation, and .* no train folder .*move the class folders"):
        open_split(config(kind="folder", root=tmp_path), "train")
    assert paths(open_split(data_at(tmp_path), "val")) == ["a/3.mp4"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            ["data/the clips/a/1.mp4", "data/the clips/b/1.mp4"],
            r"one class only, 'data' \(did you mean --set .*/data/the clips'",
        ),
        (["a/day 1/1.mp4", "a/day 2/1.mp4", "a/2.mp4"], r"one class only, 'a' \(training needs two classes"),
    ],
)
def test_one_class_is_no_training_set(tmp_path: Path, files: list[str], said: str) -> None:
    train = open_split(data_at(tree(tmp_path, files)), "train")
    with pytest.raises(DataError, match=said):
        require_classes(train)
    with pytest.raises(DataError, match=said):
        check("folder", overrides=[f"data.root={tmp_path}"], json=None)


def test_links_that_lead_back_up_are_not_followed(tmp_path: Path) -> None:
    tree(tmp_path, ["a/1.mp4", "a/deep/2.mp4", "b/1.mp4"])
    (tmp_path / "a/self").symlink_to("..")
    (tmp_path / "a/deep/again").symlink_to("..")
    (tmp_path / "a/loop").symlink_to("loop")
    (tmp_path / "c").symlink_to("b")  # a link to another place is one
    train = open_split(data_at(tmp_path), "train")
    assert paths(train) == ["a/1.mp4", "a/deep/2.mp4", "b/1.mp4", "c/1.mp4"]


def test_what_training_would_pass_over_or_spoil_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path, ["turn left/1.wmv", "turn left/2.mts", "turn left/new/3.M2TS", "turn left/notes.txt", "turn right/1.asf"])
    (tmp_path / "turn right/2.mp4").write_bytes(b"")
    with pytest.raises(DataError, match="do not decode"):
        check("folder", overrides=[f"data.root={tmp_path}", "data.val_share=0.5"], json=None)
    passed, flipped = capfd.readouterr().err.splitlines()[:2]
    assert passed.startswith(f"{tmp_path}: 2 files passed over: .m2ts, .mts (remux: ffmpeg -i x.m")
    assert flipped.startswith("classes 'turn left' and 'turn right': augment.flip") and "augment.flip=false" in flipped
    tree(tmp_path, ["up/1.ts"])
    with pytest.raises(DataError, match=r"up: a class with no clip \(remux: ffmpeg -i x\.ts -c copy x\.mp4\)"):
        open_split(config(kind="folder", root=tmp_path), "train")
    tree(tmp_path, ["up/1.mp4", "turn right/3.mpg"])
    (tmp_path / "up/1.ts").rename(tmp_path / "up/1.vob")
    (note,) = [note for note in open_split(config(kind="folder", root=tmp_path), "train").notes if "passed over" in note]
    assert ".mpg, .mts, .vob" in note


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.root: kind folder needs"):
        open_split(config(kind="folder"), "train")
    with pytest.raises(DataError, match="no such folder"):
        open_split(config(kind="folder", root=tmp_path / "none"), "train")
    with pytest.raises(DataError, match="no class folders"):
        open_split(config(kind="folder", root=tmp_path), "train")
    tree(tmp_path, ["a/1.mp4", "b/readme.txt"])
    with pytest.raises(DataError, match="b: a class with no clip"):
        open_split(config(kind="folder", root=tmp_path), "train")


def test_an_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, ["a/1.mp4", "b/1.mp4"])
    (tmp_path / "b").chmod(0)
    if next(iter((tmp_path / "b").glob("*")), None) is not None:  # root may read it all the same

        def refuse(folder: Path) -> object:
            if folder.name == "b":
                raise PermissionError(13, "Permission denied")
            return real(folder)

        from dtkd_edge.data import folder as module

        real = module.os.scandir
        monkeypatch.setattr(module.os, "scandir", refuse)
    try:
        with pytest.raises(DataError, match="b: not readable: Permission denied"):
            open_split(config(kind="folder", root=tmp_path), "train")
    finally:
        (tmp_path / "b").chmod(0o755)


@pytest.mark.skipif(not FIGHT.is_dir(), reason="real clips are not here")
def test_real_lists_beside_videos() -> None:
    settings_ = config(kind="folder", root=FIGHT)
    train, val = open_split(settings_, "train"), open_split(settings_, "val")
    assert np.bincount(train.labels()).tolist() == [100, 80]
    assert np.bincount(val.labels()).tolist() == [20, 25]
    assert train.groups is not None
    held_out = config(kind="csv", root=FIGHT, train="train.csv")
    train, val = open_split(held_out, "train"), open_split(held_out, "val")
    assert train.groups is not None and val.groups is not None
    assert not set(train.groups) & set(val.groups)
    assert 20 < len(val) < 60
