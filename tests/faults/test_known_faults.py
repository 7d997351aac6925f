"""Faults that other trainers shipped, silently, each with the test that keeps it out of this one.

A test names the public issue, and holds the wrong value beside the right one. None is left out as impossible: where
the design keeps one out (sampled ids are never tokenised again, chat templates are never repaired, rewards are given
parsed answers), its test holds the design to that. `tests.rollout.test_episodes` compares whole prompts with every
template's own, and `tests.vllm` has the like of the sampler's faults for vLLM.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from src.algorithm.advantages import group_advantages, turn_advantages
from src.algorithm.packing import pack
from src.algorithm.policy_loss import LossCounts, LossInputs, PolicyLoss, PolicyLossConfig
from src.callbacks.health import Health
from src.data.rendering import PromptRenderer, RenderedPrompt
from src.data.sources.messages import MessagesSource
from src.data.templates.native import openai_messages, openai_tool
from src.environments.answers import Result
from src.environments.protocol import EpisodeScore
from src.environments.python import PythonEnvironment
from src.environments.tasks import TaskSource
from src.environments.tool_episode import ToolEpisode
from src.models.loading.loading import PolicyConfig, load_model, load_policy
from src.models.loading.lora import LoraSettings
from src.protocol.dialogue import Message, ToolCall
from src.protocol.formats.rest import parse, step_text
from src.protocol.token_bytes import TokenBytes
from src.protocol.types import Region
from src.rollout.collect import ScoredGroup
from src.rollout.engine import SamplingParams
from src.rollout.episodes import EpisodeCollector
from src.rollout.history import History, tree_of_histories
from src.rollout.native.engine import NativeEngine
from src.rollout.native.sampling import sample_tokens
from src.rollout.probe import EngineMismatchError
from src.rollout.vllm.requests import check_request
from src.train import train
from src.training import sampler as sampler_module
from src.training.ranks import Ranks
from src.training.sampler import Probe, Sampler
from src.training.step import RolloutStep
from tests.conftest import HARDLY_VALIDATED, SMALL, train_config
from tests.data.templates.test_native import template, tokenizer  # noqa: F401  # a fixture
from tests.environments.test_generated import DONE, FOLLOW, LOOK, call, score
from tests.models.reference import perturb_adapters
from tests.protocol.conftest import smollm2  # noqa: F401  # a fixture
from tests.rollout.test_episodes import OPENING, RESULT, TOOLS, Forced, Scripted, ids_of, player
from tests.rollout.test_history import packed
from tests.training.fakes import Told, group

CALL = Message("assistant", calls=(ToolCall("find_city", {"name": "Oslo"}),))
TOOLS_IN_PYTHON = Path(__file__).parents[1] / "environments/python_tools.py"


@dataclass
class Paying:
    """A connection that pays for every result, and returns always the same one."""

    result: str = "717710"
    pays: float = 0.5
    lost: str = ""
    hidden: Sequence[str] = ()

    def run(self, calls: Sequence[ToolCall]) -> list[Result]:
        return [Result(self.result) for _ in calls]

    def reward(self, history: Sequence[Message]) -> float:
        return self.pays * sum(message.role == "observation" for message in history)

    def close(self) -> None: ...


class WithTools(Scripted):
    """Plays `ToolEpisode`s over `Paying`."""

    def start(self, task: object, seed: int) -> ToolEpisode:
        return ToolEpisode(TOOLS, OPENING, Paying(), result_limit=200, turn_rewards=True, success_at=1.0)


def renderer_of(name: str, tokenizer: PreTrainedTokenizerBase) -> PromptRenderer:  # noqa: F811
    tokenizer.chat_template = template(name)
    return PromptRenderer(tokenizer, layout="native", date="2026-11-30")


def call_of(renderer: PromptRenderer) -> Message:
    """A call with a thought where the template has them."""
    return replace(CALL, thought="Look." if renderer.template.thinks else "")


def played(
    environment: Scripted, answers: Sequence[Sequence[Tensor]], renderer: PromptRenderer
) -> tuple[Forced, RenderedPrompt, ScoredGroup]:
    """Episodes of the one task, one for each of the first answers, as they are trained."""
    (prompt,) = renderer.render_all(TaskSource(environment).load("train"))
    engine = Forced(answers)
    collector = EpisodeCollector(player(environment, engine, renderer), TokenBytes.from_tokenizer(renderer.tokenizer))
    (found,) = collector.collect([prompt], SamplingParams(n=len(answers[0])), seed=1, rollout_step=0, progress=0.0)
    return engine, prompt, found


def histories(found: ScoredGroup) -> list[History]:
    return [item.episode.history for item in found.completions if item.episode is not None]


def test_sampled_ids_are_not_tokenised_again(tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: F811
    """TRL#5224, verl#6719. The policy wrote "Oslo" letter by letter; its text tokenised again has fewer ids."""
    renderer = renderer_of("qwen2_5", tokenizer)
    letters = torch.cat([*(ids_of(renderer, letter)[0][:-1] for letter in "Oslo"), ids_of(renderer, "")[0]])
    engine, prompt, found = played(Scripted({"a": [RESULT]}), [[letters], ids_of(renderer, "Done.")], renderer)
    before, asked = len(prompt.prompt_ids), engine.asked[1][0]
    assert asked[before : before + 5].tolist() == letters.tolist()
    again = torch.tensor(tokenizer(tokenizer.decode(asked), add_special_tokens=False)["input_ids"])
    assert len(again) < len(asked) and again[before : before + 3].tolist() == ids_of(renderer, "Oslo")[0].tolist()
    experience = found.to_experience("dr_grpo", 0.0)
    assert experience.token_ids[:5].tolist() == letters.tolist()


