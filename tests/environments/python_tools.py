"""Tools in Python as a user writes them. See test_python.py."""

import asyncio
import os
import random
import time
from typing import Literal


class Shop:
    """A cart."""

    def reset(self, stock: dict | None = None, **row):
        self.stock = dict(stock or {})
        self.cart: list[str] = []
        return f" In stock: {', '.join(self.stock)}." if self.stock else None

    def add(self, item: str, count: int = 1) -> list[str]:
        """Put something in the cart.

        Args:
            item: its name.
            count: how many.
        """
        if self.stock.get(item, 0) < count:
            raise LookupError(f"not enough {item}")
        self.stock[item] -= count
        self.cart += [item] * count
        return self.cart

    async def ship(self, to: str, seconds: float = 0.0) -> str:
        """Ship it.

        Args:
            to: a city.
            seconds: how long that takes.

        Returns:
            A message.
        """
        await asyncio.sleep(seconds)
        self.cart.append(f"to {to}")
        return f"Shipped to {to}."

    def dice(self) -> float:
        """A random number."""
        return random.random()

    def undocumented(self) -> int:
        return 1

    def _private(self):
        """Never offered."""

    def get_reward(self) -> float:
        """Never offered."""
        return len(self.cart) / 2

    def close(self):
        """Never offered."""
        with open("/proc/self/cwd/closed", "w") as file:
            file.write("yes")


class Bare:
    def reset(self):
        return None


class Scored:
    """Begins and scores as the row says."""

    def reset(self, begin=None, reward=None, seed=None):
        self.reward = reward
        return {
            "raise": lambda: 1 / 0,
            "hang": lambda: time.sleep(99),
            "exit": exit,
            "seed": lambda: f"Seed {seed}.",
        }.get(begin, lambda: begin)()

    async def get_reward(self):
        if self.reward == "hang":
            await asyncio.sleep(99)
        return {"nan": float("nan"), "huge": 10**400, "raise": None}.get(self.reward, self.reward)


class NoReset:
    pass


class Untyped:
    def reset(self):
        return None

    def look(self, where):
        """Look.

        Args:
            where: there.
        """


def add(a: int, b: int) -> int:
    """Add.

    Args:
        a: a number.
        b: another.
    """
    return a + b


def spin(kind: Literal["fast", "for ever"]) -> str:
    """Spin.

    Args:
        kind: how long.
    """
    while kind == "for ever":
        pass
    return "spun"


class Rewardless:
    """A world of which a function says what it earned."""

    def reset(self, **row):
        pass

    def leave(self):
        """End the process."""
        os._exit(0)

    @classmethod
    def of_class(cls):
        """The name of the class."""
        return cls.__name__

    @staticmethod
    def of_nothing(n: int):
        """Twice a number.

        Args:
            n: the number.
        """
        return 2 * n


class ResetToMessages:
    """A world that begins with messages, which belong into the row."""

    def reset(self, **row):
        return [{"role": "user", "content": "Hello."}]
