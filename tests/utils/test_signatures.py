"""Signatures of targets: what is read, what is kept, and when it is read anew."""

import sys
from typing import Literal

import pytest

from src.utils.config_types import Accepted
from src.utils.result_cache import ResultCache
from src.utils.signatures import Signature, signature_of

OPTIMIZER = "src.models.optimizers.OptimizerSettings"


class Base:
    def __init__(self, count: int, name: str | None = None) -> None: ...


class HandsOn(Base):
    def __init__(self, kind: Literal["a", "b"], **others: object) -> None: ...


HandsOn.__module__ = HandsOn.__init__.__module__ = "src.utils.checks"  # of this project, so what it hands on is known


def test_what_a_class_hands_on_goes_to_its_base():
    signature = Signature.of(HandsOn)
    assert list(signature.parameters) == ["kind", "count", "name"] and not signature.takes_others
    assert str(signature.parameters["kind"]) == "'a' or 'b'"
    assert str(signature.parameters["name"]) == "a text or null"
    assert Signature.of(dict.fromkeys).takes_others is False
    assert Signature.of(lambda first, **others: None).takes_others is True  # another package's may take it anywhere


def test_a_kept_signature_is_the_one_that_is_read(tmp_path, monkeypatch):
    file = tmp_path / "cache/signatures.json"
    first = ResultCache(file)
    read = signature_of(OPTIMIZER, first)
    first.save()
    monkeypatch.delitem(sys.modules, "src.models.optimizers")
    kept = signature_of(OPTIMIZER, ResultCache(file))
    assert kept == read and "src.models.optimizers" not in sys.modules
    assert kept.parameters["schedule"] == Accepted((), ("constant", "cosine"))


def test_an_imported_target_is_read_from_the_code_that_runs(tmp_path):
    cache = ResultCache(tmp_path / "signatures.json")
    cache.put("tests.utils.test_signatures.Base", [{"other": [["int"], []]}, False])
    assert list(signature_of(f"{__name__}.Base", cache).parameters) == ["count", "name"]


def test_code_outside_of_the_project_and_its_packages_is_not_kept(tmp_path):
    """Nor a class of the project that has such code as a base."""
    cache = ResultCache(tmp_path / "signatures.json")
    for name in ("Base", "HandsOn"):
        signature_of(f"{__name__}.{name}", cache)
        assert cache.get(f"{__name__}.{name}") is None


def test_what_is_not_there_is_an_import_error():
    with pytest.raises((ImportError, AttributeError)):
        signature_of("src.models.nothing.Of", ResultCache(None))
    with pytest.raises(AttributeError):
        signature_of("src.models.optimizers.Nothing", ResultCache(None))
