"""The chunked head against plain log_softmax in double precision, and its gradient against finite differences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from src.models.head.gradients import last_layer_gradients
from src.models.head.head import (
    LogitMap,
    add_product,
    matmul,
    operand,
    product_type,
    token_logprobs_and_entropies,
    token_loss,
)
from tests.models.reference import LargestTensor


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, bias: Tensor) -> tuple[Tensor, Tensor]:
    logp = ((hidden @ weight.T + bias) / temperature).log_softmax(-1)
    return logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)


def inputs(dtype: torch.dtype, device: torch.device | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((7, 5), (11, 5), (11,)))
    targets = torch.randint(0, 11, (7,), generator=generator)
    return (
        hidden.to(device, dtype).requires_grad_(),
        weight.to(device, dtype).requires_grad_(),
        targets.to(device),
        bias.to(device, dtype).requires_grad_(),
    )


def test_hand_made_distribution() -> None:
    # Logits (ln 1, ln 3): p = (1/4, 3/4). Target 1: ln 0.75. H = 0.25 ln 4 + 0.75 ln(4/3).
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [math.log(3)]])
    logprobs, entropies = token_logprobs_and_entropies(hidden, weight, torch.tensor([1]))
    assert logprobs.item() == pytest.approx(math.log(0.75), abs=1e-6)
    assert entropies.item() == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3), abs=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_agrees_with_plain_log_softmax_whatever_the_chunk(chunk: int, device: torch.device) -> None:
    hidden, weight, targets, bias = inputs(torch.float64, device)
    found = token_logprobs_and_entropies(hidden, weight, targets, temperature=0.7, bias=bias, chunk=chunk)
    expected = plain(hidden, weight, targets, 0.7, bias)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    wants = (hidden, weight, bias)
    mixed = [torch.autograd.grad((2 * a - 0.3 * b * a.detach()).sum(), wants) for a, b in (found, expected)]
    torch.testing.assert_close(mixed[0], mixed[1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_gradcheck(temperature: float) -> None:
    hidden, weight, targets, bias = inputs(torch.float64)

    def function(h: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return token_logprobs_and_entropies(h, w, targets, temperature=temperature, bias=b, chunk=3)

    assert torch.autograd.gradcheck(function, (hidden, weight, bias))


MAPS = [LogitMap(0.25), LogitMap(1.0, 1.5), LogitMap(2.0, 1.5)]


def mapped(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, bias: Tensor, m: LogitMap) -> Any:
    z = m.scale * (hidden @ weight.T + bias)
    z = z if m.cap is None else m.cap * torch.tanh(z / m.cap)
    logp = (z / temperature).log_softmax(-1)
    return logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize("logit_map", MAPS)
def test_scaled_and_capped_logits(logit_map: LogitMap) -> None:
    hidden, weight, targets, bias = inputs(torch.float64)
    wants = (hidden, weight, bias)
    expected = mapped(hidden, weight, targets, 0.7, bias, logit_map)
    settings = {"temperature": 0.7, "bias": bias, "logit_map": logit_map, "chunk": 3}
    found = token_logprobs_and_entropies(hidden, weight, targets, **settings)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    mixed = [
        torch.autograd.grad((2 * a - 0.3 * b * a.detach()).sum(), wants, retain_graph=True)
        for a, b in (found, expected)
    ]
    torch.testing.assert_close(mixed[0], mixed[1], atol=1e-12, rtol=0)
    total, *scores = token_loss(hidden, weight, targets, some_loss, **settings)
    torch.testing.assert_close(scores, list(expected), atol=1e-12, rtol=0)
    reference = some_loss(*expected, slice(None))
    torch.testing.assert_close(total, reference, atol=1e-12, rtol=0)
    by_loss = torch.autograd.grad(total, wants), torch.autograd.grad(reference, wants)
    torch.testing.assert_close(*by_loss, atol=1e-12, rtol=0)


@pytest.mark.parametrize("logit_map", MAPS)
def test_last_layer_gradients_of_scaled_and_capped_logits(logit_map: LogitMap) -> None:
    hidden, weight, targets, bias = inputs(torch.float64)
    logp, _ = mapped(hidden, weight, targets, 0.7, bias, logit_map)
    rows = torch.stack([torch.autograd.grad(x, weight, retain_graph=True)[0].flatten() for x in logp.unbind()])
    settings = {"temperature": 0.7, "bias": bias, "logit_map": logit_map, "chunk": 3}
    *_, found = last_layer_gradients(hidden, weight, targets, **settings, gram=True)
    torch.testing.assert_close(found.gram, rows @ rows.T, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.second_moments, rows.square().sum(-1), atol=1e-12, rtol=0)
    # the mean over tokens drawn from p, token by token
    expected = torch.zeros(7, dtype=torch.float64)
    for token in range(11):
        every = torch.full((7,), token)
        each, _ = mapped(hidden, weight, every, 0.7, bias, logit_map)
        sizes = [torch.autograd.grad(x, weight, retain_graph=True)[0].square().sum() for x in each.unbind()]
        expected += each.detach().exp() * torch.stack(sizes)
    torch.testing.assert_close(found.expected_second_moments, expected, atol=1e-12, rtol=0)


def test_frozen_weight_gets_no_gradient() -> None:
    hidden, weight, targets, bias = inputs(torch.float64)
    logprobs, _ = token_logprobs_and_entropies(hidden, weight.detach(), targets, bias=bias.detach())
    logprobs.sum().backward()
    expected = torch.autograd.grad(plain(hidden, weight, targets, 1.0, bias)[0].sum(), hidden)[0]
    torch.testing.assert_close(hidden.grad, expected, atol=1e-12, rtol=0)
    assert weight.grad is None and bias.grad is None


def test_bfloat16_inputs_are_not_rounded_on_the_way(device: torch.device) -> None:
    # Products of bf16 numbers are exact in float32, so the result is that of float32 arithmetic on the same numbers;
    # logits rounded to bf16 would be off by about 1e-2. Logits and log-probabilities are below 16, half a unit in their
    # last place is 4.8e-7, and 5 sums, log-sum-exp and difference round some 8 times: 4e-6, in each of two results.
    hidden, weight, targets, bias = inputs(torch.bfloat16, device)
    found = token_logprobs_and_entropies(hidden, weight, targets, bias=bias)
    assert found[0].dtype == found[1].dtype == torch.float32
    torch.testing.assert_close(
        found, plain(hidden.float(), weight.float(), targets, 1.0, bias.float()), atol=1e-5, rtol=0
    )
    found[0].sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16


def test_autocast_rounds_the_operands_and_nothing_else() -> None:
    hidden, weight, targets, bias = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = token_logprobs_and_entropies(hidden, weight, targets, bias=bias)
        *scores, _ = last_layer_gradients(hidden, weight, targets, bias=bias, gram=True)
    assert torch.equal(found[0], scores[0]) and torch.equal(found[1], scores[1])
    rounded = [x.detach().bfloat16().double() for x in (hidden, weight)]
    expected = plain(*rounded, targets, 1.0, bias.double())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0, check_dtype=False)  # as above
    # Either operand is off by 2^-9 of itself, so a logit by 2^-8 of the sum of |products|, and a log-probability, a
    # difference of two of them at most, by twice the largest of these.
    exact, _ = plain(hidden.double(), weight.double(), targets, 1.0, bias.double())
    bound = 2 * 2**-8 * 1.01 * (hidden.abs() @ weight.abs().T).amax(-1)
    assert ((found[0] - exact).abs() < bound).all()
    assert (found[0] - exact).abs().max() > 1e-4  # they were rounded


@pytest.mark.parametrize("fused", [False, True])
def test_autocast_rounds_the_gradient_of_the_logits_before_its_products(fused: bool) -> None:
    hidden, weight, targets, bias = inputs(torch.float32)
    rounded = [x.detach().bfloat16().double().requires_grad_() for x in (hidden, weight)]
    logits = rounded[0] @ rounded[1].T + bias.detach().double()
    logp = logits.log_softmax(-1)
    scores = logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)
    expected = torch.autograd.grad(some_loss(*scores, slice(None)), (logits, *rounded))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if fused:
            total, *_ = token_loss(hidden, weight, targets, some_loss, bias=bias, chunk=3)
        else:
            total = some_loss(*token_logprobs_and_entropies(hidden, weight, targets, bias=bias, chunk=3), slice(None))
    found = torch.autograd.grad(total, (hidden, weight, bias))  # outside of autocast, as a backward may be
    assert [x.dtype for x in found] == [torch.float32] * 3
    size = expected[0].abs()
    for one, exact, bound in (
        (found[0], expected[1], size @ rounded[1].abs()),
        (found[1], expected[2], size.T @ rounded[0].abs()),
    ):
        gap = (one - exact).abs()
        assert (gap < 2**-8 * bound + 1e-6).all() and gap.max() > 1e-4
        assert not torch.equal(one, one.bfloat16().float())  # their sums stay in float32
    torch.testing.assert_close(found[2].double(), expected[0].sum(0), atol=1e-5, rtol=0)


class Products(TorchDispatchMode):
    """Notes every matrix product: its operation and the types of its operands."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, set[torch.dtype]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "mm" in str(func):
            self.seen.append((str(func), {x.dtype for x in args if isinstance(x, Tensor)}))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("cast", "half"), [(torch.bfloat16, torch.bfloat16), (torch.float16, None), (None, None)])
