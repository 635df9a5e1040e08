import torch
from torch.testing import assert_close

from normlab.models import MLP
from normlab.norms import BatchNorm1d
from normlab.source_experiments import SourceMLP


def test_source_mlp_reproduces_program_weights():
    with torch.random.fork_rng():
        torch.manual_seed(42)
        for _ in range(3):
            torch.rand(1000, 1)
        torch.randn(1000, 1)
        program = [MLP((3,), 1, hidden=[64], norm=norm) for norm in (BatchNorm1d, None)]
        for net, norm in zip(program, (BatchNorm1d, None), strict=True):
            torch.manual_seed(42)
            ours = SourceMLP((3,), 1, hidden=[64], norm=norm)
            assert_close(ours.state_dict(), net.state_dict(), rtol=0, atol=0)
    assert not torch.equal(program[0].output.weight, program[1].output.weight)
