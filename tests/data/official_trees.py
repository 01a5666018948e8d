"""Miniature data sets in the layouts of the official ones, with real (tiny) videos and frames."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
from made_videos import pattern
from PIL import Image

from dtkd_edge.data.motion import write_video

CLASSES = ("brush_hair", "ride_bike", "walk")
EPIC_COLUMNS = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,narration,"
    "verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
)


def video(path: Path, seed: int = 0, frames: int = 10, rate: int = 10, height: int = 32, width: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, pattern(frames, height, width, seed), rate)
    return path


def raw_frames(folder: Path, names: str, count: int, first: int = 1, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, frame in enumerate(pattern(count, 32, 40, seed)):
        Image.fromarray(frame).save(folder / (names % (first + i)), quality=95)
    return folder


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def hmdb51(root: Path, train: int = 6, val: int = 2) -> Path:
    """Names as hostile as the official ones; an unused clip in every class; split 2 swaps some sides."""
    for number, name in enumerate(CLASSES):
        files = [f"[x] A!;&(b)_{name}_{i}.avi" for i in range(train + val + 1)]
        flags = [1] * train + [2] * val + [0]
        for split in (1, 2, 3):
            lines = [f"{file} {flag} \n" for file, flag in zip(files, flags, strict=True)]
            text(root / "testTrainMulti_7030_splits" / f"{name}_test_split{split}.txt", "".join(lines))
            flags = flags[1:] + flags[:1]
        source = video(root / f"{name}.mp4", seed=number)
        for file in files:
            (root / "videos" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(source, root / "videos" / name / file)
        source.unlink()
    return root


def ucf101(root: Path) -> Path:
    names = ("ApplyEyeMakeup", "Archery")
    lists = root / "ucfTrainTestlist"
    text(lists / "classInd.txt", "1 ApplyEyeMakeup\n2 Archery\n")
    files = [f"{name}/v_{name}_g{group:02d}_c01.avi" for name in names for group in (1, 8, 9)]
    text(lists / "trainlist01.txt", "".join(f"{f} {names.index(f.split('/')[0]) + 1}\n" for f in files if "_g01" not in f))
    text(lists / "testlist01.txt", "".join(f"{f}\n" for f in files if "_g01" in f))
    for i, file in enumerate(files):
        video(root / "UCF-101" / file, seed=i)
    return root


def kinetics(root: Path, *, is_cc: bool = True, spaces: bool = False, train: int = 6, val: int = 2) -> Path:
    """Three classes; the last training clip of the first one is missing."""
    labels = ("abseiling", "air drumming", "massaging person's head (slow)")
    header = "label,youtube_id,time_start,time_end,split" + (",is_cc" if is_cc else "") + "\n"
    for side, count, name in (("train", train, "train"), ("val", val, "validate")):
        rows = []
        for number, label in enumerate(labels):
            folder = label if spaces else label.replace(" ", "_").replace("'", "").replace("(", "").replace(")", "")
            for i in range(count):
                clip = f"-{side[0]}{number}_{i:08d}"
                rows.append(f"{label},{clip},{i},{i + 10},{side}" + (",0" if is_cc else "") + "\n")
                if not (side == "train" and number == 0 and i == count - 1):
                    video(root / "videos" / side / folder / f"{clip}_{i:06d}_{i + 10:06d}.mp4", seed=number)
        text(root / f"{name}.csv", header + "".join(rows))
    return root


def kinetics_without_is_cc(root: Path) -> Path:
    """As the lists of Kinetics-600 and -700 are."""
    return kinetics(root, is_cc=False, spaces=True)


def video_list(root: Path) -> Path:
    """train.txt and val.txt of mmaction2's form `path label`, videos/, and the names of the two classes."""
    return _listed(root, lambda path, seed: video(root / "videos" / path.with_suffix(".mp4"), seed=seed), "{}.mp4 {}")


def frame_list(root: Path) -> Path:
    """The same of raw frames: `dir total_frames label`, and rawframes/."""
    return _listed(root, lambda path, seed: raw_frames(root / "rawframes" / path, "img_%05d.jpg", 10, seed=seed), "{} 10 {}")


def _listed(root: Path, make: Callable[[Path, int], Path], line: str) -> Path:
    names = ("jump rope", "walk")
    text(root / "label_map.txt", "".join(f"{name}\n" for name in names))
    for side, count in (("train", 4), ("val", 2)):
        clips = [(f"{name}/{side} {i}", label) for label, name in enumerate(names) for i in range(count)]
        for clip, label in clips:
            make(Path(clip), label)
        text(root / f"{side}.txt", "".join(line.format(clip, label) + "\n" for clip, label in clips))
    return root


