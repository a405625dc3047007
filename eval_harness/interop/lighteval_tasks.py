"""Our text benchmarks as lighteval's custom tasks: same items, same prompts, same graders.

``lighteval custom MODEL …/lighteval_model.py "gpg:aime24|0" --custom-tasks …/lighteval_tasks.py``; ``gpg|0`` is all of
them, ``gpg:aime24@n=16|0`` draws 16 samples per problem. The names carry a prefix because lighteval has an ``aime24``
of its own (another prompt ending, another precision) and refuses a second task of that name.

Two metrics per task, each the mean over the samples of a problem: ``published@n`` and ``strict@n``, the two rules of
the benchmark's grader. They read the whole completion (the published evaluation did), whatever lighteval's
``--remove-reasoning-tags`` is set to.
"""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np
import xxhash
from lighteval.metrics.metrics_sample import SampleLevelComputation, SamplingMetric
from lighteval.metrics.utils.metric_utils import SampleLevelMetric
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc, SamplingMethod

from eval_harness.benchmarks import Benchmark, all_benchmarks, get_benchmark
from eval_harness.graders.base import context_for
from eval_harness.graders.pool import shared_pool
from eval_harness.records import write_whole
from eval_harness.sources import Hub, default_data_root

PREFIX = "gpg:"


class RuleMean(SamplingMetric, SampleLevelComputation):
    """Mean mark of a problem's samples under one rule of its grader, over a whole task at once.

    Args:
        strict: which of the two rules.
        n: samples per problem; lighteval sets it from ``task@n=16|0``.
    """

    def __init__(self, strict: bool, n: int = 1):
        super().__init__()
        self.strict, self.n = strict, n

    def num_samples(self) -> int:
        """Samples lighteval asks for."""
        return self.n

    def compute(self, docs: list[Doc], responses: list[ModelResponse]) -> list[float]:
        """One mean in [0, 1] per problem. The second metric finds its verdicts in the pool's cache."""
        marks: list[float] = [0.0] * len(docs)
        by_grader: dict[str, list[int]] = {}
        for i, doc in enumerate(docs):
            by_grader.setdefault(get_benchmark(doc.specific["benchmark"]).grader, []).append(i)
        for grader, indices in by_grader.items():
            answers = [
                (docs[i].get_golds()[0], text, context_for(grader, {}, question=docs[i].query))
                for i in indices
                for text in responses[i].text[: self.n]
            ]
            verdicts = iter(shared_pool().grade(grader, answers))
            for i in indices:
                of_item = [next(verdicts) for _ in responses[i].text[: self.n]]
                marks[i] = float(np.mean([v.correct_strict if self.strict else v.correct for v in of_item]))
        return marks


def _metric(name: str, strict: bool) -> SampleLevelMetric:
    return SampleLevelMetric(
        metric_name=name,
        higher_is_better=True,
        category=SamplingMethod.GENERATIVE,
        sample_level_fn=RuleMean(strict),
        corpus_level_fn=np.mean,
        batched_compute=True,
    )


def to_doc(row: dict, task_name: str, benchmark: Benchmark) -> Doc:
    """A row of the benchmark's data set as lighteval's document.

    Raises:
        UserError: a column is missing, or the gold is.
    """
    item = benchmark.item(row["__index"], row, benchmark.source.describe())
    return Doc(
        query=item.prompt,
        choices=[item.gold],
        gold_index=0,
        task_name=task_name,
        specific={"benchmark": benchmark.name, "item_id": item.item_id},
    )


def _local_copy(benchmark: Benchmark, data_root: Path) -> str:
    """A folder that lighteval's ``load_dataset`` reads: the local rows as parquet, named by their content."""
    import datasets

    benchmark.load(data_root)  # its checks: number of items, columns, golds
    source = benchmark.source
    rows, _ = source.rows(data_root)
    # as text, which is what Benchmark.item makes of them: a column of numbers and strings is no column of parquet
    columns = {name: [str(row[name]) for row in rows] for name in source.columns}
    content = xxhash.xxh3_64_hexdigest((data_root / source.local_file).read_bytes())
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "eval_harness" / f"{benchmark.name}-{content}"
    file = folder / f"{source.split}.parquet"
    if not file.exists():
        whole = io.BytesIO()
        datasets.Dataset.from_dict(columns).to_parquet(whole)
        write_whole(file, whole.getvalue())
    return str(folder)


def task_of(benchmark: Benchmark, data_root: Path | None = None) -> LightevalTaskConfig:
    """The benchmark as a lighteval task.

    Args:
        benchmark: one of text, from the hub.
        data_root: folder of local copies; None, or a folder without this one's file: the hub at the pinned revision.

    Raises:
        UserError: the local copy is malformed.
    """
    source = benchmark.source
    local = data_root is not None and (data_root / source.local_file).exists()
    return LightevalTaskConfig(
        name=PREFIX + benchmark.name,
        prompt_function=partial(to_doc, benchmark=benchmark),
        hf_repo=_local_copy(benchmark, data_root) if local else source.repo,
        hf_subset="default",
        hf_revision=None if local else source.revision,
        hf_avail_splits=[source.split],
        evaluation_splits=[source.split],
        generation_size=benchmark.decoding.max_new_tokens,
        metrics=[_metric("published@n", strict=False), _metric("strict@n", strict=True)],
        version=benchmark.version,
    )


TASKS_TABLE = [
    task_of(benchmark, default_data_root())
    for benchmark in all_benchmarks().values()
    if isinstance(benchmark.source, Hub) and benchmark.image_field is None
]
