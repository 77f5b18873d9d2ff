"""Epsilon against Google's `dp-accounting`: conversion, Gaussian limit, and exact privacy loss as a lower bound."""

import math

import dp_accounting as dp
import numpy as np
import pytest
import unisono
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant
from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon
from scipy.special import ive

ORDERS = [*range(2, 129), 160, 192, 256, 320, 384, 512, 768, 1024, 1536, 2048, 4096, 8192, 16384]
SLACK = 1.0 + 2.0**-20


def sensitivity(bits, clip, l2_clip, dimension):
    """docs/protocol.md, section 12: bounds on the L1 and the L2 norm."""
    step = 2.0 * clip / (2**bits - 1)
    root = math.sqrt(dimension)
    l2 = min(l2_clip / step + 1.5 * root, 2.0 ** (bits - 1) * root) * SLACK
    return min(root * l2, l2 * l2), l2


def divergences(l1, l2, mu):
    """docs/protocol.md, section 12: the Rényi divergence at every order."""
    return [
        a * l2 * l2 / (2 * mu) + min(((2 * a - 1) * l2 * l2 + 6 * l1) / (4 * mu * mu), 1.5 * l1 / mu) for a in ORDERS
    ]


def spent(bits, clip, l2_clip, dimension, multiplier, rounds, delta):
    """What unisono says."""
    params = unisono.RoundParams(
        dimension=dimension,
        n_min=6,
        n_max=8,
        gamma=0.0,
        delta=0.2,
        mode="semi-honest",
        quantiser=unisono.Quantiser(clip=clip, bits=bits, l2_clip=l2_clip),
        noise_multiplier=multiplier,
    )
    accountant = unisono.Accountant()
    accountant.add(params, rounds=rounds)
    return accountant.epsilon(delta)


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
@pytest.mark.parametrize("multiplier, rounds", [(0.5, 1), (1.0, 10), (4.0, 50), (30.0, 1), (30.0, 2000)])
@pytest.mark.parametrize("bits, clip, dimension", [(12, 0.5, 400), (4, 0.25, 100_000), (2, 1.0, 1)])
def test_epsilon_is_what_dp_accounting_makes_of_the_divergences(bits, clip, dimension, multiplier, rounds, delta):
    l1, l2 = sensitivity(bits, clip, 1.0, dimension)
    curve = [rounds * x for x in divergences(l1, l2, (multiplier * l2) ** 2)]
    expected, _ = compute_epsilon(ORDERS, curve, delta)
    assert spent(bits, clip, 1.0, dimension, multiplier, rounds, delta) == pytest.approx(expected, rel=1e-6)


# A variance above 2^48 squared steps is refused, so much noise needs fewer bits.
@pytest.mark.parametrize(
    "bits, multiplier, rounds, delta", [(24, 0.7, 1, 1e-5), (24, 2.0, 20, 1e-6), (18, 40.0, 500, 1e-8)]
)
def test_with_a_fine_step_skellam_noise_spends_what_gaussian_noise_does(bits, multiplier, rounds, delta):
    gaussian = RdpAccountant(ORDERS).compose(dp.GaussianDpEvent(multiplier), rounds).get_epsilon(delta)
    skellam = spent(bits, 0.5, 1.0, 10, multiplier, rounds, delta)
    assert gaussian * (1 - 1e-9) <= skellam <= gaussian * (1 + 1e-5)


@pytest.mark.parametrize("delta", [1e-3, 1e-6])
@pytest.mark.parametrize("multiplier, rounds", [(1.0, 1), (2.0, 1), (2.0, 8), (5.0, 4), (8.0, 60)])
def test_epsilon_is_no_less_than_the_exact_loss_of_one_element(multiplier, rounds, delta):
    # Of one element with two bits a client moves the sum by two steps at most.
    l1, l2 = sensitivity(2, 1.0, 1.0, 1)
    assert l1 == l2 == 2.0 * SLACK
    mu = (multiplier * l2) ** 2
    reach = int(8 * math.sqrt(mu) + 10)
    steps = np.arange(-reach, reach + 1)
    # P[X = k] = exp(-mu) I_k(mu).
    mass = np.log(ive(np.abs(steps), mu))
    assert np.exp(mass).sum() == pytest.approx(1.0, abs=1e-9)
    lower = {int(k): float(p) for k, p in zip(steps, mass, strict=True)}
    upper = {k + 2: p for k, p in lower.items()}
    loss = privacy_loss_distribution.from_two_probability_mass_functions(lower, upper, pessimistic_estimate=False)
    exact = loss.self_compose(rounds).get_epsilon_for_delta(delta)
    bound = spent(2, 1.0, 1.0, 1, multiplier, rounds, delta)
    assert 0.0 < exact <= bound
    # Rényi divergences lose something, but not much; the bound on them too, where the noise is as narrow as four steps.
    assert bound <= (2.0 if multiplier < 2.0 else 1.5) * exact
