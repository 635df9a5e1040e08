"""A training starts without Dynamo, and compiled modules are still recognized."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from normlab.lightning import OptimizedModule

CODE = """
import sys
import normlab.training.run
import torch
from normlab.population.optim import Adam
optimizer = Adam([torch.nn.Parameter(torch.zeros(2, 3))], members=2)
optimizer.zero_grad()
print({"torch._dynamo", "scipy.signal", "sympy"} & set(sys.modules))
import scipy.signal
torch._dynamo.config, scipy.signal.windows
print({"torch._dynamo", "scipy.signal"} <= set(sys.modules))
"""


@pytest.mark.slow
def test_training_is_imported_without_dynamo():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\nTrue\n"


# A warning of torch itself.
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
def test_compiled_module_is_an_instance_of_the_stand_in():
    net = nn.Linear(1, 1)
    assert not isinstance(net, OptimizedModule)
    assert isinstance(torch.compile(net), OptimizedModule)