def test_on_cuda_autocasts_type_is_multiplied_into_float32(
    cast: torch.dtype | None, half: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeTensorMode(), Products() as products:
        hidden, weight = torch.empty(7, 5, device="cuda"), torch.empty(11, 5, device="cuda")
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda" and cast is not None)
        monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: cast or torch.float16)
        assert product_type(hidden) == half and product_type(hidden.double()) is None
        h, w = operand(hidden, half), operand(weight, half)
        logits = matmul(h, w.T)
        grad = operand(logits, half).to(h.dtype)
        total = torch.empty(11, 5, device="cuda")
        add_product(total, grad.T, h)
        assert logits.dtype == matmul(grad, w).dtype == torch.float32
    operations = {name for name, _ in products.seen}
    if half is None:
        assert operations == {"aten.mm.default", "aten.addmm_.default"}
    else:
        assert operations == {"aten.mm.dtype"} and all(types == {half} for _, types in products.seen)


@pytest.mark.parametrize(("temperature", "chunk"), [(0.0, 4), (1.0, 0)])
def test_refuses_impossible_settings(temperature: float, chunk: int) -> None:
    hidden, weight, targets, _ = inputs(torch.float32)
    with pytest.raises(ValueError, match="temperature > 0 and chunk >= 1"):
        token_logprobs_and_entropies(hidden, weight, targets, temperature=temperature, chunk=chunk)


