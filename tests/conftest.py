"""Fixtures that several rooms use."""

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).parents[1] / ".." / "shared" / "data"

needs_shared_data = pytest.mark.skipif(
    not SHARED_DATA.exists(), reason="the real data (rlla, API-Bank) is not beside the checkout, in ../shared/data"
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    return SHARED_DATA
