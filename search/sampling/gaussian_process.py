"""A Gaussian process over mixed features, with a length scale for every choice.

The kernel is ``s (exp(-sum_g w_g |x_g - x'_g|^2) + t sum_g w_g x_g x'_g)`` over the groups g of
columns. For one-hot columns the first part is the transformed overlap kernel (Wan et al. 2021,
https://arxiv.org/abs/2102.07188, eq. 2): a product over choices, so effects of single choices, of
pairs and of more are all in it, and a choice that does not matter gets a weight near 0. The second
part adds up what single choices do alone; its share t is fitted, so that the data decide how far
interactions are to be believed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

Matrix = NDArray[np.float64]

# Priors of the logarithms: weights near 2 / groups (so that two random designs stay correlated in
# any dimension, as in Hvarfner et al. 2024, https://arxiv.org/abs/2402.02229), small noise.
WEIGHT_SUM, WEIGHT_SPREAD = 2.0, 1.5
NOISE, NOISE_SPREAD = 1e-2, 2.0
LEAST_NOISE = 1e-4
# The trend's share of the signal.
TREND, TREND_SPREAD = 0.5, 1.5
MAX_STEPS = 40


@dataclass(frozen=True, slots=True)
class Scales:
    """What is fitted: logarithms of each group's weight, of the trend, of noise over signal."""

    log_weights: Matrix
    log_trend: float
    log_noise: float

    @classmethod
    def prior(cls, num_groups: int) -> Scales:
        """Return the prior's centre."""
        weight = np.log(WEIGHT_SUM / max(num_groups, 1))
        return cls(np.full(num_groups, weight), float(np.log(TREND)), float(np.log(NOISE)))

    def padded(self, num_groups: int) -> Scales:
        """Return the same with the prior for groups that are new."""
        new = Scales.prior(num_groups).log_weights[len(self.log_weights) :]
        return replace(self, log_weights=np.concatenate([self.log_weights, new]))


def fit(rows: Matrix, targets: Matrix, *, groups: NDArray[np.intp], start: Scales) -> Scales:
    """Find the most probable scales.

    Args:
        rows: Features of shape (n, columns).
        targets: Values of shape (n,), about zero mean and unit variance.
        groups: The group of every column.
        start: Where the search starts.
    """
    prior = Scales.prior(len(start.log_weights))
    bounds = [(value - 7.0, value + 4.0) for value in prior.log_weights]
    bounds.append((prior.log_trend - 7.0, prior.log_trend + 4.0))
    bounds.append((float(np.log(LEAST_NOISE)), float(np.log(10.0))))
    found = minimize(
        lambda x: _loss(x, rows, targets, groups),
        np.append(start.log_weights, [start.log_trend, start.log_noise]),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": MAX_STEPS},
    )
    return Scales(found.x[:-2], float(found.x[-2]), float(found.x[-1]))


class Posterior:
    """A Gaussian process that has seen values, and designs whose values are still awaited.

    Args:
        rows: Features of shape (n, columns).
        targets: Values of shape (k,) of the first k rows; those after are awaited: they lower the
            uncertainty around them and leave the mean as it is.
        groups: The group of every column.
        scales: From `fit`.
    """

    def __init__(
        self, rows: Matrix, targets: Matrix, *, groups: NDArray[np.intp], scales: Scales
    ) -> None:
        self._root = np.exp(0.5 * scales.log_weights)[groups]
        self._rows = rows * self._root
        self._trend = float(np.exp(scales.log_trend))
        self._noise = float(np.exp(scales.log_noise))
        gram = _kernel(self._rows, self._rows, self._trend)
        gram[np.diag_indices_from(gram)] += self._noise
        self._factor = cholesky(gram, lower=True, check_finite=False)
        count = len(targets)
        known = self._factor[:count, :count]
        self._weights = cho_solve((known, True), targets, check_finite=False)
        self._scale = _signal(float(targets @ self._weights), count)
        # K (K + noise)^-1 y without another product.
        self.fitted: Matrix = targets - self._noise * self._weights

    def predict(self, rows: Matrix) -> Prediction:
        """Predict the values at rows of shape (c, columns)."""
        scaled = rows * self._root
        cross = _kernel(scaled, self._rows, self._trend)
        mean = cross[:, : len(self._weights)] @ self._weights
        half = solve_triangular(self._factor, cross.T, lower=True, check_finite=False)
        return Prediction(mean, self._scale, self._trend, self._noise, scaled, half)


