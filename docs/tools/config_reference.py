"""The configuration reference: `docs/configuration.md` from the files of `configs/` and their comments.

`make docs` writes the page, and a test holds it against the configs. It shows what is written in the files,
interpolations included.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from docs.tools.config_comments import ConfigFile, Setting
from src.config.checks import CONFIGS

PAGE = CONFIGS.parent / "docs" / "configuration.md"

_OF_DIFFERENCES = ("experiment", "hparams_search", "debug")
"""Groups whose files set keys of other groups: their options are listed, not their keys."""
_INTRODUCTION = """# Configuration

<!-- Written by `make docs` from the files of configs/ and their comments: change those. -->

Every key can be given on the command line (`updates.rollout_steps=20`), and every option of a group by the group's name
(`algorithm=grpo`, `policy/lora=default`). `python src/train.py --cfg job` shows a composed config, and a key that is
misspelt is refused with the nearest one ([troubleshooting.md](troubleshooting.md#config)). Values are shown as they
are written: `${…}` refers to another key. A value that is a class shows it by its name: its docstring says more of its
keys."""

log = logging.getLogger(__name__)

Row = Sequence[str]


def reference(configs: Path = CONFIGS) -> str:
    """The whole page."""
    parts = [_INTRODUCTION]
    primaries = sorted(configs.glob("*.yaml"), key=lambda path: (path.stem != "train", path.stem))
    chosen: dict[str, str] = {}
    for path in primaries:
        file = ConfigFile.read(path)
        chosen = dict(file.defaults) | chosen
        parts += [f"## {path.name}", _usage(file), _table(("key", "default", "what"), _rows(file.settings))]
    for folder in sorted({path.parent for path in configs.rglob("*.yaml")} - {configs}):
        parts += _group(folder, folder.relative_to(configs).as_posix(), chosen)
    return "\n\n".join(part for part in parts if part) + "\n"


def _usage(file: ConfigFile) -> str:
    """The header: its commands as a block, and what it says besides; the groups that it composes."""
    commands = [line for line in file.header if line.startswith("python ")]
    words = " ".join(line for line in file.header if line not in commands)
    groups = ", ".join(f"`{group}={option}`" for group, option in file.defaults if group not in ("", "hydra"))
    block = "```text\n" + "\n".join(commands) + "\n```" if commands else ""
    return "\n\n".join(
        part for part in (block, words, f"Groups and their defaults: {groups}." if groups else "") if part
    )


def _group(folder: Path, name: str, chosen: dict[str, str]) -> list[str]:
    """The section of a group: its options, the keys of the one that others build on, and what others add to them."""
    package = name.replace("/", ".")
    files = {path.stem: ConfigFile.read(path, package) for path in sorted(folder.glob("*.yaml"))}
    default = chosen.get(name)
    alone = [stem for stem, file in files.items() if not file.builds_on_another]
    base = next(stem for stem in ("default", default, *alone, *files) if stem in files)
    link = "../configs/" + name
    options = [
        (
            f"[`{name}={stem}`]({link}/{stem}.yaml)" + (" (default)" if stem == default else ""),
            " ".join(file.header) if stem == base else file.summary,
        )
        for stem, file in files.items()
    ]
    parts = [f"## {name}", _table(("option", "what"), options)]
    if name in _OF_DIFFERENCES:
        return parts
    chosen |= {f"{name}/{group}": option for group, option in files[base].defaults if group}
    below = [ConfigFile.read(path, f"{package}.{path.parent.name}") for path in folder.glob("*/*.yaml")]
    known = {setting.key for file in (files[base], *below) for setting in file.settings}
    for stem, file in sorted(files.items(), key=lambda item: item[0] != base):
        found = [one for one in file.settings if stem == base or one.key not in known]
        if found:
            beside = "" if len(found) == len(file.settings) else f" that `{base}` has not"
            parts += [f"Keys of `{name}={stem}`{beside}:", _table(("key", "value", "what"), _rows(found))]
    return parts


def _rows(settings: Iterable[Setting]) -> list[Row]:
    return [(f"`{one.key}`", f"`{one.value}`" if one.value else "", one.comment) for one in settings]


def _table(head: Row, rows: Sequence[Row]) -> str:
    """A Markdown table; nothing without rows."""
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *(map(_cell, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    r"""Text of a cell, in which a bar would end it and a tag would not be shown.

    >>> print(_cell("a | b, <time> and `<time>`"))
    a \| b, \<time> and `<time>`
    """
    parts = text.split("`")
    parts[::2] = [part.replace("<", r"\<") for part in parts[::2]]
    return "`".join(parts).replace("|", r"\|")


def main() -> None:
    """Write the page."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    PAGE.write_text(reference(), encoding="utf-8")
    log.info("%s is written.", PAGE.relative_to(CONFIGS.parent))


if __name__ == "__main__":
    main()
