"""A reward with noise from every random generator of the process, which a resumed run must draw alike."""

import random

import numpy as np
import torch

from src.rewards.tool_call import Reward, RewardParts


class DrawingReward:
    """Ignores the settings of the reward it stands in for."""

    def __init__(self, **settings):
        pass

    def __call__(self, text, parsed, target, *, rollout_step, progress=0.0):
        hit = (random.random() + float(np.random.rand()) + float(torch.rand(()))) / 3
        return Reward(hit, RewardParts(hit, hit, hit, hit, hit, hit))

    def bounds(self, rollout_step, progress=0.0):
        return 0.0, 1.0
