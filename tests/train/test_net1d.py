import importlib.util
import warnings

import numpy as np
import pytest
import torch

from anyecg.train.loss import masked_bce
from anyecg.train.model import build_model
from anyecg.train.net1d import GROUP_WIDTH, KERNEL, Net1D, _Block
from anyecg.train.weights import published_state_dict

from ..conftest import SHARED
from .published_net1d import PublishedNet1D

needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data/net1d_golden.npz, 3 cases")


def golden_state(n_leads):
    """Return the weights of the golden cases, all 509 entries, as tensors."""
    spec = importlib.util.spec_from_file_location("golden_weights", SHARED.parent / "golden_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):  # it leaves its list of keys open
        arrays = module.state_dict(SHARED / f"net1d_keys_{n_leads}lead.txt")
    return {key: torch.from_numpy(np.asarray(array)) for key, array in arrays.items()}


def check_golden(model, n_leads, n_samples):
    """Compare a network of the golden weights with the published class's logits."""
    rng = np.random.default_rng(1000 * n_leads + n_samples)
    x = rng.standard_normal((2, n_leads, n_samples)).astype(np.float32)
    with torch.no_grad():
        found = model(torch.from_numpy(x)).numpy()
    wanted = np.load(SHARED / "net1d_golden.npz")[f"logits_{n_leads}_{n_samples}"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


@needs_shared
@pytest.mark.parametrize(("n_leads", "n_samples"), [(1, 5000), (1, 1250), (12, 4999)])
def test_logits_are_those_of_the_published_class(n_leads, n_samples):
    model = Net1D(n_leads, 150).eval()
    state = golden_state(n_leads)
    model.load_state_dict({key: state[key] for key in model.state_dict()})
    check_golden(model, n_leads, n_samples)


def swish(x):
    return x / (1 + np.exp(-x))


def slow_convolution(x_CT, convolution, stride):
    """Convolve sum by sum: zeros on both sides, the odd one behind, so that ceil(samples / stride) come out."""
    weight, bias = (p.detach().numpy().astype(float) for p in (convolution.weight, convolution.bias))
    n_out, n_group, kernel = weight.shape
    n_after = -(-x_CT.shape[1] // stride)
    n_pad = max(0, (n_after - 1) * stride + kernel - x_CT.shape[1])
    x_CT = np.pad(x_CT, ((0, 0), (n_pad // 2, n_pad - n_pad // 2)))
    y_CT = np.empty((n_out, n_after))
    for channel in range(n_out):
        first = channel // (n_out // (len(x_CT) // n_group)) * n_group
        for sample in range(n_after):
            part = x_CT[first : first + n_group, sample * stride : sample * stride + kernel]
            y_CT[channel, sample] = (part * weight[channel]).sum() + bias[channel]
    return y_CT


def slow_block(block, x_CT, stride):
    """Compute a block, its shortcut sample by sample; an odd length is halved with a zero behind it."""
    y_CT = slow_convolution(swish(x_CT) if block.activate_input else x_CT, block.conv1.conv, 1)
    y_CT = slow_convolution(swish(y_CT), block.conv2.conv, stride)
    y_CT = slow_convolution(swish(y_CT), block.conv3.conv, 1)
    (w1, b1), (w2, b2) = (
        (layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in (block.se_fc1, block.se_fc2)
    )
    gate_C = 1 / (1 + np.exp(-(w2 @ swish(w1 @ y_CT.mean(1) + b1) + b2)))
    short_CT = np.zeros_like(y_CT)
    first = (len(y_CT) - len(x_CT)) // 2
    for sample in range(y_CT.shape[1]):
        pair_C2 = [
            x_CT[:, t] if t < x_CT.shape[1] else 0 * x_CT[:, 0] for t in range(sample * stride, (sample + 1) * stride)
        ]
        short_CT[first : first + len(x_CT), sample] = np.max(pair_C2, axis=0)
    return gate_C[:, None] * y_CT + short_CT


@pytest.mark.parametrize("n_samples", [1, 6, 31])
@pytest.mark.parametrize(
    ("n_in", "n_out", "stride", "activate_input"), [(32, 32, 1, True), (16, 48, 2, True), (32, 32, 2, False)]
)
def test_a_block_agrees_with_its_slow_twin(n_samples, n_in, n_out, stride, activate_input):
    torch.manual_seed(1)
    block = _Block(n_in, n_out, stride, activate_input=activate_input)
    x_CT = np.random.default_rng(2).standard_normal((n_in, n_samples)) - 0.5
    with torch.no_grad():
        found = block(torch.from_numpy(x_CT[None].astype(np.float32)))[0].numpy()
    assert (KERNEL, GROUP_WIDTH) == (16, 16)
    np.testing.assert_allclose(found, slow_block(block, x_CT, stride), atol=1e-5)


@pytest.mark.parametrize(("n_leads", "n_samples"), [(1, 625), (3, 77)])
def test_logits_and_gradients_are_those_of_the_published_network_stated_again(n_leads, n_samples):
    model = build_model("net1d", n_leads=n_leads, n_targets=5, seed=3)
    published = PublishedNet1D(n_leads, 5)
    published.load_state_dict(published_state_dict(model), strict=True)
    x = torch.randn(2, n_leads, n_samples, generator=torch.Generator().manual_seed(4))
    found, wanted = model(x), published(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())
    found.sum().backward()
    wanted.sum().backward()
    for name, parameter in model.named_parameters():
        gradient = published.get_parameter(name).grad
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-4 * gradient.abs().max().item())


def test_the_time_is_halved_eight_times_rounding_up():
    model, lengths = Net1D(), []
    for stage in (model.first_conv, *model.stage_list):
        stage.register_forward_hook(lambda _, __, y_BCT: lengths.append(y_BCT.shape[-1]))
    with torch.no_grad():
        model(torch.zeros(1, 1, 5000))
    assert lengths == [2500, 1250, 625, 313, 157, 79, 40, 20]


def test_it_has_the_published_parameters_but_for_the_dead_ones():
    assert sum(p.numel() for p in Net1D(1, 150).parameters()) == 30_807_750 - 66_368
    assert sum(p.numel() for p in Net1D().parameters()) == 30_764_700 - 66_368


@pytest.mark.parametrize(("n_leads", "n_samples"), [(12, 4999), (1, 77), (2, 1)])
def test_it_takes_any_length_and_number_of_leads(n_leads, n_samples):
    with torch.no_grad():
        assert Net1D(n_leads, 3)(torch.zeros(2, n_leads, n_samples)).shape == (2, 3)


def test_it_learns_one_batch_by_heart_and_every_parameter_has_a_gradient():
    model = build_model("net1d", n_leads=1, n_targets=2, seed=1)
    generator = torch.Generator().manual_seed(2)
    # Labels that no constant can tell apart.
    x, label = torch.randn(4, 1, 200, generator=generator), torch.tensor([[0, 1], [1, 0]] * 2, dtype=torch.int8)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(12):
        loss = masked_bce(model(x), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in model.parameters())
    assert losses[-1] < 0.2 * losses[0]
