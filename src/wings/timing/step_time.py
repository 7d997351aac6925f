"""Seconds of a rollout step from its shapes and a device's ceilings: numbers in, numbers out.

A multiplication and an addition are two operations. Norms, activations and softmax are in the share of the peak that
products are expected to reach.
"""

from __future__ import annotations

from dataclasses import dataclass

from src.errors import check_fields
from src.wings.timing.devices import Device

_ADAM_BYTES = 28  # of a float32 weight: weight, gradient and two moments read, all but the gradient written
_SHARDED_BYTES = 8  # of a weight and row: gathered twice in half precision, its gradient reduced in float32


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What the products of a model depend on.

    Attributes:
        body: weights of the decoder layers that a token goes through; of a mixture, its experts' share.
        stored: weights of the decoder layers and the head that sampling reads, of a mixture all.
        trained: share of the weights that get gradients.
        hidden: d.
        vocabulary: V.
        layers: of the decoder.
        query: query heads times their size.
        key_values: numbers of keys and values that a token leaves in all layers.
    """

    body: int
    stored: int
    trained: float
    hidden: int
    vocabulary: int
    layers: int
    query: int
    key_values: int


@dataclass(frozen=True, slots=True)
class StepShape:
    """A rollout step over all ranks.

    Attributes:
        prompts: of the step.
        completions: G, of each prompt.
        prompt: P, mean tokens of a prompt.
        completion: T, mean tokens of a completion.
        packed: a prompt is computed once for all its completions.
        samples: whether anything is sampled.
        passes: through the completions.
        row_tokens: inputs of a row.
        optimizer_steps: of the rollout step.
        scored: share of the groups that a forward before the update scores.
        reference: a frozen policy scores all groups as well.
        recomputed: share of the decoder's forward that its backward runs again.
        trained: share of the groups that the update runs through.
    """

    prompts: int
    completions: int
    prompt: int
    completion: int
    packed: bool = True
    samples: bool = True
    passes: int = 1
    row_tokens: int = 16384
    optimizer_steps: int = 1
    scored: float = 0.0
    reference: bool = False
    recomputed: float = 1.0
    trained: float = 1.0

    @property
    def tokens(self) -> int:
        """Inputs of all rows.

        >>> StepShape(prompts=2, completions=3, prompt=10, completion=5).tokens  # 2 * (10 + 3 * 4)
        44
        """
        prompt = self.prompt if self.packed else self.prompt * self.completions
        return self.prompts * (prompt + self.completions * (self.completion - 1))

    @property
    def sampled(self) -> int:
        """Tokens that get a log-probability."""
        return self.prompts * self.completions * self.completion

    @property
    def pairs(self) -> int:
        """Query-key pairs of the causal mask.

        >>> StepShape(prompts=1, completions=2, prompt=3, completion=3).pairs  # 3 * 4 / 2 + 2 * (2 * 3 + 2 * 3 / 2)
        24
        """
        inputs = self.completion - 1
        prompts = self.prompts if self.packed else self.prompts * self.completions
        of_prompts = prompts * (self.prompt * (self.prompt + 1) // 2)
        return of_prompts + self.prompts * self.completions * (inputs * self.prompt + inputs * (inputs + 1) // 2)


@dataclass(frozen=True, slots=True)
class Engine:
    """How completions are sampled on one engine.

    Attributes:
        ranks: of one engine.
        together: completions that may decode at once.
        number: bytes of a weight and of a number in the cache.
        cache: bytes of the key/value cache; None: whatever is needed.
        share: of the device's memory that it was given; None: what the memory plan found free.
        shares_prompts: completions of a prompt share its keys in the cache.
    """

    ranks: int = 1
    together: int = 256
    number: int = 2
    cache: float | None = None
    share: float | None = None
    shares_prompts: bool = True


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What nothing of the shapes says: `preflight.timing`.

    Attributes:
        prompt_tokens: mean of a prompt.
        completion_tokens: mean of a completion.
        flops_share: of the peak that products of an update reach, with all that is between them.
        bandwidth_share: of memory and links.
        waiting: times as long as an even share that ranks in lock step take.
    """

    prompt_tokens: int
    completion_tokens: int
    flops_share: float
    bandwidth_share: float
    waiting: float

    def __post_init__(self) -> None:
        rules = (
            ("prompt_tokens", self.prompt_tokens >= 1, "at least 1"),
            ("completion_tokens", self.completion_tokens >= 1, "at least 1"),
            ("flops_share", 0 < self.flops_share <= 1, "in (0, 1]"),
            ("bandwidth_share", 0 < self.bandwidth_share <= 1, "in (0, 1]"),
            ("waiting", self.waiting >= 1, "at least 1"),
        )
        check_fields("preflight.timing", self, rules)


