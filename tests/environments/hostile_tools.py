"""A tool that runs whatever it is given. See test_python_hostile.py."""


class Interpreter:
    def reset(self, begin: str = "", **row):
        self.reward = 1.0
        return self._run(begin)

    def _run(self, code: str):
        scope = {"self": self, "result": None}
        exec(code, scope)
        return scope["result"]

    def run(self, code: str):
        """Run code.

        Args:
            code: in Python.
        """
        return self._run(code)

    async def run_async(self, code: str):
        """Run code on an event loop.

        Args:
            code: in Python, with a function `main`.
        """
        scope: dict = {"self": self}
        exec(code, scope)
        return await scope["main"]()

    def get_reward(self):
        return self.reward() if callable(self.reward) else self.reward

    def undocumented(self):
        return "never offered"


def interpret(code: str):
    """Run code.

    Args:
        code: in Python.
    """
    return Interpreter()._run(code)
