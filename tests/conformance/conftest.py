"""Conformance tests run over all descriptors, or where that is dear over some (`sampling.py`)."""

import functools

import pytest

from tests.descriptors import DESCRIPTORS, fit, state


@pytest.fixture(params=DESCRIPTORS, ids=lambda descriptor: descriptor.name)
def descriptor(request):
    return request.param


@functools.cache
def _trained(name):
    [descriptor] = [descriptor for descriptor in DESCRIPTORS if descriptor.name == name]
    model = descriptor.make()
    history = fit(model, descriptor)
    return state(model), history


@pytest.fixture
def reference(descriptor):
    """The state and the history of a plain `fit`, to compare other ways of training with."""
    return _trained(descriptor.name)
