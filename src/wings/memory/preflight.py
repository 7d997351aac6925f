"""Will it fit? Predicts the memory and the disk space of a training from its config, before any weight is loaded."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from transformers import PretrainedConfig

from src.config.checks import cache_file
from src.config.lengths import engine_length
from src.config.placement import Placement, placement, stored_dtype
from src.errors import ConfigError
from src.models.head.head import chunk_tokens
from src.models.loading.architecture import ParameterCounts, load_architecture
from src.models.loading.policy_config import PolicyConfig
from src.models.structure import positions_of
from src.rollout.engine import Cache, SamplingParams, needs_copy
from src.runs.folder import GIB, check_room
from src.wings.memory.colocation import (
    cache_bytes,
    free_share,
    keeps_states,
    profile_bytes,
    sequences_at_once,
)
from src.wings.memory.engine_room import EngineRoom
from src.wings.memory.plan import (
    Capacity,
    MemoryPart,
    MemoryPlan,
    device_capacity,
    host_capacity,
    resident_bytes,
)
from src.wings.memory.rollout_parts import GenerationBatch, at_rest, native_parts, vllm_parts
from src.wings.memory.traces import MemoryTraces
from src.wings.memory.training_parts import (
    ModelTraits,
    RowDemand,
    RowShape,
    TrainingDemand,
    heap_holes,
    largest_batches,
    longest_rows,
    model_traits,
    policy_parts,
)

log = logging.getLogger(__name__)

_OPTIMIZER_BYTES = 8  # AdamW's two moments of a trained weight, in float32
_CUDA_RUNTIME = GIB  # context, kernels and cuBLAS workspaces; a usual figure, not measured here
_MODEL_CODE = 80 << 20  # transformers' and Lightning's modules where they are not imported yet; measured
_NCCL = GIB // 2  # channels of several ranks; likewise
_BOUNDED = (
    "Model type '{}' cannot be traced ({}). What its layers keep is bounded by the sizes of their weights, which may "
    "be several times too much; preflight.action=warn goes on all the same."
)


class MemoryPlanError(ConfigError):
    """The predicted memory is more than there is: names the largest parts, and the keys to change."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What a run's config says: the policy, how it lies on ranks (`on_node` of them on a node), and in which types."""

    config: DictConfig
    policy: PolicyConfig
    architecture: PretrainedConfig
    place: Placement
    on_node: int
    stored: torch.dtype  # of the weights
    traits: ModelTraits
    traces: MemoryTraces
    counts: ParameterCounts

    @classmethod
    def of(cls, config: DictConfig, rows: Literal["packed", "separate"] = "packed") -> _Run:
        """The run of a config; `rows` are those of the forwards, on which weights do not depend."""
        policy: PolicyConfig = instantiate(config.policy)
        place, on_node = placement(config.trainer)
        architecture, precision = load_architecture(policy), str(config.trainer.precision)
        stored = stored_dtype(policy, architecture)
        traits = model_traits(policy, rows, stored, place, precision)
        traces = MemoryTraces(cache_file(config, "memory_traces"), trust_remote_code=policy.trust_remote_code)
        counts = traces.counts(architecture, stored, policy.lora)
        return cls(config, policy, architecture, place, on_node, stored, traits, traces, counts)

    @property
    def trained_bytes(self) -> int:
        """Of a weight that gets gradients; adapters are float32."""
        return 4 if self.policy.lora is not None else self.stored.itemsize

    @property
    def plain(self) -> int:
        """Weights of the model without adapters."""
        return self.counts.total if self.policy.lora is None else self.counts.total - self.counts.trained

    def shapes(self, groups: int, prompt: int, completions: int, completion: int) -> tuple[RowShape, ...]:
        """The rows that can take most memory; see `longest_rows`."""
        budget = self.config.updates.max_row_tokens
        if self.traits.rows == "separate":
            return largest_batches(budget, groups * completions, prompt, completion)
        return longest_rows(budget, groups, prompt, completions, completion)


