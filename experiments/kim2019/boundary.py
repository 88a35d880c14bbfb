"""The decision boundary of a classifier of points in the plane (Kim 2019, Figure 3b)."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
from contourpy import contour_generator

from tfrobust import predict_logits

__all__ = ["Boundary", "boundary_of"]

# the square that Figure 3b shows
_EXTENT = 1.1


@dataclasses.dataclass(frozen=True)
class Boundary:
    """Where two logits are equal.

    Attributes:
        axis: (n,) coordinates of the grid, both axes.
        lead: (n, n) logit of class 1 minus that of class 0, rows along the second coordinate.
        segments: (count, 2, 2) start and end of the boundary's pieces inside [-1, 1]^2.
    """

    axis: np.ndarray
    lead: np.ndarray
    segments: np.ndarray

    @property
    def direction(self) -> np.ndarray | None:
        """(2,) unit vector along the boundary, the principal axis of its pieces; None without."""
        pieces = self.segments[:, 1] - self.segments[:, 0]
        lengths = np.linalg.norm(pieces, axis=1)
        pieces, lengths = pieces[lengths > 0], lengths[lengths > 0]
        if not len(pieces):
            return None
        # sum of length * u u^T over pieces of direction u
        return np.linalg.eigh(pieces.T @ (pieces / lengths[:, None]))[1][:, 1]

    def angle_to(self, direction: np.ndarray) -> float:
        """Degrees between the boundary and a unit vector, 0 to 90; NaN without a boundary."""
        own = self.direction
        if own is None:
            return float("nan")
        return float(np.degrees(np.arccos(np.clip(np.abs(own @ direction), 0, 1))))


def boundary_of(model: keras.Model, *, points: int = 401) -> Boundary:
    """The boundary of a classifier of two classes, on a grid of `points` per axis."""
    axis = np.linspace(-_EXTENT, _EXTENT, points)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    logits = predict_logits(model, grid, batch_size=20_000)
    lead = (logits[:, 1] - logits[:, 0]).reshape(points, points)
    lines = contour_generator(axis, axis, lead).lines(0.0)
    segments = [np.stack([line[:-1], line[1:]], axis=1) for line in lines]
    joined = np.concatenate([np.zeros((0, 2, 2)), *segments])
    inside = (np.abs(joined.mean(axis=1)) <= 1).all(axis=1)
    return Boundary(axis, lead, joined[inside])
