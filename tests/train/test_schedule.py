import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyecg.train.schedule import Plateau, learning_rate_factor


@given(n_steps=st.integers(2, 400), warmup_fraction=st.floats(0, 0.99, allow_subnormal=False))
@settings(max_examples=200, deadline=None)
def test_the_learning_rate_rises_evenly_then_falls_along_half_a_cosine_to_zero(n_steps, warmup_fraction):
    factors = [learning_rate_factor(s, n_steps=n_steps, warmup_fraction=warmup_fraction) for s in range(n_steps + 1)]
    n_warmup = max(1, round(warmup_fraction * n_steps))
    np.testing.assert_allclose(factors[:n_warmup], np.arange(1, n_warmup + 1) / n_warmup)
    n_falling = max(1, n_steps - n_warmup)
    falling = [(1 + math.cos(math.pi * step / n_falling)) / 2 for step in range(n_steps + 1 - n_warmup)]
    np.testing.assert_allclose(factors[n_warmup:], falling, atol=1e-12)
    assert max(factors) == 1
    assert min(factors) >= 0


@pytest.mark.parametrize("schedule", ["plateau", "constant"])
def test_without_a_cosine_it_stays_level_after_the_warm_up(schedule):
    factors = [
        learning_rate_factor(step, n_steps=100, warmup_fraction=0.1, schedule=schedule) for step in range(100)
    ]  # fmt: skip
    assert factors == pytest.approx([*np.arange(1, 11) / 10, *[1.0] * 90])


@given(
    values=st.lists(st.integers(0, 12), max_size=60), patience=st.integers(0, 4),
    factor=st.floats(0.1, 0.9, allow_subnormal=False), resumed_after=st.integers(0, 60),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_plateaus_are_those_of_torch_also_when_resumed(values, patience, factor, resumed_after):
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, patience=patience, factor=factor, threshold=0, eps=0
    )
    plateau, best = Plateau(patience, factor), math.inf
    for number, value in enumerate(values):
        scheduler.step(value)
        plateau.see(value < best)
        best = min(best, value)
        assert plateau.state["factor"] == optimiser.param_groups[0]["lr"]
        if number == resumed_after:
            state, plateau = plateau.state, Plateau(patience, factor)
            plateau.state = state
