"""Every causal-LM type of the installed transformers, small and random: what is right for it, measured.

    python -m tests.architectures --write docs/models.md      # make models; about ten minutes
    python -m tests.architectures --kinds qwen3_5 lfm2

Each type is asked for its ways (`config.guard`), and what these give is compared once more, by code of this folder's
own, with the unmodified model on one sequence at a time by its eager attention: log-probabilities and gradient of a row
of ragged groups past every window, and the log-probabilities that the native engine reports for its samples.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from src.algorithm.experience import PromptGroup
from src.algorithm.packing import pack
from src.config.guard import Ways, compare_ways
from src.errors import ConfigError
from src.models.policy import Policy
from src.models.structure import freeze_unused
from src.rollout.engine import SamplingParams
from src.rollout.native.engine import NativeEngine
from tests.architectures.small import KINDS, UNBUILT, VOCABULARY, small_config, small_model
from tests.models.reference import random_group

BAR = 1e-4
"""In nats, and of the gradient's norm."""
GROUPS = [random_group(40, [5, 20, 12], VOCABULARY, 1), random_group(23, [9, 3], VOCABULARY, 2)]
TIMED = [random_group(120, [16] * 8, VOCABULARY, 3)]
SAMPLING = SamplingParams(n=2, max_new_tokens=20)


_HEAD = """\
# Models

Of the {types} causal-LM types of transformers {version}, small and with random weights, **{right} are right**,
{refused} are refused before anything starts, {wrong} are wrong without a word, and {unbuilt} cannot be built from a
small config.
`make models` wrote this page, in float32 on two CPU cores. Each run makes the same comparison at its start, on its own
model in small (`src/config/guard.py`).

- **Rows** (`policy.rows`): `packed`, each prompt computed once for all its completions, or `separate`, once for each.
  *Row* is the largest difference of a log-probability in nats and *gradient* the norm of the gradient's difference over
  the gradient's, both against the unmodified model on one sequence at a time.
- **Cache** (`rollout.cache` of the native engine, which evaluation and chat use too): `shared`, a prompt's keys once
  for all its completions; the model's own, in batches that are `padded` or of one length (`even`); `none`, every token
  computed anew. *Samples* is the largest difference between the log-probabilities that the engine reports and the
  model's. vLLM needs neither.
- **Separate** is the time of a forward and a backward in separate rows over packed ones, 120 tokens of prompt and 8
  completions of 16; small models spend most of it on launching kernels, see docs/performance.md for real sizes.
"""


class Finding(NamedTuple):
    """What was found for a type.

    Attributes:
        kind: the type.
        ways: that are right; None: it is refused.
        row_gap: largest difference of a row's log-probabilities, in nats.
        gradient_gap: norm of the gradient's difference over the gradient's norm.
        engine_gap: largest difference of log-probabilities that the engine reports, in nats; None: no engine.
        slower: time of forward and backward in separate rows over that in packed ones; None: not both are right.
        reason: of a refusal.
    """

    kind: str
    ways: Ways | None
    row_gap: float = 0.0
    gradient_gap: float = 0.0
    engine_gap: float | None = None
    slower: float | None = None
    reason: str = ""

    @property
    def right(self) -> bool:
        """Whether what the run would compute is the model's own."""
        gaps = (self.row_gap, self.gradient_gap, self.engine_gap or 0.0)
        return self.ways is not None and all(gap <= BAR for gap in gaps)


def plain_logprobs(model: PreTrainedModel, prompt: Tensor, completion: Tensor) -> Tensor:
    """Log-probability of each token of a completion, double, of the whole sequence by itself."""
    ids = torch.cat([prompt, completion])
    logits = model(input_ids=ids[None], use_cache=False).logits[0, len(prompt) - 1 : -1].double()
    return logits.log_softmax(-1).gather(1, completion[:, None])[:, 0]


def group_logprobs(model: PreTrainedModel, groups: Sequence[PromptGroup]) -> Tensor:
    """Those of all completions of some groups, end to end."""
    pairs = [(g.prompt_ids, one) for g in groups for one in g.token_ids.split(g.lengths.tolist())]
    return torch.cat([plain_logprobs(model, prompt, one) for prompt, one in pairs])


