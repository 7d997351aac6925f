"""Keys that messages, docstrings and pages name are keys of a config: someone reads them to know what to set."""

from __future__ import annotations

import ast
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.config.checks import CONFIGS
from src.config.signatures import Signature, type_hints
from tests.conftest import ROOT
from tests.docs.pages import PAGES, inline

SOURCES = sorted((ROOT / "src").rglob("*.py"))
NOT_OURS = ("hydra",)
"""Sections whose keys another package knows."""
OBJECTS = {
    "policy.model": "the attribute whose names weights have in a checkpoint",
    "trainer.model": "Lightning's wrapped module",
    "step.metrics": "an attribute of `RolloutStep`",
}
"""Words that look like a key and are something else."""
OTHER_PAGES = {
    "other_trainers.md": "has the keys of other trainers beside ours",
}
"""Pages that name keys which are no keys here."""
QUOTED = {"troubleshooting.md": ("updates.rollout_step", "callbacks.helth", "model.norm.weight")}
"""Words of pages that quote what is said of inputs that are wrong."""
INVENTED = ("loss", "mix", "region_weighting", "weighting", "advantages", "factors")
"""Sections that are no section of a config, but were named as if they were one, or could be."""
_WORD = re.compile(r"(?<![\w./\-{}<>])([a-z_]+(?:\.[\w{}]+)+)(?![\w/(])")
_FILE = re.compile(r"\.(?:py|json|jsonl|yaml|md|csv|parquet|png|html|safetensors|ckpt|index|txt|partial)\b")
_EXAMPLES = re.compile(r"^ *>>>.*(?:\n *\S.*)*", re.MULTILINE)
"""Examples of docstrings, whose configs are made up."""
_PACKAGE = re.compile(r"# @package (\S+)")

Keys = dict[str, Any]
"""A section's keys, each with those below it. The key `*` stands for all others."""


@cache
def known_keys() -> Keys:
    """Those of all files of configs/, each where its file puts it, with all that their constructors take."""
    known: Keys = {}
    for file in sorted(CONFIGS.rglob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        found = _PACKAGE.match(text)
        if file.is_relative_to(CONFIGS / "hydra"):
            continue
        group = ".".join(file.relative_to(CONFIGS).parent.parts)
        package = group if found is None else found[1].removeprefix("_global_")
        section = known
        for name in filter(None, package.split(".")):
            section = section.setdefault(name, {})
        merge(section, yaml.safe_load(text))
    return known


def merge(section: Keys, content: Keys) -> None:
    """Add a file's keys to those of a section; below a `_target_` also its constructor's."""
    for name, value in content.items():
        if name == "_target_":
            add_parameters(section, value)
        elif not name.startswith("_") and name not in ("defaults", *NOT_OURS):
            below = section.setdefault(name, {})
            if isinstance(value, dict):
                merge(below, value)
                if not value:
                    below["*"] = {}  # the user fills it
            elif value == "???":
                below["*"] = {}  # so perhaps here


def add_parameters(section: Keys, target: str) -> None:
    """Add what a class or function takes, with the fields of those that are dataclasses."""
    found = pkgutil.resolve_name(target)
    signature = Signature.of(found)
    hints = type_hints(found.__init__ if isinstance(found, type) else found)
    for name in signature.parameters:
        below = section.setdefault(name, {})
        if is_dataclass(hint := hints.get(name)):
            below.update({field.name: {} for field in fields(hint) if field.name not in below})
    if signature.takes_others:
        section["*"] = {}


def is_key(word: str) -> bool:
    """Whether there is a key of this name; a part in braces, `*` and `NAME` stand for any."""
    sections = [known_keys()]
    for part in word.removesuffix("._target_").split("."):
        anything = "{" in part or part in ("*", "NAME")
        sections = [below for keys in sections for name, below in keys.items() if anything or name in (part, "*")]
    return bool(sections)


def suspicious(text: str) -> list[str]:
    """Dotted words of a text that begin like a key and are none."""
    found = []
    for match in _WORD.finditer(_EXAMPLES.sub("", text)):
        word = match[1]
        first = word.partition(".")[0]
        if first in NOT_OURS or word in OBJECTS or _FILE.search(word):
            continue
        if (first in known_keys() or first in INVENTED) and not is_key(word) and not is_module(word):
            found.append(word)
    return found


def is_module(word: str) -> bool:
    """A module of src, or a name in one."""
    parts = word.split(".")
    return any((ROOT / "src" / Path(*parts[:length])).with_suffix(".py").is_file() for length in range(2, 4))


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """String constants of a file; what an f-string fills in is `{}`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.lineno, node.value


def test_keys_that_sources_name_are_there() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {word}"
        for path in SOURCES
        for line, text in texts(path)
        for word in suspicious(text)
    ]
    assert not wrong, "\n".join(wrong)


def test_sections_that_settings_check_are_there() -> None:
    """The first argument of `check_fields` begins the message that a user reads."""
    wrong = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "check_fields":
                section = node.args[0]
                if isinstance(section, ast.Constant) and not is_key(f"{section.value}.*"):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {section.value}")
    assert not wrong, "\n".join(wrong)


def test_keys_that_pages_name_are_there() -> None:
    wrong = [
        f"{page.name}:{line}: {word}"
        for page in PAGES
        if page.name not in OTHER_PAGES
        for line, token in inline(page)
        if token.type == "code_inline"
        for word in suspicious(token.content)
        if word not in QUOTED.get(page.name, ())
    ]
    assert not wrong, "\n".join(wrong)


def test_every_exception_is_needed() -> None:
    written = "".join(path.read_text(encoding="utf-8") for path in SOURCES)
    assert not [word for word in OBJECTS if word not in written or is_key(word)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Use a lower rollout.max_new_tokens.", ["rollout.max_new_tokens"]),
        ("Set policy.layout=published, or use a corpus.", ["policy.layout"]),
        ("region_weighting.{}: expected at least 0", ["region_weighting.{}"]),
        ("loss.aggregation and algorithm.loss.aggregation", ["loss.aggregation"]),
        ("updates.probe_tokens; data.train.kinds; callbacks.{}.every_n_rollout_steps; rollout.engine_args.seed", []),
        ("comparison.json, sweep.md, algorithm.policy_loss, hydra.run.dir, trainer.strategy.cpu_offload", []),
    ],
)
def test_what_counts_as_a_key(text: str, found: list[str]) -> None:
    assert suspicious(text) == found
