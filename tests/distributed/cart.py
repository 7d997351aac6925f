"""A cart that earns more the more is in it; a tool that a run on any number of ranks plays with."""


class Cart:
    def reset(self, **row: object) -> None:
        self.items: list[str] = []

    def add(self, item: str) -> list[str]:
        """Put something in the cart.

        Args:
            item: its name.
        """
        self.items.append(item)
        return self.items

    def get_reward(self) -> float:
        return float(len(self.items))
