"""Signatures of targets: what is read, what is kept, and when it is read anew."""

import enum
import importlib
import sys
import types
from typing import Literal

import pytest
import torch

from src.config import signatures
from src.config.result_cache import ResultCache
from src.config.signatures import Accepted, Signature, resolved, signature_of
from tests.conftest import ROOT

OPTIMIZER = "src.training.optimizers.OptimizerSettings"


class Colour(enum.Enum):
    RED = 1


class Base:
    def __init__(self, count: int, name: str | None = None) -> None: ...


class HandsOn(Base):
    def __init__(self, kind: Literal["a", "b"], **others: object) -> None: ...


HandsOn.__module__ = HandsOn.__init__.__module__ = "src.errors"  # of this project, so what it hands on is known


def test_what_a_class_hands_on_goes_to_its_base():
    signature = Signature.of(HandsOn)
    assert list(signature.parameters) == ["kind", "count", "name"] and not signature.takes_others
    assert str(signature.parameters["kind"]) == "'a' or 'b'"
    assert str(signature.parameters["name"]) == "a text or null"
    assert Signature.of(dict.fromkeys).takes_others is False
    assert Signature.of(lambda first, **others: None).takes_others is True  # another package's may take it anywhere


def test_hints_do_not_refuse_what_a_target_takes():
    """A default of None takes null; a hint that nothing can evaluate, and C code without a signature, take anything."""

    def function(count: int = None, other: "enum.Nothing" = 1, text: "two words" = 2) -> None: ...  # noqa: F722, RUF013

    def plain(count: int = None) -> None: ...  # noqa: RUF013

    assert [accepted.fits("x") for accepted in Signature.of(function).parameters.values()] == [True] * 3
    assert str(Signature.of(plain).parameters["count"]) == "an integer or null"
    assert Signature.of(torch.tensor).takes_others


def test_a_choice_that_json_cannot_hold_is_not_kept(tmp_path, monkeypatch):
    module = types.ModuleType("src.with_enum")
    module.__file__ = str(ROOT / "src/with_enum.py")
    monkeypatch.setitem(sys.modules, "src.with_enum", module)

    def taking(colour: Literal[Colour.RED, "none"] = "none") -> None: ...

    module.taking = taking
    taking.__module__ = "src.with_enum"
    cache = ResultCache(tmp_path / "signatures.json")
    assert signature_of("src.with_enum.taking", cache).parameters["colour"].fits("none")
    cache.save()
    assert cache.get("src.with_enum.taking") is None


def test_an_installed_package_is_read_anew_when_its_file_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(signatures, "INSTALLED", (tmp_path,))
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "installed_package.py"
    for text, names in (("count", ["count"]), ("count, another", ["count", "another"])):
        file.write_text(f"def function({text}): ...\n")
        monkeypatch.delitem(sys.modules, "installed_package", raising=False)
        importlib.invalidate_caches()
        cache = ResultCache(tmp_path / "cache/signatures.json")
        assert list(signature_of("installed_package.function", cache).parameters) == names
        cache.save()
    monkeypatch.delitem(sys.modules, "installed_package")
    assert list(signature_of("installed_package.function", cache).parameters) == names
    assert "installed_package" not in sys.modules


def test_a_kept_signature_is_the_one_that_is_read(tmp_path, monkeypatch):
    file = tmp_path / "cache/signatures.json"
    first = ResultCache(file)
    read = signature_of(OPTIMIZER, first)
    first.save()
    monkeypatch.delitem(sys.modules, "src.training.optimizers")
    kept = signature_of(OPTIMIZER, ResultCache(file))
    assert kept == read and "src.training.optimizers" not in sys.modules
    assert kept.parameters["schedule"] == Accepted((), ("constant", "cosine"))


def test_an_imported_target_is_read_from_the_code_that_runs(tmp_path):
    cache = ResultCache(tmp_path / "signatures.json")
    kept = {"parameters": {"other": [["int"], []]}, "takes_others": False, "files": {}}
    cache.put(f"{__name__}.Base", kept)
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
        signature_of("src.training.optimizers.Nothing", ResultCache(None))
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'adam'$"):
        signature_of("adam", ResultCache(None))


def test_a_module_that_cannot_import_something_says_what(tmp_path, monkeypatch):
    (tmp_path / "lab_classes").mkdir()
    (tmp_path / "lab_classes" / "needs_more.py").write_text(
        "import a_package_that_is_not_there\n\n\nclass Thing: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'a_package_that_is_not_there'"):
        resolved("lab_classes.needs_more.Thing")
    assert resolved("collections.OrderedDict.fromkeys")  # a name within a class