def test_the_matrix_of_tokens_by_vocabulary_is_never_made() -> None:
    hidden, weight = torch.randn(64, 8, requires_grad=True), torch.randn(1000, 8, requires_grad=True)
    with LargestTensor() as seen:
        logprobs, entropies = token_logprobs_and_entropies(hidden, weight, torch.zeros(64, dtype=torch.int64), chunk=4)
        (logprobs + entropies).sum().backward()
    assert seen.numel == 8000  # the weight; logits of 4 tokens are 4,000, of all tokens 64,000


def some_loss(logprobs: Tensor, entropies: Tensor, part: slice) -> Tensor:
    """Of tokens that count differently, in both arguments, not linear in either."""
    weights = torch.linspace(-1, 2, 7, dtype=logprobs.dtype, device=logprobs.device)[part]
    return (weights * logprobs.exp() - 0.3 * entropies.square()).sum()


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_fused_loss_is_the_loss_of_the_plain_scores(chunk: int, temperature: float, device: torch.device) -> None:
    hidden, weight, targets, bias = inputs(torch.float64, device)
    total, logprobs, entropies = token_loss(
        hidden, weight, targets, some_loss, temperature=temperature, bias=bias, chunk=chunk
    )
    expected = plain(hidden, weight, targets, temperature, bias)
    torch.testing.assert_close((logprobs, entropies), expected, atol=1e-12, rtol=0)
    assert not logprobs.requires_grad and not entropies.requires_grad
    loss = some_loss(*expected, slice(None))
    torch.testing.assert_close(total, loss, atol=1e-12, rtol=0)
    wants = (hidden, weight, bias)
    found = torch.autograd.grad(3 * total, wants, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(3 * loss, wants), atol=1e-12, rtol=0)
    with pytest.raises(RuntimeError, match="backward ran already"):
        torch.autograd.grad(total, wants)


