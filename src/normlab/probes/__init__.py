"""Probes: measurements of a loss and its parameters that depend on no network class and change no state."""

from normlab.probes.activations import Activations
from normlab.probes.adversarial import FastGradientSign
from normlab.probes.angular_update import AngularUpdate
from normlab.probes.curvature import Curvature
from normlab.probes.gradient_change import AlongGradient, CovariateShift
from normlab.probes.gradient_lipschitz import GradientLipschitz
from normlab.probes.graph import Graph
from normlab.probes.interpolation import Line
from normlab.probes.landscape import BatchedLoss
from normlab.probes.preactivations import Preactivations
from normlab.probes.residual_branches import ResidualBranches
from normlab.probes.saturation import Saturation
from normlab.probes.snapshot import Measurement, Probe, TrainingSnapshot

__all__ = [
    "Activations",
    "AlongGradient",
    "AngularUpdate",
    "BatchedLoss",
    "CovariateShift",
    "Curvature",
    "FastGradientSign",
    "GradientLipschitz",
    "Graph",
    "Line",
    "Measurement",
    "Preactivations",
    "Probe",
    "ResidualBranches",
    "Saturation",
    "TrainingSnapshot",
]
