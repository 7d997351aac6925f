"""The policy that a config names against the config, from its architecture and tokenizer alone: no weight is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from transformers import PretrainedConfig

from src.config.checks import made
from src.config.lengths import benchmarks_run
from src.config.placement import placement, stored_dtype
from src.config.rules import samples
from src.data.rendering import PromptRenderer
from src.errors import ConfigError
from src.models.loading.architecture import check_causal, load_architecture
from src.models.loading.files import hub_errors
from src.models.loading.policy_config import PolicyConfig
from src.models.loading.quantization import check_quantization
from src.models.structure import positions_of
from src.protocol.dialogue import Message, ToolCall
from src.protocol.formats.known import REST
from src.protocol.formats.rest import parse
from src.protocol.types import Region

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SMALLEST_BF16_RATE = 1e-4
"""Adam moves a weight by about the learning rate; bfloat16 resolves 4e-5 to 8e-5 around 0.02."""


def check_architecture(config: DictConfig) -> PretrainedConfig:
    """Check that prompts and answers fit, and that updates count; reads config.json alone.

    Raises:
        ConfigError: one of these does not hold, or it is the config.json of no language model.
        OSError: there is none.
    """
    policy: PolicyConfig = instantiate(config.policy)
    with hub_errors(policy):
        architecture = load_architecture(policy)
    check_causal(architecture)
    if policy.compile_layers:
        from src.models.compiling import check_dense  # the code of models, which other checks do without
        from src.models.moe import experts_chosen

        check_dense(architecture.model_type, mixture=experts_chosen(architecture) > 0)
    if policy.weights == "pretrained":
        placed, _ = placement(config.trainer)
        check_quantization(architecture, str(policy.path or policy.hub_id), sharded=placed.sharded)
    check_lengths(config, positions_of(architecture))
    if policy.lora is None:
        check_rate(config, stored_dtype(policy, architecture))
    return architecture


def check_policy(config: DictConfig) -> None:
    """Check that the tokenizer is the model's, and that its template leaves the regions.

    Raises:
        ConfigError: one of these does not hold.
        FileNotFoundError, OSError, ValueError: see `check_architecture` and `load_tokenizer`.
    """
    from src.models.loading.loading import load_tokenizer  # with the model's code, which the other checks do without

    policy: PolicyConfig = instantiate(config.policy)
    architecture = check_architecture(config)
    tokenizer = load_tokenizer(policy)
    check_vocabulary(tokenizer, architecture)
    check_template(config, tokenizer)


def check_lengths(config: DictConfig, positions: int | None) -> None:
    """Check that prompts, completions and benchmarks' answers fit a policy's positions.

    Raises:
        ConfigError: names the keys.
    """
    if positions is None:
        return
    prompt, answer = config.data.max_prompt_tokens, config.sampling.max_new_tokens
    if prompt + answer > positions:
        raise ConfigError(
            f"data.max_prompt_tokens + sampling.max_new_tokens = {prompt} + {answer} is more than the model's "
            f"{positions} positions (max_position_embeddings in its config.json; with LongRoPE, whose function changes "
            "there, original_max_position_embeddings). Lower one of them."
        )
    if not benchmarks_run(config):
        return
    answer = config.callbacks.benchmark.max_new_tokens
    limits = {
        "rollout.max_model_len": config.rollout.get("max_model_len"),
        "callbacks.benchmark.context": config.callbacks.benchmark.get("context"),
        "the model's positions": positions,
    }
    for name, limit in limits.items():
        if limit is not None and answer >= limit:
            raise ConfigError(
                f"callbacks.benchmark.max_new_tokens={answer} leaves no room for a benchmark's prompt in {name}, "
                f"{limit} tokens. Lower it."
            )


def check_rate(config: DictConfig, stored: torch.dtype) -> None:
    """Check that an update is not lost in the weights' rounding.

    Args:
        config: composed.
        stored: type of the weights that are trained.

    Raises:
        ConfigError: bfloat16 weights with a learning rate below what they resolve.
    """
    rate = config.optimizer.learning_rate
    if rate < _SMALLEST_BF16_RATE and stored == torch.bfloat16:
        raise ConfigError(
            f"optimizer.learning_rate={rate} with policy.dtype={config.policy.dtype}: bfloat16 weights keep 8 bits, "
            f"so a step of {rate} on a weight of 0.02 rounds to nothing. Set policy.dtype=float32 "
            "trainer.precision=bf16-mixed, or train adapters with policy.lora."
        )


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, architecture: PretrainedConfig) -> None:
    """Check that the model has an embedding for each token: another model's tokenizer fails in the middle of a step.

    Raises:
        ConfigError: an id is too large.
    """
    text = architecture.get_text_config(decoder=True)
    token, largest = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    for key in ("vocab_size", "vocab_size_per_layer_input"):
        rows = getattr(text, key, None)
        if rows is not None and largest >= rows:
            raise ConfigError(
                f"policy: the tokenizer of '{tokenizer.name_or_path}' gives {token!r} the id {largest}, expected ids "
                f"below the {rows} of the model's vocabulary ({key} in config.json). Is it another model's?"
            )


def check_template(config: DictConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that the chat template leaves thinking to the policy: what a prompt has closed has no region to weigh.

    Raises:
        ConfigError: it opens and closes `<think>` itself, prompts cannot be written with it, or the reward or the
            regions are of another format than the policy writes.
    """
    renderer: PromptRenderer = made(config.prompt, "prompt", tokenizer)
    prefix = renderer.response_prefix
    needed = getattr(made(config.reward, "reward"), "output_format", renderer.format.name)
    if needed != renderer.format.name:
        raise ConfigError(
            f"reward: {config.reward._target_} reads the format {needed}, prompt.layout={config.prompt.layout} has "
            f"{renderer.format.name}. Set reward=default, or prompt.layout=published."
        )
    check_regions(config, renderer)
    if renderer.format.name != REST.name:
        return  # a model's own format leaves thinking to the template
    if samples(config) and "think" in (read := parse(prefix)).fields and all(read.closed):
        raise ConfigError(
            f"prompt.chat_template_kwargs={dict(config.prompt.chat_template_kwargs or {})}: with it the chat template "
            f"ends prompts with {prefix!r}, so no completion has the region reasoning, and none gets the format "
            "right. Leave enable_thinking out, or set it to true."
        )


def check_regions(config: DictConfig, renderer: PromptRenderer) -> None:
    """Check that a function of `algorithm.regions` finds something in a call of the policy's format.

    Raises:
        ConfigError: it gives all tokens between the marks the region `OTHER`.
    """
    path = config.algorithm.get("regions", "sampled")
    if path == "sampled":
        return
    text = renderer.format.step_text(Message("assistant", calls=(ToolCall("get_weather", {"city": "Oslo"}),)))
    ids = torch.tensor(renderer.tokenizer(text, add_special_tokens=False)["input_ids"])
    found = set(made(config.algorithm, "algorithm").tagger(renderer.tokenizer)(ids).tolist())
    if found <= {int(Region.FORMAT), int(Region.OTHER)}:
        raise ConfigError(
            f"algorithm.regions: expected a function that knows calls of the format {renderer.format.name}; {path} "
            f"finds neither name nor parameters in {text!r}. Set algorithm.regions=sampled, which knows every format."
        )