def test_a_mask_is_as_long_as_its_ids_where_a_history_gets_shorter() -> None:
    """TRL#5144. The ids 10 11 12 were sampled behind 1 2; what follows is written as 10 93, one id less.

    The completion that the last answer ends is 10 93 13. A mask that is only appended to has three ones of the first
    answer, nothing for the -1 ids of the observation, and a one: 4 for 3 ids.
    """
    history = History(torch.tensor([1, 2]))
    history.append([10, 11, 12], sampled=True)
    history.rewrite([1, 2, 10, 93])
    history.append([13], sampled=True)
    completion = history.ids[2:].tolist()
    assert completion == [10, 93, 13] and len([1] * 3 + [0] * (2 - 3) + [1]) == 4
    _, tree = tree_of_histories(torch.tensor([1, 2]), [history])
    assert tree.token_ids.tolist() == [10, 11, 12, 93, 13]
    assert tree.sampled.tolist() == [True, True, True, False, True]
    assert tree.sizes.tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    ("name", "border"),
    [
        *((name, "<|im_end|>\n<|im_start|>user\n<tool_response>") for name in ("qwen2_5", "qwen3", "qwen3_6")),
        ("nemotron_3_nano", "<|im_end|>\n<|im_start|>user\n<tool_response>"),
        ("llama3_1", "<|eot_id|><|start_header_id|>ipython<|end_header_id|>"),
        ("gptoss", "<|call|><|start|>functions.find_city to=assistant"),
    ],
)
def test_the_separator_between_a_call_and_its_result_is_kept(
    name: str,
    border: str,
    tokenizer: PreTrainedTokenizerBase,  # noqa: F811
) -> None:
    """verl PR#6921. Models stop at the token that ends their answer; the line break that some templates write behind it
    is not lost, as it is where the tool's message is rendered alone: <|im_end|><|im_start|>.
    """
    renderer = renderer_of(name, tokenizer)
    called, seen = call_of(renderer), Message("observation", "717710", name="find_city")
    environment = Scripted({"a": [(seen,)]})
    (example,) = TaskSource(environment).load("train")
    target = renderer.render_target(replace(example, target=called))
    engine, prompt, _ = played(environment, [[target], [target]], renderer)
    whole = tokenizer.apply_chat_template(
        openai_messages([*OPENING, called, seen]),
        tools=[openai_tool(tool) for tool in TOOLS],
        tokenize=False,
        add_generation_prompt=True,
        strftime_now=datetime(2026, 11, 30).strftime,
    )
    text = tokenizer.decode(engine.asked[1][0])
    assert text == whole and border in text[len(tokenizer.decode(prompt.prompt_ids)) :]
    assert "<|im_end|><|im_start|>" not in text


