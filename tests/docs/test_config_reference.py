"""The configuration reference: what a file's comments become, and that the committed page is of these configs."""

from pathlib import Path

import pytest

from docs.tools.config_comments import ConfigFile, Setting
from docs.tools.config_reference import PAGE, reference

FILE = """# @package algorithm.weighting
# Factors | curriculum. Table F.1.
defaults:
  - /policy/lora@policy.lora: null
  - override /data: rlla
  - base
  - _self_

_target_: src.Weights
name: "a # b" # in tables
nested:
  # What it is,
  # in two lines.
  steps: [1, 2]
  empty: {} # e.g. {a: 1}

  flow: { a: 1.0e-6 }
last: null
hydra:
  mode: RUN
"""


def test_every_key_has_its_value_as_written_and_its_comment(tmp_path: Path) -> None:
    path = tmp_path / "f1.yaml"
    path.write_text(FILE, encoding="utf-8")
    file = ConfigFile.read(path, "ignored")
    assert file.summary == "Factors | curriculum."
    assert file.header == ("Factors | curriculum. Table F.1.",)
    assert file.defaults == (("/policy/lora@policy.lora", "null"), ("", "base"), ("", "_self_"))
    assert file.builds_on_another
    assert file.settings == (
        Setting("algorithm.weighting.name", '"a # b"', "in tables"),
        Setting("algorithm.weighting.nested.steps", "[1, 2]", "What it is, in two lines."),
        Setting("algorithm.weighting.nested.empty", "{}", "e.g. {a: 1}"),
        Setting("algorithm.weighting.nested.flow", "{ a: 1.0e-6 }", ""),
        Setting("algorithm.weighting.last", "null", ""),
    )


def test_options_are_compared_with_the_one_they_build_on(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("defaults:\n  - reward: plain\nseed: 1 # of all\n", encoding="utf-8")
    group = tmp_path / "reward"
    group.mkdir()
    (group / "plain.yaml").write_text("# Plain.\n_target_: a.B\nscale: 1\n", encoding="utf-8")
    (group / "odd.yaml").write_text("defaults:\n  - plain\nscale: 2\nodd: 3 # | x\n", encoding="utf-8")
    page = reference(tmp_path)
    assert "| `seed` | `1` | of all |" in page
    assert "(../configs/reward/plain.yaml) (default) | Plain. |" in page
    assert "Keys of `reward=odd` that `plain` has not:\n\n| key | value | what |\n| --- | --- | --- |\n" in page
    assert r"| `reward.odd` | `3` | \| x |" in page and "`2`" not in page


def test_a_file_without_keys_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"list\.yaml: expected a YAML file of keys and values"):
        ConfigFile.read(path)


def test_the_committed_page_is_of_these_configs() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "docs/configuration.md is out of date: run `make docs`"
