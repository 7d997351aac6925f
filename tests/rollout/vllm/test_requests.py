"""What is refused before a request leaves, and what one asks for."""

import pytest
import torch

from src.rollout.engine import SamplingParams
from src.rollout.vllm.requests import check_mode, check_request, completion, sampling_fields

PROMPT = torch.arange(10)


def check(params: SamplingParams, mode: str = "processed_logprobs", prompt: torch.Tensor = PROMPT) -> None:
    check_request([prompt], params, [0], logprobs_mode=mode, max_model_len=300)


@pytest.mark.parametrize(
    ("params", "mode"),
    [
        ({"temperature": 1.0}, "processed_logprobs"),
        ({"temperature": 1.0}, "raw_logprobs"),
        ({"temperature": 0.7}, "processed_logprobs"),
        ({"temperature": 1.0, "top_p": 0.9}, "raw_logprobs"),
        ({"temperature": 1.0, "top_k": 50}, "raw_logprobs"),
        ({"temperature": 0.0, "top_p": 0.9}, "processed_logprobs"),
        ({"temperature": 0.0}, "raw_logprobs"),
    ],
)
def test_sampling_whose_log_probabilities_are_right(params: dict[str, float], mode: str) -> None:
    check(SamplingParams(**params), mode)


@pytest.mark.parametrize(
    ("params", "mode", "message"),
    [
        ({"temperature": 0.7}, "raw_logprobs", r"Set rollout\.logprobs_mode=processed_logprobs"),
        ({"top_p": 0.9}, "processed_logprobs", r"Set rollout\.logprobs_mode=raw_logprobs"),
        ({"temperature": 0.7, "top_k": 5}, "processed_logprobs", r"expected temperature=1, or top_p=1 and top_k=0"),
        ({"temperature": 0.7, "top_p": 0.9}, "raw_logprobs", r"or set rollout=native"),
        ({"temperature": 0.001}, "processed_logprobs", r"sampling\.temperature: .* at least 0\.01, found 0\.001"),
        ({"max_new_tokens": 291}, "processed_logprobs", r"takes 300 in all\. Raise rollout\.max_model_len"),
    ],
)
def test_sampling_that_is_refused(params: dict[str, float], mode: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(SamplingParams(**params), mode)


def test_wrong_prompts_seeds_and_modes() -> None:
    with pytest.raises(ValueError, match="non-empty vector of ids"):
        check(SamplingParams(), prompt=PROMPT[:0])
    with pytest.raises(ValueError, match="one seed for each of 2 prompts, found 1"):
        check_request([PROMPT] * 2, SamplingParams(), [0], logprobs_mode="raw_logprobs", max_model_len=300)
    with pytest.raises(ValueError, match=r"rollout\.logprobs_mode: expected one of"):
        check_mode("logits")


def test_completions_of_two_prompts_share_no_seed() -> None:
    """vLLM gives the i-th completion the request's seed plus i."""
    seeds = [sampling_fields(SamplingParams(n=4), seed)["seed"] + i for seed in (0, 1, 2**56 - 1) for i in range(4)]
    assert len(set(seeds)) == 12
    assert max(seeds) < 2**63
    greedy = sampling_fields(SamplingParams(n=4, temperature=0), 5)
    assert (greedy["n"], greedy["seed"]) == (1, None)


def test_an_aborted_completion_is_an_error() -> None:
    assert completion([1, 2], [-0.5, -1.0], "stop", 3).logprobs.tolist() == [-0.5, -1.0]
    with pytest.raises(RuntimeError, match="ended a completion with 'abort'"):
        completion([1], [-0.5], "abort", 3)
