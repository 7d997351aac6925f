"""Benchmarks during training: at the start, every N rollout steps and at the end, with the policy of that moment.

Nothing of the training depends on it: answers are greedy and draw no random number, and only the scores are kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from lightning import LightningModule, Trainer

from src.errors import ConfigError
from src.training.step import RolloutCallback, RolloutStep, Training, rollout_callbacks
from src.wings.evaluation.answering import EngineGenerate
from src.wings.evaluation.benchmark import UNPARSED, Benchmark, EvalReport, Ranks, Subset, prepared
from src.wings.evaluation.evaluation_folder import RecordStore

log = logging.getLogger(__name__)


class BenchmarkCallback(RolloutCallback):
    """Runs benchmarks at fixed rollout steps.

    Scores are logged as `<benchmark>/<score>`, numbers of unparsed answers as `<benchmark>/unparsed/<category>`.

    Args:
        benchmarks: name -> benchmark; null entries are left out.
        every_n_rollout_steps: rollout steps between two evaluations.
        at_start: also before the first rollout step.
        at_end: also after the last.
        subset: samples of each benchmark, a seeded choice stratified by category; None: all.
        seed: of that choice.
        max_new_tokens: longest answer.
        context: most tokens of prompt and answer together; None: as many as the engine takes.
        batch_size: prompts that go to the rollout engine at once.
        folder: `<folder>/<benchmark>/step_<rollout step>.jsonl` gets the samples' records; None: they are not kept.

    Attributes:
        latest: scores of the last evaluation; empty before the first.
        first: scores of the evaluation at the start; empty without one.

    Raises:
        ValueError: an interval or size below 1.
    """

    def __init__(
        self,
        benchmarks: Mapping[str, Benchmark | None],
        every_n_rollout_steps: int,
        *,
        at_start: bool = True,
        at_end: bool = True,
        subset: int | None = None,
        seed: int = 0,
        max_new_tokens: int = 2048,
        context: int | None = None,
        batch_size: int = 256,
        folder: str | None = None,
    ) -> None:
        if every_n_rollout_steps < 1:
            raise ConfigError(
                f"callbacks.benchmark.every_n_rollout_steps: expected at least 1, found {every_n_rollout_steps}."
            )
        for name, value in (("subset", subset), ("context", context), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise ConfigError(f"callbacks.benchmark.{name}: expected at least 1, found {value}.")
        self._benchmarks = [benchmark for benchmark in benchmarks.values() if benchmark is not None]
        self._every = every_n_rollout_steps
        self._at_start, self._at_end = at_start, at_end
        self._subset = None if subset is None else Subset(subset, seed)
        self._max_new_tokens, self._context, self._batch_size = max_new_tokens, context, batch_size
        self._folder = None if folder is None else Path(folder)
        self.first: dict[str, float] = {}
        self.latest: dict[str, float] = {}

    def prepare(self, *, anew: bool) -> None:
        """Read all benchmarks' data, before anything expensive starts.

        Raises:
            BenchmarkDataError: data is missing, and the benchmark's `on_missing` does not say to skip it.
        """
        self._benchmarks = prepared(self._benchmarks)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the policy that training starts from (by now the engine has its weights)."""
        module = cast(Training, pl_module)
        if self._at_start and module.rollout_step == 0:
            self.first = self._evaluate(trainer, module)

    def on_rollout_step_end(self, trainer: Trainer, module: Training, step: RolloutStep) -> None:
        """Evaluate when a step is due."""
        last = module.rollout_step >= module.updates.rollout_steps
        if (last and self._at_end) or (not last and module.rollout_step % self._every == 0):
            scores = self._evaluate(trainer, module)
            module.log_dict(scores, logger=False, batch_size=1)  # for what monitors callback_metrics

    def scores(self) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """Of the evaluations at the start and at the end."""
        return self.first, self.latest

    def state_dict(self) -> dict[str, dict[str, float]]:
        """The scores, for the summary of a resumed run."""
        return {"first": self.first, "latest": self.latest}

    def load_state_dict(self, state_dict: dict[str, dict[str, float]]) -> None:
        """Take such scores."""
        self.first, self.latest = dict(state_dict["first"]), dict(state_dict["latest"])

    def _evaluate(self, trainer: Trainer, module: Training) -> dict[str, float]:
        """Scores of all benchmarks, on every rank alike, logged against the rollout step."""
        if not self._benchmarks:
            return {}
        generate = EngineGenerate(
            module.sampler.engine,
            trainer.datamodule.renderer,  # type: ignore[attr-defined]
            module.sampler.collector.table,
            module.sampler.params.stop_token_ids,
            max_new_tokens=self._max_new_tokens,
            context=self._context,
            batch_size=self._batch_size,
        )
        scores: dict[str, float] = {}
        for benchmark in self._benchmarks:
            started = time.monotonic()
            report = benchmark.run(generate, subset=self._subset, ranks=shares_of(module))
            scores |= {f"{report.name}/{key}": value for key, value in report.scores.items()}
            unparsed = {key: count for key, count in report.counts.items() if key.startswith(f"{UNPARSED}/")}
            scores |= {f"{report.name}/{key}": float(count) for key, count in unparsed.items()}
            scores[f"{report.name}/seconds"] = time.monotonic() - started
            if trainer.is_global_zero:
                self._keep(report, module.rollout_step)
        for logger in trainer.loggers:
            logger.log_metrics(scores, step=module.rollout_step)
        self.latest = scores
        for callback in rollout_callbacks(trainer):
            callback.on_benchmark(trainer, module, scores)
        return scores

    def _keep(self, report: EvalReport, rollout_step: int) -> None:
        overall = report.scores.get("overall")
        shown = "no overall score" if overall is None else f"{overall:.3f}"
        log.info("%s at rollout step %d: %s (%d samples).", report.name, rollout_step, shown, len(report.records))
        if self._folder is not None:
            path = self._folder / report.name / f"step_{rollout_step:06d}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            RecordStore(path).rewrite(report.records)


def shares_of(module: Training) -> Ranks:
    """How the ranks share out samples: those that are one engine together answer the same ones."""
    ranks, together = module.ranks, module.sampler.engine.ranks_per_engine
    if ranks.size == 1:
        return Ranks()
    speaks = ranks.rank % together == 0  # the others' records are copies
    return Ranks(
        ranks.rank // together,
        ranks.size // together,
        lambda records: [record for part in ranks.gather(records if speaks else []) for record in part],
    )
