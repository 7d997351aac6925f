"""What the tests of the sandbox share."""

import pytest

from src.evaluation.bfcl.sandbox import Sandbox


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(time_limit=1.0) as sandbox:
        yield sandbox
