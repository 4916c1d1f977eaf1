"""The templates: one training step each."""

from customstep.templates.auxiliary import AuxiliaryLoss
from customstep.templates.classifier import ScheduledClassifier
from customstep.templates.frozen import PartiallyFrozen
from customstep.templates.gan import GAN
from customstep.templates.one_pass import OnePassGAN
from customstep.templates.processed import Processed

__all__ = [
    "GAN",
    "AuxiliaryLoss",
    "OnePassGAN",
    "PartiallyFrozen",
    "Processed",
    "ScheduledClassifier",
]