def test_fused_loss_of_log_probabilities_alone_with_a_frozen_head() -> None:
    hidden, weight, targets, bias = inputs(torch.float64)
    total, _, _ = token_loss(
        hidden, weight.detach(), targets, lambda lp, h, part: lp.sum(), bias=bias.detach(), chunk=3
    )
    total.backward()
    expected = torch.autograd.grad(plain(hidden, weight, targets, 1.0, bias)[0].sum(), hidden)[0]
    torch.testing.assert_close(hidden.grad, expected, atol=1e-12, rtol=0)
    assert weight.grad is None and bias.grad is None


def test_fused_loss_of_bfloat16_is_computed_in_float32(device: torch.device) -> None:
    hidden, weight, targets, bias = inputs(torch.bfloat16, device)
    wide = [x.detach().float().requires_grad_() for x in (hidden, weight, bias)]
    loss = some_loss(*plain(wide[0], wide[1], targets, 1.0, wide[2]), slice(None))
    expected = torch.autograd.grad(loss, wide)
    total, _, _ = token_loss(hidden, weight, targets, some_loss, bias=bias)
    torch.testing.assert_close(total, loss, atol=2e-5, rtol=0)
    found = torch.autograd.grad(total, (hidden, weight, bias))
    assert [x.dtype for x in found] == [torch.bfloat16] * 3
    torch.testing.assert_close([x.float() for x in found], list(expected), atol=1e-6, rtol=2**-8)


def test_fused_loss_never_makes_the_matrix_of_tokens_by_vocabulary() -> None:
    hidden, weight = torch.randn(64, 8, requires_grad=True), torch.randn(1000, 8, requires_grad=True)
    with LargestTensor() as seen:
        targets = torch.zeros(64, dtype=torch.int64)
        total, _, _ = token_loss(hidden, weight, targets, lambda lp, h, part: (lp + h).sum(), chunk=4)
        total.backward()
    assert seen.numel == 8000  # the weight


def test_a_softmax_in_blocks_is_one_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.models.head.head._BLOCK_BYTES", 4 * 11 * 2)  # two rows at a time
    test_agrees_with_plain_log_softmax_whatever_the_chunk(7, torch.device("cpu"))
    test_fused_loss_is_the_loss_of_the_plain_scores(7, 0.6, torch.device("cpu"))


