"""The documentation as blocks of code: what a reader would copy."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from tests.conftest import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
SHELLS = ("bash", "sh", "shell", "console")
_FILE = re.compile(r"# ([\w./-]+\.(?:py|yaml|json|jsonl))$")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: that it is on.
        line: of its first line there, from 1.
        language: after the fence.
        text: between the fences.
    """

    page: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def file(self) -> str | None:
        """The path in the first line, of a block that is a file."""
        found = _FILE.match(self.text.partition("\n")[0])
        return None if found is None else found[1]

    @property
    def content(self) -> str:
        """Of the file."""
        return self.text.partition("\n")[2]


def blocks(page: Path) -> list[Block]:
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    return [
        Block(page, token.map[0] + 2, token.info.strip(), token.content)
        for token in tokens
        if token.type == "fence" and token.map is not None
    ]


@dataclass(frozen=True)
class Command:
    """A line of a shell block.

    Attributes:
        page: that it is on.
        line: of the block.
        text: without comment, continued lines joined.
    """

    page: Path
    line: int
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}: {self.text}"

    @property
    def words(self) -> list[str]:
        """As the shell splits them, without variables before the program."""
        words = shlex.split(self.text)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        return words


def commands(page: Path) -> Iterator[Command]:
    """All of a page, those joined by && one by one."""
    for block in blocks(page):
        if block.language in SHELLS:
            for line in block.text.replace("\\\n", " ").splitlines():
                text = re.sub(r"(^|\s)#.*", "", line)
                for part in text.split("&&"):
                    if part.strip():
                        yield Command(page, block.line, " ".join(part.split()))
