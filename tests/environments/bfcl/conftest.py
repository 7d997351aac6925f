"""What the tests of the sandbox share."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from src.environments.bfcl.sandbox import Sandbox


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """With a time limit that no request reaches that ends at all, however busy the machine is."""
    with Sandbox(time_limit=60.0) as sandbox:
        yield sandbox


@contextmanager
def in_a_hurry(sandbox: Sandbox) -> Iterator[None]:
    """For requests that never end: one second each; what comes after is given the usual time again."""
    patient = sandbox.time_limit
    sandbox.close()  # the next worker is started with the limit of then
    sandbox.time_limit = 1.0
    yield
    sandbox.close()
    sandbox.time_limit = patient
