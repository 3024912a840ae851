import numpy as np
import pytest
import torch

from anyecg.train.model import build_model
from anyecg.train.s4d import S4D, StateSpace, _Convolve


def layer_of(seed, channels=6, n_states=5):
    """Return a layer as training may leave it: every parameter moved away from its start."""
    torch.manual_seed(seed)
    layer = StateSpace(channels, n_states)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return layer


def slow_layer(layer, u_HT):
    """Run the discretised system step by step in float64, forwards, then backwards beginning one step earlier."""
    p = {name: value.detach().numpy().astype(float) for name, value in layer.named_parameters()}
    n_channels, n_states = p["frequency"].shape
    dt_H1 = np.geomspace(1e-3, 1e-1, n_channels)[:, None] * np.exp(p["log_dt"])
    a_HN = -0.5 * np.exp(p["log_decay"]) + 1j * (np.pi * np.arange(n_states) + p["frequency"])
    z_HN = np.exp(dt_H1 * a_HN)
    b_HN = (z_HN - 1) / a_HN
    y_HT = p["skip"][:, None] * u_HT
    n_steps = u_HT.shape[1]
    for direction, order in enumerate([range(n_steps), range(n_steps)[::-1]]):
        c_HN = p["c"][0, direction] + 1j * p["c"][1, direction]
        state_HN = np.zeros_like(z_HN)
        for step in order:
            before_HN, state_HN = state_HN, z_HN * state_HN + b_HN * u_HT[:, [step]]
            y_HT[:, step] += 2 * (c_HN * [state_HN, before_HN][direction]).sum(1).real
    return y_HT


@pytest.mark.parametrize("n_steps", [1, 2, 3, 17, 313])
def test_the_layer_is_the_recurrence_run_step_by_step(n_steps):
    layer = layer_of(seed=n_steps)
    u_HT = np.random.default_rng(n_steps).standard_normal((6, n_steps))
    with torch.no_grad():
        found = layer(torch.from_numpy(u_HT[None]).float())[0].numpy()
    np.testing.assert_allclose(found, slow_layer(layer, u_HT), rtol=0, atol=1e-4)


def test_it_starts_as_s4d_lin_and_weight_decay_pulls_it_back_there():
    torch.manual_seed(0)
    layer = StateSpace(8)
    assert not any(parameter.any() for parameter in (layer.log_dt, layer.log_decay, layer.frequency))
    impulse_HT = np.zeros((8, 1250))
    impulse_HT[:, 600] = 1
    with torch.no_grad():
        found = layer(torch.from_numpy(impulse_HT[None]).float())[0].numpy()
    np.testing.assert_allclose(found, slow_layer(layer, impulse_HT), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("n_steps", "n_circle"), [(1, 1), (4, 7), (5, 10)])
def test_the_convolutions_gradient_is_that_of_differences(n_steps, n_circle):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 2, n_steps, dtype=torch.float64, generator=generator, requires_grad=True)
    kernel = torch.randn(2, n_circle, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(_Convolve.apply, (x, kernel))


def test_the_layer_computes_in_float32_under_autocast():
    layer = layer_of(seed=1)
    x = torch.randn(2, 6, 50, generator=torch.Generator().manual_seed(4)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.float32
    assert torch.equal(found, layer(x.float()))


@pytest.mark.parametrize(("n_leads", "n_samples"), [(1, 5000), (12, 4999), (2, 77), (1, 1)])
def test_it_takes_any_length_and_number_of_leads(n_leads, n_samples):
    with torch.no_grad():
        assert S4D(n_leads, 3)(torch.zeros(2, n_leads, n_samples)).shape == (2, 3)


def test_every_parameter_has_a_gradient():
    model = build_model("s4d", n_leads=1, n_targets=3, seed=1)
    model(torch.randn(2, 1, 400, generator=torch.Generator().manual_seed(5))).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_it_is_small_and_its_weights_are_a_function_of_the_seed():
    first, second, other = (build_model("s4d", n_leads=1, n_targets=108, seed=seed) for seed in (1, 1, 2))
    assert sum(p.numel() for p in first.parameters()) < 4e6
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(("n_leads", "n_samples"), [(1, 5000), (12, 999), (1, 1)])
def test_the_exportable_form_gives_the_same_outputs_without_complex_numbers(n_leads, n_samples):
    model = build_model("s4d", n_leads=n_leads, n_targets=4, seed=6, join="features").eval()
    x = torch.randn(4, n_leads, n_samples, generator=torch.Generator().manual_seed(7))
    fixed = model.exportable(n_samples)
    with torch.no_grad():
        for found, wanted in zip(fixed(x, 2), model(x, 2), strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())
    nodes = torch.export.export(fixed, (x,)).graph.nodes
    assert not any(node.meta["val"].is_complex() for node in nodes if isinstance(node.meta.get("val"), torch.Tensor))
    assert not any("fft" in str(node.target) for node in nodes)
