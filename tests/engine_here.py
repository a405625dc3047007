"""The transformers engine without a process of its own: what it answers, without the seconds it takes to start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from eval_harness.engines import EngineSettings, Request, Result
from eval_harness.engines.transformers import TransformersBackend


class EngineHere:
    """Takes the place of ``EngineProcess``."""

    start_seconds = 0.0

    def __init__(self, engine: str, settings: EngineSettings, log, environment=None):
        self._backend = TransformersBackend(settings)
        self.description = self._backend.describe()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        pass

    def generate(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Complete the requests, batch by batch; what can never be served has an error, as in the engine's process."""
        for request in requests:
            try:
                self._backend.add(request)
            except ValueError as error:
                yield Result(request.key, error=str(error))
        while self._backend.has_unfinished():
            yield from self._backend.step()
