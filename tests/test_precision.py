"""What the machine is fast at, from what Linux says of it."""

import pathlib

import pytest

from customstep.precision import has_fast_bfloat16


@pytest.mark.parametrize(
    "cpuinfo, fast",
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16", True),
        ("flags\t\t: fpu amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16", True),
        ("flags\t\t: fpu avx2 avx512f", False),
    ],
)
def test_flags_of_the_processor_decide(monkeypatch, cpuinfo, fast):
    monkeypatch.setattr(pathlib.Path, "read_text", lambda self, encoding: cpuinfo)
    assert has_fast_bfloat16() is fast


def test_unknown_system_is_not_fast(monkeypatch):
    def missing(self, encoding):
        raise FileNotFoundError

    monkeypatch.setattr(pathlib.Path, "read_text", missing)
    assert has_fast_bfloat16() is False