def ssv2(root: Path) -> Path:
    labels = {"Holding something": "1", "Approaching something with your camera": "0"}
    text(root / "something-something-v2-labels.json", json.dumps(labels))

    def entry(number: int, template: str) -> dict[str, object]:
        return {
            "id": str(number),
            "label": template.replace("[something]", "a cup"),
            "template": template,
            "placeholders": ["a cup"],
        }

    templates = ("Holding [something]", "Approaching [something] with your camera")
    for side, first in (("train", 10), ("validation", 90)):
        entries = [entry(first + i, templates[i % 2]) for i in range(4)]
        text(root / f"something-something-v2-{side}.json", json.dumps(entries))
        for i in range(4):
            video(root / "20bn-something-something-v2" / f"{first + i}.mp4", seed=i % 2)  # the official ones are webm
    return root


def epic_row(clip: str, start: float, stop: float, verb: int, noun: int, rate: float) -> list[str]:
    """One line as the official csv has it: times as 00:00:01.20, lists inside quotes, a comma in the narration."""

    def clock(seconds: float) -> str:
        return f"{int(seconds // 3600):02d}:{int(seconds // 60) % 60:02d}:{seconds % 60:05.2f}"

    person, name, _ = clip.split("_")
    frames = [str(int(start * rate) or 1), str(int(stop * rate))]
    words = ["take", str(verb), "cup:tea", str(noun), "['cup:tea', 'plate']", f"[{noun}, 2]"]
    return [clip, person, f"{person}_{name}", clock(start), clock(start), clock(stop), *frames, "take cup, then plate", *words]


def epic100(root: Path, *, frames: bool = False, rate: int = 20, clips: int = 8) -> Path:
    """Four verbs, five nouns, of which the last of each never occurs; validation has P18, which training has not."""
    lists = root / "epic-kitchens-100-annotations"
    verbs, nouns = ("take", "put", "wash", "open"), ("tap", "spoon", "plate", "cupboard", "board:chopping")
    for head, names in (("verb", verbs), ("noun", nouns)):
        rows = "".join(f"{i},{name},\"['{name}', 'other']\",things\n" for i, name in enumerate(names))
        text(lists / f"EPIC_100_{head}_classes.csv", "id,key,instances,category\n" + rows)
        text(lists / f"EPIC_100_tail_{head}s.csv", f"{head}\n2\n{len(names) - 1}\n")
    text(lists / "EPIC_100_unseen_participant_ids_validation.csv", "participant_id\nP18\nP32\n")
    for side, videos in (("train", ("P01_01", "P02_101")), ("validation", ("P01_02", "P18_01"))):
        with (lists / f"EPIC_100_{side}.csv").open("w", newline="") as stream:
            stream.write(EPIC_COLUMNS + "\n")
            writer = csv.writer(stream, lineterminator="\n")
            for name in videos:
                person = name.split("_")[0]
                for i in range(clips):
                    writer.writerow(epic_row(f"{name}_{i}", 0.5 * i, 0.5 * i + 1, i % 3, i % 4, rate))
                length = int((0.5 * clips + 1) * rate)
                if frames:
                    raw_frames(root / "EPIC-KITCHENS" / person / "rgb_frames" / name, "frame_%010d.jpg", length)
                else:
                    video(root / "EPIC-KITCHENS" / person / "videos" / f"{name}.MP4", frames=length, rate=rate)
    return root


def epic100_test(root: Path, *, rate: int = 20, clips: int = 6) -> Path:
    """The list of unlabelled test segments, of 8 columns, and its video; the last two have the same times, and other ids."""
    with (root / "epic-kitchens-100-annotations/EPIC_100_test_timestamps.csv").open("w", newline="") as stream:
        stream.write(",".join(EPIC_COLUMNS.split(",")[:8]) + "\n")
        writer = csv.writer(stream, lineterminator="\n")
        for i in range(clips):
            at = 0.5 * min(i, clips - 2)
            writer.writerow(epic_row(f"P03_21_{i}", at, at + 1, 0, 0, rate)[:8])
    video(root / "EPIC-KITCHENS/P03/videos/P03_21.MP4", seed=3, frames=int((0.5 * clips + 1) * rate), rate=rate)
    return root


def numbered_video(path: Path, count: int, rate: int) -> Path:
    """Frame i is grey of level 4·i: which frames were read can be told from the pixels."""
    frames = np.repeat(np.arange(count, dtype=np.uint8) * 4, 32 * 32 * 3).reshape(count, 32, 32, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, frames, rate)
    return path


def variable_rate(path: Path, levels: int = 20) -> Path:
    """Frame i is grey of level 10·i; the first half is shown for 0.1 s each, the second for 0.3 s."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "1", "bf": "0", "crf": "10"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        at = 0
        for i in range(levels):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 1000)
            at += 100 if i < levels // 2 else 300
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
