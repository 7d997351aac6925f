"""GGUF files converted once to folders that load like any other.

transformers reads a GGUF file in half a minute to two, each time, and then refuses to save what it read.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

log = logging.getLogger(__name__)


def converted_gguf(source: str, gguf_file: str, *, cache: Path | None = None) -> Path:
    """Folder with the dequantised float32 weights, config and tokenizer of a GGUF file; made at the first call.

    Processes may call this at once: each converts for itself, the first to finish is kept.

    Args:
        source: local folder or hub id that has the file.
        gguf_file: its name.
        cache: where converted folders are kept; `rest/gguf` in Hugging Face's cache (environment variable HF_HOME)
            when None.
    """
    local = Path(source) / gguf_file
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
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


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
