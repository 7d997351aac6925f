"""A reward that a random policy earns half of the time, so that every group has variance."""

from src.rewards.tool_call import Reward, RewardParts


class EvenReward:
    """1 for a text of an even number of bytes, else 0. Ignores the settings of the reward it stands in for."""

    def __init__(self, **settings):
        pass

    def __call__(self, text, parsed, target, *, rollout_step, progress=0.0):
        hit = float(len(text.encode()) % 2 == 0)
        return Reward(hit, RewardParts(hit, hit, hit, hit, hit, hit))

    def bounds(self, rollout_step, progress=0.0):
        return 0.0, 1.0
