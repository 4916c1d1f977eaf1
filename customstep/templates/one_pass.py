"""Two networks that learn from the same generated images (R1: several models trained together)."""

import keras

from customstep.templates.gan import GAN

__all__ = ["OnePassGAN"]


@keras.saving.register_keras_serializable("customstep")
class OnePassGAN(GAN):
    """A GAN whose two networks learn from the same generated images: faster steps.

    A step generates one batch. The generator learns from what the discriminator says of it, then
    the discriminator is updated on the same images. `GAN` generates a batch for each of them, in
    the order of the paper, and so pays for one more forward pass of the generator. Over many steps
    the two differ only in that: here the discriminator, too, comes to know all images that the
    generator has learned from.

    Arguments and methods are those of `GAN`, but for `discriminator_steps`, which is 1.

    Raises:
        ValueError: as for `GAN`, or `discriminator_steps` is not 1.
    """

    def updates(self):
        discriminator, generator = super().updates()
        return generator, discriminator  # which finds the images in `batch.made`

    def _check_arguments(self):
        super()._check_arguments()
        if self.discriminator_steps != 1:
            raise ValueError(
                "One batch of generated images cannot serve several updates of the discriminator. "
                f"Expected `discriminator_steps=1`; received {self.discriminator_steps}. Use "
                "`GAN`, which generates images for each of them."
            )