def test_an_answer_is_trained_behind_its_thought_and_the_next_behind_what_the_template_left_of_it(
    tokenizer: PreTrainedTokenizerBase,  # noqa: F811
) -> None:
    """verl#6854, prime-rl#1334. Qwen3's template leaves a thought out once the user speaks again.

    Appending would show the policy a prompt that no server writes. Training the last history alone would lose the
    thought's tokens, or train the first answer behind a prompt that it was not sampled behind.
    """
    renderer = renderer_of("qwen3", tokenizer)
    first, second = ids_of(renderer, "<think>\nLook.\n</think>\n\nOslo has many.", "Rome, too.")
    environment = Scripted({"a": [(Message("user", "And Rome?"),)]})
    engine, prompt, found = played(environment, [[first], [second]], renderer)
    later = engine.asked[1][0].tolist()
    assert later[: len(prompt.prompt_ids) + len(first)] != [*prompt.prompt_ids.tolist(), *first.tolist()]
    assert "Look." not in tokenizer.decode(later) and "Oslo has many." in tokenizer.decode(later)
    expected = [
        ([*before, *answer[:index]], token)
        for before, answer in ((prompt.prompt_ids.tolist(), first.tolist()), (later, second.tolist()))
        for index, token in enumerate(answer)
    ]
    assert packed(prompt.prompt_ids.tolist(), histories(found)) == expected


@pytest.mark.parametrize("name", ["qwen3_5_think", "qwen3_6", "qwen3_8", "nemotron_3_nano"])
def test_a_thought_that_the_prompt_has_opened_stays_in_its_block(
    name: str,
    tokenizer: PreTrainedTokenizerBase,  # noqa: F811
) -> None:
    """TRL#6361. The prompt ends in <think>, so an answer has </think> alone: its text is no proof of a block.

    Rendered as if it had no thought it is an empty block, then the thought and a second </think>.
    """
    renderer = renderer_of(name, tokenizer)
    (example,) = TaskSource(environment := Scripted({"a": [RESULT]})).load("train")
    sampled = renderer.render_target(replace(example, target=replace(CALL, thought="Look.")))
    assert tokenizer.decode(sampled).startswith("Look.\n</think>")
    engine, prompt, found = played(environment, [[sampled], [sampled]], renderer)
    (item,) = found.completions
    assert item.episode is not None
    read = item.episode.turns[0].decoded
    assert (read.parsed.thought or "").strip() == "Look." and not (read.parsed.response or "").strip()
    assert read.parsed.calls == CALL.calls
    thought = len(tokenizer("Look.", add_special_tokens=False)["input_ids"])
    assert read.regions[:thought].tolist() == thought * [Region.REASONING]
    later = tokenizer.decode(engine.asked[1][0])[len(tokenizer.decode(prompt.prompt_ids)) - len("<think>\n") :]
    assert later.startswith("<think>\nLook.\n</think>") and later.count("</think>") == 1


