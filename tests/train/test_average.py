import numpy as np
import pytest
import torch

from anyecg.train.average import Average


def network():
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))


def walk(network, steps):
    """Move the weights by a made-up step each time; yield the step."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        yield step


def values(network):
    return {name: parameter.detach().double().numpy().copy() for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_average_is_that_of_a_loop_in_float64(decay):
    trained = network()
    average, wanted = Average(trained, decay), values(trained)
    for step in walk(trained, range(60)):
        average.update(step)
        share = min(decay, (1 + step) / (10 + step))
        now = values(trained)
        wanted = {name: share * wanted[name] + (1 - share) * now[name] for name in wanted}
    for name, value in average.weights.items():
        np.testing.assert_allclose(value.double(), wanted[name], atol=1e-6)


def test_the_average_stands_in_for_the_weights_for_a_while():
    trained = network()
    average = Average(trained, 0.9)
    for step in walk(trained, range(5)):
        average.update(step)
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    with average.in_place():
        assert all(torch.equal(value, average.weights[name]) for name, value in trained.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert not all(torch.equal(value, before[name]) for name, value in average.weights.items())


def test_a_resumed_average_goes_on_with_the_same_bytes():
    whole, halved = network(), network()
    wanted = Average(whole, 0.99)
    for step in walk(whole, range(20)):
        wanted.update(step)
    first = Average(halved, 0.99)
    for step in walk(halved, range(10)):
        first.update(step)
    second = Average(halved, 0.99)
    second.load(first.state())
    for step in walk(halved, range(10, 20)):
        second.update(step)
    assert set(first.state()) == {f"average.{name}" for name, _ in halved.named_parameters()}
    assert all(torch.equal(value, wanted.weights[name]) for name, value in second.weights.items())


def test_a_decay_of_zero_keeps_nothing_and_changes_nothing():
    trained = network()
    average, before = Average(trained, 0.0), values(trained)
    average.update(0)
    with average.in_place():
        pass
    assert (average.weights, average.state()) == ({}, {})
    for name, value in values(trained).items():
        np.testing.assert_array_equal(value, before[name])
