"""Engines that stay: one process for each way of loading a model, for every test that only needs *an* engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from eval_harness.engines import EngineProcess, EngineSettings, Request, Result


class KeptEngines:
    """Takes the place of ``EngineProcess``: starts an engine when it is first asked for and lends it from then on."""

    def __init__(self) -> None:
        self._running: dict[tuple, EngineProcess] = {}

    def __call__(
        self, engine: str, settings: EngineSettings, log: Path, environment: Mapping[str, str] | None = None
    ) -> Lent:
        """The engine; what it prints stays in the log of the test that started it.

        Raises:
            EngineError: the engine could not load the model.
        """
        key = (engine, settings, tuple(sorted((environment or {}).items())))
        if key not in self._running:
            self._running[key] = EngineProcess(engine, settings, log, environment)
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        Path(log).touch()
        return Lent(self._running[key], lambda: self._end(key))

    def _end(self, key: tuple) -> None:
        if process := self._running.pop(key, None):
            process.close()

    def close(self) -> None:
        """End all of them."""
        for key in list(self._running):
            self._end(key)


class Lent:
    """A kept engine as its borrower holds it: the end of the block does not end it."""

    start_seconds = 0.0

    def __init__(self, process: EngineProcess, give_up: Callable[[], None]) -> None:
        self._process, self._give_up, self.description = process, give_up, process.description

    def generate(self, requests: Iterable[Request]) -> Iterator[Result]:
        """As :meth:`EngineProcess.generate`. An engine whose results were not all taken is not lent again."""
        all_taken = False
        try:
            yield from self._process.generate(requests)
            all_taken = True
        finally:
            if not all_taken:
                self._give_up()

    def __enter__(self) -> Lent:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass
