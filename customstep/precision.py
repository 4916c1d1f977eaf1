"""What number formats the machine is fast at."""

import pathlib

__all__ = ["has_fast_bfloat16"]


def has_fast_bfloat16():
    """Whether the processor multiplies bfloat16 matrices itself (AVX512-BF16, AMX, Arm BF16).

    Then `keras.mixed_precision.set_global_policy("mixed_bfloat16")` makes convolutions faster;
    without, it makes them slower. It asks Linux and answers False elsewhere.

    Returns:
        bool.
    """
    try:
        flags = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)