def preflight(config: DictConfig) -> None:
    """Check that a training fits, and fill in what its config leaves to the plan of an engine beside the trainer.

    Raises:
        MemoryPlanError: it will not fit, and `preflight.action` is `error`.
        ConfigError: the disk has no room for the checkpoints.
    """
    plan = plan_memory(config)
    _settle(config, plan)
    for line in plan.bounds:
        log.warning("%s", line)
    try:
        check_memory(plan)
    except MemoryPlanError as error:
        if config.preflight.action == "error":
            raise
        log.warning("%s", error)
    if config.callbacks.get("checkpoint") is not None:
        check_disk(config)


def _settle(config: DictConfig, plan: MemoryPlan) -> None:
    """Give the engine beside the trainer the plan's settings where the config has null."""
    if (engine := plan.engine) is None:
        return
    found = {"gpu_memory_utilization": engine.share, "max_num_seqs": engine.sequences}
    for key, value in found.items():
        if config.rollout.get(key) is None:
            config.rollout[key] = value
            log.info("rollout.%s=%g, as the memory plan leaves it.", key, value)


def _completion_tokens(config: DictConfig) -> int:
    """Tokens of the longest completion. Of an episode all behind its prompt; observations are as long as answers."""
    answer, episodes = int(config.sampling.max_new_tokens), config.get("episodes")
    if config.data.train.get("environment") is None or episodes is None:
        return answer
    if episodes.max_tokens is None:
        return int(2 * answer * episodes.max_turns)
    return max(answer, int(episodes.max_tokens - config.data.max_prompt_tokens))


