"""The files of a policy: found on this machine, checked to be whole, converted from GGUF.

A GGUF file becomes, once, a folder that loads like any other: transformers reads it in half a minute to two, each time,
and then refuses to save what it read. Imports no model code unless there is one to convert.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from src.data.sources.reading import is_lfs_pointer
from src.errors import ConfigError, FileError, Refusal
from src.models.loading.policy_config import PolicyConfig

log = logging.getLogger(__name__)

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_TEXTS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json")
_WEIGHT_FILES = ("model*.safetensors", "pytorch_model*.bin")
_ADAPTER = "adapter_config.json"
_INDEX = "model.safetensors.index.json"
_MAGIC = b"GGUF"


def model_folder(config: PolicyConfig) -> Path | None:
    """Where config.json or the GGUF file lies on this machine; None for a hub id.

    Raises:
        FileError: no such folder or package.
    """
    if config.path is not None:
        folder = Path(config.path)
        if not folder.is_dir():
            raise FileError(f"policy.path: the folder '{folder}' does not exist. Set policy.path to a model folder.")
        return folder
    if config.package is None:
        return None
    spec = find_spec(config.package)
    if spec is None or spec.origin is None:
        raise FileError(
            f"policy.package: the Python package '{config.package}' is not installed. Install it, or set "
            f"policy.path to a folder that holds {config.gguf_file}."
        )
    return Path(spec.origin).parent


def locate(config: PolicyConfig) -> str:
    """Folder or hub id to load from, after a check that local files are there and a conversion of GGUF files.

    Raises:
        FileError: a folder, package or file that is not there; names it.
        FileError: a GGUF file of the hub that cannot be fetched.
        ConfigError: a damaged GGUF file.
    """
    folder = model_folder(config)
    if folder is None:
        if config.gguf_file is None:
            return str(config.hub_id)
    elif config.path is not None and (config.gguf_file is None or (folder / "config.json").is_file()):
        check_complete(folder, config)
        return str(folder)
    elif not (folder / str(config.gguf_file)).is_file():
        if config.path is not None:
            raise FileError(f"policy.path: '{folder}' has neither config.json nor {config.gguf_file}.")
        raise FileError(
            f"policy.gguf_file: '{config.gguf_file}' is not in the package '{config.package}'; "
            f"found {sorted(file.name for file in folder.glob('*.gguf'))}."
        )
    cache = None if config.cache_dir is None else Path(config.cache_dir)
    with hub_errors(config):
        return str(converted_gguf(str(folder or config.hub_id), str(config.gguf_file), cache=cache))


def check_complete(folder: Path, config: PolicyConfig) -> None:
    """Refuse a folder that lacks a kind of file, or has a PEFT adapter, which transformers would load unasked.

    Raises:
        FileError: names what is missing.
        ConfigError: there is an adapter, or a file of settings is no JSON.
    """
    adapter = _json(folder / _ADAPTER)
    if adapter is not None:
        base = adapter.get("base_model_name_or_path") if isinstance(adapter, dict) else None
        raise ConfigError(
            f"policy.path: '{folder}' holds a PEFT adapter ({_ADAPTER}, of '{base}'), expected whole weights. Merge it "
            "first (PEFT's merge_and_unload, then save_pretrained); or, to leave it out, move the files adapter_* away."
        )
    _json(folder / "generation_config.json")
    missing = []
    if not (folder / "config.json").is_file():
        missing.append("config.json")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        missing.append(f"tokenizer files (one of {', '.join(_TOKENIZER_FILES)})")
    if config.weights == "pretrained" and not any(any(folder.glob(pattern)) for pattern in _WEIGHT_FILES):
        missing.append(f"weights ({' or '.join(_WEIGHT_FILES)})")
    if missing:
        gguf = sorted(file.name for file in folder.glob("*.gguf"))
        raise FileError(
            f"policy.path: '{folder}' is not a complete model folder; missing: {'; '.join(missing)}. "
            f"Found: {sorted(file.name for file in folder.iterdir())}."
            f"{f' For a GGUF file set policy.gguf_file={gguf[0]}.' if gguf else ''}"
        )


@contextmanager
def hub_errors(config: PolicyConfig) -> Iterator[None]:
    """Around what asks the hub or reads a model's files: one line in place of the several of its errors.

    Raises:
        FileError: in place of every error of the hub and of a file that cannot be read.
    """
    try:
        yield
    except Refusal:
        raise
    except (OSError, SafetensorError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0]
        advice = (
            "Check the name and the connection (gated models need a token), or set policy.path to a local folder."
            if config.hub_id is not None
            else "Is the folder as its model was saved or downloaded?"
        )
        raise FileError(
            f"policy: could not load {config.path or config.package or config.hub_id}: {reason} {advice}"
        ) from error


def check_tokenizer_files(folder: Path) -> None:
    """Refuse a tokenizer file that is no JSON: the tokenizer library says only where it stopped, not in which file.

    Raises:
        ConfigError: names the file and the spot.
    """
    for name in _TEXTS:
        _json(folder / name)


def check_weight_files(folder: Path) -> None:
    """Refuse safetensors files that are cut short or missing. Reads their headers: it costs the same for 100 GB.

    Raises:
        FileError: the index names a file that is not there.
        ConfigError: a file that is not whole.
    """
    index = _json(folder / _INDEX)
    if index is not None:
        names = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(names, dict):
            raise ConfigError(
                f"policy.path: '{folder / _INDEX}': expected the key weight_map, found none. Copy it again."
            )
        if missing := sorted({str(name) for name in names.values() if not (folder / str(name)).is_file()}):
            raise FileError(
                f"policy.path: '{folder}' lacks {', '.join(missing)}, which {_INDEX} names. Download the folder again."
            )
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            pointer = is_lfs_pointer(file)
            advice = "It is a Git LFS pointer: run `git lfs pull` there." if pointer else "Download it again."
            raise ConfigError(
                f"policy.path: '{file}' is not whole ({error}; {file.stat().st_size} bytes). {advice}"
            ) from error


def _json(file: Path) -> object:
    """What a file holds; None where there is none."""
    if not file.is_file():
        return None
    try:
        content: object = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"policy.path: '{file}' is not whole, expected JSON ({error}). Download it again.") from error
    return content


def converted_gguf(source: str, gguf_file: str, *, cache: Path | None = None) -> Path:
    """Folder with the dequantised float32 weights, config and tokenizer of a GGUF file; made at the first call.

    Processes may call this at once: each converts for itself, the first to finish is kept.

    Args:
        source: local folder or hub id that has the file.
        gguf_file: its name.
        cache: where converted folders are kept; `rest/gguf` in Hugging Face's cache (environment variable HF_HOME)
            when None.

    Raises:
        FileError: no such file on the hub, or no room for the folder.
        ConfigError: no GGUF file, or one that is cut short.
    """
    local = Path(source) / gguf_file
    if local.is_file():
        _check_magic(local)
    folder = folder_of_gguf(source, gguf_file, cache)
    if folder.is_dir():
        return folder
    cache = folder.parent
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
        raise ConfigError(
            f"policy.gguf_file: '{gguf_file}' of '{source}' cannot be read; is it whole? {reason}"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def folder_of_gguf(source: str, gguf_file: str, cache: Path | None) -> Path:
    """Where a GGUF file is once it is converted; arguments as of `converted_gguf`."""
    local = Path(source) / gguf_file
    identity = f"{gguf_file}:{local.stat().st_size}" if local.is_file() else f"{source}/{gguf_file}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    cache = Path(HF_HOME) / "rest" / "gguf" if cache is None else cache
    return cache / f"{Path(gguf_file).stem}-{digest}"


def _check_magic(file: Path) -> None:
    with file.open("rb") as opened:
        found = opened.read(len(_MAGIC))
    if found != _MAGIC:
        raise ConfigError(f"policy.gguf_file: expected '{file}' to begin with {_MAGIC!r}, found {found!r}. Is it GGUF?")


def _convert(source: str, gguf_file: str, folder: Path) -> None:
    """Write config, generation config, weights and tokenizer into an empty folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer  # the model's code

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
