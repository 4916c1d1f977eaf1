"""Training steps for Keras 3 that save, evaluate, resume and distribute like the stock one."""

__version__ = "0.1.0"

from customstep import _quiet  # isort: skip  (before anything imports TensorFlow)
from customstep import datasets, grids, latents, losses, pictures
from customstep.datasets import load_images, read_images
from customstep.step import Batch, Objective, StepModel, Update
from customstep.templates import GAN

__all__ = [
    "GAN",
    "Batch",
    "Objective",
    "StepModel",
    "Update",
    "datasets",
    "grids",
    "latents",
    "load_images",
    "losses",
    "pictures",
    "read_images",
]