@dataclass(frozen=True, slots=True)
class Setup:
    """All that a prediction depends on.

    Attributes:
        model: its size.
        shape: of the rollout step.
        engine: that samples.
        device: of each rank.
        given: the assumptions.
        ranks: of the run.
        half: whether products are in half precision.
        sharded: each rank holds its share of the weights.
    """

    model: ModelSize
    shape: StepShape
    engine: Engine
    device: Device
    given: Assumptions
    ranks: int = 1
    half: bool = True
    sharded: bool = False

    @property
    def flops(self) -> float:
        """Operations a second of a rank's products."""
        return (self.device.half if self.half else self.device.single) * self.given.flops_share

    @property
    def bandwidth(self) -> float:
        """Bytes a second of a rank's memory."""
        return self.device.bandwidth * self.given.bandwidth_share

    @property
    def link(self) -> float:
        """Bytes a second between ranks."""
        return self.device.link * self.given.bandwidth_share


def body_flops(model: ModelSize, tokens: float, pairs: float) -> float:
    """Operations of a forward through the decoder: 2 a weight and token, 4 a query-key pair and number of a query."""
    return 2.0 * model.body * tokens + 4.0 * model.layers * model.query * pairs


def head_flops(model: ModelSize, tokens: float) -> float:
    """Operations of a forward of the head."""
    return 2.0 * model.hidden * model.vocabulary * tokens


def decode_seconds(setup: Setup) -> float:
    """Of sampling on each engine: every step reads the weights once and the keys and values of all that decode."""
    model, shape, engine = setup.model, setup.shape, setup.engine
    engines = max(1, setup.ranks // engine.ranks)
    rows = shape.prompts * shape.completions / engines
    token = model.key_values * engine.number
    together = min(rows, engine.together)
    if engine.cache is not None:
        prompt = shape.prompt / (shape.completions if engine.shares_prompts else 1)
        together = min(together, max(1.0, engine.cache / (token * (prompt + shape.completion))))
    read = model.stored * engine.number + together * (shape.prompt + shape.completion / 2) * token
    computed = together * (2.0 * (model.body + model.hidden * model.vocabulary))
    step = max(read / setup.bandwidth, computed / setup.flops) / engine.ranks
    return rows / together * shape.completion * step


def prefill_seconds(setup: Setup) -> float:
    """Of the prompts' forwards before their completions, once a prompt."""
    shape = setup.shape
    tokens, pairs = shape.prompts * shape.prompt, shape.prompts * shape.prompt * (shape.prompt + 1) / 2
    return body_flops(setup.model, tokens, pairs) / setup.ranks / setup.flops


def update_seconds(setup: Setup) -> float:
    """Of forwards, backwards and optimizer steps. What sharded ranks send runs beside their products."""
    model, shape = setup.model, setup.shape
    body, head = body_flops(model, shape.tokens, shape.pairs), head_flops(model, shape.sampled)
    backward = body * (1 + model.trained + shape.recomputed) + head * (1 + model.trained)
    work = shape.passes * shape.trained
    products = work * (body + head + backward) / setup.ranks / setup.flops
    rows = work * shape.tokens / setup.ranks / shape.row_tokens
    sent = rows * model.stored * _SHARDED_BYTES / setup.link if setup.sharded and setup.ranks > 1 else 0.0
    owned = model.trained * model.stored / (setup.ranks if setup.sharded else 1)
    steps = shape.optimizer_steps * _ADAM_BYTES * owned / setup.bandwidth
    return max(products, sent) * _waiting(setup) + steps


def scoring_seconds(setup: Setup) -> float:
    """Of the forwards before the update."""
    model, shape = setup.model, setup.shape
    forward = body_flops(model, shape.tokens, shape.pairs) + head_flops(model, shape.sampled)
    return (shape.scored + shape.reference) * forward / setup.ranks / setup.flops * _waiting(setup)


def predict(setup: Setup) -> dict[str, float]:
    """Seconds of each part of a rollout step."""
    samples = setup.shape.samples
    sent = setup.model.stored * setup.engine.number / setup.link if setup.sharded else 0.0
    return {
        "rollout": prefill_seconds(setup) + decode_seconds(setup) if samples else 0.0,
        "scoring": scoring_seconds(setup),
        "update": update_seconds(setup),
        "sync": sent if samples else 0.0,
    }


def _waiting(setup: Setup) -> float:
    return setup.given.waiting if setup.ranks > 1 else 1.0
