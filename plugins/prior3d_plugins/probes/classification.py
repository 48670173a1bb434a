"""Classification of whole images from frozen pooled features: a linear classifier and nearest neighbors."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn import functional as F

from prior3d import Metrics, Probe, Scores, Totals
from prior3d.probes import (
    FrozenModel,
    FrozenVectors,
    ProbeData,
    choose_penalty,
    count_classes,
    fit_logistic,
    labels_of,
    names_of,
    nearest,
    vote,
)

_QUERIES = 1024
"""Number of held-out images per neighbor search."""

_MOST_CLASSES = 100
"""Largest number of classes for which hits are kept per class."""


class Classification(Probe):
    """How well frozen pooled features separate the classes of whole images.

    Both methods see each image once, without augmentation. The linear classifier is an L2-regularized logistic
    regression on standardized channels, solved to its optimum: no seed, no schedule. Neighbors are found by cosine.

    Args:
        penalty: Penalty on the squared weights, per image; null chooses it for each model on a fifth of the training
            images.
        k: Number of neighbors that vote; 0 turns neighbors off.
        temperature: Temperature of the votes: a neighbor's weight is exp(cosine / temperature).

    Reference:
        Logistic regression with a chosen penalty as in Kornblith et al., 2019, arXiv 1805.08974; neighbors as in
        DINO (Caron et al., 2021, arXiv 2104.14294), k = 20 and temperature 0.07.
    """

    needs = ("image", "label")
    trains = True
    bounds = MappingProxyType({"top-1": (0, 1), "mean per class": (0, 1)})
    meanings = MappingProxyType(
        {
            "top-1": "share of held-out images whose class is named right",
            "mean per class": "the same, classes counting alike whatever their number of images",
        }
    )

    def __init__(
        self,
        *,
        penalty: Annotated[float, Gt(0)] | None = None,
        k: Annotated[int, Ge(0), Le(10**5)] = 20,
        temperature: Annotated[float, Gt(0)] = 0.07,
    ) -> None:
        self.penalty = penalty
        self.k = k
        self.temperature = temperature

    def measure(self, model: FrozenModel, data: ProbeData, seed: int = 0) -> Scores:
        """Return images and hits of each method, by image and class: [N, K], or [N, 1] if there are many classes."""
        classes = count_classes(data)
        train, held_out = (FrozenVectors(model, data, part) for part in ("train", "held_out"))
        trained = labels_of(data, "train")
        penalty = self.penalty or choose_penalty(train.take, trained, classes)
        head = fit_logistic(train.take, trained, classes, penalty)
        predicted = {"linear": head.predict(held_out.take, len(held_out))}
        if self.k:
            predicted["k-NN"] = self._neighbors(train, held_out, trained, classes)
        return _score(data, predicted, classes)

    def summarize(self, total: Totals) -> Metrics:
        """Return each method's accuracy (0..1), over images and, where hits are kept by class, over classes."""
        labeled = total["images"]
        found = {}
        for name in ("linear", "k-NN"):
            if (hits := total.get(f"{name} hits")) is not None:
                found[f"top-1, {name}"] = float(hits.sum() / labeled.sum())
                if len(labeled) > 1:
                    found[f"mean per class, {name}"] = float((hits / labeled)[labeled > 0].mean())
        return found

    def controls(self, data: ProbeData) -> Mapping[str, Scores]:
        """Return the scores of always guessing the most frequent training class."""
        classes = count_classes(data)
        majority = labels_of(data, "train").bincount(minlength=classes).argmax()
        guessed = majority.expand(len(data.frames["held_out"]))
        return {"majority class": _score(data, {"linear": guessed}, classes)}

    def _neighbors(self, train: FrozenVectors, held_out: FrozenVectors, trained: Tensor, classes: int) -> Tensor:
        memory = train.take(torch.arange(len(train)), unit_length=True)
        trained, predicted = trained.to(memory.device), []
        for rows in torch.arange(len(held_out)).split(_QUERIES):
            similarities, found = nearest(memory, held_out.take(rows, unit_length=True), self.k)
            predicted.append(vote(similarities, trained[found], classes, self.temperature).argmax(1).cpu())
        return torch.cat(predicted)


def _score(data: ProbeData, predicted: Mapping[str, Tensor], classes: int) -> Scores:
    labels = labels_of(data, "held_out")
    by_class = F.one_hot(labels, classes) if classes <= _MOST_CLASSES else torch.ones(len(labels), 1)
    statistics = {"images": by_class.double()}
    for name, guess in predicted.items():
        statistics[f"{name} hits"] = by_class.double() * (guess == labels)[:, None]
    return Scores(tuple(names_of(data, "held_out")), statistics)
