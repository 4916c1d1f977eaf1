"""How many lines of code an algorithm takes here, and in Keras's public examples.

    python -m tests.count_lines

Counted is the class, from `__init__` to the end of the step, as in the public examples
(keras.io/examples): what comes after it, such as `predict` or checks of arguments, is left out of
both. Where there is no class of its own, it is the expression that makes the model in the example.
Comments, blank lines and docstrings do not count.
"""

import ast
import io
import pathlib
import tokenize

STEP = ("updates", "objective", "judge", "after_step")  # how the names of its methods end
LAYOUT = (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT)
LAYOUT += (tokenize.ENDMARKER,)
ROOT = pathlib.Path(__file__).parent.parent

# Algorithm: the file, the class or call in it, and the lines of the public example or None.
ALGORITHMS = {
    "WGAN-GP": ("examples/wgan_gp.py", "customstep.GAN", 60),
    "conditional GAN": ("examples/dcgan.py", "customstep.OnePassGAN", 72),
    "projection GAN": ("examples/dcgan.py", "customstep.OnePassGAN", None),
    "CycleGAN": ("customstep/templates/cycle_gan.py", "CycleGAN", 94),
    "GAN with adaptive augmentation": ("customstep/templates/adaptive.py", "AdaptiveGAN", 84),
    "VAE": ("customstep/templates/vae.py", "VAE", 39),
    "diffusion (DDIM)": ("customstep/templates/diffusion.py", "Diffusion", 99),
    "knowledge distillation": ("customstep/templates/distillation.py", "Distillation", 46),
    "SimCLR with a linear probe": ("customstep/templates/contrastive.py", "SimCLR", 106),
    "mean teacher": ("customstep/templates/mean_teacher.py", "MeanTeacher", 44),
    "masked autoencoder": (
        "customstep/templates/masked_autoencoder.py",
        "MaskedAutoencoder",
        67,
    ),
    "metric learning": ("customstep/templates/contrastive.py", "MetricLearning", 22),
    "domain-adversarial": ("examples/domain_adversarial.py", "AuxiliaryLoss", None),
}


def lines(path, name):
    """The lines of code of a class, from `__init__` to the end of its step, or of a call.

    Args:
        path: of the file, from the top of the project.
        name: of the class; or what is called, as it is written.

    Returns:
        int.

    Raises:
        ValueError: there is no such class or call.
    """
    source = (ROOT / path).read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and node.name == name:
            first = next(part for part in node.body if getattr(part, "name", "") == "__init__")
            steps = [part for part in node.body if getattr(part, "name", "").endswith(STEP)]
            return code_lines(source, first.lineno, steps[-1].end_lineno)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
            return code_lines(source, node.lineno, node.end_lineno)
    raise ValueError(f"There is no '{name}' in {path}.")


def code_lines(source, first, last):
    """How many of the lines from `first` to `last` are more than a comment or a docstring."""
    found, begins = set(), True  # whether a statement begins
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in LAYOUT:
            begins = begins or token.type == tokenize.NEWLINE
        elif not (begins and token.type == tokenize.STRING):
            found |= set(range(token.start[0], token.end[0] + 1))
            begins = False
    return len(found & set(range(first, last + 1)))


def main():
    print(f"{'algorithm':32}{'here':>6}{'public':>8}{'share':>8}")
    for name, (path, symbol, public) in ALGORITHMS.items():
        here = lines(path, symbol)
        share = f"{here / public:.2f}" if public else ""
        print(f"{name:32}{here:6}{public or '':>8}{share:>8}")


if __name__ == "__main__":
    main()
