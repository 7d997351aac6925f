"""From hidden states to a log-probability and an entropy a token, without the [tokens, vocabulary] matrix.

Logits exist for a chunk of tokens at a time. Where the loss is a sum over tokens, `token_loss` makes its gradient of
the chunk's logits while they are there; otherwise backward computes them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_BYTES = {"cpu": 64 << 20}
_CHUNK_BYTES_ACCELERATOR = 2 << 30
_MAX_CHUNK = 8192
_BLOCK_BYTES = 2 << 20


class LogitMap(NamedTuple):
    """What a model does to the products of its head before they are logits: z -> cap tanh(scale z / cap).

    Attributes:
        scale: factor on the products (Cohere's `logit_scale`; Granite divides by its `logits_scaling`).
        cap: bound of the scaled products (Gemma's `final_logit_softcapping`); None: none.
    """

    scale: float = 1.0
    cap: float | None = None


TokenLoss = Callable[[Tensor, Tensor, slice], Tensor]
"""Loss of some of N tokens: (log-probabilities [n], entropies [n], which of the N they are) -> a scalar to sum up."""


def token_logprobs_and_entropies(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    logit_map: LogitMap = LogitMap(),  # noqa: B008 (immutable)
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and entropy, under softmax(logit_map(hidden @ weight.T + bias) / temperature).

    Logits exist for `chunk` tokens at a time, in forward and again in backward; between them only [N] vectors are kept.
    Under bf16 autocast both operands of every product are rounded to bf16 (`product_type`). Products of bf16 numbers
    are accumulated and returned in float32, so that logits are not rounded to 8 bits. Gradients flow through both
    outputs to hidden, weight and bias; a weight that needs none (LoRA) costs none.

    Args:
        hidden: [N, d].
        weight: [V, d].
        targets: int64 [N].
        temperature: > 0, divides the logits.
        bias: [V].
        logit_map: the model's own.
        chunk: tokens whose logits exist at once; None: `chunk_tokens`.

    Returns:
        logprobs [N] and entropies [N] in nats, float32 (float64 for float64 inputs).

    Raises:
        ValueError: temperature or chunk not positive.
    """
    chunk, half = checked_chunk(weight, temperature, chunk), product_type(hidden)
    logprobs, entropies = _TokenScores.apply(hidden, weight, bias, targets, temperature, logit_map, chunk, half)
    return logprobs, entropies


def token_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    loss: TokenLoss,
    *,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    logit_map: LogitMap = LogitMap(),  # noqa: B008 (immutable)
    chunk: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A loss that is a sum over tokens, and what `token_logprobs_and_entropies` gives, in one pass over the logits.

    `loss` is called for a chunk at a time, and its gradient becomes those of hidden [N, d], weight [V, d] and bias at
    once: three matrix products instead of four, and logits that never leave the chunk. Backward only scales them, so
    it may run once.

    Its inputs are those of `token_logprobs_and_entropies`; `loss` is differentiable in both arguments.

    Returns:
        The loss, a scalar with gradient; logprobs [N] and entropies [N] in nats without.

    Raises:
        ValueError: temperature or chunk not positive.
    """
    chunk, half = checked_chunk(weight, temperature, chunk), product_type(hidden)
    inputs = (hidden, weight, bias, targets, loss, temperature, logit_map, chunk, half)
    total, logprobs, entropies = _FusedTokenLoss.apply(*inputs)
    return total, logprobs, entropies


class _TokenScores(torch.autograd.Function):
    """With z the scaled logits, p = softmax(z) and H the entropy: d logp_y / dz = 1_y - p, dH / dz = -p (log p + H)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        logit_map: LogitMap,
        chunk: int,
        half: torch.dtype | None,
    ) -> tuple[Tensor, Tensor]:
        logprobs = hidden.new_empty(len(hidden), dtype=precise(hidden))
        entropies, normalisers = torch.empty_like(logprobs), torch.empty_like(logprobs)
        operands = operand(hidden, half), operand(weight, half)
        for part, logits, _ in logit_chunks(*operands, bias, temperature, logit_map, chunk):
            logprobs[part], entropies[part], normalisers[part] = softmax_(logits, targets[part])
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers, entropies)
        ctx.temperature, ctx.logit_map, ctx.chunk, ctx.half = temperature, logit_map, chunk, half
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor, grad_entropies: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None, None, None]:
        hidden, weight, bias, targets, normalisers, entropies = ctx.saved_tensors
        settings = ctx.temperature, ctx.logit_map
        gradients = _HeadGradients(hidden, weight, bias, ctx.needs_input_grad, *settings, ctx.half)
        for part, logits, slope in logit_chunks(*gradients.operands, bias, *settings, ctx.chunk):
            p = logits.sub_(normalisers[part, None]).exp_()
            gradients.add(part, p, slope, targets[part], entropies[part], grad_logprobs[part], grad_entropies[part])
        return (*gradients.results(), None, None, None, None, None)


