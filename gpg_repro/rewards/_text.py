"""The text of a completion, whether the prompt was a conversation or a string."""


def text_of(completion: str | list[dict[str, str]]) -> str:
    """Decoded text of one completion (special tokens removed)."""
    return completion if isinstance(completion, str) else completion[-1]["content"]
