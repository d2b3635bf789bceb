"""A fixture for the tests of all rooms."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _forget_compiled_graphs(request):
    """torch keeps eight graphs of a function, and its wrapper of a partial is one function for all rooms."""
    yield
    if "compiles" in request.node.name:
        torch._dynamo.reset()
