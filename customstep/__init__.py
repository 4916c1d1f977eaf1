"""Training steps for Keras 3 that save, evaluate, resume and distribute like the stock one."""

__version__ = "0.1.0"

from customstep import _quiet  # isort: skip  (before anything imports TensorFlow)
from customstep import (
    callbacks,
    datasets,
    grids,
    latents,
    losses,
    pictures,
    precision,
    schedules,
)
from customstep.callbacks import SampleGrid
from customstep.curves import plot_history
from customstep.datasets import load_images, read_images
from customstep.step import Batch, Objective, StepModel, Update
from customstep.templates import GAN

__all__ = [
    "GAN",
    "Batch",
    "Objective",
    "SampleGrid",
    "StepModel",
    "Update",
    "callbacks",
    "datasets",
    "grids",
    "latents",
    "load_images",
    "losses",
    "pictures",
    "plot_history",
    "precision",
    "read_images",
    "schedules",
]
