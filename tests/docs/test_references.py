"""What README and docs/ refer to is there: links, headings, files, names in them, options of groups, imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.conftest import ROOT
from tests.docs.pages import PAGES, blocks, inline, tokens

OF_RUNS = ("config.yaml", "report.md", "comparison.md", "sweep.md", "proof.md")
"""Files that programs write."""
CORE = ("protocol", "data", "rewards", "algorithm", "models", "rollout", "training")
"""Folders of src/ that the README's map shows; docs/architecture.md has the others."""
_FILE = re.compile(r"([\w./-]+\.(?:py|yaml|md|sh|sbatch|toml))(?:: ([\w., ]+))?")
_FOLDER = re.compile(r"(?:src|tests|configs|docs)/[\w./-]*")
_OPTIONS = re.compile(r"[\w./]+=\S+(?: [\w./]+=\S+)*")


@cache
def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    parsed = tokens(page)
    texts = (parsed[index + 1].content for index, token in enumerate(parsed) if token.type == "heading_open")
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


def pieces_of_code() -> Iterator[tuple[Path, int, str]]:
    """Page, line and text of all code in sentences."""
    for page in PAGES:
        for line, token in inline(page):
            if token.type == "code_inline":
                yield page, line, token.content


@cache
def files_of(page: Path) -> set[str | None]:
    """Those that it brings."""
    return {block.file for block in blocks(page)}


def project_files(name: str, page: Path) -> list[Path]:
    """Those that a name may mean: from the root, from src, from the page, or the end of a path."""
    near = [folder / name for folder in (ROOT, ROOT / "src", page.parent)]
    return [*filter(Path.is_file, near), *(path for path in all_files() if path.as_posix().endswith(f"/{name}"))]


def is_in(name: str, file: Path) -> bool:
    """Whether a Python file defines a name, or another file has it."""
    text = file.read_text(encoding="utf-8")
    return name in definitions(file) if file.suffix == ".py" else bool(re.search(rf"\b{re.escape(name)}\b", text))


@cache
def definitions(file: Path) -> frozenset[str]:
    """Names of a file's functions, classes and variables; of a class also its methods and fields, behind its name."""
    return frozenset(_defined(ast.parse(file.read_text(encoding="utf-8")).body))


def _defined(body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{name}" for name in _defined(node.body))
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


@cache
def all_files() -> list[Path]:
    return [path for folder in ("src", "tests", "configs", "docs") for path in (ROOT / folder).rglob("*.*")]


def test_links_lead_somewhere() -> None:
    targets = [
        (page, line, unquote(str(token.attrs["src" if token.type == "image" else "href"])))
        for page in PAGES
        for line, token in inline(page)
        if token.type in ("image", "link_open")
    ]
    missing = []
    for page, line, target in targets:
        if re.match(r"\w+:", target):
            continue
        path, _, heading = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (heading and heading not in anchors(file)):
            missing.append(f"{page.name}:{line}: {target}")
    assert not missing, "links that lead nowhere: " + ", ".join(missing)


def test_files_and_their_names_are_there() -> None:
    missing = []
    for page, line, text in pieces_of_code():
        of_the_page = files_of(page)
        if _FOLDER.fullmatch(text) and not (ROOT / text).exists() and text not in of_the_page:
            missing.append(f"{page.name}:{line}: {text}")
        found = _FILE.fullmatch(text)
        if found is None or found[1] in (*OF_RUNS, *of_the_page):
            continue
        files = project_files(found[1], page)
        wanted = re.findall(r"[\w.]+", found[2] or "")
        if not any(all(is_in(name, file) for name in wanted) for file in files):
            missing.append(f"{page.name}:{line}: {text}")
    assert not missing, "files, or names in them, that are not there: " + ", ".join(missing)


def test_names_in_a_file_are_defined_there() -> None:
    """Of sentences with "`Name` in `file.py`", or with several names joined by "and" or a comma."""
    missing = []
    for page in PAGES:
        parts = [(line, token) for line, token in inline(page) if token.type in ("code_inline", "text", "softbreak")]
        names = list[str]()
        for (line, token), (_, before) in zip(parts, [parts[0], *parts], strict=False):
            if token.type != "code_inline":
                if token.type == "text" and token.content.strip() not in ("in", "and", ","):
                    names = []
            elif re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", token.content) and not token.content.endswith(".py"):
                names.append(token.content)
            elif token.content.endswith(".py") and before.content.strip() == "in":
                if token.content not in files_of(page):
                    files = project_files(token.content, page)
                    found = any(all(is_in(name, file) for name in names) for file in files)
                    missing += [] if found else [f"{page.name}:{line}: {names} in {token.content}"]
                names = []
    assert not missing, "names that are not defined in their file: " + ", ".join(missing)


def test_options_of_groups_are_there() -> None:
    missing = []
    for page, line, text in pieces_of_code():
        of_the_page = [ROOT / str(file) for file in files_of(page)]
        for word in text.split() if _OPTIONS.fullmatch(text) else ():
            group, _, options = word.partition("=")
            folder = ROOT / "configs" / group
            files = [*folder.glob("*.yaml"), *(file for file in of_the_page if file.parent == folder)]
            for option in filter(None, options.strip("[]").split(",")) if folder.is_dir() else ():
                stands_for_others = option in ("null", "…", "NAME") or group.startswith("hydra")
                if not stands_for_others and not any(fnmatch(file.stem, option) for file in files):
                    missing.append(f"{page.name}:{line}: {word}")
    assert not missing, "options that are not in configs/: " + ", ".join(missing)


def test_examples_in_python_import_what_there_is() -> None:
    missing = []
    for block in (block for page in PAGES for block in blocks(page)):
        if block.language != "python" or block.file is not None:
            continue
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("src."):
                names = [name.name for name in node.names]
                module = __import__(str(node.module), fromlist=names)  # modules of a package too
                missing += [f"{block.where}: {name}" for name in names if not hasattr(module, name)]
    assert not missing, "names that are not there: " + ", ".join(missing)


def test_the_map_of_the_core() -> None:
    (block,) = (block for block in blocks(ROOT / "README.md") if block.text.startswith("src/\n"))
    inside = re.findall(r"^  ([\w/.]+)", block.text, re.MULTILINE)
    assert not [name for name in inside if not (ROOT / "src" / name).exists()]
    assert not [name for name in re.findall(r"^(\w\S*)", block.text, re.MULTILINE) if not (ROOT / name).exists()]
    assert {name.partition("/")[0] for name in inside} == {"train.py", *CORE}
    assert block.text.count("\n") <= 15


@pytest.mark.parametrize(
    ("name", "defined"),
    [
        ("PolicyLoss", True),
        ("PolicyLoss.terms", True),
        ("PolicyLossConfig.clip_low", True),
        ("Aggregation", True),
        ("policy_loss", False),  # only a message has this word
        ("check_fields", False),  # imported
        ("terms", False),
    ],
)
def test_what_a_file_defines(name: str, defined: bool) -> None:
    assert is_in(name, ROOT / "src/algorithm/policy_loss.py") is defined
