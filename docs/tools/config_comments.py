"""What a file of `configs/` says: its keys with their values as written, and the comments that explain them.

Reads files and composes nothing. Needs `ruamel.yaml`, which knows where comments are, from the `dev` extra.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

_PACKAGE = "@package "


@dataclass(frozen=True, slots=True)
class Setting:
    """A key of a file.

    Attributes:
        key: its path, as the command line has it: `updates.rollout_steps`.
        value: as written in the file; the `_target_` of a section that has one.
        comment: behind it, or in the lines above it.
    """

    key: str
    value: str
    comment: str


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What one file says.

    Attributes:
        path: of the file.
        header: the comment that it opens with, a line each, without `# @package`.
        defaults: (group, option) of its defaults list; the group is empty where a file of its own group is named.
        settings: its keys in their order.
    """

    path: Path
    header: tuple[str, ...]
    defaults: tuple[tuple[str, str], ...]
    settings: tuple[Setting, ...]

    @classmethod
    def read(cls, path: Path, package: str = "") -> ConfigFile:
        """Read a file.

        Args:
            path: of the file.
            package: where its keys belong, unless it opens with `# @package`.

        Raises:
            ValueError: it is no YAML mapping.
        """
        text = path.read_text(encoding="utf-8")
        content = YAML().load(text)
        if not isinstance(content, CommentedMap):
            raise ValueError(f"{path}: expected a YAML file of keys and values, found {type(content).__name__}.")
        comments = dict(_comments(content))
        content.pop("hydra", None)
        header: list[str] = []
        while len(header) in comments:
            header.append(comments[len(header)][1])
        for line in range(len(header)):
            del comments[line]
        named = [line.removeprefix(_PACKAGE) for line in header if line.startswith(_PACKAGE)]
        package = {"_global_": ""}.get(named[0], named[0]) if named else package
        return cls(
            path=path,
            header=tuple(line for line in header if not line.startswith(_PACKAGE)),
            defaults=tuple(_chosen(content.pop("defaults", ()))),
            settings=tuple(_settings(content, package, text.splitlines(), comments)),
        )

    @property
    def builds_on_another(self) -> bool:
        """Whether it holds what differs from another file of its group."""
        return any(not group and option != "_self_" for group, option in self.defaults)

    @property
    def summary(self) -> str:
        """The first sentence of its header."""
        return first_sentence(" ".join(self.header))


def first_sentence(text: str) -> str:
    """Up to the full stop before the next capital.

    >>> first_sentence("GRPO, e.g. Eq. 15: weights of 1. The rest is ResT's.")
    'GRPO, e.g. Eq. 15: weights of 1.'
    """
    for index in range(len(text) - 2):
        abbreviated = text[:index].endswith(("e.g", "i.e"))
        if text[index : index + 2] == ". " and text[index + 2].isupper() and not abbreviated:
            return text[: index + 1]
    return text


def _chosen(defaults: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """The entries of a defaults list but the overrides; see `ConfigFile.defaults`."""
    for entry in defaults:
        if isinstance(entry, CommentedMap):
            for group, option in entry.items():
                if not str(group).startswith("override "):
                    shown = f"[{','.join(map(str, option))}]" if isinstance(option, list) else option
                    yield str(group), "null" if option is None else str(shown)
        else:
            yield "", str(entry)


def _settings(
    node: CommentedMap, prefix: str, lines: Sequence[str], comments: dict[int, tuple[int, str]]
) -> Iterator[Setting]:
    """The keys at and below a node, with the comment on their line or else the lines above them."""
    for key, value in node.items():
        if str(key).startswith("_"):
            continue
        line, _ = node.lc.key(key)
        path = f"{prefix}.{key}" if prefix else str(key)
        comment = comments[line][1] if line in comments else _above(line, lines, comments)
        if isinstance(value, CommentedMap) and value and not value.fa.flow_style():
            target = str(value.get("_target_", ""))
            if target or comment:
                yield Setting(path, target, comment)
            yield from _settings(value, path, lines, comments)
        else:
            yield Setting(path, _written(node, key, lines, comments), comment)


def _above(line: int, lines: Sequence[str], comments: dict[int, tuple[int, str]]) -> str:
    """The comment in the lines directly above a line."""
    first = line
    while first - 1 in comments and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return " ".join(comments[number][1] for number in range(first, line))


def _written(node: CommentedMap, key: Any, lines: Sequence[str], comments: dict[int, tuple[int, str]]) -> str:
    """A value of one line as it stands in the file; of a block list, its items."""
    line, column = node.lc.value(key)
    if isinstance(node[key], list) and not node[key].fa.flow_style():
        return f"[{', '.join(map(str, node[key]))}]"
    stop = comments[line][0] if line in comments else None
    return lines[line][column:stop].strip()


def _comments(node: Any) -> Iterator[tuple[int, tuple[int, str]]]:
    """Line -> (column, text) of every comment at and below a node."""
    for token in _tokens([node.ca.comment, *node.ca.items.values(), node.ca.end]):
        for offset, text in enumerate(token.value.splitlines()):
            if text.strip().startswith("#"):
                column = token.start_mark.column if offset == 0 else text.index("#")
                yield token.start_mark.line + offset, (column, text.strip().removeprefix("#").strip())
    for child in node.values() if isinstance(node, CommentedMap) else node:
        if hasattr(child, "ca"):
            yield from _comments(child)


def _tokens(found: Any) -> Iterator[Any]:
    """The comment tokens in ruamel.yaml's nested lists of them."""
    if isinstance(found, list):
        for item in found:
            yield from _tokens(item)
    elif found is not None:
        yield found
