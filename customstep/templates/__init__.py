"""The templates: one training step each."""

from customstep.templates.gan import GAN

__all__ = ["GAN"]
