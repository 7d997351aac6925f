"""The documentation as blocks of code and commands: what a reader would copy."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.conftest import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
SHELLS = ("bash", "sh", "shell", "console")
_FILE = re.compile(r"# ([\w./-]+\.(?:py|yaml|json|jsonl))$")
_PROGRAM = re.compile(r"(?:make|python|pytest|pip|conda|apt-get|sbatch|\.venv\S*/bin/\S+) .")
"""How a piece of code in a sentence begins that is a command."""


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


@cache
def tokens(page: Path) -> list[Token]:
    return MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))


def blocks(page: Path) -> list[Block]:
    return [
        Block(page, token.map[0] + 2, token.info.strip(), token.content)
        for token in tokens(page)
        if token.type == "fence" and token.map is not None
    ]


def inline(page: Path) -> Iterator[tuple[int, Token]]:
    """Links, images and code in sentences and tables, each with the line where its paragraph or row begins."""
    line = 0
    for token in tokens(page):
        if token.map is not None:
            line = token.map[0] + 1
        for child in token.children or ():
            yield line, child


@dataclass(frozen=True)
class Command:
    """A program with its arguments.

    Attributes:
        page: that it is on.
        line: of it there, from 1; of a block's continued lines the first.
        words: as the shell splits them, without variables before the program.
    """

    page: Path
    line: int
    words: tuple[str, ...]

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}: {' '.join(self.words)}"


def programs(line: str) -> list[tuple[str, ...]]:
    """The programs that a line of the shell starts: those joined by &&, | and ; one by one, without comment.

    >>> programs("A=1 make x && printf 'a | b' | python -m y  # both")
    [('make', 'x'), ('printf', 'a | b'), ('python', '-m', 'y')]
    """
    lexer = shlex.shlex(re.sub(r"(^|\s)#.*", "", line), posix=True, punctuation_chars="&|;")
    lexer.whitespace_split, lexer.commenters = True, ""
    found: list[list[str]] = [[]]
    for word in lexer:
        if re.fullmatch(r"[&|;]+", word):
            found.append([])
        elif found[-1] or not re.match(r"[A-Z_]+=", word):
            found[-1].append(word)
    return [tuple(words) for words in found if words]


def commands(page: Path) -> Iterator[Command]:
    """All of a page's blocks."""
    for block in blocks(page):
        if block.language in SHELLS:
            number = block.line
            for line in re.split(r"(?<!\\)\n", block.text):
                for words in programs(line.replace("\\\n", " ")):
                    yield Command(page, number, words)
                number += 1 + line.count("\n")


def mentioned(page: Path) -> Iterator[Command]:
    """Commands in sentences and tables."""
    for line, token in inline(page):
        if token.type == "code_inline" and _PROGRAM.match(token.content):
            for words in programs(token.content):
                yield Command(page, line, words)