def test_last_layer_moments_by_hand() -> None:
    # p = (1/4, 3/4), target 1, h = 1, temperature 1: s = (-1/4, 1/4), ||s||² = 1/8; 1 - Σp² = 1 - 1/16 - 9/16 = 3/8.
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [math.log(3)]])
    _, _, found = last_layer_gradients(hidden, weight, torch.tensor([1]))
    assert found.score_norms.item() == pytest.approx(1 / 8, abs=1e-6)
    assert found.expected_score_norms.item() == pytest.approx(3 / 8, abs=1e-6)
    assert found.jacobian_norms.item() == 1.0 and found.gram is None


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_last_layer_gradients_are_autograds(chunk: int, temperature: float) -> None:
    """Each token's gradient with respect to the weight, all their inner products, and the norm of a weighted sum."""
    hidden, weight, targets, bias = inputs(torch.float64)
    settings = {"temperature": temperature, "bias": bias, "chunk": chunk}
    logprobs, entropies, found = last_layer_gradients(hidden, weight, targets, **settings, gram=True)
    expected, expected_entropies = token_logprobs_and_entropies(hidden, weight, targets, **settings)
    assert torch.equal(logprobs, expected) and torch.equal(entropies, expected_entropies)
    gradients = torch.stack(
        [torch.autograd.grad(logp, weight, retain_graph=True)[0].flatten() for logp in expected.unbind()]
    )
    torch.testing.assert_close(found.gram, gradients @ gradients.T, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.second_moments, gradients.square().sum(-1), atol=1e-12, rtol=0)
    weights = torch.linspace(-1, 2, 7, dtype=torch.float64)
    (summed,) = torch.autograd.grad((weights * expected).sum(), weight)
    # 49 terms of 83 in all, each a sum of 55 products: 2^-53 * 83 * (49 + 55) = 1e-12 in each of the two at worst
    torch.testing.assert_close(weights @ found.gram @ weights, summed.square().sum(), atol=2e-12, rtol=0)


def test_mean_score_over_the_vocabulary_is_equation_4() -> None:
    """E_y ||e_y - p||² = 1 - Σp² <= 1 - e^-H, every y enumerated; equality for a uniform p."""
    hidden, weight, _, bias = (tensor.detach() for tensor in inputs(torch.float64))
    weight[:, 0] = 0
    hidden[0], bias[:] = torch.tensor([1.0, 0, 0, 0, 0]), 0  # z = 0: uniform over the 11
    norms, logprobs = [], []
    for y in range(11):
        logprob, entropies, found = last_layer_gradients(hidden, weight, torch.full((7,), y), bias=bias)
        norms.append(found.score_norms)
        logprobs.append(logprob)
    mean = (torch.stack(logprobs).exp() * torch.stack(norms)).sum(0)
    torch.testing.assert_close(found.expected_score_norms, mean, atol=1e-14, rtol=0)
    surrogate = -torch.expm1(-entropies)
    assert mean[0].item() == pytest.approx(10 / 11, abs=1e-14) and surrogate[0].item() == pytest.approx(10 / 11)
    assert (mean[1:] < surrogate[1:]).all()


def test_moments_of_nearly_certain_tokens_are_not_rounding() -> None:
    # Logits (0, 10) in float32: q = 1 / (1 + e^10) = 4.5e-5, so ||s||² = 2 q² = 4.1e-9 for the likely token, far below
    # the 6e-8 to which 1 - 2p + Σp² is rounded; 1 - Σp² = 2 q (1 - q). logp itself is good to 5e-7, a hundredth of q.
    q = 1 / (1 + math.exp(10))
    _, _, found = last_layer_gradients(torch.ones(1, 1), torch.tensor([[0.0], [10.0]]), torch.tensor([1]), gram=True)
    assert found.score_norms.item() == pytest.approx(2 * q**2, rel=0.03)
    assert found.gram.item() == pytest.approx(2 * q**2, rel=0.03)
    assert found.expected_score_norms.item() == pytest.approx(2 * q * (1 - q), rel=0.03)


def test_last_layer_gradients_never_make_the_matrix_of_tokens_by_vocabulary() -> None:
    hidden, weight = torch.randn(64, 8), torch.randn(1000, 8)
    with LargestTensor() as seen:
        last_layer_gradients(hidden, weight, torch.zeros(64, dtype=torch.int64), chunk=4, gram=True)
    assert seen.numel == 8000  # the weight; scores of 62 of the 1,000 entries are 3,968, the Gram matrix 4,096
