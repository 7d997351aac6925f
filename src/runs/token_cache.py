"""Token ids of texts, kept in files between starts: tokenising a large corpus takes minutes."""

from __future__ import annotations

import hashlib
import logging
import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # prompt texts are also wanted where neither is installed (bfcl-eval's own environment)
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_LEAST = 4_000_000  # characters; less is tokenised in about a second
_AT_ONCE = 256  # texts; the tokenizer keeps much beside the ids of each


class TokenCache:
    """Tokenises lists of texts, and keeps the ids of long lists under a digest of tokenizer and texts.

    Args:
        folder: None: nothing is kept.
        tokenizer: nothing is kept of one that cannot be written down (one that is not a fast one).
    """

    def __init__(self, folder: Path | None, tokenizer: PreTrainedTokenizerBase) -> None:
        self._folder, self._tokenizer = folder, tokenizer

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """Ids of each text, int64, without special tokens of the tokenizer's own."""
        if sum(map(len, texts)) < _LEAST or self._folder is None or not self._identity:
            return self._tokenised(texts)
        digest = hashlib.sha256(self._identity)
        for text in texts:
            digest.update(hashlib.sha256(text.encode()).digest())
        file = self._folder / f"{digest.hexdigest()[:32]}.safetensors"
        found = _read(file)
        if found is None:
            import torch

            ids = self._tokenised(texts)
            flat = torch.cat(ids).int()
            _write(file, {"ids": flat, "lengths": torch.tensor(list(map(len, ids))), "sum": torch.tensor(_sum(flat))})
            return ids
        return [ids.long() for ids in found["ids"].split(found["lengths"].tolist())]

    def _tokenised(self, texts: Sequence[str]) -> list[Tensor]:
        import torch

        ids = []
        for start in range(0, len(texts), _AT_ONCE):
            batch = list(texts[start : start + _AT_ONCE])
            found = self._tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
            ids += [torch.tensor(one, dtype=torch.int64) for one in found]
        return ids

    @cached_property
    def _identity(self) -> bytes:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return b"" if backend is None else hashlib.sha256(backend.to_str().encode()).digest()


def _read(file: Path) -> dict[str, Tensor] | None:
    """What `_write` wrote; None where there is nothing whole."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        return None
    try:
        found: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        log.debug("'%s' cannot be read: %s", file, error)
        return None
    whole = found.keys() == {"ids", "lengths", "sum"} and int(found["sum"]) == _sum(found["ids"])
    return found if whole else None


def _sum(ids: Tensor) -> int:
    return zlib.crc32(ids.numpy().data)


def _write(file: Path, content: dict[str, Tensor]) -> None:
    """A folder that cannot be written costs the next start its time, and nothing else."""
    from safetensors.torch import save_file

    part = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(content, str(part))
        part.replace(file)
    except OSError as error:
        log.debug("'%s' cannot be written: %s", file, error)
        with suppress(OSError):
            part.unlink()