def plan_memory(config: DictConfig) -> MemoryPlan:
    """Predict the memory of each rank of a training run from its config and its policy's architecture.

    Args:
        config: composed, as `src/train.py` gets it. `preflight.device_gib`, if given, stands for the device's memory.

    Raises:
        OSError: no architecture for `policy.hub_id`.
        FileNotFoundError: no folder, package or config.json where `policy` says.
        ConfigError: a value that memory cannot be planned for, or a model that the run would refuse.
    """
    from src.config.guard import find_ways  # with the model's code, which the check of a disk does without

    ways = find_ways(instantiate(config.policy), cache_file(config, "ways"))
    run = _Run.of(config, ways.rows)
    place = run.place
    per_rank = -(-config.data.prompts_per_step // place.ranks)
    samples = "loss" in config.algorithm
    completions = config.sampling.n if samples else 1
    group = (config.data.max_prompt_tokens, completions, _completion_tokens(config))
    in_minibatch = min(per_rank, max(1, -(-config.updates.prompts_per_minibatch // place.ranks)))
    rows, scored = run.shapes(in_minibatch, *group), run.shapes(per_rank, *group)
    parts = [MemoryPart.always("runtime", *_runtime(place))]
    copies, engine = _engine_parts(run, per_rank if samples else 0, ways.cache)
    demand = TrainingDemand(
        counts=run.counts,
        weight_bytes=run.stored.itemsize,
        trained_bytes=run.trained_bytes,
        compute_bytes=run.traits.weights.itemsize,
        row=_row_demand(run, rows, scored),
        warm_start=_warm_start(run),
        reference=samples and config.algorithm.loss.kl_coef > 0,
        copies_weights=copies,
        recomputes=run.policy.gradient_checkpointing in (True, "full"),
    )
    device, host = policy_parts(demand, place)
    parts += [*device, *engine]
    room = None
    if _is_beside(config.rollout):
        room, beside = _engine_beside(run, parts, per_rank if samples else 0)
        parts += beside
        if len(beside) > 1 and config.rollout.get("sleep_level") == 1:
            what = "a copy of vLLM's weights"
            host = [*host, MemoryPart.always("engine asleep", what, room.weights, ("rollout.sleep_level=2",))]
    run.traces.save()
    if not place.cuda:
        parts.append(heap_holes(parts))
    host = [replace(part, bytes={phase: size * run.on_node for phase, size in part.bytes.items()}) for part in host]
    longest = max(rows, key=lambda shape: shape.tokens)
    return MemoryPlan(
        parts=tuple(parts),
        capacity=_capacity(config, place, run.on_node),
        host_parts=tuple(host),
        host_capacity=_host_capacity(config) if host else Capacity(None, ""),
        assumptions=(
            f"{place.ranks} rank{'s' if place.ranks > 1 else ''} on {'GPUs' if place.cuda else 'the CPU'}, "
            f"{'sharded' if place.sharded else 'a whole policy each'}, precision {config.trainer.precision}, "
            f"weights {str(run.stored).removeprefix('torch.')}",
            f"{'' if ways.rows == 'packed' else 'separate '}rows of up to {longest.tokens} tokens: prompts of "
            f"{group[0]}, {group[1]} completions of {group[2]}",
        ),
        engine=room,
        bounds=tuple(_BOUNDED.format(run.architecture.model_type, reason) for reason in run.traces.bounded),
    )


def check_memory(plan: MemoryPlan) -> None:
    """Refuse a plan that does not fit.

    Raises:
        MemoryPlanError: what is predicted, what there is, the largest parts, and what to change, by effect.
    """
    if plan.fits:
        return
    if plan.has_room and plan.engine is not None:
        raise MemoryPlanError(
            f"memory: vLLM will not start. It needs {plan.engine}. Change: {plan.engine.changes()}. dry_run=true shows "
            "the whole plan; preflight.action=warn goes on all the same."
        )
    phase = plan.peak_phase
    needed, capacity, parts = plan.peak, plan.capacity, plan.largest()
    where = f"a device in the phase '{phase}'"
    if capacity.bytes is None or needed <= capacity.bytes:
        needed, capacity, where = plan.host, plan.host_capacity, "the host for offloaded shards"
        parts = list(plan.host_parts)
    named = ", ".join(f"{part.name} {max(part.bytes.get(phase, 0), 0) / GIB:.1f}" for part in parts)
    raise MemoryPlanError(
        f"memory: expected at most {(capacity.bytes or 0) / GIB:.1f} GiB ({capacity.source}), predicted "
        f"{needed / GIB:.1f} GiB on {where}: {named} GiB. Change, by effect: {'; '.join(plan.changes())}. "
        "dry_run=true shows the whole plan; preflight.action=warn goes on all the same."
    )


def check_disk(config: DictConfig) -> None:
    """Check that there is room for the last checkpoint, the best, the one before and the one that is being written.

    Raises:
        ConfigError: there is not.
    """
    run = _Run.of(config)
    size = run.counts.trained * (run.trained_bytes + _OPTIMIZER_BYTES)
    check_room(Path(config.paths.output_dir), 4 * size, f"4 checkpoints of {size / GIB:.1f} GiB")


def _row_demand(run: _Run, rows: tuple[RowShape, ...], scored: tuple[RowShape, ...] = ()) -> RowDemand:
    """What the most demanding of several rows takes; `scored` are those of scoring, which packs more groups."""
    traits = run.traits
    traced = [run.traces.row(run.architecture, traits, row) for row in rows]
    memory = max(traced, key=lambda memory: memory.kept(run.counts.layers) + memory.working)
    longer = max(row.tokens for row in (*rows, *scored)) / max(row.tokens for row in rows)
    memory = replace(memory, forward=int(memory.forward * max(1.0, longer)))
    vocabulary = run.architecture.get_text_config(decoder=True).vocab_size
    width, cuda = run.counts.head // vocabulary, run.place.cuda
    chunk = run.policy.head_chunk or chunk_tokens(vocabulary, "cuda" if cuda else "cpu")
    forward, backward = run.traces.head(vocabulary, width, traits, chunk, trained=run.counts.head_trained)
    tokens = max(row.scored for row in rows)
    states = tokens * width * traits.weights.itemsize  # the scored hidden states; with their gradient in the update
    converted = tokens * width * 2 if traits.autocast is not None and traits.weights == torch.float32 else 0
    return RowDemand(memory, forward + states + converted, backward + 2 * states + converted)


def _warm_start(run: _Run) -> RowDemand | None:
    config = run.config
    stage = config.get("warm_start")
    if stage is None or config.get("ckpt_path") is not None:
        return None
    target = min(config.sampling.max_new_tokens, stage.max_tokens // 2)
    together = max(1, min(stage.batch_size, config.updates.max_row_tokens // stage.max_tokens))
    row = RowShape(together, stage.max_tokens - target + 1, 1, target)
    return _row_demand(run, (row,))


def _engine_parts(run: _Run, prompts: int, right_cache: Cache | None) -> tuple[bool, list[MemoryPart]]:
    """Whether the engine is given weights, and its parts; `prompts` a rank are sampled for in a rollout step.

    `right_cache` is that of a native engine whose `rollout.cache` is `auto`.
    """
    config, traits, counts, place = run.config, run.traits, run.counts, run.place
    rollout = config.rollout
    plain, computed = run.plain, traits.autocast or traits.weights
    if is_server(rollout):
        file = min(plain * computed.itemsize, int(float(rollout.shard_gib) * GIB))
        what = "gathered on the CPU before it is written"
        return True, [] if place.cuda else [MemoryPart("file of weights", what, {"handover": file})]
    if _is_beside(rollout):
        return True, []  # planned when all other parts are known
    owns = rollout.get("owns_model")
    if owns is None:
        stored = None if run.policy.four_bit else run.stored
        owns = needs_copy(sharded=place.sharded, stored=stored, forwards=computed)
    dtype = computed if owns else traits.weights
    engine = replace(traits, weights=dtype, autocast=None, lora=None) if owns else traits
    keys_stay_wide = engine.autocast is not None and engine.weights == torch.float32  # rotated in float32
    cache = rollout.get("cache", "auto")
    cache = (right_cache or "none") if cache == "auto" else cache
    prompt = RowShape(1, config.data.max_prompt_tokens, 1, 1)
    if cache == "none":
        prompt = replace(prompt, prompt=prompt.prompt + config.sampling.max_new_tokens)
    if cache != "shared":
        engine = replace(engine, rows="separate")

    def own_cache(tokens: int) -> int:
        if cache == "none":
            return 0
        a_layer = run.traces.cache(run.architecture, engine, RowShape(1, tokens, 1, 1))
        return a_layer * (counts.layers + 1)  # a layer's old keys are there until the new ones are put behind them

    return bool(owns), native_parts(
        run.architecture,
        _batches(config, prompts),
        key_bytes=4 if keys_stay_wide else dtype.itemsize,
        value_bytes=2 if keys_stay_wide else dtype.itemsize,
        logits=traits.autocast or dtype,
        copied_weights=plain * dtype.itemsize if owns else 0,
        can_share=not place.sharded,
        prefill_token=run.traces.forward(run.architecture, engine, prompt) / prompt.tokens,
        max_sequences=rollout.max_sequences,
        max_batch_tokens=rollout.max_batch_tokens,
        sampling=run.traces.sampling,
        own_cache=None if cache == "shared" else own_cache,
        recomputes=cache == "none",
    )


def is_server(rollout: DictConfig) -> bool:
    """Whether the engine is a server of vLLM, with devices of its own."""
    return str(rollout.get("_target_", "")).endswith(".VllmServerEngine")


def _is_beside(rollout: DictConfig) -> bool:
    """Whether the engine is vLLM in the trainer's processes."""
    return "vllm" in str(rollout.get("_target_", "")) and not is_server(rollout)


def _engine_beside(run: _Run, others: Sequence[MemoryPart], prompts: int) -> tuple[EngineRoom, list[MemoryPart]]:
    """An engine of vLLM beside the trainer: what it needs to start and gets, and its parts.

    Args:
        run: the run.
        others: all other parts.
        prompts: a rank samples for in a rollout step.
    """
    config, rollout, architecture = run.config, run.config.rollout, run.architecture
    ranks, computed = int(rollout.tensor_parallel_size), run.traits.autocast or run.traits.weights
    sleeps, device = run.place.cuda and rollout.get("sleep") is not False, _capacity(config, run.place, 1).bytes
    batches = _batches(config, prompts)
    asked = max(batch.prompts * (batch.sampling.n if batch.sampling.temperature else 1) for batch in batches)
    share, sequences = rollout.gpu_memory_utilization, rollout.get("max_num_seqs") or sequences_at_once(ranks * asked)
    length = rollout.get("max_model_len") or engine_length(config, positions_of(architecture)) or 0
    state = 0
    if keeps_states(architecture):
        alone = replace(run.traits, rows="separate")
        state = run.traces.cache(architecture, alone, RowShape(1, 1, 1, 1))
    request, token = cache_bytes(architecture, length, ranks=ranks, number=computed.itemsize, state=state)
    cache = rollout.get("kv_cache_gib") or (None if run.place.cuda else 1)
    room = EngineRoom(
        share=free_share([*others, at_rest()], device, sleeps=sleeps) if share is None else float(share),
        planned=share is None,
        sequences=sequences,
        length=length,
        weights=run.plain * computed.itemsize // ranks,
        profile=profile_bytes(
            architecture, sequences, ranks=ranks, tokens=rollout.get("engine_args", {}).get("max_num_batched_tokens")
        ),
        request=request,
        token=token,
        device=device,
        cache=None if cache is None else int(cache * GIB),
    )
    parts = vllm_parts(
        cuda=run.place.cuda,
        sleeps=sleeps,
        fraction=room.share,
        device_bytes=device,
        weights=room.weights,
        cache=room.cache,
    )
    return room, parts


def _batches(config: DictConfig, prompts: int) -> list[GenerationBatch]:
    """What is generated: rollouts, greedy validation, and benchmarks, whose prompts count as long as the longest."""
    sampling: SamplingParams = instantiate(config.sampling)
    greedy, longest = replace(sampling, n=1, temperature=0.0), config.data.max_prompt_tokens
    batches = [GenerationBatch(config.data.val_batch_size, longest, greedy)]
    if prompts:
        batches.append(GenerationBatch(prompts, longest, sampling))
    if (before := _completion_tokens(config) - sampling.max_new_tokens) > 0:  # of an episode's last answer
        batches.append(GenerationBatch(config.data.val_batch_size, longest + before, greedy))
        if prompts:
            batches.append(GenerationBatch(prompts * sampling.n, longest + before, replace(sampling, n=1)))
    benchmark = config.callbacks.get("benchmark")
    if config.get("benchmark") and benchmark is not None:
        answers = replace(greedy, max_new_tokens=benchmark.max_new_tokens)
        batches.append(GenerationBatch(benchmark.batch_size, longest, answers))
    return batches


def _runtime(place: Placement) -> tuple[str, int]:
    if place.cuda:
        return "CUDA context, libraries, NCCL: usual figures, not measured", _CUDA_RUNTIME + (place.ranks > 1) * _NCCL
    to_come = 0 if "src.models.policy" in sys.modules else _MODEL_CODE
    return "this process as it is now: Python, its libraries, and those still to come", resident_bytes() + to_come


def _capacity(config: DictConfig, place: Placement, on_node: int) -> Capacity:
    """Of a device: as given, or of this machine's."""
    given = config.get("preflight", {}).get("device_gib")
    return device_capacity(place.cuda, on_node) if given is None else Capacity(int(given * GIB), "preflight.device_gib")


def _host_capacity(config: DictConfig) -> Capacity:
    """Of this node, unless the plan is for another machine."""
    if config.get("preflight", {}).get("device_gib") is None:
        return host_capacity()
    return Capacity(None, "planned for another machine")
