"""Logits of a chunk of tokens at a time, their softmax, and matrix products in float32."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_CHUNK_BYTES = {"cpu": 64 << 20}
_CHUNK_BYTES_ACCELERATOR = 512 << 20
_MAX_CHUNK = 8192
_BLOCK_BYTES = 2 << 20


def chunk_tokens(vocabulary: int, device_type: str) -> int:
    """Tokens whose float32 logits fill 64 MiB on a CPU and 512 MiB elsewhere: less is slower, more only takes memory.

    >>> chunk_tokens(151_936, "cpu"), chunk_tokens(151_936, "cuda"), chunk_tokens(1_000, "cpu")
    (110, 883, 8192)

    Args:
        vocabulary: V.
        device_type: of the device that computes.
    """
    size = _CHUNK_BYTES.get(device_type, _CHUNK_BYTES_ACCELERATOR)
    return max(1, min(_MAX_CHUNK, size // (4 * vocabulary)))


def block_tokens(vocabulary: int) -> int:
    """Tokens whose float32 logits, 2 MiB, go through the softmax together on a CPU, so that they stay in its caches.

    Args:
        vocabulary: V.
    """
    return max(1, _BLOCK_BYTES // (4 * vocabulary))


def logit_chunks(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, chunk: int
) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the tokens and their scaled logits [chunk, V], float32 or float64, for the caller to overwrite.

    On a CPU all chunks share their memory: what is yielded lasts until the next.
    """
    hidden, weight = operand(hidden), operand(weight)
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
        yield part, logits.div_(temperature) if temperature != 1.0 else logits


def operand(tensor: Tensor) -> Tensor:
    """What products are made of, any shape: half precision stays so on CUDA (see `matmul`), elsewhere it is float32."""
    half = tensor.is_cuda and tensor.dtype in (torch.bfloat16, torch.float16)
    return tensor if half else tensor.to(precise(tensor))


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
    """The chunk to use: tokens whose logits exist at once.

    Args:
        weight: [V, D], of the head.
        temperature: of the logits.
        chunk: as asked for; None: `chunk_tokens`.

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
