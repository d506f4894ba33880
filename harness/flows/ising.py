"""The two-dimensional Ising model as a density over real fields, with the exact answers that a flow is held to.

Spins ``s`` in {-1, 1} sit on a periodic square lattice of N sites, coupling 1, and have the Boltzmann probability
``p(s) = exp(sum over bonds of s_i s_j / T) / Z = exp(s' K s / 2) / Z`` with ``K_ij = 1 / T`` for neighbours. A flow
has a density, so the spins are relaxed as in arXiv 1802.02840 (Eq. 8) and Zhang et al. (NeurIPS 2012), by the
Hubbard-Stratonovich transform. With ``A = K + alpha I``, positive definite, and ``s' s = N``:

    exp(s' K s / 2) = exp(-alpha N / 2) (2 pi)^(-N/2) det(A)^(-1/2) * integral over x of exp(-x' A^-1 x / 2 + s' x)

The integrand is a joint weight of spins and fields. Its sum over spins is the density that is learned,

    pi(x) = exp(-x' A^-1 x / 2) * product over sites of 2 cosh(x_i),

and given the field the spins are independent, ``p(s_i = 1 | x) = sigmoid(2 x_i)``. Nothing is approximated: spins
drawn so from exact samples of pi have the Boltzmann distribution, at any alpha, and the integral of pi is
``exp(alpha N / 2) (2 pi)^(N/2) det(A)^(1/2) Z``, so that a Kullback-Leibler divergence has its true zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import HarnessError

LEAST_EIGENVALUE = 0.1
"""Of A, which fixes alpha; the choice of arXiv 1802.02840. More makes the fields bimodal, less makes A^-1 stiff."""
SIDES = range(3, 11)
"""Sides of the lattice: with 2 a bond would count twice, and beyond 10 the transfer matrix no longer fits a test."""


@dataclass(frozen=True)
class Ising:
    """The model on a periodic square lattice.

    Args:
        side: sites per row and column; N = side**2 and sites are counted row by row.
        temperature: T in units of the coupling; the infinite lattice orders below 2.269.

    Example:
        >>> model = Ising(side=4, temperature=3.0)
        >>> spins = -torch.ones(1, 16)
        >>> {name: float(value) for name, value in model.observables(spins).items()}
        {'energy': -2.0, 'abs_magnetisation': 1.0}
    """

    side: int
    temperature: float

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise HarnessError(f"the lattice's side must be from {SIDES[0]} to {SIDES[-1]}, not {self.side}")
        if not 0 < self.temperature < math.inf:
            raise HarnessError(f"the temperature must be above 0, not {self.temperature}")

    @property
    def sites(self) -> int:
        return self.side**2

    @cached_property
    def coupling(self) -> Tensor:
        """(N, N) the matrix A = K + alpha I, float64."""
        ring = torch.eye(self.side, dtype=torch.float64)
        ring = ring.roll(1, 0) + ring.roll(-1, 0)
        one = torch.eye(self.side, dtype=torch.float64)
        bonds = (torch.kron(ring, one) + torch.kron(one, ring)) / self.temperature
        alpha = LEAST_EIGENVALUE - torch.linalg.eigvalsh(bonds)[0]
        return bonds + alpha * torch.eye(self.sites, dtype=torch.float64)

    @cached_property
    def precision(self) -> Tensor:
        """(N, N) the inverse of A, float64."""
        return torch.linalg.inv(self.coupling)

    def log_density(self, fields: Tensor) -> Tensor:
        """Log of pi, not normalised, in nats: (B, N) fields -> (B,)."""
        quadratic = 0.5 * (fields @ self.precision.to(fields) * fields).sum(dim=1)
        # log 2 cosh x without overflow
        return (fields.abs() + F.softplus(-2 * fields.abs())).sum(dim=1) - quadratic

    @cached_property
    def log_integral(self) -> float:
        """Log of the integral of pi over all fields, exact."""
        half_alpha = float(self.coupling[0, 0]) * self.sites / 2
        gaussian = 0.5 * (self.sites * math.log(2 * math.pi) + float(torch.linalg.slogdet(self.coupling).logabsdet))
        return half_alpha + gaussian + float(self.log_partition(self._beta))

    def spins(self, fields: Tensor, generator: torch.Generator) -> Tensor:
        """(B, N) spins drawn given (B, N) fields; the same generator state compares two samples by the same draws."""
        chance = torch.rand(fields.shape, generator=generator, dtype=torch.float64)
        return torch.where(chance < torch.sigmoid(2 * fields.double()), 1.0, -1.0).double()

    def observables(self, spins: Tensor) -> dict[str, Tensor]:
        """Energy per site in units of the coupling, and |magnetisation| per site, of (B, N) spins: (B,) each."""
        lattice = spins.unflatten(1, (self.side, self.side))
        bonds = lattice * (lattice.roll(1, 1) + lattice.roll(1, 2))
        return {"energy": -bonds.mean(dim=(1, 2)), "abs_magnetisation": spins.mean(dim=1).abs()}

    def measure(self, fields: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The observables of spins drawn given (B, N) fields: (B,) each, in float64."""
        return self.observables(self.spins(fields, generator))

    # Exact values, from the transfer matrix between the 2**side states of neighbouring rows.

    @cached_property
    def _rows(self) -> Tensor:
        """(2**side, side) all states of a row, float64."""
        states = torch.arange(2**self.side)[:, None] >> torch.arange(self.side) & 1
        return 2.0 * states.double() - 1

    @property
    def _beta(self) -> Tensor:
        return torch.tensor(1 / self.temperature, dtype=torch.float64)

    def _transfer(self, beta: Tensor) -> Tensor:
        """(2**side, 2**side) Boltzmann weights of neighbouring rows, half of each row's own bonds in either."""
        rows = self._rows
        own = (rows * rows.roll(1, 1)).sum(dim=1)
        return torch.exp(beta * (rows @ rows.T + 0.5 * own[:, None] + 0.5 * own))

    def log_partition(self, beta: Tensor) -> Tensor:
        """log Z at an inverse temperature, a float64 scalar, differentiable."""
        return torch.logsumexp(self.side * torch.linalg.eigvalsh(self._transfer(beta)).log(), dim=0)

    def magnetisation_weights(self) -> Tensor:
        """(N + 1,) exact probabilities of 0, 1, .. N spins up.

        A field i*theta on every spin up multiplies the weight of u spins up by ``exp(i theta u)``, so the weights are
        the inverse Fourier transform of the partition function over N + 1 values of theta.
        """
        transfer = self._transfer(self._beta)
        transfer = (transfer / torch.linalg.matrix_norm(transfer, ord=2)).to(torch.complex128)
        up = (self._rows > 0).sum(dim=1).to(torch.complex128)
        half, odd = divmod(self.side, 2)
        partition = torch.zeros(self.sites + 1, dtype=torch.complex128)
        for k in range(self.sites // 2 + 1):
            phase = torch.exp(2j * math.pi * k * up / (self.sites + 1))
            power = torch.linalg.matrix_power(transfer * phase, half)
            left = (transfer * phase) @ power if odd else power
            partition[k] = (left * power.T).sum()  # the trace of the product
        # what is left are the complex conjugates
        count = self.sites - self.sites // 2
        partition[self.sites // 2 + 1 :] = partition[1 : count + 1].flip(0).conj()
        weights = torch.fft.fft(partition).real
        return weights / weights.sum()

    @cached_property
    def exact(self) -> dict[str, float]:
        """Expectations of the observables under the Boltzmann distribution, exact to rounding."""
        with torch.enable_grad():
            beta = self._beta.requires_grad_()
            (slope,) = torch.autograd.grad(self.log_partition(beta), beta)
        magnetisation = torch.linspace(-1, 1, self.sites + 1, dtype=torch.float64).abs()
        weights = self.magnetisation_weights()
        return {"energy": -float(slope) / self.sites, "abs_magnetisation": float((weights * magnetisation).sum())}

    def independent(self) -> dict[str, float]:
        """The same expectations for spins that ignore each other, those of an infinite temperature.

        >>> round(Ising(side=8, temperature=3.0).independent()["abs_magnetisation"], 4)
        0.0993
        """
        even = self.sites - self.sites % 2
        return {"energy": 0.0, "abs_magnetisation": math.comb(even, even // 2) / 2**even}


@runtime_checkable
class HasTarget(Protocol):
    """A flow that may have been trained on a model's Boltzmann distribution."""

    target: Ising | None