def gradient(model: PreTrainedModel, logprobs: Tensor) -> Tensor:
    """Of a sum in which every token counts differently; all parameters end to end, double."""
    weights = torch.randn(len(logprobs), generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    (weights * logprobs).sum().backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters() if p.requires_grad]
    return torch.cat([grad.flatten().double() for grad in grads])


def examine(kind: str) -> Finding:
    """What is right for a type, measured."""
    try:
        ways = compare_ways(small_model(small_config(kind)))
    except ConfigError as error:
        return Finding(kind, None, reason=str(error))
    model = small_model(small_config(kind))
    freeze_unused(model)
    model.set_attn_implementation("eager")
    expected = group_logprobs(model, GROUPS)
    expected_gradient = gradient(model, expected)
    found = Policy(model, rows=ways.rows).eval()(pack(GROUPS)).logprobs
    difference = (gradient(model, found) - expected_gradient).norm() / expected_gradient.norm()
    row_gap = (found.double() - expected).abs().max()
    return Finding(kind, ways, float(row_gap), float(difference), engine_gap(kind, ways), time_ratio(kind, ways))


def engine_gap(kind: str, ways: Ways) -> float | None:
    """Largest difference between what the engine reports and the model says of its samples."""
    if ways.cache is None:
        return None
    model = small_model(small_config(kind))
    prompts = [group.prompt_ids for group in GROUPS]
    sampled = NativeEngine(model, cache=ways.cache).generate(prompts, SAMPLING, [5, 6])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        gaps = [
            (one.logprobs.double() - plain_logprobs(model, prompt, one.token_ids)).abs().max()
            for prompt, completions in zip(prompts, sampled, strict=True)
            for one in completions
        ]
    return float(torch.stack(gaps).max())


def time_ratio(kind: str, ways: Ways) -> float | None:
    """Forward and backward in separate rows over packed ones, turn by turn; the best of five each."""
    if ways.rows == "separate":
        return None
    packed = Policy(small_model(small_config(kind)))
    separate = Policy(small_model(small_config(kind)), rows="separate")
    runs = [
        [_seconds(lambda p=policy: p(pack(TIMED)).logprobs.sum().backward()) for policy in (packed, separate)]
        for _ in range(6)
    ][1:]
    return min(b for _, b in runs) / min(a for a, _ in runs)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def page(findings: Sequence[Finding]) -> Iterator[str]:
    """The lines of docs/models.md."""
    right = [one for one in findings if one.right]
    wrong = [one for one in findings if one.ways is not None and not one.right]
    yield _HEAD.format(
        types=len(KINDS) + len(UNBUILT),
        version=transformers.__version__,
        right=len(right),
        refused=sum(one.ways is None for one in findings),
        wrong=len(wrong),
        unbuilt=len(UNBUILT),
    )
    yield "| type | rows | row | gradient | cache | samples | separate |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for one in findings:
        if one.ways is not None:
            samples = "–" if one.engine_gap is None else f"{one.engine_gap:.0e}"
            slower = "–" if one.slower is None else f"{one.slower:.1f}"
            cache = one.ways.cache or "vLLM only"
            mark = "" if one.right else " **wrong**"
            gaps = f"{one.row_gap:.0e} | {one.gradient_gap:.0e}"
            yield f"| {one.kind}{mark} | {one.ways.rows} | {gaps} | {cache} | {samples} | {slower} |"
    yield ""
    yield "## Refused"
    yield ""
    yield "| type | why |"
    yield "| --- | --- |"
    for one in findings:
        if one.ways is None:
            reason = one.reason.partition(f"'{one.kind}'")[2]
            for advice in (" Choose a model such as", " Are the values of config.json", " Are they the published"):
                reason = reason.partition(advice)[0]
            yield f"| {one.kind} | {reason.strip(' :').replace('|', '/') or one.reason} |"
    yield ""
    yield "## Not built"
    yield ""
    yield "| type | why |"
    yield "| --- | --- |"
    for kind, why in UNBUILT.items():
        yield f"| {kind} | {why} |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    findings = []
    for kind in given.kinds:
        findings.append(examine(kind))
        sys.stdout.write(f"{findings[-1]}\n")
        sys.stdout.flush()
    lines = "\n".join(page(findings)) + "\n"
    if given.write:
        given.write.write_text(lines, encoding="utf-8")
    else:
        sys.stdout.write(lines)
    if any(one.ways is not None and not one.right for one in findings):
        raise SystemExit("some types are wrong without a word")


if __name__ == "__main__":
    main()
