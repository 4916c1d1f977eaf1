"""The templates: one training step each."""

from customstep.templates.adaptive import AdaptiveGAN
from customstep.templates.auxiliary import AuxiliaryLoss
from customstep.templates.classifier import ScheduledClassifier
from customstep.templates.contrastive import MetricLearning, SimCLR
from customstep.templates.cycle_gan import CycleGAN
from customstep.templates.diffusion import Diffusion
from customstep.templates.distillation import Distillation
from customstep.templates.frozen import PartiallyFrozen
from customstep.templates.gan import GAN
from customstep.templates.masked_autoencoder import MaskedAutoencoder
from customstep.templates.mean_teacher import MeanTeacher
from customstep.templates.one_pass import OnePassGAN
from customstep.templates.processed import Processed
from customstep.templates.vae import VAE

__all__ = [
    "GAN",
    "VAE",
    "AdaptiveGAN",
    "AuxiliaryLoss",
    "CycleGAN",
    "Diffusion",
    "Distillation",
    "MaskedAutoencoder",
    "MeanTeacher",
    "MetricLearning",
    "OnePassGAN",
    "PartiallyFrozen",
    "Processed",
    "ScheduledClassifier",
    "SimCLR",
]
