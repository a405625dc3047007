"""One engine for several runs of the same model: started by the first that has something to ask."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


class SharedEngine:
    """Lends one engine to runs that load the model alike. Use as a context manager around them.

    The chat template alone may differ: runs in the model's own (or one given template) and runs in plain text share an
    engine, since a request can ask for plain text.
    """

    def __init__(self) -> None:
        self._loaded: Any = None
        self._process: Any = None

    @property
    def running(self) -> bool:
        """Whether the engine has been started."""
        return self._process is not None

    @contextlib.contextmanager
    def lend(self, loaded: Any, start: Callable[[], Any]) -> Iterator[Any]:
        """The engine, started now unless it runs already; its start counts for the first run alone.

        Args:
            loaded: what decides how the model is loaded; equal for all runs.
            start: starts an engine.

        Raises:
            ValueError: the running engine is loaded in another way.
        """
        if self._process is None:
            self._process, self._loaded = start().__enter__(), loaded
        elif loaded != self._loaded:
            raise ValueError(f"a shared engine serves runs that load the model alike: {loaded} is not {self._loaded}")
        yield self._process
        self._process.start_seconds = 0.0

    def close(self) -> None:
        """End the engine, if it runs."""
        process, self._process, self._loaded = self._process, None, None
        if process is not None:
            process.__exit__(None, None, None)

    def __enter__(self) -> SharedEngine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
