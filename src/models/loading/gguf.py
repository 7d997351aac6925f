"""GGUF files converted once to folders that load like any other.

transformers reads a GGUF file in half a minute to two, each time, and then refuses to save what it read.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import struct
import tempfile
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

log = logging.getLogger(__name__)

_MAGIC = b"GGUF"


def converted_gguf(source: str, gguf_file: str, *, cache: Path | None = None) -> Path:
    """Folder with the dequantised float32 weights, config and tokenizer of a GGUF file; made at the first call.

    Processes may call this at once: each converts for itself, the first to finish is kept.

    Args:
        source: local folder or hub id that has the file.
        gguf_file: its name.
        cache: where converted folders are kept; `rest/gguf` in Hugging Face's cache (environment variable HF_HOME)
            when None.

    Raises:
        OSError: no such file on the hub, or no room for the folder.
        ValueError: no GGUF file, or one that is cut short.
    """
    local = Path(source) / gguf_file
    if local.is_file():
        _check_magic(local)
    identity = f"{gguf_file}:{local.stat().st_size}" if local.is_file() else f"{source}/{gguf_file}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    cache = Path(HF_HOME) / "rest" / "gguf" if cache is None else cache
    folder = cache / f"{Path(gguf_file).stem}-{digest}"
    if folder.is_dir():
        return folder
    log.info("Converting %s to %s, once; this takes about a minute.", gguf_file, folder)
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=cache))
    try:
        _convert(source, gguf_file, unfinished)
        unfinished.chmod(0o755)  # temporary folders are private
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    except (ValueError, IndexError, KeyError, struct.error) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"policy.gguf_file: '{gguf_file}' of '{source}' cannot be read; is it whole? {reason}"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _check_magic(file: Path) -> None:
    with file.open("rb") as opened:
        found = opened.read(len(_MAGIC))
    if found != _MAGIC:
        raise ValueError(f"policy.gguf_file: expected '{file}' to begin with {_MAGIC!r}, found {found!r}. Is it GGUF?")


def _convert(source: str, gguf_file: str, folder: Path) -> None:
    """Write config, generation config, weights and tokenizer into an empty folder."""
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf_file, dtype=torch.float32)
    config = model.config
    del config.quantization_config  # the weights are plain by now
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    AutoTokenizer.from_pretrained(source, gguf_file=gguf_file).save_pretrained(folder)
