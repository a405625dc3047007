"""One engine and one pool of graders for several runs of a model: started by the first that has something to ask."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

Start = Callable[[], contextlib.AbstractContextManager[Any]]


class SharedEngine:
    """Lends one engine to runs that load the model alike. Use as a context manager around them.

    The chat template alone may differ: runs in the model's own (or one given template) and runs in plain text share an
    engine, since a request can ask for plain text.
    """

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()
        self._loaded: Any = None
        self._process: Any = None
        self._graders: Any = None

    @property
    def running(self) -> bool:
        """Whether the engine has been started."""
        return self._process is not None

    @contextlib.contextmanager
    def lend(self, loaded: Any, start: Start) -> Iterator[Any]:
        """The engine, started now unless it runs already; its start counts for the first run alone.

        Args:
            loaded: what decides how the model is loaded; equal for all runs.
            start: starts an engine.

        Raises:
            ValueError: the running engine is loaded in another way.
        """
        if self._process is None:
            self._process, self._loaded = self._open.enter_context(start()), loaded
        elif loaded != self._loaded:
            raise ValueError(f"a shared engine serves runs that load the model alike: {loaded} is not {self._loaded}")
        yield self._process
        self._process.start_seconds = 0.0

    def graders(self, start: Start) -> contextlib.AbstractContextManager[Any]:
        """The pool of graders, started now unless it runs already; it stays open after the block."""
        if self._graders is None:
            self._graders = self._open.enter_context(start())
        return contextlib.nullcontext(self._graders)

    def close(self) -> None:
        """End what runs."""
        self._process = self._loaded = self._graders = None
        self._open.close()

    def __enter__(self) -> SharedEngine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
