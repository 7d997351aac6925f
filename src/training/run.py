"""A training whose config has been checked: load → (warm start) → fit → summary."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from src.config.checks import cache_file
from src.config.guard import Ways, check_policy_and_engine, find_ways
from src.config.instantiating import instantiate_callbacks, instantiate_loggers
from src.config.lengths import engine_length
from src.config.policy_checks import check_policy
from src.config.rules import samples
from src.data.datamodule import ToolDialogueDataModule
from src.data.rendering import PromptRenderer
from src.data.sources.checks import TargetCheck
from src.environments.tasks import TaskSource
from src.models.checkpoints.resume_from import AUTO, Found, resume_from
from src.models.dropout import tell_dropout
from src.models.loading.loading import LoadedPolicy, load_policy
from src.models.loading.sharding import is_sharded
from src.models.loading.weight_source import WeightSource
from src.models.structure import positions_of
from src.protocol.token_bytes import TokenBytes
from src.rewards.tool_call import RewardFunction
from src.rollout.collect import Collector, GroupCollector
from src.rollout.engine import EngineSource
from src.rollout.episodes import EpisodeCollector, Player
from src.rollout.splitting import SplittingEngine
from src.runs.config_file import save_config
from src.runs.folder import held, keep_to_owner, open_run_folder
from src.runs.summary import best_checkpoint, log_scores, write_summary
from src.training.module import TrainingModule
from src.training.objective import Imitation, Objective, PolicyGradient
from src.training.ranks import Ranks
from src.training.settings import SupervisedSettings
from src.training.step import RolloutCallback
from src.training.warm_start import WarmStart, warm_start

log = logging.getLogger(__name__)


def fit(config: DictConfig) -> dict[str, float]:
    """Run a training whose config has been checked; see `src.train.train`."""
    folder = Path(config.paths.output_dir)
    if getattr(rank_zero_only, "rank", 0) == 0:
        open_run_folder(folder)
        with held(folder):
            save_config(config, folder / "config.yaml")
            return _fit(config, folder)
    keep_to_owner()
    logging.getLogger("src").setLevel(logging.ERROR)  # what all ranks would say, one says
    return _fit(config, folder)


def _fit(config: DictConfig, folder: Path) -> dict[str, float]:
    check_policy(config)
    started = time.monotonic()
    L.seed_everything(config.seed, workers=True)

    callbacks = instantiate_callbacks(config.callbacks)
    found = resume_from(config)
    resumed = None if found is None else str(found.path)
    anew = config.ckpt_path == AUTO and found is None and getattr(rank_zero_only, "rank", 0) == 0
    episodes = config.data.train.get("environment") is not None  # whose rewards know no schedule
    moved = not episodes and schedule_moves(instantiate(config.reward), config.updates.rollout_steps)
    ours = [callback for callback in callbacks if isinstance(callback, RolloutCallback)]
    for callback in ours:
        callback.prepare(anew=anew)
    template = config.prompt.get("chat_template_kwargs")
    policy = instantiate(config.policy)
    ways = find_ways(policy, cache_file(config, "ways"))
    loaded = load_policy(policy, rows=ways.rows, on_meta=is_sharded(config.trainer), template=template)
    tell_dropout(loaded.policy.dropout, used=config.policy.get("dropout", False), samples=samples(config))
    renderer = _renderer(config, loaded, found)
    datamodule: ToolDialogueDataModule = instantiate(config.data, renderer=renderer)
    trainer: L.Trainer = instantiate(
        config.trainer,
        callbacks=callbacks,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        logger=instantiate_loggers(config.logger),
        default_root_dir=str(folder),
    )
    module = build_module(config, loaded, ways, renderer, datamodule)
    if not is_sharded(config.trainer):
        check_policy_and_engine(loaded.policy, module.sampler.engine, config.updates.probe_tokens)
    if config.warm_start is not None and resumed is None:
        datamodule.setup("fit")  # a bad record stops the run before the stage, not after it
        cache = Path(config.paths.cache_dir) / "warm_start"
        stage: WarmStart = instantiate(config.warm_start)
        if config.warm_start.source == config.data.train:
            stage = replace(stage, source=datamodule.train_source)  # which has read its corpus
        where, row = _where(config.trainer), config.updates.max_row_tokens
        examples = datamodule.screened("warm_start", stage.source)
        file = warm_start(loaded, renderer, stage, cache, where, row, examples)
        module.weights = None if loaded.weights is None else WeightSource.of(file)

    if resumed is None and config.validate_at_start:
        trainer.validate(module, datamodule=datamodule, verbose=False)
        module.started = module.validated[1]
    module.ends_when_finished = config.ckpt_path == AUTO
    trainer.fit(module, datamodule=datamodule, ckpt_path=resumed, weights_only=True)
    start, final = dict(module.started), module.validated[1]
    for callback in ours:
        first, last = callback.scores()
        start, final = {**start, **first}, {**final, **last}

    if trainer.is_global_zero:
        write_summary(
            folder,
            task=config.task_name,
            algorithm=config.algorithm.name,
            seed=config.seed,
            rollout_steps=module.rollout_step,
            optimizer_steps=trainer.global_step,
            seconds=round(time.monotonic() - started, 1),
            resumed_from=resumed,
            dropped_prompts=datamodule.dropped,
            bad_records={"corpus": getattr(datamodule.train_source, "skipped", 0), **datamodule.bad},
            twins=datamodule.twins,
            reward_moved=moved,
            best_checkpoint=best_checkpoint(trainer.checkpoint_callbacks),
            start=start,
            final=final,
        )
        log_scores(start, final, moved)
        log.info("Run folder: %s", folder)
    return final


def _renderer(config: DictConfig, loaded: LoadedPolicy, found: Found | None) -> PromptRenderer:
    """The renderer; the day that its prompts name is that of the run's first start, and is kept in config.yaml."""
    if found is not None and config.prompt.get("date") is None:
        config.prompt.date = found.progress.date
    renderer: PromptRenderer = instantiate(config.prompt, loaded.tokenizer)
    if renderer.date is not None:
        config.prompt.date = renderer.date
        if getattr(rank_zero_only, "rank", 0) == 0:
            save_config(config, Path(config.paths.output_dir) / "config.yaml")
    return renderer


