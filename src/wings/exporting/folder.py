"""Model folders for transformers and vLLM: gathered on all ranks, written by one, whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from src.errors import Refusal
from src.models.loading.architecture import empty_model
from src.models.loading.lora import merged_named_tensors
from src.models.loading.quantization import as_plain
from src.models.loading.weight_source import WeightSource, some
from src.models.structure import head_of
from src.rollout.engine import SamplingParams
from src.wings.evaluation.resolving import PROMPT_FILE

CARD = "README.md"
_BESIDE_WEIGHTS = 64 * 2**20  # tokenizer, configs, card


class ExportError(Refusal, OSError):
    """A folder that cannot be written: says which, why and what to do."""


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    write: bool = True,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a folder that transformers and vLLM load: adapters merged, shards gathered, tokenizer included.

    Args:
        model: on every rank of a sharded model together.
        tokenizer: of the model.
        folder: made if missing.
        write: False on the ranks that only take part in the gathering.
        dtype: of the weights in the folder; None: as they are.
    """
    weights = gathered_weights(model, keep=write, dtype=dtype)
    if write:
        save_folder(model, tokenizer, weights, folder)


def gathered_weights(
    model: PreTrainedModel, *, keep: bool = True, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The whole weights on the CPU, adapters merged; no more than one tensor of shards is gathered at a time.

    Args:
        model: on every rank of a sharded model together.
        keep: False on the ranks that only take part in the gathering; they get nothing.
        dtype: to convert to; None: as they are, and what lies whole on the CPU is not copied.
    """
    head = head_of(model)
    tied = head.weight is model.get_input_embeddings().weight
    left_out = {f"{name}.weight" for name, module in model.named_modules() if tied and module is head}
    return {
        name: tensor.to("cpu", dtype if tensor.is_floating_point() else None)
        for name, tensor in merged_named_tensors(model)
        if keep and name not in left_out
    }


def save_folder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, weights: dict[str, Tensor], folder: str | Path
) -> None:
    """Write weights, configs and tokenizer in one process, weights in safetensors files of at most 5 GB.

    Args:
        model: whose architecture and configs these are; its own weights are not touched.
        tokenizer: of the model.
        weights: as `gathered_weights` gives them; not to be used afterwards.
        folder: made if missing.

    Raises:
        ExportError: what would be read from the folder is not `weights`.
    """
    dtype = next(tensor.dtype for tensor in weights.values() if tensor.is_floating_point())
    with as_plain(model):
        model.save_pretrained(folder, state_dict=dict(weights), max_shard_size="5GB")
        if dtype != model.dtype:
            config = deepcopy(model.config)
            config.dtype = dtype
            config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _check_saved(model, folder, weights)


def _check_saved(model: PreTrainedModel, folder: str | Path, weights: Mapping[str, Tensor]) -> None:
    """Read the weights of the model that the folder's config.json describes, and compare them with those saved.

    Raises:
        ExportError: they are others, which would be a defect of this project or of transformers.
    """
    trusted = type(model.config).__module__.startswith("transformers_modules")  # its own code was allowed to run
    saved = empty_model(AutoConfig.from_pretrained(folder, trust_remote_code=trusted), torch.float32, trust=trusted)
    source = WeightSource.of(folder).made_for(saved)
    parameters = {name for name, _ in saved.named_parameters(remove_duplicate=False)}
    wrong = parameters | weights.keys()
    buffers = ((name, source.read(name, saved)) for name in weights.keys() - parameters)
    for name, tensor in chain(source.start_of(saved), buffers):
        if name not in weights or (tensor is not None and torch.equal(tensor, weights[name].to(tensor.dtype))):
            wrong.remove(name)
    if wrong:
        raise ExportError(
            f"'{folder}' does not hold the trained weights: {some(sorted(wrong))} would be read otherwise. Nothing is "
            "left of it; export the checkpoint with another version of transformers, and report this."
        )


def write_export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: dict[str, Tensor],
    folder: Path,
    *,
    card: str,
    generation: GenerationConfig,
    prompt: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> None:
    """Write a folder with a model card, in one process. It appears under its name when it is complete.

    Args:
        model: as for `save_folder`.
        tokenizer: of the model.
        weights: as `gathered_weights` gives them; not to be used afterwards.
        folder: must not exist, unless `replace`.
        card: content of README.md.
        generation: how to sample from it.
        prompt: how it is to be asked, for `resolving.PROMPT_FILE`; None: not known.
        replace: exchange a folder that exists.

    Raises:
        ExportError: the folder exists, the disk is too full, or it cannot be written for another reason.
    """
    needed = sum(tensor.numel() * tensor.element_size() for tensor in weights.values()) + _BESIDE_WEIGHTS
    try:
        with new_folder(folder, replace=replace) as partial:
            free = shutil.disk_usage(partial).free
            if free < needed:
                raise ExportError(
                    f"'{folder}' needs {needed / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB left. Make room, or "
                    "write it elsewhere."
                )
            save_folder(model, tokenizer, weights, partial)
            generation.save_pretrained(partial)
            (partial / CARD).write_text(card, encoding="utf-8")
            if prompt:
                (partial / PROMPT_FILE).write_text(json.dumps(dict(prompt)), encoding="utf-8")
    except ExportError:
        raise
    except (OSError, SafetensorError) as error:
        raise ExportError(f"'{folder}' cannot be written: {error}. Nothing is left of the attempt.") from error


@contextmanager
def new_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to fill that gets its name when the context ends without error, and is removed otherwise.

    Raises:
        ExportError: it exists with something in it, and `replace` is not set.
    """
    check_free(folder, replace=replace)
    partial, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "old"))
    for left_over in (partial, old):  # of a process that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    finally:
        for left_over in (partial, old):
            shutil.rmtree(left_over, ignore_errors=True)


def check_free(folder: Path, *, replace: bool = False) -> None:
    """Check that a folder can be written.

    Raises:
        ExportError: it is a file, or a folder with something in it and `replace` is not set.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not replace):
        inside = "a model" if (folder / "config.json").is_file() else "other files"
        found = "a file" if folder.is_file() else f"one with {inside} in it"
        raise ExportError(f"'{folder}': expected a new folder, found {found}. Choose another one.")


def generation_config(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stop_token_ids: tuple[int, ...],
    sampling: SamplingParams | None = None,
) -> GenerationConfig:
    """How to generate with a model: as it was sampled in training, ending where it was ended there.

    Args:
        model: its own generation config is what is left without `sampling`.
        tokenizer: pads.
        stop_token_ids: end a completion.
        sampling: of training; temperature, top-p and top-k are taken.
    """
    own = model.generation_config or GenerationConfig()
    stops = list(stop_token_ids) if len(stop_token_ids) != 1 else stop_token_ids[0]
    if sampling is None:
        config = deepcopy(own)
        config.eos_token_id, config.pad_token_id = stops, tokenizer.pad_token_id
        return config
    ids = {"bos_token_id": own.bos_token_id, "eos_token_id": stops, "pad_token_id": tokenizer.pad_token_id}
    if sampling.temperature == 0:
        return GenerationConfig(do_sample=False, **ids)
    return GenerationConfig(
        do_sample=True, temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k, **ids
    )