class Prediction:
    """Means and deviations at candidates; `await_value` counts one of them as handed out."""

    def __init__(
        self,
        mean: Matrix,
        scale: float,
        trend: float,
        noise: float,
        scaled: Matrix,
        half: Matrix,
    ) -> None:
        self.mean = mean
        self._scale, self._trend, self._noise, self._rows = scale, trend, noise, scaled
        self._half = [half]
        before = 1.0 + trend * (scaled * scaled).sum(axis=1)
        self._variance = np.maximum(before - np.einsum("nc,nc->c", half, half), 1e-9)

    @property
    def deviation(self) -> Matrix:
        """The standard deviation of the value without its noise, of shape (c,)."""
        deviation: Matrix = np.sqrt(self._scale * self._variance)
        return deviation

    def await_value(self, index: int) -> None:
        """Lower the uncertainty as a value at a candidate would."""
        shared = sum(half[:, index] @ half for half in self._half)
        covariance = _kernel(self._rows[index : index + 1], self._rows, self._trend)[0] - shared
        row = covariance / np.sqrt(self._variance[index] + self._noise)
        self._half.append(row[None])
        self._variance = np.maximum(self._variance - row**2, 1e-9)


def _kernel(a: Matrix, b: Matrix, trend: float) -> Matrix:
    alone = a @ b.T
    kernel: Matrix = _product_kernel(a, b, alone) + trend * alone
    return kernel


def _product_kernel(a: Matrix, b: Matrix, alone: Matrix) -> Matrix:
    squared = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2.0 * alone
    kernel: Matrix = np.exp(-np.maximum(squared, 0.0))
    return kernel


def _signal(fit: float, count: int) -> float:
    # The most probable variance of the signal, under a weak belief that it is 1.
    return (fit + 2.0) / (count + 2.0)


def _loss(
    x: Matrix, rows: Matrix, targets: Matrix, groups: NDArray[np.intp]
) -> tuple[float, Matrix]:
    """Return minus the logarithm of the posterior density of the scales, and its gradient."""
    log_weights, trend, noise = x[:-2], float(np.exp(x[-2])), float(np.exp(x[-1]))
    count = len(targets)
    scaled = rows * np.exp(0.5 * log_weights)[groups]
    alone = scaled @ scaled.T
    kernel = _product_kernel(scaled, scaled, alone)
    gram = kernel + trend * alone + noise * np.eye(count)
    factor = cholesky(gram, lower=True, check_finite=False)
    inverse = cho_solve((factor, True), np.eye(count), check_finite=False)
    weights = inverse @ targets
    fit = float(targets @ weights)
    signal = _signal(fit, count)
    loss = 0.5 * (count + 2.0) * np.log(signal) + np.log(np.diag(factor)).sum()
    # d loss / d kernel; a weight changes the product by minus its squared distances.
    slope = 0.5 * (inverse - np.outer(weights, weights) / signal)
    product = slope * kernel
    squares = (scaled**2).T @ product.sum(axis=1) - (scaled * (product @ scaled)).sum(axis=0)
    gradient = np.zeros(len(x))
    added = trend * (scaled * (slope @ scaled)).sum(axis=0)
    np.add.at(gradient, groups, added - 2.0 * squares)
    gradient[-2] = trend * float((slope * alone).sum())
    gradient[-1] = noise * float(np.trace(slope))
    prior = Scales.prior(len(log_weights))
    centre = np.append(prior.log_weights, [prior.log_trend, prior.log_noise])
    spread = np.append(np.full(len(log_weights), WEIGHT_SPREAD), [TREND_SPREAD, NOISE_SPREAD])
    away = (x - centre) / spread
    return float(loss + 0.5 * away @ away), gradient + away / spread
