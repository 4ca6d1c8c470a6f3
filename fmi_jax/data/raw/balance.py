"""Dealing of groups to splits, so that every split has its share of every class.

Groups are dealt one by one, those that are hard to place first, each to the split where it is
needed most. Then single groups are moved, and pairs exchanged, as long as that makes the dealing
better. Unless the outcome is even, the best of many random dealings are improved in the same way,
and the best outcome counts. Everything is a pure function of the counts.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

SEED = 42
"""Random seed of the dealings that the search starts from besides its own."""

_DRAWN = 30_000  # groups in all random dealings; few groups are dealt in thousands of ways
_STARTS = 3  # random dealings that are improved, the best
_MOST_PAIRS = 2_000_000  # numbers compared to find the best exchange; above, groups only move
_EQUAL = 1e-9  # what rounding makes of equal deviations
_EVEN = 2e-3  # largest deviation at which the search ends


class Unevenness(NamedTuple):
    """How far a dealing is from what was wanted; less is better, `largest` first.

    A deviation is the difference between the share of a class that a split has and the share that
    it was to have. All images together count as one more class.

    Attributes:
      largest: largest deviation.
      total: sum of all deviations.
    """

    largest: float
    total: float


def unevenness(
    counts: Float[np.ndarray, "g k"], dealing: Int[np.ndarray, " g"], ratios: Sequence[float]
) -> Unevenness:
    """Measure a dealing.

    Args:
      counts: images of each class in each group, the last column those of any class.
      dealing: index of each group's split.
      ratios: share of the images that each split is to have.
    """
    deviations = np.abs(_deviations(_shares(counts), np.asarray(dealing)[None], ratios)[0])
    return Unevenness(float(deviations.max()), float(deviations.sum()))


def deal(counts: Float[np.ndarray, "g k"], ratios: Sequence[float]) -> Int[np.ndarray, " g"]:
    """Deal groups to splits as evenly as it finds; no split stays empty if there are enough groups.

    Args:
      counts: images of each class in each group, the last column those of any class.
      ratios: share of the images that each split is to have.

    Returns:
      Index of each group's split.
    """
    shares, splits = _shares(counts), len(ratios)
    if len(counts) < splits:
        return np.argsort(-np.asarray(ratios), kind="stable")[: len(counts)]
    dealings = [_improved(shares, _greedy(shares, ratios), ratios)]
    if unevenness(counts, dealings[0], ratios).largest > _EVEN:
        rng = np.random.default_rng(SEED)
        drawn = rng.choice(splits, (max(100, _DRAWN // len(counts)), len(counts)), p=ratios)
        full = np.all([(drawn == split).any(axis=1) for split in range(splits)], axis=0)
        best = itertools.islice(_best(shares, drawn[full], ratios), _STARTS)
        dealings += [_improved(shares, start, ratios) for start in best]
    return next(_best(shares, np.array(dealings), ratios))


def _shares(counts: np.ndarray) -> np.ndarray:
    """Share of each class that is in each group; classes without images are left out."""
    totals = counts.sum(axis=0)
    return counts[:, totals > 0] / totals[totals > 0]


def _deviations(shares: np.ndarray, dealings: np.ndarray, ratios: Sequence[float]) -> np.ndarray:
    """Signed deviations `[n, splits, k]` of `n` dealings."""
    held = [(dealings == split).astype(float) @ shares for split in range(len(ratios))]
    return np.stack(held, axis=1) - np.asarray(ratios)[:, None]


def _best(
    shares: np.ndarray, dealings: np.ndarray, ratios: Sequence[float]
) -> Iterator[np.ndarray]:
    """Yield dealings, the most even first, and of equal ones the first."""
    deviations = np.abs(_deviations(shares, dealings, ratios))
    largest = np.round(deviations.max(axis=(1, 2)) / _EQUAL)
    for row in np.lexsort((deviations.sum(axis=(1, 2)), largest)):
        yield dealings[row]


def _greedy(shares: np.ndarray, ratios: Sequence[float]) -> np.ndarray:
    """Deal the groups with much of a class first, each to the split that needs it most."""
    dealing = np.zeros(len(shares), int)
    needs = np.repeat(np.asarray(ratios)[:, None], shares.shape[1], axis=1)
    for group in np.argsort(-shares.max(axis=1), kind="stable"):
        dealing[group] = split = int(np.argmax(needs @ shares[group] / ratios))
        needs[split] -= shares[group]
    for split in range(len(ratios)):
        if not (dealing == split).any():
            held = np.bincount(dealing, minlength=len(ratios))
            dealing[np.flatnonzero(dealing == held.argmax())[-1]] = split
    return dealing


class _Change(NamedTuple):
    """A change of a dealing: new splits by group, and the `Unevenness` that it leads to."""

    largest: float
    total: float
    groups: dict[int, int]


def _improved(shares: np.ndarray, start: np.ndarray, ratios: Sequence[float]) -> np.ndarray:
    """Move and exchange groups until no change is better."""
    dealing = start.copy()
    while True:
        off = _deviations(shares, dealing[None], ratios)[0]
        now = _Change(float(np.abs(off).max()), float(np.abs(off).sum()), {})
        if now.largest <= _EVEN:
            return dealing
        change = _first(now, _moves(shares, dealing, off)) or _first(
            now, _exchanges(shares, dealing, off)
        )
        if change is None:
            return dealing
        for group, split in change.groups.items():
            dealing[group] = split


def _first(now: _Change, changes: Iterator[_Change]) -> _Change | None:
    """The best of the changes, if it is better than no change."""
    best = now
    for change in changes:
        if change.largest < best.largest - _EQUAL or (
            change.largest <= best.largest + _EQUAL and change.total < best.total - _EQUAL
        ):
            best = change
    return None if best is now else best


def _moves(shares: np.ndarray, dealing: np.ndarray, off: np.ndarray) -> Iterator[_Change]:
    """Yield the best move of a group from each split to each other one."""
    for source, target in itertools.permutations(range(len(off)), 2):
        groups = np.flatnonzero(dealing == source)
        if len(groups) > 1:
            moved = shares[groups]
            largest, total = _outcome(off, source, target, moved)
            at = _smallest(largest, total)
            yield _Change(largest[at], total[at], {int(groups[at]): target})


def _exchanges(shares: np.ndarray, dealing: np.ndarray, off: np.ndarray) -> Iterator[_Change]:
    """Yield the best exchange of two groups between each pair of splits."""
    for source, target in itertools.combinations(range(len(off)), 2):
        ours, theirs = np.flatnonzero(dealing == source), np.flatnonzero(dealing == target)
        if len(ours) * len(theirs) * shares.shape[1] <= _MOST_PAIRS:
            moved = (shares[ours][:, None] - shares[theirs]).reshape(-1, shares.shape[1])
            largest, total = _outcome(off, source, target, moved)
            at = _smallest(largest, total)
            one, other = divmod(at, len(theirs))
            changed = {int(ours[one]): target, int(theirs[other]): source}
            yield _Change(largest[at], total[at], changed)


def _outcome(
    off: np.ndarray, source: int, target: int, moved: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Largest deviation and sum of all, `[n]`, if the shares `moved`, `[n, k]`, change split."""
    rest = np.delete(off, (source, target), axis=0)
    left, grown = np.abs(off[source] - moved), np.abs(off[target] + moved)
    largest = np.maximum(left.max(axis=1), grown.max(axis=1))
    total = left.sum(axis=1) + grown.sum(axis=1) + np.abs(rest).sum()
    return np.maximum(largest, np.abs(rest).max(initial=0)), total


def _smallest(largest: np.ndarray, total: np.ndarray) -> int:
    """Index of the least uneven outcome."""
    return int(np.where(largest <= largest.min() + _EQUAL, total, np.inf).argmin())