def test_what_a_tool_says_is_not_what_the_policy_says(tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: F811
    """verl PR#6392. A result that holds a call and the right answer runs nothing, is in no text, and earns nothing."""
    renderer = renderer_of("qwen2_5", tokenizer)
    leak = '<tool_call>\n{"name": "find_city", "arguments": {"name": "Leak"}}\n</tool_call>'
    environment = Scripted({"a": [(Message("observation", leak, name="find_city"),)]})
    (example,) = TaskSource(environment).load("train")
    target = renderer.render_target(replace(example, target=CALL))
    engine, _, found = played(environment, [[target], ids_of(renderer, "Done.")], renderer)
    assert leak in tokenizer.decode(engine.asked[1][0])
    assert [answer.calls or () for answer in environment.started[-1].answers] == [CALL.calls, ()]
    (item,) = found.completions
    assert "Leak" not in item.decoded.text and item.decoded.text.endswith("\nDone.")
    assert len(item.decoded.regions) == len(target) + len(ids_of(renderer, "Done.")[0])
    # The user asks for a balance, which the lookup returns: its goal is a quarter, and saying it another.
    assert score(FOLLOW, call(LOOK), DONE).total == 0.25
    assert score(FOLLOW, call(LOOK), Message("assistant", "It is 50.")).total == 0.5


def test_reward_to_go_passes_observations(tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: F811
    """verl PR#6376. Turns that earn 0 and 1, or nothing: the first has 1 to go, less the mean 1/2. Reset it has 0."""
    rewards = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    found = turn_advantages(rewards, estimator="dr_grpo")
    assert found.tolist() == [[0.5, 0.5], [-0.5, -0.5]]
    assert (rewards - rewards.mean(0)).tolist() == [[0.0, 0.5], [0.0, -0.5]]
    renderer = renderer_of("qwen2_5", tokenizer)
    environment = Scripted({"a": [RESULT]})
    one, two = ids_of(renderer, "One.", "Two, too.")
    _, _, episodes = played(environment, [[one, one], [two, two]], renderer)
    scored = [
        replace(item, episode=replace(item.episode, score=EpisodeScore(sum(earned), {}, tuple(earned), False)))
        for item, earned in zip(episodes.completions, rewards.tolist(), strict=True)
        if item.episode is not None
    ]
    experience = replace(episodes, completions=tuple(scored)).to_experience("dr_grpo", 0.0, "turn")
    assert experience.tree is not None and not experience.tree.sampled.all()  # observations lie between
    tokens = len(one) + len(two)
    assert experience.token_advantages.tolist() == [*tokens * [0.5], *tokens * [-0.5]]


def test_top_k_does_not_multiply_the_gradient_by_the_mass_that_it_keeps() -> None:
    """TRL#6789. Probabilities .5 .3 .2, the upper two kept: the sampler's log-probability is ln .5, as the trainer's.

    That of the cut distribution is ln .5/.8. Corrected for it, the gradient is .8 of what it should be.
    """
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    tokens, sampled, _ = sample_tokens(logits, torch.tensor([0.0], dtype=torch.float64), SamplingParams(top_k=2))
    assert tokens.tolist() == [0] and sampled.exp().item() == pytest.approx(0.5, abs=1e-6)
    gradients, gaps = [], []
    for rollout in (sampled, sampled - math.log(0.8)):
        given = replace(group([[0]], [1.0]), old_logprobs=torch.tensor([0.5]).log(), rollout_logprobs=rollout)
        loss = PolicyLoss(LossInputs.of([given]), PolicyLossConfig(importance_cap=2.0), LossCounts.of([given]))
        logprobs = torch.tensor([0.5]).log().requires_grad_()
        gradients.append(torch.autograd.grad(loss(logprobs, torch.zeros(1)), logprobs)[0].item())
        gaps.append(loss.metrics(logprobs.detach(), torch.zeros(1)).means()["sampler_gap"])
    assert gradients == pytest.approx([-1.0, -0.8], abs=1e-6)
    assert gaps == pytest.approx([0.0, -math.log(0.8)], abs=1e-6)
    with pytest.raises(ValueError, match=r"Set rollout\.logprobs_mode=raw_logprobs"):  # those of the cut distribution
        mode = {"logprobs_mode": "processed_logprobs", "max_model_len": 300}
        check_request([tokens], SamplingParams(top_k=2), [0], **mode)


def test_adapters_reach_the_sampler(random_policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """verl#7495. An engine that is handed the layers under the adapters takes them, and samples from the start."""
    lora = LoraSettings(rank=2, alpha=6)
    policy = load_policy(PolicyConfig(path=random_policy, dtype="float32", lora=lora)).policy.eval()
    plain = load_model(PolicyConfig(path=random_policy, dtype="float32"))
    start = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    perturb_adapters(policy.model)
    engine = NativeEngine(plain, owns_model=True)
    collector = SimpleNamespace()  # asked for nothing
    sampler = Sampler(engine, collector, SamplingParams(), 10, 1, Ranks(), Probe(), Told())
    prompt = SimpleNamespace(prompt_ids=torch.arange(3, 12))

    @torch.no_grad()
    def sync(step: int) -> None:
        sampler.sync(policy, step, lambda: prompt, lambda probe: policy(pack([probe])).logprobs)

    sync(0)
    assert sampler.probed["engine/gap"] < 1e-4
    name = "model.layers.0.self_attn.q_proj"
    layer = policy.model.get_submodule(name)
    update = 6 / 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(plain.state_dict()[f"{name}.weight"], start[f"{name}.weight"] + update)
    assert update.abs().max() > 0.1
    monkeypatch.setattr(sampler_module, "merged_named_tensors", lambda *_: iter(start.items()))
    with pytest.raises(EngineMismatchError, match=r"rollout step 1: .* samples from other weights"):
        sync(1)


def test_the_gap_does_not_grow_where_nothing_is_learnt(random_policy: Path, tmp_path: Path) -> None:
    """open-instruct#1473. At a learning rate that changes no weight the gap is rounding at every step.

    A rate of 0 is refused; 1e-30 is below half a last place of all weights but those that are 0 (of the padding token).
    """
    settings = ("optimizer.learning_rate=1.0e-30", "optimizer.warmup_steps=0", "updates.passes=2")
    steps = ("updates.rollout_steps=3", "trainer.val_check_interval=3", "rollout.owns_model=true", "sampling.n=4")
    reward = "reward._target_=tests.models.even_reward.EvenReward"
    train(train_config(tmp_path, *SMALL, *HARDLY_VALIDATED, *settings, *steps, reward, f"policy.path={random_policy}"))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rollouts = [line for line in lines if line["event"] == "rollout_step"]
    assert len(rollouts) == 3 and all(line["train/grad_norm"] > 0 for line in rollouts)
    assert max(line["train/sampler_gap_max"] for line in rollouts) < 1e-5
    assert max(line["engine/gap"] for line in rollouts) < 1e-5
    found = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for name, tensor in load_file(random_policy / "model.safetensors").items():
        torch.testing.assert_close(found[f"policy.model.{name}"], tensor, atol=1e-28, rtol=0)


def by_turn_index(rewards: Tensor, going: Tensor) -> Tensor:
    """Reward-to-go less its mean over the episodes that are still going at that turn."""
    to_go = rewards.flip(-1).cumsum(-1).flip(-1)
    return (to_go - (to_go * going).sum(0) / going.sum(0).clamp(min=1)) * going


def test_turn_credit_is_unbiased_where_the_policy_decides_when_to_stop() -> None:
    """prime-rl#3282, verl#7244. The expected gradient over all pairs of episodes of a policy that can be written down.

    At its first turn the policy goes on with probability 1/2 and earns 0.2, or stops with 0.5; at a second turn it
    earns 1 with probability 1/2, or nothing. J = (1 - p) 0.5 + p (0.2 + q), and with p and q sigmoids of θ₁ and θ₂:
    dJ/dθ₁ = p (1 - p) (q - 0.3) = 0.05, dJ/dθ₂ = p q (1 - q) = 0.125. Ours is (G - 1) / G = 1/2 of that. A mean over
    those that still go on leaves nothing to a lone one: the second turn gets P(the other goes on) = 1/2 of its share.
    """
    episodes = [  # probability, rewards of the turns, d log π / dθ of each turn, turns that there are
        (0.5, [0.5, 0.0], [[-0.5, 0.0], [0.0, 0.0]], [1.0, 0.0]),
        (0.25, [0.2, 1.0], [[0.5, 0.0], [0.0, 0.5]], [1.0, 1.0]),
        (0.25, [0.2, 0.0], [[0.5, 0.0], [0.0, -0.5]], [1.0, 1.0]),
    ]
    ours, by_index = torch.zeros(2), torch.zeros(2)
    for pair in product(episodes, repeat=2):
        chance = pair[0][0] * pair[1][0]
        rewards, scores, going = (torch.tensor([one[index] for one in pair]) for index in (1, 2, 3))
        for total, advantages in (
            (ours, turn_advantages(rewards, estimator="dr_grpo") * going),
            (by_index, by_turn_index(rewards, going)),
        ):
            total += chance * (advantages[..., None] * scores).sum((0, 1)) / 2
    torch.testing.assert_close(ours, torch.tensor([0.05, 0.125]) / 2)
    torch.testing.assert_close(by_index, torch.tensor([0.025, 0.03125]))


def one_calls_and_one_answers(tokenizer: PreTrainedTokenizerBase) -> tuple[ScoredGroup, Tensor, Tensor]:  # noqa: F811
    """Two episodes, of which the first calls a tool before it answers; the ids of the call and of the answer."""
    renderer = renderer_of("qwen2_5", tokenizer)
    environment = WithTools({"a": []})
    (example,) = TaskSource(environment).load("train")
    calls = renderer.render_target(replace(example, target=CALL))
    (said,) = ids_of(renderer, "Done.")
    _, _, found = played(environment, [[calls, said], [said]], renderer)
    return found, calls, said


def test_what_tools_pay_is_the_reward(tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: F811
    """verl#3525. One episode calls a tool, which pays 0.5, and then answers; the other answers at once.

    To go: [0.5, 0] and [0, 0], means 0.25 and 0. With the tools' pay dropped both earn 0, and nothing is learnt.
    """
    found, calls, said = one_calls_and_one_answers(tokenizer)
    assert found.rewards.tolist() == [0.5, 0.0] and found.teaches
    assert [item.metrics().get("reward/environment") for item in found.completions] == [0.5, 0.0]
    credit = found.to_experience("dr_grpo", 0.0, "turn").token_advantages.tolist()
    assert credit == [*len(calls) * [0.25], *len(said) * [0.0], *len(said) * [-0.25]]


def broken_calls(text: str, end: str) -> Iterator[str]:
    """A call that ends within its arguments, and for formats in JSON one whose arguments are text."""
    yield text[: text.index("Oslo") + 2] + end
    if '{"name": "Oslo"}' in text:
        yield text.replace('{"name": "Oslo"}', json.dumps(json.dumps({"name": "Oslo"})))


@pytest.mark.parametrize("name", ["qwen3", "qwen3_6", "llama3_2", "gptoss"])  # one of each format
def test_a_malformed_argument_is_answered_and_the_rollout_goes_on(
    name: str,
    tokenizer: PreTrainedTokenizerBase,  # noqa: F811
) -> None:
    """verifiers#1763. The policy reads what is wrong in place of a result; the other episode is played as ever."""
    renderer = renderer_of(name, tokenizer)
    environment = WithTools({"a": []})
    (example,) = TaskSource(environment).load("train")
    good = renderer.render_target(replace(example, target=call_of(renderer)))
    for text in broken_calls(tokenizer.decode(good), tokenizer.decode(good[-1:])):
        broken = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
        said = ids_of(renderer, "Done.")[0]
        engine, _, found = played(environment, [[broken, good], [said]], renderer)
        episodes = [item.episode for item in found.completions if item.episode is not None]
        assert [(one.ending, len(one.turns)) for one in episodes] == [("done", 2), ("done", 2)]
        assert sum(episodes[0].counts.values()) == 1 and not episodes[1].counts
        assert "Error: " in tokenizer.decode(engine.asked[1][0]) and "717710" in tokenizer.decode(engine.asked[1][1])


def test_a_policy_that_stops_calling_tools_raises_an_alarm(tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: F811
    """gem#39. The share of episodes with a call rises to 0.8 and falls to 0.1 while the reward rises.

    Means over 5 steps: 0.4 at first, 0.8 at the highest, then 0.66, 0.52, 0.38, 0.24 and 0.1, the first below a fifth.
    """
    found, *_ = one_calls_and_one_answers(tokenizer)
    assert [item.metrics()["response/with_call"] for item in found.completions] == [1.0, 0.0]
    shares = [*5 * [0.4], *5 * [0.8], *5 * [0.1]]
    health, trainer = Health(), SimpleNamespace(callbacks=[], lightning_module=None)
    counts = []
    for index, share in enumerate(shares):
        metrics = {"response/with_call": share, "reward/total": index / 10, "train/entropy": 1.0}
        step = RolloutStep(index, [], [], [], metrics)
        health.on_rollout_step_end(trainer, trainer.lightning_module, step)
        counts.append(step.metrics["health/fewer_calls_steps"])
    assert counts == [*14 * [0.0], 1.0]


def test_groups_that_teach_nothing_stay_in_the_denominator() -> None:
    """TRL#6367. Eq. 19 is a mean over all sequences: 2 of 4 teach, so each token has 1/4 of its advantage, not 1/2.

    That is the paper's, on purpose; `algorithm.resample_rounds` draws other prompts in their place.
    """
    groups = []
    for rewards in (torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0])):
        advantages = group_advantages(rewards, delta=0.0).tolist()
        groups.append(replace(group([[0], [1]], advantages), old_logprobs=torch.full((2,), -1.0)))
    assert [one.advantages.tolist() for one in groups] == [[1.0, -1.0], [0.0, 0.0]]
    gradients = []
    for counted in (groups, groups[:1]):
        logprobs = torch.full((4,), -1.0, requires_grad=True)
        loss = PolicyLoss(LossInputs.of(groups), PolicyLossConfig(), LossCounts.of(counted))
        gradients.append(torch.autograd.grad(loss(logprobs, torch.zeros(4)), logprobs)[0].tolist())
    assert gradients == [[-0.25, 0.25, 0.0, 0.0], [-0.5, 0.5, 0.0, 0.0]]


def test_parameters_that_arrow_filled_in_are_no_parameters(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,  # noqa: F811
) -> None:
    """TRL#5118. A column of tools has one type: Arrow gives each tool the parameters of all, as null."""

    def tool(name: str, parameter: str) -> dict[str, object]:
        schema = {"type": "object", "properties": {parameter: {"type": "string", "description": "Of it."}}}
        return {"type": "function", "function": {"name": name, "description": "Finds.", "parameters": schema}}

    said = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    table = pa.Table.from_pylist([{"messages": said, "tools": [tool("weather", "city"), tool("stock", "ticker")]}])
    parquet.write_table(table, tmp_path / "train.parquet")
    filled = table.to_pylist()[0]["tools"][0]["function"]["parameters"]["properties"]
    assert filled == {"city": {"type": "string", "description": "Of it."}, "ticker": None}
    (example,) = MessagesSource(path=str(tmp_path)).load("train")
    assert [list(one.parameters) for one in example.tools] == [["city"], ["ticker"]]
    prompt = tokenizer.decode(renderer_of("qwen3", tokenizer).render(example).prompt_ids)
    assert "null" not in prompt and json.dumps(tool("weather", "city")) in prompt


def test_close_is_not_a_tool(tmp_path: Path) -> None:
    """open-range PR#353. `close` is public and has a docstring, as tools have; the policy may not end its world."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Buy tea.", "stock": {"tea": 2}}')
    environment = PythonEnvironment(f"{TOOLS_IN_PYTHON}:Shop", str(tmp_path / "rows.jsonl"))
    assert "close" not in [tool.name for tool in environment.tools]
    episode = environment.start(environment.tasks("train")[0], seed=0)
    calls = (ToolCall("close", {}), ToolCall("add", {"item": "tea"}))
    episode.act(parse(step_text(Message("assistant", calls=calls))))
    assert [one.text for one in episode.observe()][-2:] == [
        "Error: there is no tool 'close'. The tools are: add, dice, ship.",
        '["tea"]',
    ]
    episode.close()
    environment.close()
