"""A Bradley–Terry model on fixed features, fitted exactly: milliseconds for hundreds of votes.

P(i beats j) = σ(w · (xᵢ − xⱼ)) with a ridge penalty on w (Bradley & Terry 1952), by Newton's method: in the dual where
pairs are fewer than features (kernel logistic regression), so that the cost grows with the smaller of the two.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEWTON_STEPS, MOST_HALVINGS = 25, 30
MOST_DIRECTIONS = 1024


def fit_head(differences: Tensor, targets: Tensor, weights: Tensor, *, margins: Tensor, ridge: float) -> Tensor:
    """Minimise Σ weight · BCE(σ(w·d − margin), target) + ridge/2 ‖w‖².

    differences (N, F) of features, targets (N,) in [0, 1], weights and margins (N,) → w (F,), in float64. With fewer
    pairs than features the system that Newton's method solves has a row for each pair, else one for each feature.
    """
    d, t, c, m = differences.double(), targets.double(), weights.double(), margins.double()
    few = len(d) <= d.shape[1]
    kernel = d @ d.T if few else torch.empty(0)  # (N, N)
    logits, head = torch.zeros_like(t), d.new_zeros(d.shape[1])

    def loss(logits: Tensor, head: Tensor) -> Tensor:
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits - m, t, reduction="none")
        return (c * losses).sum() + ridge / 2 * head @ head

    for _ in range(NEWTON_STEPS):
        p = torch.sigmoid(logits - m)
        curvature = (c * p * (1 - p)).clamp(min=1e-9)
        pull = logits - c * (p - t) / curvature
        if few:
            found = d.T @ torch.linalg.solve(kernel + ridge * torch.diag(1 / curvature), pull)
        else:
            squares = (d * curvature[:, None]).T @ d  # (F, F)
            squares.diagonal().add_(ridge)
            found = torch.linalg.solve(squares, d.T @ (curvature * pull))
        updated, before = d @ found, loss(logits, head)
        for _ in range(MOST_HALVINGS):  # far from the minimum, under wide margins, a whole step leads astray
            if loss(updated, found) <= before:
                break
            updated, found = (updated + logits) / 2, (found + head) / 2
        settled = torch.allclose(updated, logits, atol=1e-7)
        logits, head = updated, found
        if settled:
            break
    return head


def known_directions(differences: Tensor, weights: Tensor, head: Tensor, *, margins: Tensor, ridge: float) -> Tensor:
    """What votes tell about the head of `fit_head`: (R, F) such that its posterior covariance is (I − KᵀK) / ridge.

    Laplace's approximation: the inverse of ridge·I + Σ weight · p (1 − p) · d dᵀ. R is at most `MOST_DIRECTIONS`.
    """
    d = differences.double()
    p = torch.sigmoid(d @ head.double() - margins.double())
    rows = d * (weights.double() * p * (1 - p) / ridge).sqrt()[:, None]  # (N, F)
    values, vectors = torch.linalg.eigh(rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows)
    values, vectors = values[-MOST_DIRECTIONS:].clamp(min=1e-12), vectors[:, -MOST_DIRECTIONS:]
    axes = (vectors.T @ rows) / values.sqrt()[:, None] if len(rows) <= rows.shape[1] else vectors.T  # (R, F), unit
    directions: Tensor = (axes * (values / (1 + values)).sqrt()[:, None]).float()
    return directions


def log_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> float:
    """Weighted mean binary cross-entropy of logits (N,) against soft targets (N,), in nats."""
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return float((losses * weights).sum() / weights.sum())
