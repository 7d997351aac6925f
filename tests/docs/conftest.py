"""What documented commands refer to."""

from pathlib import Path

import pytest

from tests.conftest import published_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records in the published layout."""
    return published_corpus(tmp_path_factory.mktemp("corpus") / "rlla_sft.json", 60)
