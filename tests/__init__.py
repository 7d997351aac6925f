"""A package, so that `tests.fuzzing` is this one: rootutils installs a `tests` package of its own."""
