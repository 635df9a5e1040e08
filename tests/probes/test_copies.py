import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.probes.landscape import side_effect_free_copy


class Scaled(nn.Module):
    """A linear map with factors that tests change, and a count of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.activation = nn.Linear(3, 2), nn.ReLU()
        self.number, self.row, self.tensor, self.uses = 1.0, [1.0], torch.tensor(1.0), 0

    def forward(self, x: Tensor) -> Tensor:
        self.uses += 1
        return self.activation(self.map(x) * self.number * self.row[0] * self.tensor * self.uses)


def double_number(net: nn.Module) -> None:
    net.number = 2.0


def double_row(net: nn.Module) -> None:
    net.row[0] = 2.0


def double_tensor(net: nn.Module) -> None:
    net.tensor = torch.tensor(2.0)


def double_by_hook(net: nn.Module) -> None:
    net.map.register_forward_hook(lambda _, inputs, y: 2 * y)


@pytest.mark.parametrize("change", [double_number, double_row, double_tensor, double_by_hook])
def test_copy_has_current_attributes(change):
    net, x = Scaled(), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    once, again = (side_effect_free_copy(net, "batch")(x) for _ in range(2))
    assert torch.equal(once, again)
    assert net.uses == 0
    change(net)
    assert_close(side_effect_free_copy(net, "batch")(x), 2 * once)


def test_copy_has_given_tensors():
    net, x = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)), torch.ones(4, 3)
    net[2].weight = net[0].weight
    own = {name: torch.full_like(tensor, 2) for name, tensor in net.state_dict().items()}
    copy = side_effect_free_copy(net, "frozen", own)
    assert copy[0].weight is own["0.weight"]
    assert copy[2].weight is own["0.weight"], "a shared tensor has one value"
    assert copy[1].running_var is own["1.running_var"]
    assert_close(copy(x), side_effect_free_copy(net, "frozen", own, folds=False)(x))
    assert isinstance(net[0].weight, nn.Parameter)
    assert not torch.equal(net[0].weight, own["0.weight"])


def test_copy_without_tensors_shares_those_of_net():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    copy = side_effect_free_copy(net, "batch")
    assert {id(tensor) for tensor in copy.parameters()} == {id(tensor) for tensor in net.parameters()}
    assert (copy[1].track_running_stats, net[1].track_running_stats) == (False, True)
