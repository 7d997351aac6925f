"""A dry run: the predicted memory of a training, and the predicted seconds of its rollout steps."""

from __future__ import annotations

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from transformers import PretrainedConfig

from src.config.checks import cache_file
from src.config.guard import find_ways
from src.config.placement import ALL_DEVICES, Placement, placement, stored_dtype
from src.errors import ConfigError
from src.models.loading.architecture import ParameterCounts, load_architecture
from src.models.loading.policy_config import PolicyConfig
from src.models.moe import experts_chosen
from src.wings.memory.engine_room import EngineRoom
from src.wings.memory.plan import show_plan
from src.wings.memory.preflight import check_memory, is_server, plan_memory
from src.wings.memory.rollout_parts import attention_heads
from src.wings.memory.traces import MemoryTraces
from src.wings.timing.devices import DEVICES, named_device, this_device
from src.wings.timing.savings import SAVINGS, savings
from src.wings.timing.step_time import Assumptions, Engine, ModelSize, Setup, StepShape, predict

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_LACKING = "???"
_UNKNOWN = (
    "Seconds of a step: no prediction. What a CPU computes a second is not in the table. Set preflight.device to one "
    "of {} for a prediction of a run on such GPUs, trainer.devices of them on a node."
)


def dry_run(config: DictConfig, console: Console | None = None) -> None:
    """Print the predicted memory of a training, and the predicted seconds of a step if it fits.

    Args:
        config: composed, as `src/train.py` gets it, and checked. `preflight.device` gives the memory as well, where
            `preflight.device_gib` is null.
        console: to print on.

    Raises:
        MemoryPlanError: it will not fit, and `preflight.action` is `error`.
        ConfigError: `preflight.device` is not in the table, the run would be one on CPUs or on devices that cannot be
            counted here, or an assumption is impossible.
    """
    console = console or Console()
    Assumptions(**config.preflight.timing)  # refuses what is impossible before a plan is made
    if config.preflight.device is not None:
        _take_memory(config)
    plan = plan_memory(config)
    show_plan(plan, console)
    if config.preflight.action == "error":
        check_memory(plan)
    show_times(setup_of(config, plan.engine), config, console)


def _take_memory(config: DictConfig) -> None:
    """Plan for the memory of the device that `preflight.device` names.

    Raises:
        ConfigError: it is not in the table, or the run would be one on CPUs or on devices that cannot be counted here.
    """
    name, trainer = config.preflight.device, config.trainer
    device = named_device(str(name))
    if not placement(trainer)[0].cuda:
        raise ConfigError(
            f"preflight.device={name}: expected a run on GPUs, trainer.accelerator={trainer.accelerator} is a CPU "
            "here. Set trainer.accelerator=gpu, and trainer.devices to how many a node has."
        )
    if trainer.devices in ALL_DEVICES and not torch.cuda.is_available():
        raise ConfigError(
            f"trainer.devices={trainer.devices}: expected a number where a run is planned for another machine "
            f"(preflight.device={name}), as this one has no GPUs to count. Set trainer.devices=8, say."
        )
    if config.preflight.device_gib is None:
        config.preflight.device_gib = device.memory


def setup_of(config: DictConfig, room: EngineRoom | None = None) -> Setup | None:
    """What the prediction of a training depends on; None where the device is not known.

    Args:
        config: composed, as `src/train.py` gets it, and checked.
        room: of vLLM beside the trainer, as the memory plan has it.

    Raises:
        ConfigError: `preflight.device` is not in the table, an assumption is impossible, or a model that the run would
            refuse.
    """
    name = config.preflight.device
    device = this_device() if name is None else named_device(str(name))
    if device is None:
        return None
    policy: PolicyConfig = instantiate(config.policy)
    architecture, (place, _) = load_architecture(policy), placement(config.trainer)
    stored = stored_dtype(policy, architecture)
    traces = MemoryTraces(cache_file(config, "memory_traces"), trust_remote_code=policy.trust_remote_code)
    model = model_size(architecture, traces.counts(architecture, stored, policy.lora))
    half = str(config.trainer.precision).startswith("bf16") or stored.itemsize == 2
    given, samples = Assumptions(**config.preflight.timing), "loss" in config.algorithm
    minibatches = config.data.prompts_per_step // config.updates.prompts_per_minibatch
    passes = config.updates.passes
    source = config.updates.old_logprobs
    if source == "auto":
        source = "update" if half else "sampler"
    scored = {"update": 1 - 1 / minibatches, "score": 1.0, "sampler": 0.0}[source]
    shape = StepShape(
        prompts=config.data.prompts_per_step,
        completions=config.sampling.n if samples else 1,
        prompt=min(given.prompt_tokens, config.data.max_prompt_tokens),
        completion=min(given.completion_tokens, config.sampling.max_new_tokens),
        packed=find_ways(policy, cache_file(config, "ways")).rows == "packed",
        samples=samples,
        passes=passes,
        row_tokens=config.updates.max_row_tokens,
        optimizer_steps=passes * minibatches,
        scored=scored,
        reference=samples and config.algorithm.loss.kl_coef > 0,
        recomputed=float(policy.gradient_checkpointing in (True, "full")),  # `selective` keeps all products
    )
    engine = _engine(config.rollout, room, 2 if half else 4, place)
    return Setup(model, shape, engine, device, given, place.ranks, half, place.sharded)


