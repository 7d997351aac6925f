"""The files of a local model folder, before a library reads them: whole JSON, whole safetensors. Reads, never loads."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

_TEXTS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json")
_INDEX = "model.safetensors.index.json"


def check_tokenizer_files(folder: Path) -> None:
    """Refuse a tokenizer file that is no JSON: the tokenizer library says only where it stopped, not in which file.

    Raises:
        ValueError: names the file and the spot.
    """
    for name in _TEXTS:
        _json(folder / name)


def check_weight_files(folder: Path) -> None:
    """Refuse safetensors files that are cut short or missing. Reads their headers: it costs the same for 100 GB.

    Raises:
        FileNotFoundError: the index names a file that is not there.
        ValueError: a file that is not whole.
    """
    index = _json(folder / _INDEX)
    if index is not None:
        names = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(names, dict):
            raise ValueError(
                f"policy.path: '{folder / _INDEX}': expected the key weight_map, found none. Copy it again."
            )
        if missing := sorted({str(name) for name in names.values() if not (folder / str(name)).is_file()}):
            raise FileNotFoundError(
                f"policy.path: '{folder}' lacks {', '.join(missing)}, which {_INDEX} names. Download the folder again."
            )
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"policy.path: '{file}' is not whole ({error}; {file.stat().st_size} bytes). Download it again."
            ) from error


def _json(file: Path) -> object:
    """What a file holds; None where there is none."""
    if not file.is_file():
        return None
    try:
        content: object = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"policy.path: '{file}' is not whole, expected JSON ({error}). Download it again.") from error
    return content
