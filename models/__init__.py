"""Pose models: networks, the three representations of a pose, and the weights that come with them.

    model = models.load("simcc-small").eval()
    keypoints = model.decode(model.network(crops))  # (N, 17, 3)
    models.reference.decode(model, model.network(crops))  # the same as its authors would have it

This floor knows tensors and nothing else: no web framework, no threads, no settings.
"""

from models import reference
from models.calibration import Calibration, CalibrationError
from models.catalogue import UnknownModelError, card, default, load, names
from models.checkpoints import WeightsError
from models.network import REPRESENTATIONS, ArchitectureError
from models.pose_model import Card, PoseModel

__all__ = [
    "REPRESENTATIONS",
    "ArchitectureError",
    "Calibration",
    "CalibrationError",
    "Card",
    "PoseModel",
    "UnknownModelError",
    "WeightsError",
    "card",
    "default",
    "load",
    "names",
    "reference",
]
