"""What a check finds, and which of several readings of a scene fits best."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from prior3d.data.inspecting.readings import READINGS
from prior3d.data.posed.plausibility import GIVEN, STILL, Agreement, PosedDepth, compare
from prior3d.data.posed.plausibility import READINGS as PLAIN

_FEWEST_PAIRS = 3
_MOST_PAIRS = 0.75  # share of the pairs in which another reading must fit better
_MOST_RATIO = 0.87  # of the error of depth
_LOST = 0.04  # correlation that a better depth may cost: color that is not registered is noisy
_MUCH = 0.1  # correlation that refutes by itself
_TIE = 1.1
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Finding:
    """A contradiction or an oddity in a scene.

    Attributes:
        kind: Name of the mistake.
        figure: How it was seen, in numbers.
        mend: What seems wrong, and what to do.
        line: What a recipe can do about it, see `recipe_line`; "" if the files must be changed.
        sure: Whether the data contradicts itself; otherwise it is only unusual for a room.
        zoom: Factor on the focal length of a color camera that depth is not registered to.
        shift_m: Translation of that camera, meters.
    """

    kind: str
    figure: str
    mend: str
    line: str = ""
    sure: bool = True
    zoom: float = 1.0
    shift_m: tuple[float, float, float] = (0.0, 0.0, 0.0)


def misread(pairs: Sequence[tuple[PosedDepth, PosedDepth]], kinds: Collection[str] | None = None) -> Finding | None:
    """Return the reading under which the pairs agree clearly better than as given, if there is one.

    Args:
        pairs: Pairs of frames that see a common surface and have moved.
        kinds: Readings to try; all by default.
    """
    given = [compare(*pair, PLAIN[GIVEN]) for pair in pairs]
    still = [compare(*pair, PLAIN[STILL]) for pair in pairs]
    tried = {}
    for kind in READINGS if kinds is None else kinds:
        apply = READINGS[kind].apply
        tried[kind] = [compare(apply(first), apply(second), PLAIN[GIVEN]) for first, second in pairs]
    better = {kind: found for kind, found in tried.items() if _refutes(kind, found, given, still)}
    if not better:
        return None
    least = min(_error(found) for found in better.values())
    close = {kind: found for kind, found in better.items() if _error(found) <= _TIE * (least + _ROUNDING)}
    kind = max(close, key=lambda one: _correlation(close[one]))
    return Finding(kind, _figures(given, tried[kind]), READINGS[kind].mend, READINGS[kind].line)


def mean_agreement(pairs: Sequence[tuple[PosedDepth, PosedDepth]], still: bool = False) -> tuple[float, float]:
    """Return the mean correlation of gray values and the median error of depth, as given or without motion."""
    found = [compare(*pair, PLAIN[STILL if still else GIVEN]) for pair in pairs]
    return _correlation(found), _error(found)


def _refutes(kind: str, other: Sequence[Agreement], given: Sequence[Agreement], still: Sequence[Agreement]) -> bool:
    known = [row for row in zip(other, given, still, strict=True) if np.isfinite(row[0].error)]
    if len(known) < max(_FEWEST_PAIRS, 0.3 * len(other)):
        return False
    gains = np.array([max(0.0, one.correlation) - max(0.0, was.correlation) for one, was, _ in known])
    if kind == "mirrored images":
        return bool(gains.mean() >= _MUCH and np.mean(gains > 0) >= _MOST_PAIRS)
    ratios = np.array([(one.error + _ROUNDING) / (was.error + _ROUNDING) for one, was, _ in known])
    explains = np.mean([one.error < none.error for one, _, none in known]) >= _MOST_PAIRS
    less = np.median(ratios) <= _MOST_RATIO and np.mean(ratios < 1) >= _MOST_PAIRS
    return bool(explains and less and gains.mean() >= -_LOST)


def _error(found: Sequence[Agreement]) -> float:
    return float(np.median([one.error for one in found])) if found else np.inf


def _correlation(found: Sequence[Agreement]) -> float:
    return float(np.mean([one.correlation for one in found])) if found else -1.0


def _figures(given: Sequence[Agreement], other: Sequence[Agreement]) -> str:
    parts = []
    for name, found in (("as given", given), ("so read", other)):
        error = _error(found)
        shown = f"{100 * np.expm1(error):.1f} %" if np.isfinite(error) else "no overlap"
        parts.append(f"{name}: depth error {shown}, gray correlation {_correlation(found):.2f}")
    return "; ".join(parts)
