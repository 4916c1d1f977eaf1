"""Training steps for Keras 3 that save, evaluate, resume and distribute like the stock one."""

__version__ = "0.1.0"
