"""Inference: integer blending on an absolute tile lattice, so that voxels do not depend on how the work is cut."""

from perfuse.inference.arrays import engine_of, probability, probability_of_array
from perfuse.inference.planning import PredictionPlan, plan
from perfuse.inference.prediction import Prediction
from perfuse.inference.preparing import prepare
from perfuse.inference.whole import Runner, predict

__all__ = [
    "Prediction",
    "PredictionPlan",
    "Runner",
    "engine_of",
    "plan",
    "predict",
    "prepare",
    "probability",
    "probability_of_array",
]
