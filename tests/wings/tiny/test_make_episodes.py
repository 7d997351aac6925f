"""The policy of episodes: small, in the words of `tiny_native`, and able to play worlds that it has never seen."""

from src.data.rendering import PromptRenderer
from src.environments.generated.environment import GeneratedEnvironment
from src.environments.tasks import TaskSource
from src.models.loading.loading import PolicyConfig, load_policy
from src.protocol.token_bytes import TokenBytes
from src.rollout.engine import SamplingParams
from src.rollout.episodes import EpisodeLimits, Player
from src.rollout.native.engine import NativeEngine
from src.wings.tiny import make_native
from src.wings.tiny.make_episodes import FOLDER


def test_it_is_small_and_reads_and_writes_as_tiny_native():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 4_000_000
    for name in ("tokenizer.json", "chat_template.jinja", "config.json"):
        assert (FOLDER / name).read_bytes() == (make_native.FOLDER / name).read_bytes(), name


def test_it_plays_worlds_of_validation_and_leaves_room_to_learn():
    loaded = load_policy(PolicyConfig(path=FOLDER, dtype="float32"))
    environment = GeneratedEnvironment(num_train=1, num_val=42, seed=1)
    renderer = PromptRenderer(loaded.tokenizer, "native")
    stops = loaded.stop_token_ids
    table = TokenBytes.from_tokenizer(loaded.tokenizer)
    player = Player(NativeEngine(loaded.policy.model), environment, renderer, table, stops, EpisodeLimits(), 1024)
    params = SamplingParams(temperature=0.0, max_new_tokens=96, stop_token_ids=stops)
    prompts = renderer.render_all(TaskSource(environment).load("val"))
    played = [episode for (episode,) in player.play(prompts, params, lambda key: 0)]
    done = sum(episode.score.success for episode in played)
    assert 8 <= done <= 25 and sum(len(episode.turns) for episode in played) > 84
    assert sum(episode.counts.get("malformed", 0) for episode in played) <= 6
