"""Training steps for Keras 3 that save, evaluate, resume and distribute like the stock one."""

__version__ = "0.1.0"

from customstep import _quiet  # isort: skip  (before anything imports TensorFlow)
from customstep import (
    callbacks,
    checkpoints,
    conditions,
    datasets,
    evaluation,
    features,
    files,
    gradients,
    grids,
    inspection,
    latents,
    layers,
    losses,
    pictures,
    precision,
    processing,
    replicas,
    schedules,
    scripts,
    selection,
    stateful,
    streams,
)
from customstep.callbacks import Quality, Resume, SampleGrid, Unfreeze
from customstep.curves import plot_history
from customstep.datasets import load_images, read_images
from customstep.inspection import inspect
from customstep.scripts import run
from customstep.step import Batch, Objective, StepModel, Update
from customstep.templates import (
    GAN,
    AuxiliaryLoss,
    OnePassGAN,
    PartiallyFrozen,
    Processed,
    ScheduledClassifier,
)

__all__ = [
    "GAN",
    "AuxiliaryLoss",
    "Batch",
    "Objective",
    "OnePassGAN",
    "PartiallyFrozen",
    "Processed",
    "Quality",
    "Resume",
    "SampleGrid",
    "ScheduledClassifier",
    "StepModel",
    "Unfreeze",
    "Update",
    "callbacks",
    "checkpoints",
    "conditions",
    "datasets",
    "evaluation",
    "features",
    "files",
    "gradients",
    "grids",
    "inspect",
    "inspection",
    "latents",
    "layers",
    "load_images",
    "losses",
    "pictures",
    "plot_history",
    "precision",
    "processing",
    "read_images",
    "replicas",
    "run",
    "schedules",
    "scripts",
    "selection",
    "stateful",
    "streams",
]
