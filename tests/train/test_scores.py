"""Scores, against plain loops that follow their definitions."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dtkd_edge.data.pairs import pair_ranks
from dtkd_edge.train.scores import Scores, write_confusion

LABELS = [0, 1, 1, 2, 2, 2]
LOGITS = np.array([[9, 1, 0], [1, 2, 0], [3, 2, 0], [0, 0, 1], [0, 5, 1], [7, 0, 1]], np.float32)


def made(logits: np.ndarray, labels: list[int]) -> Scores:
    return Scores({"action": logits}, {"action": np.array(labels, np.int64)})


def by_definition(verb: np.ndarray, noun: np.ndarray, true: tuple[int, int], top: int) -> int:
    """Softmax over the best `top` of each, all pairs sorted by the product; equal ones before the true one."""
    products = {}
    for v in sorted(range(len(verb)), key=lambda i: -verb[i])[:top]:
        for n in sorted(range(len(noun)), key=lambda i: -noun[i])[:top]:
            products[v, n] = float(np.exp(verb[v]) * np.exp(noun[n]))  # the softmaxes' denominators are the same for all pairs
    if true not in products:
        return len(products)
    return sum(value >= products[true] for value in products.values()) - 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 12), st.sampled_from([2, 5, 100]))
def test_action_ranks_follow_the_challenges_definition(seed: int, verbs: int, nouns: int, top: int) -> None:
    rng = np.random.default_rng(seed)
    verb, noun = (rng.normal(size=(7, k)).astype(np.float32) for k in (verbs, nouns))
    true_verb, true_noun = rng.integers(0, verbs, 7), rng.integers(0, nouns, 7)
    found = pair_ranks(verb, noun, true_verb, true_noun, top)
    wanted = [
        by_definition(v.astype(float), n.astype(float), (a, b), top)
        for v, n, a, b in zip(verb, noun, true_verb, true_noun, strict=True)
    ]
    assert found.tolist() == wanted


def test_actions_rank_pairs_and_not_heads() -> None:
    """The true verb is third and the true noun first: as a pair it is second, since another noun is much less likely."""
    verb, noun = np.array([[2.0, 1.9, 1.8]]), np.array([[9.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    scores = Scores({"verb": verb, "noun": noun}, {"verb": np.array([2]), "noun": np.array([0])})
    assert scores.heads == ["verb", "noun", "action"]
    assert scores.ranks("action").tolist() == [2]
    table = scores.table()
    assert (table["verb_top1"], table["noun_top1"], table["action_top1"], table["action_top5"]) == (0, 1, 0, 1)
    assert scores.top1 == 0.5  # of the heads that are trained
    assert "verb_top5" not in table


def test_more_than_a_hundred_nouns_are_cut_and_chunks_join() -> None:
    rng = np.random.default_rng(0)
    verb, noun = rng.normal(size=(300, 97)), rng.normal(size=(300, 300))
    verbs, nouns = rng.integers(0, 97, 300), rng.integers(0, 300, 300)
    ranks = pair_ranks(verb, noun, verbs, nouns)
    place = (noun > np.take_along_axis(noun, nouns[:, None], 1)).sum(1)
    assert ((ranks == 97 * 100) == (place >= 100)).all() and (place >= 100).any()
    assert ranks[place < 100].max() < 97 * 100


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(0, 30))
def test_top_k_mean_class_and_confusion_are_their_definitions(seed: int, classes: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.integers(0, 4, (count, classes)).astype(np.float32), rng.integers(0, classes, count)
    scores = made(logits, labels.tolist())
    orders = [sorted(range(classes), key=lambda c: (-row[c], c)) for row in logits]
    for k in (1, 2, 5):
        right = [label in order[:k] for label, order in zip(labels, orders, strict=True)]
        assert scores.accuracy("action", k) == pytest.approx(np.mean(right) if count else 0)
    per_class = [[o[0] == c for label, o in zip(labels, orders, strict=True) if label == c] for c in range(classes)]
    assert scores.mean_class_accuracy("action") == pytest.approx(np.mean([np.mean(r) for r in per_class if r]) if count else 0)
    matrix = scores.confusion("action")
    for label in range(classes):
        for other in range(classes):
            assert matrix[label, other] == sum(o[0] == other for i, o in enumerate(orders) if labels[i] == label)


def test_not_a_number_is_never_right() -> None:
    logits = np.array([[np.nan, np.nan], [np.nan, 1]], np.float32)
    assert made(logits, [0, 1]).accuracy("action") == 0
    assert pair_ranks(logits, logits, np.array([0, 1]), np.array([0, 1])).min() >= 1


def test_parts_follow_the_clips_numbers() -> None:
    scores = Scores({"a": LOGITS[[5, 0, 1]]}, {"a": np.array([2, 0, 1])}, index=np.array([5, 0, 1]))
    part = {"a": np.array([False, True, True, True, True, True]), "b": np.ones(6, bool)}
    assert scores.part(part) == {"a": {"top1": 0.5, "n": 2}}
    assert scores.part({"a": np.zeros(6, bool)}) == {}


def test_parts_of_verbs_nouns_and_actions_have_both_tops() -> None:
    rng = np.random.default_rng(0)
    logits = {"verb": rng.normal(size=(200, 7)), "noun": rng.normal(size=(200, 9))}
    labels = {head: rng.integers(0, values.shape[1], 200) for head, values in logits.items()}
    unseen = rng.random(200) < 0.4
    found = Scores(logits, labels).part(dict.fromkeys(("verb", "noun", "action"), unseen))
    alone = Scores({h: v[unseen] for h, v in logits.items()}, {h: v[unseen] for h, v in labels.items()})
    for head in ("verb", "noun", "action"):
        assert found[head] == {"top1": alone.accuracy(head), "top5": alone.accuracy(head, 5), "n": unseen.sum()}
    assert 0 < found["noun"]["top1"] < found["noun"]["top5"] < 1


def test_confusion_is_written_as_picture_and_csv(tmp_path: Path) -> None:
    matrix = made(LOGITS, LABELS).confusion("action")
    assert matrix.tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    names = ["walk, slowly", "run", "ü"]
    write_confusion(tmp_path / "c.csv", matrix, names)
    with (tmp_path / "c.csv").open(newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows == [["label", *names], ["walk, slowly", "1", "0", "0"], ["run", "1", "1", "0"], ["ü", "1", "1", "1"]]
    write_confusion(tmp_path / "c.png", matrix, names)
    with Image.open(tmp_path / "c.png") as opened:
        picture = np.asarray(opened.convert("L")).astype(int)
    height, width = picture.shape
    side = 40 * 3
    left = np.flatnonzero(picture[height - 8] == 128)[0] + 1  # the frame's lower line
    cells = picture[height - 8 - side : height - 8, left : left + side]
    assert (picture[:24, width - 4 :] == 255).all() and (picture[:24] < 100).any()  # the words above it end inside
    corners = cells[4::40, 4::40]  # beside the numbers
    shares = matrix / matrix.sum(1, keepdims=True)
    assert (np.argsort(-corners.reshape(-1), kind="stable")[-1:] == np.argmax(shares)).all()  # the darkest is the surest
    assert all((corners[shares == s] == corners[shares == s][0]).all() for s in np.unique(shares))


@pytest.mark.parametrize("classes", [1, 101, 700])
def test_confusion_of_any_number_of_classes_is_drawn(tmp_path: Path, classes: int) -> None:
    write_confusion(tmp_path / "c.png", np.eye(classes, dtype=np.int64), [f"a class of number {i}" for i in range(classes)])
    with Image.open(tmp_path / "c.png") as opened:
        assert max(opened.size) < 1600
