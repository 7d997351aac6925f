"""What a report may show of a config: no secret, and no path of the machine that trained. Pure functions."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

_SECRET = re.compile(r"(^|[._])(token|secret|password|passwd|credentials?|api_?key|key)$", re.IGNORECASE)
_IN_TEXT = re.compile(r"(?<![\w.~:/\\])(?:~|[A-Za-z]:)?(?:[/\\][\w.@+=-]+){2,}[/\\]?")
_PROJECT = "<project>/"
HIDDEN_SECTIONS = ("paths", "hydra")


def is_secret(key: str) -> bool:
    """Whether a setting holds something that opens doors, by its name; `max_new_tokens` does not.

    >>> [is_secret(key) for key in ("logger.wandb.api_key", "hf_token", "sampling.max_new_tokens", "rope.key_dim")]
    [True, True, False, False]
    """
    return bool(_SECRET.search(key))


def is_place(value: object) -> bool:
    """Whether a value is a path of the machine or of the run folder.

    >>> [is_place(value) for value in ("/srv/ann/runs/a", "~/a", "<run>/checkpoints", "<project>/src", "Qwen/Qwen3-8B")]
    [True, True, True, False, False]
    """
    return isinstance(value, str) and (value.startswith("<run>") or bool(re.match(r"[/~\\]|[A-Za-z]:[/\\]", value)))


def shown_value(value: object) -> str:
    """A value as a report writes it: absolute paths by their last part, those below the project from there.

    >>> shown_value("<project>/src/models/tiny"), shown_value("/srv/ann/models/base"), shown_value("Qwen/Qwen3-8B")
    ('src/models/tiny', '…/base', 'Qwen/Qwen3-8B')
    >>> shown_value(None), shown_value(0.30000001), shown_value([1, "/srv/ann/x"])
    ('null', '0.3', '[1, …/x]')
    """
    if isinstance(value, str):
        return without_paths(value.removeprefix(_PROJECT))
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown_value, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def shown_settings(settings: Mapping[str, object]) -> dict[str, Any]:
    """A config, keys joined by dots, as others may see it: without secrets and places, paths by their last part.

    >>> shown_settings({"paths.root_dir": "/a", "hf_token": "x", "data.path": "/srv/ann/a.json", "data.mix": [1, 2]})
    {'data': {'path': '…/a.json', 'mix': [1, 2]}}
    """
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, last = key.split(".")
        if is_secret(key) or (sections and sections[0] in HIDDEN_SECTIONS):
            continue
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = _shown_setting(value)
    return nested


def _shown_setting(value: object) -> object:
    if isinstance(value, str):
        return without_paths(value.removeprefix(_PROJECT))
    return list(map(_shown_setting, value)) if isinstance(value, list | tuple) else value


def without_paths(text: str) -> str:
    """A text with absolute paths and those of a home folder cut to their last part.

    >>> without_paths("no file /srv/ann/data/train.json, see https://example.org/a/b and n/a")
    'no file …/train.json, see https://example.org/a/b and n/a'
    """
    return _IN_TEXT.sub(lambda found: "…/" + re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], text)


def shown_command(command: str) -> str:
    """A command line without secrets and absolute paths.

    >>> shown_command("python src/train.py hydra.run.dir=/srv/ann/runs/a +logger.wandb.api_key=abc seed=1")
    "python src/train.py hydra.run.dir=…/a '+logger.wandb.api_key=***' seed=1"
    """
    try:
        words = shlex.split(command)
    except ValueError:  # an unbalanced quote: one word
        words = command.split()
    shown = []
    for word in words:
        key, equals, _ = word.partition("=")
        shown.append(f"{key}=***" if equals and is_secret(key) else without_paths(word))
    return " ".join(word if re.fullmatch(r"[\w@%+=:,./…-]+", word) else shlex.quote(word) for word in shown)
