"""What Tables 5 to 8 share: base, SFT (not in Table 5), GRPO, and GPG as two methods, as two sets of numbers exist."""

from gpg_repro.tables.base import Row

COMPARISONS = (("grpo", "sft"), ("gpg_r0", "grpo"), ("gpg_r2", "grpo"), ("gpg_r2", "gpg_r0"))
_NOTES = {
    "gpg_r0": "F_norm = std, α = 1: the code of the time when the paper's numbers were made",
    "gpg_r2": "F_norm = 1, α = B/(B−M), resampling below a share of valid groups: the code that was released last",
}


def rows(base: Row, recipes: dict[str, str | tuple[str, ...]], copied_from: str | None = None) -> tuple[Row, ...]:
    """The base and the rows that have recipes, in the order of the tables.

    Args:
        base: the untrained row.
        recipes: row key -> its recipe, or one recipe per column.
        copied_from: whose report the printed SFT and GRPO numbers are from.
    """
    labels = {"sft": "SFT", "grpo": "GRPO", "gpg_r0": "GPG (R0)", "gpg_r2": "GPG (R2)"}
    copied = f"the printed numbers are those of {copied_from}" if copied_from else ""
    trained = (
        Row(
            key=key,
            label=label,
            tiny_label=label,
            published="+ GPG" if key.startswith("gpg") else f"+ {label}",
            published_source="readme" if key == "gpg_r2" else "paper-v3",
            paper_recipe=key != "sft",
            note=_NOTES.get(key, copied),
            **({"recipe": recipes[key]} if isinstance(recipes[key], str) else {"recipes": recipes[key]}),
        )
        for key, label in labels.items()
        if key in recipes
    )
    return (base, *trained)
