import pytest
import torch
import torch.nn.functional as F

from anyecg.train.model import build_model
from benchmarks.net1d_gpu import ChannelsLast, Traffic, bytes_of


@pytest.mark.parametrize(("n_leads", "n_samples"), [(1, 640), (2, 77)])
def test_net1d_with_channels_innermost_gives_the_same_logits(n_leads, n_samples):
    network = build_model("net1d", n_leads=n_leads, n_targets=5, seed=3)
    x = torch.randn(2, n_leads, n_samples, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        wanted = network(x)
        torch.testing.assert_close(ChannelsLast(network)(x), wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


def test_traffic_is_what_operations_read_and_write_views_left_out():
    x, weight = torch.zeros(2, 4, 10), torch.zeros(6, 4, 3)
    with Traffic() as traffic:
        y = F.conv1d(x, weight)
        torch.relu(y.transpose(1, 2))
    assert traffic.fused == x.nbytes + weight.nbytes + y.nbytes
    assert traffic.eager == traffic.fused + 2 * y.nbytes


def test_the_bytes_of_a_window_grow_with_its_length_and_leave_the_weights_out():
    network = torch.nn.Sequential(torch.nn.Conv1d(1, 8, 9), torch.nn.AdaptiveAvgPool1d(1), torch.nn.Flatten())
    network.append(torch.nn.Linear(8, 108))
    short, long = (bytes_of(network, "float32", n_samples)[1] for n_samples in (100, 200))
    # Forward reads x and writes y; backward reads x and the gradient of y.
    assert long - short == 4 * (2 * 100 + 2 * 8 * 100)