def build_module(
    config: DictConfig,
    loaded: LoadedPolicy,
    ways: Ways,
    renderer: PromptRenderer,
    datamodule: ToolDialogueDataModule,
) -> TrainingModule:
    """The module with the objective that the algorithm asks for, its engine and its collector."""
    algorithm = instantiate(config.algorithm)
    sampling = instantiate(config.sampling, stop_token_ids=loaded.stop_token_ids)
    source = EngineSource.of(
        loaded.policy.model,
        instantiate(config.policy),
        precision=str(config.trainer.precision),
        shared=not is_sharded(config.trainer),
        cache=ways.cache,
        longest=engine_length(config, positions_of(loaded.policy.model.config)),
    )
    engine = SplittingEngine(instantiate(config.rollout)(source))
    ranks = Ranks()
    objective: Objective
    if isinstance(algorithm, SupervisedSettings):
        objective, tagger = Imitation(algorithm, renderer), None
    else:
        objective, tagger = PolicyGradient(algorithm, ranks, datamodule.draw), algorithm.tagger(loaded.tokenizer)
    table, stop_ids = TokenBytes.from_tokenizer(loaded.tokenizer), loaded.stop_token_ids
    collector: GroupCollector
    if isinstance(datamodule.train_source, TaskSource):
        limits = instantiate(config.episodes)
        player = Player(engine, instantiate(config.environment), renderer, table, stop_ids, limits)
        collector = EpisodeCollector(player, table)
    else:
        reward = instantiate(config.reward)
        datamodule.check = TargetCheck(renderer, reward, table, stop_ids)
        collector = Collector(engine, reward, table, stop_ids, tagger)
    return TrainingModule(
        policy=loaded.policy,
        engine=engine,
        collector=collector,
        objective=objective,
        updates=instantiate(config.updates),
        optimizer=instantiate(config.optimizer),
        sampling=sampling,
        prompts_per_step=datamodule.prompts_per_step,
        ranks=ranks,
        dtype=source.dtype,
        seed=config.seed,
        weights=loaded.weights,
        folder=Path(config.paths.output_dir),
    )


def _where(trainer: DictConfig) -> dict[str, Any]:
    """The arguments of Lightning's Trainer that say where to run, for a Trainer of a warm start."""
    keys = ("accelerator", "devices", "num_nodes", "precision", "strategy")
    return {
        key: instantiate(trainer[key]) if isinstance(trainer[key], DictConfig) else trainer[key]
        for key in keys
        if key in trainer
    }


def schedule_moves(reward: RewardFunction, rollout_steps: int) -> bool:
    """Whether the reward's range moves within a run, so that a policy which stays as it is earns another reward.

    All steps count: the published schedule ends with the bounds that it begins with.
    """
    return len({reward.bounds(step, step / rollout_steps) for step in range(rollout_steps + 1)}) > 1
