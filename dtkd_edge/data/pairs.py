"""Actions that are pairs of a verb and a noun, ranked as EPIC-KITCHENS-100's challenge ranks them. No torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]  # float32 or float64
Ints = NDArray[np.int64]

PAIR = ("verb", "noun")  # heads that together name an action
CANDIDATES = 100  # best verbs, and best nouns, whose pairs are ranked
CHUNK = 128  # clips whose pairs are ranked at a time: 128 × 97 × 100 numbers


def pair_ranks(verb_scores: Floats, noun_scores: Floats, verbs: Ints, nouns: Ints, candidates: int = CANDIDATES) -> Ints:
    """Place `[n]` of the true (verb, noun) among the pairs of the best `candidates` verbs and nouns, 0 the highest.

    A pair scores the product of the two softmaxes over those candidates, which is the order of the sums of logits. Equal ones
    stand before the true pair. A label that is no candidate comes after all pairs. Source: EPIC-KITCHENS-100's action recognition
    challenge (epic-kitchens/C1-Action-Recognition, utils/scoring.py and metrics.py).
    """
    verb_scores, noun_scores = (np.asarray(s, np.float64) for s in (verb_scores, noun_scores))
    ranks = np.empty(len(verbs), np.int64)
    for at in range(0, len(verbs), CHUNK):
        rows = slice(at, at + CHUNK)
        verb, noun = verb_scores[rows], noun_scores[rows]
        own_verb = np.take_along_axis(verb, verbs[rows, None], 1)
        own_noun = np.take_along_axis(noun, nouns[rows, None], 1)
        best_verbs, best_nouns = (-np.sort(-s, 1)[:, :candidates] for s in (verb, noun))
        pairs = best_verbs[:, :, None] + best_nouns[:, None, :]
        before = (~(pairs < (own_verb + own_noun)[:, :, None])).sum((1, 2)) - 1
        out = (own_verb < best_verbs[:, -1:]) | (own_noun < best_nouns[:, -1:])
        ranks[rows] = np.where(out[:, 0], pairs[0].size, before)
    return ranks