class _FusedTokenLoss(torch.autograd.Function):
    """`_TokenScores`, the loss and its gradient, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        loss: TokenLoss,
        temperature: float,
        logit_map: LogitMap,
        chunk: int,
        half: torch.dtype | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        logprobs = hidden.new_empty(len(hidden), dtype=precise(hidden))
        entropies = torch.empty_like(logprobs)
        total = logprobs.new_zeros(())
        gradients = _HeadGradients(hidden, weight, bias, ctx.needs_input_grad, temperature, logit_map, half)
        for part, logits, slope in logit_chunks(*gradients.operands, bias, temperature, logit_map, chunk):
            logprobs[part], entropies[part], _ = softmax_(logits, targets[part])
            with torch.enable_grad():
                given = logprobs[part].clone().requires_grad_(), entropies[part].clone().requires_grad_()
                share = loss(*given, part)
                by_logprob, by_entropy = _partial(share, given)
            total += share.detach()
            gradients.add(part, logits, slope, targets[part], entropies[part], by_logprob, by_entropy)
        ctx.gradients = gradients.results()
        ctx.mark_non_differentiable(logprobs, entropies)
        return total, logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_total: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None, None, None, None]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("token_loss: backward ran already, and its gradients are gone.")
        hidden, weight, bias = (None if x is None else x.mul_(grad_total.to(x.dtype)) for x in gradients)
        return hidden, weight, bias, None, None, None, None, None, None


def _partial(loss: Tensor, given: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Derivatives of a loss by log-probabilities and by entropies; None where it does not depend on entropies."""
    found: tuple[Tensor | None, ...] = torch.autograd.grad(loss, given, allow_unused=True)
    return torch.zeros_like(given[0]) if found[0] is None else found[0], found[1]


class _HeadGradients:
    """Gradients of the head's inputs, summed over chunks of tokens.

    Args:
        hidden: [N, d].
        weight: [V, d].
        bias: [V] or None.
        wanted: whether each of the three needs one.
        temperature: that the logits were divided by.
        logit_map: the model's own.
        half: see `operand`.

    Attributes:
        operands: hidden states and weight as they are multiplied.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        wanted: tuple[bool, ...],
        temperature: float,
        logit_map: LogitMap,
        half: torch.dtype | None,
    ) -> None:
        self.operands = operand(hidden, half), operand(weight, half)
        self._bias, self._half = bias, half
        self._types = hidden.dtype, weight.dtype
        self._temperature, self._scale = temperature, logit_map.scale
        self._of_hidden = torch.empty_like(hidden) if wanted[0] else None
        self._of_weight = torch.zeros_like(weight, dtype=precise(weight)) if wanted[1] else None
        self._of_bias = torch.zeros_like(bias, dtype=precise(bias)) if bias is not None and wanted[2] else None

    def add(
        self,
        part: slice,
        p: Tensor,
        slope: Tensor | None,
        targets: Tensor,
        entropies: Tensor,
        by_logprob: Tensor,
        by_entropy: Tensor | None,
    ) -> None:
        """Add those of the tokens `part`, whose distributions `p` [n, V] are overwritten.

        The `slope` is that of `logit_chunks`.
        """
        if by_entropy is None:
            grad = p.mul_(-by_logprob[:, None])
        else:  # p log p is 0 where p is
            scale = by_logprob + by_entropy * entropies
            grad = torch.xlogy(p, p).mul_(by_entropy[:, None]).addcmul_(p, scale[:, None]).neg_()
        grad.scatter_add_(1, targets[:, None], by_logprob[:, None])
        if slope is not None:
            grad.mul_(slope)
        if self._scale != 1.0:
            grad.mul_(self._scale)
        if self._temperature != 1.0:
            grad.div_(self._temperature)
        if self._of_bias is not None:
            self._of_bias += grad.sum(0)
        hidden, weight = self.operands
        grad = operand(grad, self._half).to(hidden.dtype)
        if self._of_hidden is not None:
            self._of_hidden[part] = matmul(grad, weight).to(self._of_hidden.dtype)
        if self._of_weight is not None:
            add_product(self._of_weight, grad.T, hidden[part])

    def results(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of hidden, weight and bias, in their types."""
        return (
            self._of_hidden,
            None if self._of_weight is None else self._of_weight.to(self._types[1]),
            None if self._of_bias is None or self._bias is None else self._of_bias.to(self._bias.dtype),
        )


