"""The text of a completion, whether the prompt was a conversation or a string, and the released way to compare it."""

from __future__ import annotations

from collections.abc import Callable

from eval_harness.graders.pool import shared_pool
from eval_harness.graders.tags import first_tag


def text_of(completion: str | list[dict[str, str]]) -> str:
    """Decoded text of one completion (special tokens removed)."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def stated(text: str) -> str:
    """What the released string comparisons look at, in completions and golds alike: the contents of the first answer
    tag without line breaks, else the whole text; stripped."""
    tag = first_tag(text)
    return (text if tag is None else tag).strip()


def symbolic_then(compare: Callable[[str, str], bool], completions: list, golds: list[str]) -> list[float]:
    """Rewards in {0.0, 1.0} by the released two rules, one per completion.

    1. math-verify's default extraction of the whole completion equals that of the gold. It looks outside the tag too,
       so a right number in the reasoning can be paid with another one in the tag.
    2. Else ``compare`` accepts the :func:`stated` gold and the stated answer.

    A gold that math-verify cannot read is left to rule 2.

    Args:
        compare: (gold, answer) -> whether the answer is right.
        completions: N completions, as text or as conversations.
        golds: N golds, in an answer tag or bare.
    """
    texts = [text_of(completion) for completion in completions]
    verdicts = shared_pool().grade("default_extraction", list(zip(golds, texts, strict=True)))
    return [
        float(verdict.correct or compare(stated(gold), stated(text)))
        for verdict, gold, text in zip(verdicts, golds, texts, strict=True)
    ]
