"""fit(): the one training loop, and what it needs."""

from tfrobust.training import checkpoints
from tfrobust.training.checkpoints import DamagedCheckpointError
from tfrobust.training.evaluation import evaluate
from tfrobust.training.fit import Callback, History, fit
from tfrobust.training.loop import NonFiniteLossError, WorkerLostError
from tfrobust.training.precision import Precision, computing_in
from tfrobust.training.repeated import RepeatedFit
from tfrobust.training.run_folder import SettingsChangedError
from tfrobust.training.schedules import Cosine, Plateau, Schedule, StepDecay

__all__ = [
    "Callback",
    "Cosine",
    "DamagedCheckpointError",
    "History",
    "NonFiniteLossError",
    "Plateau",
    "Precision",
    "RepeatedFit",
    "Schedule",
    "SettingsChangedError",
    "StepDecay",
    "WorkerLostError",
    "checkpoints",
    "computing_in",
    "evaluate",
    "fit",
]