def chunk_tokens(vocabulary: int, device_type: str) -> int:
    """Tokens whose float32 logits fill 64 MiB on a CPU, where more only takes memory, and 2 GiB elsewhere.

    >>> chunk_tokens(151_936, "cpu"), chunk_tokens(151_936, "cuda"), chunk_tokens(1_000, "cpu")
    (110, 3533, 8192)

    Args:
        vocabulary: V.
        device_type: of the device that computes.
    """
    size = _CHUNK_BYTES.get(device_type, _CHUNK_BYTES_ACCELERATOR)
    return max(1, min(_MAX_CHUNK, size // (4 * vocabulary)))


def block_tokens(vocabulary: int) -> int:
    """Tokens whose float32 logits, 2 MiB, go through the softmax together on a CPU, so that they stay in its caches."""
    return max(1, _BLOCK_BYTES // (4 * vocabulary))


def logit_chunks(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, logit_map: LogitMap, chunk: int
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Slices of the tokens, their logits over the temperature and the slope of the cap, for the caller to overwrite.

    Logits are [chunk, V], float32 or float64. The slope, 1 - tanh², has the same shape; it is None without a cap. On a
    CPU all chunks share the memory of their logits: what is yielded lasts until the next. Hidden states and weight are
    an `operand` each.
    """
    shared = None
    if hidden.device.type == "cpu":
        shared = hidden.new_empty(min(chunk, len(hidden)), len(weight))
    for start in range(0, len(hidden), chunk):
        part = slice(start, min(start + chunk, len(hidden)))
        if shared is None:
            logits = matmul(hidden[part], weight.T)
        else:
            with torch.autocast("cpu", enabled=False):
                logits = torch.mm(hidden[part], weight.T, out=shared[: part.stop - start])
        if bias is not None:
            logits += bias
        slope = apply_map_(logits, logit_map)
        yield part, logits.div_(temperature) if temperature != 1.0 else logits, slope


def apply_map_(logits: Tensor, logit_map: LogitMap) -> Tensor | None:
    """Overwrite products of the head, of any shape, with the model's logits; the slope of their cap, None without."""
    if logit_map.scale != 1.0:
        logits.mul_(logit_map.scale)
    if logit_map.cap is None:
        return None
    logits.div_(logit_map.cap).tanh_()
    slope = torch.addcmul(torch.ones_like(logits), logits, logits, value=-1)
    logits.mul_(logit_map.cap)
    return slope


def product_type(hidden: Tensor) -> torch.dtype | None:
    """What autocast would have the head multiply; None: the inputs as they are.

    Autocast in float16 is left out: gradients of logits are far below its smallest number.
    """
    device = hidden.device.type
    if hidden.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return None
    return torch.bfloat16 if torch.get_autocast_dtype(device) == torch.bfloat16 else None


def operand(tensor: Tensor, half: torch.dtype | None) -> Tensor:
    """What products are made of, any shape, rounded to `half` if that is given (see `product_type`).

    Half precision stays so on CUDA, which `matmul` needs there; elsewhere it is converted to float32.
    """
    if half is not None:
        tensor = tensor.to(half)
    stays = tensor.is_cuda and tensor.dtype in (torch.bfloat16, torch.float16)
    return tensor if stays else tensor.to(precise(tensor))


def precise(tensor: Tensor) -> torch.dtype:
    """Type of results: float64 for float64 inputs, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Product of [n, k] and [k, m] in float32 (float64 for float64 inputs), whatever autocast says.

    CUDA multiplies half-precision inputs and hands out the float32 accumulator. Elsewhere both are converted first.
    """
    with torch.autocast(a.device.type, enabled=False):
        if a.is_cuda and a.dtype == b.dtype and a.dtype in (torch.bfloat16, torch.float16):
            return torch.mm(a, b, out_dtype=torch.float32)
        return a.to(precise(a)) @ b.to(precise(b))


def checked_chunk(weight: Tensor, temperature: float, chunk: int | None) -> int:
    """The chunk to use with a weight [V, d]: as asked for; None: `chunk_tokens`.

    Raises:
        ValueError: temperature or chunk not positive.
    """
    if temperature <= 0 or (chunk is not None and chunk < 1):
        raise ValueError(f"head: expected temperature > 0 and chunk >= 1, found {temperature} and {chunk}.")
    return chunk or chunk_tokens(len(weight), weight.device.type)


def softmax_(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Overwrite logits [n, V] with their softmax; log p of the targets, entropies and log-sum-exps, [n] each."""
    peaks, masses, dots = (logits.new_empty(len(logits), 1) for _ in range(3))
    chosen = logits.gather(1, targets[:, None])
    rows = min(len(logits), block_tokens(logits.shape[1])) if logits.device.type == "cpu" else len(logits)
    shared = logits.new_empty(rows, logits.shape[1])
    for start in range(0, len(logits), rows):
        part = slice(start, min(start + rows, len(logits)))
        block = logits[part]
        peaks[part] = block.amax(-1, keepdim=True)
        p = torch.exp(block.sub_(peaks[part]), out=shared[: len(block)])
        masses[part] = p.sum(-1, keepdim=True)
        dots[part] = block.mul_(p).sum(-1, keepdim=True)
        torch.div(p, masses[part], out=block)
    normalisers = masses.log()
    entropies = normalisers - dots / masses
    normalisers += peaks
    return (chosen - normalisers)[:, 0], entropies[:, 0], normalisers[:, 0]


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """`total += a @ b` of [n, m], [n, k] and [k, m], in the precision of `total`."""
    if a.dtype == total.dtype:
        with torch.autocast(a.device.type, enabled=False):
            total.addmm_(a, b)
    else:
        total += matmul(a, b)
