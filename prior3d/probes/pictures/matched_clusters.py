"""k-means of each model's own features, with colors matched between models by the pixels that clusters share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prior3d.randomness import generator

_ATTEMPTS = 8
"""Number of starts of k-means; the one with the lowest distance is kept."""

_ITERATIONS = 50
"""Maximum number of iterations from each start."""


@dataclass(frozen=True)
class MatchedClusters:
    """Clusters of several models with matching ids.

    Attributes:
        means: By model, the mean feature [C]; distances are computed relative to it, where float32 is exact enough.
        centers: By model, [k, C] minus the mean; row i has the id i of the first model's most similar cluster.
        agreement: By model, the share of pixels that have the first model's id, 0..1.
    """

    means: Mapping[str, Tensor]
    centers: Mapping[str, Tensor]
    agreement: Mapping[str, float]

    def labels(self, name: str, features: Tensor) -> np.ndarray:
        """Return the cluster ids [h, w] of the features [C, h, w] of a model."""
        rows = features.flatten(1).T - self.means[name]
        return _nearest(rows, self.centers[name]).unflatten(0, features.shape[1:]).numpy()


def fit_matched_clusters(samples: Mapping[str, Tensor], k: int, seed: int = 0) -> MatchedClusters:
    """Cluster the features of each model and number the clusters by those of the first model, largest first.

    Clusters are matched one to one to maximize the number of pixels that keep their id. A cluster without a counterpart
    takes an unused id, so `agreement` must be read together with the figure.

    Args:
        samples: By model, the features [R, C] of the same R pixels in the same order; C may differ.
        k: Number of clusters per model.
        seed: Seed of the first centers.
    """
    rows = next(iter(samples.values())).shape[0]
    if not 2 <= k <= rows:
        raise ValueError(f"expected 2 to {rows} clusters (as many as pixels), got {k}")
    means, centers, agreement, reference = {}, {}, {}, None
    for name, sample in samples.items():
        means[name] = sample.mean(0)
        found = _cluster(sample - means[name], k, seed)
        labels = _nearest(sample - means[name], found)
        if reference is None:
            order = labels.bincount(minlength=k).argsort(descending=True, stable=True).tolist()
        else:
            order = assign(_overlaps(reference, labels, k).tolist())
        centers[name] = found[order]
        numbers = torch.empty(k, dtype=torch.long).index_copy_(0, torch.tensor(order), torch.arange(k))[labels]
        reference = numbers if reference is None else reference
        agreement[name] = float((numbers == reference).float().mean())
    return MatchedClusters(means, centers, agreement)


def assign(gains: Sequence[Sequence[float]]) -> list[int]:
    """Assign each row of a square table to a different column to maximize the sum of the gains.

    Args:
        gains: Table of n rows of n numbers.

    Returns:
        The column of each row.

    Reference:
        Kuhn, 1955, and Munkres, 1957, in the form with shortest augmenting paths of Jonker and Volgenant, Computing
        38, 1987: rows are added one by one; O(n^3).
    """
    count = len(gains)
    row_price, column_price = [0.0] * count, [0.0] * count
    row_of: list[int | None] = [None] * count
    for start in range(count):
        # Distances from `start` to columns in costs reduced by the prices, which are never negative (Dijkstra).
        distance, previous = [float("inf")] * count, [-1] * count
        done: list[int] = []
        row, reached, column = start, 0.0, -1
        while row is not None:
            for other in set(range(count)) - set(done):
                reduced = reached - gains[row][other] - row_price[row] - column_price[other]
                if reduced < distance[other]:
                    distance[other], previous[other] = reduced, column
            column = min(set(range(count)) - set(done), key=distance.__getitem__)
            reached, row = distance[column], row_of[column]
            done.append(column)
        row_price[start] += reached
        for other in done[:-1]:
            row_price[row_of[other]] += reached - distance[other]
            column_price[other] -= reached - distance[other]
        while column >= 0:  # along the path, each column takes the row of the one before
            before = previous[column]
            row_of[column] = start if before < 0 else row_of[before]
            column = before
    columns = [0] * count
    for column, row in enumerate(row_of):
        columns[row] = column
    return columns


def _overlaps(first: Tensor, second: Tensor, k: int) -> Tensor:
    """Return [k, k]: pixels with id i in the first and j in the second."""
    return (first * k + second).bincount(minlength=k * k).reshape(k, k)


def _cluster(rows: Tensor, k: int, seed: int) -> Tensor:
    """Return the centers [k, C] that k-means finds in rows [R, C]; a center without rows stays where it was."""
    best, lowest = rows[:k], float("inf")
    for attempt in range(_ATTEMPTS):
        centers = _first_centers(rows, k, generator("k-means", seed, attempt))
        for _ in range(_ITERATIONS):
            labels = _nearest(rows, centers)
            counts = labels.bincount(minlength=k)[:, None]
            sums = torch.zeros_like(centers).index_add_(0, labels, rows)
            moved = torch.where(counts > 0, sums / counts.clamp(min=1), centers)
            if torch.equal(moved, centers):
                break
            centers = moved
        distance = float((rows - centers[_nearest(rows, centers)]).square().sum())
        if distance < lowest:
            best, lowest = centers, distance
    return best


def _first_centers(rows: Tensor, k: int, draw: torch.Generator) -> Tensor:
    """Return k of the rows, spread out.

    Reference:
        k-means++, Arthur and Vassilvitskii, SODA 2007: the chance of a row is proportional to its squared distance from
        the nearest center so far.
    """
    chosen = [int(torch.randint(len(rows), (1,), generator=draw))]
    distances = (rows - rows[chosen[0]]).square().sum(1)
    for _ in range(k - 1):
        chances = distances if distances.any() else torch.ones_like(distances)  # fewer distinct rows than centers
        chosen.append(int(torch.multinomial(chances, 1, generator=draw)))
        distances = torch.minimum(distances, (rows - rows[chosen[-1]]).square().sum(1))
    return rows[chosen]


def _nearest(rows: Tensor, centers: Tensor) -> Tensor:
    return (centers.square().sum(1) - 2 * rows @ centers.T).argmin(1)