def model_size(architecture: PretrainedConfig, counts: ParameterCounts) -> ModelSize:
    """The size of a model, from its architecture and its weights."""
    text = architecture.get_text_config(decoder=True)
    decoder = counts.layers * counts.layer - counts.missing
    heads = getattr(text, "num_attention_heads", None) or 1
    stored = [attention_heads(layer) for layer in text.per_layer_config]
    return ModelSize(
        body=decoder - _idle_experts(text, counts.layers),
        stored=decoder + counts.head,
        trained=counts.trained / counts.total,
        hidden=counts.head // text.vocab_size,
        vocabulary=text.vocab_size,
        layers=counts.layers,
        query=heads * stored[0][1],
        key_values=sum(count * (key + value) for count, key, value in stored),
    )


def _idle_experts(text: PretrainedConfig, layers: int) -> int:
    """Weights of a mixture's experts that a token does not go through: three matrices each."""
    experts = next((count for key in _EXPERTS if (count := getattr(text, key, None))), 0)
    if not experts:
        return 0
    inner = getattr(text, "moe_intermediate_size", None) or text.intermediate_size
    return int(layers * (experts - experts_chosen(text)) * 3 * text.hidden_size * inner)


def _engine(rollout: DictConfig, room: EngineRoom | None, number: int, place: Placement) -> Engine:
    if room is None:
        return Engine(together=rollout.get("max_sequences") or 256, number=number)
    ranks = min(rollout.tensor_parallel_size, place.ranks)
    cache = None if room.available is None else float(max(room.available, 0)) * ranks
    share = None if room.planned or room.cache is not None else room.share
    return Engine(ranks, room.sequences, number, cache, share, bool(rollout.enable_prefix_caching))


def show_times(setup: Setup | None, config: DictConfig, console: Console) -> None:
    """Print the seconds that a step is predicted to take, what is assumed, and what changes would save.

    Args:
        setup: of the prediction; None: there is none, and how to get one is printed.
        config: whose keys could be changed.
        console: to print on.
    """
    if setup is None:
        console.print(Text(_UNKNOWN.format(", ".join(DEVICES))))
        return
    parts = predict(setup)
    table = Table(show_footer=True)
    table.add_column("part", footer="step")
    table.add_column("s", justify="right", footer=f"{sum(parts.values()):.1f}", footer_style="bold")
    for name, seconds in parts.items():
        table.add_row(name, f"{seconds:.1f}")
    title = Text("Predicted seconds of a rollout step [estimate]", "italic")
    shown: list[Table | Text] = [title, table, Text("\n".join(_assumed(setup, config.rollout)))]
    known = {
        key for saving in SAVINGS for key in saving.keys if OmegaConf.select(config, key, default=_LACKING) != _LACKING
    }
    found = [pair for pair in savings(setup) if known.issuperset(pair[0].keys)]
    if found:
        changes = Table()
        for column in ("change", "s", "price"):
            changes.add_column(column, justify="right" if column == "s" else "left", overflow="fold")
        for saving, seconds in found:
            changes.add_row(saving.overrides, f"{seconds:.1f}", saving.price)
        shown += [Text("What a change would save by itself [estimate]", "italic"), changes]
    console.print(Group(*shown))


def _assumed(setup: Setup, rollout: DictConfig) -> list[str]:
    """Lines on what the prediction takes for granted; nothing of it was measured."""
    shape, given = setup.shape, setup.given
    lines = [
        f"{setup.ranks} x {setup.device.name}, ceilings from its data sheet: {setup.device.half / 1e12:.0f} TFLOP/s in "
        f"half precision, {setup.device.bandwidth / 1e12:.2f} TB/s",
        f"{shape.prompts} prompts of {shape.prompt} tokens, {shape.completions} completions of {shape.completion}, "
        "means by preflight.timing, data.max_prompt_tokens and sampling.max_new_tokens",
        f"{given.flops_share:.0%} of the peak in products, {given.bandwidth_share:.0%} of the bandwidths, ranks in "
        f"lock step {given.waiting:.2f} times as long as an even share: preflight.timing",
        "Validation, benchmarks, checkpoints and the launch of kernels are not counted.",
    ]
    if is_server(rollout):
        lines.append("The server is taken to sample on as many devices of its own; files of weights are not counted.")
    return lines
