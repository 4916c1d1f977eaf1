"""Every conformance test runs over all descriptors."""

import pytest

from tests.descriptors import DESCRIPTORS


@pytest.fixture(params=DESCRIPTORS, ids=lambda descriptor: descriptor.name)
def descriptor(request):
    return request.param
