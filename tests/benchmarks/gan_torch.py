"""The guide's GAN in PyTorch, to compare `python -m tests.benchmarks.gan` with.

    pip install torch
    python tests/benchmarks/gan_torch.py

Prints the images a second of the same networks and algorithm as (a) there, in each of the settings
that PyTorch offers on a CPU. It needs nothing but PyTorch, and belongs into an environment of its
own.
"""

import contextlib
import statistics
import time

import torch
from torch import nn

BATCH_SIZE = 64
STEPS = 60
ROUNDS = 3


def networks():
    """The guide's, with TensorFlow's "same" padding for strides of 2."""
    generator = nn.Sequential(
        nn.Linear(128, 7 * 7 * 128),
        nn.LeakyReLU(0.2),
        nn.Unflatten(1, (128, 7, 7)),
        nn.ConvTranspose2d(128, 128, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(128, 128, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(128, 1, 7, padding="same"),
        nn.Sigmoid(),
    )
    discriminator = nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)),
        nn.Conv2d(1, 64, 3, stride=2),
        nn.LeakyReLU(0.2),
        nn.ZeroPad2d((0, 1, 0, 1)),
        nn.Conv2d(64, 128, 3, stride=2),
        nn.LeakyReLU(0.2),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 1),
    )
    return generator, discriminator


def trainer(layout, bfloat16, compiled):
    """A callable that takes images and does one step."""
    generator, discriminator = (net.to(memory_format=layout) for net in networks())
    adams = [torch.optim.Adam(net.parameters(), 3e-4) for net in (generator, discriminator)]
    loss_of = nn.BCEWithLogitsLoss()
    if compiled:
        generator, discriminator = torch.compile(generator), torch.compile(discriminator)

    def precision():
        return torch.autocast("cpu", torch.bfloat16) if bfloat16 else contextlib.nullcontext()

    def step(images):
        n = len(images)
        with precision():
            with torch.no_grad():
                fake = generator(torch.randn(n, 128)).float()
            logits = discriminator(torch.cat([fake, images]))
        labels = torch.cat([torch.ones(n, 1), torch.zeros(n, 1)])
        loss = loss_of(logits.float(), labels + 0.05 * torch.rand(2 * n, 1))
        adams[1].zero_grad(set_to_none=True)
        loss.backward()
        adams[1].step()

        discriminator.requires_grad_(False)
        with precision():
            logits = discriminator(generator(torch.randn(n, 128)).float())
        loss = loss_of(logits.float(), torch.zeros(n, 1))
        adams[0].zero_grad(set_to_none=True)
        loss.backward()
        adams[0].step()
        discriminator.requires_grad_(True)

    return step


def main():
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH_SIZE}")
    for compiled in (False, True):
        for name, layout in (
            ("", torch.contiguous_format),
            ("channels last", torch.channels_last),
        ):
            for bfloat16 in (False, True):
                words = [name, "bfloat16" if bfloat16 else "float32", "compiled" * compiled]
                words = ", ".join(filter(None, words))
                torch.compiler.reset()
                try:
                    print(f"{words}: {rate(layout, bfloat16, compiled):.0f} images/s", flush=True)
                except Exception as error:  # no compiler, for one
                    print(f"{words}: failed, {type(error).__name__}", flush=True)


def rate(layout, bfloat16, compiled):
    """Images a second, the median of some rounds."""
    step = trainer(layout, bfloat16, compiled)
    images = torch.rand(BATCH_SIZE, 1, 28, 28).to(memory_format=layout)
    for _ in range(3):
        step(images)
    rates = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(STEPS):
            step(images)
        rates.append(STEPS * BATCH_SIZE / (time.perf_counter() - start))
    return statistics.median(rates)


if __name__ == "__main__":
    main()
