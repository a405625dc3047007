"""Table 9: each method's loss and advantage, beside the function that implements it, evaluated on one toy batch.

The batch: three groups of four completions of ragged length over a vocabulary of five, the last group all right; the
policy is a table of logits, float64. On policy the sampling policy is the policy; off policy it is the policy before a
step so large that some ratios leave the clip range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpg_repro import objective, plots
from gpg_repro.published import published_table
from gpg_repro.tables.files import save_figure, write_report

TITLE = "Table 9: loss and advantage of each method"
G, MAX_LENGTH, BETA, EPS, EPS_HIGH = 4, 8, 0.04, 0.2, 0.28
"""Group size, Dr. GRPO's generation limit, KL coefficient, clip range, and DAPO's upper one (from its own paper)."""
TOLERANCE = 1e-12


@dataclass(frozen=True)
class Batch:
    """A batch of N = 12 completions, T = 6 tokens."""

    tokens: Tensor
    """[N, T] sampled tokens."""
    mask: Tensor
    """[N, T], 1 where we train."""
    rewards: Tensor
    """[N], 0 or 1."""
    policy: Tensor
    """[Q, T, V] logits; a completion's prompt chooses the first index."""
    sampled_from: Tensor
    """[Q, T, V] logits of the policy before the step, for the off-policy case."""
    reference: Tensor
    """[Q, T, V] logits of the reference model."""

    def logps(self, logits: Tensor) -> Tensor:
        """[N, T] log-probabilities of the sampled tokens."""
        per_row = logits.repeat_interleave(G, dim=0).log_softmax(dim=-1)
        return per_row.gather(-1, self.tokens.unsqueeze(-1)).squeeze(-1)


def toy_batch(seed: int = 0) -> Batch:
    """The batch, drawn from a generator of its own."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    policy = normal(3, 6, 5)
    lengths = torch.tensor([6, 3, 5, 2, 4, 6, 1, 3, 5, 4, 6, 2])
    return Batch(
        tokens=torch.randint(0, 5, (12, 6), generator=generator),
        mask=(torch.arange(6) < lengths.unsqueeze(1)).double(),
        rewards=torch.tensor([1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1], dtype=torch.float64),
        policy=policy,
        sampled_from=policy + 0.25 * normal(3, 6, 5),
        reference=policy + 0.4 * normal(3, 6, 5),
    )


Loss = Callable[[Batch, Tensor, Tensor], Tensor]
"""(batch, logps, old_logps) -> scalar."""


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    name: str
    published: str | None
    loss_latex: str
    advantage_latex: str
    functions: str
    """Where it is implemented, in ``gpg_repro.objective``."""
    loss: Loss


def _gpg(f_norm: str, alpha: bool, normalization: str) -> Loss:
    def loss(batch: Batch, logps: Tensor, old_logps: Tensor) -> Tensor:
        valid = objective.valid_groups(batch.rewards, G)
        factor = objective.age_alpha(len(valid), int((~valid).sum())) if alpha else 1.0
        advantages = objective.group_advantages(batch.rewards, G, f_norm)
        return objective.gpg_loss(logps, advantages, batch.mask, G, factor, normalization)

    return loss


def _ppo(batch: Batch, logps: Tensor, old_logps: Tensor) -> Tensor:
    return objective.ppo_clip_loss(logps, old_logps, objective.group_advantages(batch.rewards, G), batch.mask, EPS)


def _grpo(beta: float) -> Loss:
    def loss(batch: Batch, logps: Tensor, old_logps: Tensor) -> Tensor:
        advantages = objective.grpo_advantages(batch.rewards, G)
        return objective.grpo_loss(logps, old_logps, advantages, batch.mask, EPS, beta, batch.logps(batch.reference))

    return loss


def _dr_grpo(batch: Batch, logps: Tensor, old_logps: Tensor) -> Tensor:
    advantages = objective.dr_grpo_advantages(batch.rewards, G)
    return objective.dr_grpo_loss(logps, old_logps, advantages, batch.mask, MAX_LENGTH, EPS)


def _dapo(batch: Batch, logps: Tensor, old_logps: Tensor) -> Tensor:
    advantages = objective.dapo_advantages(batch.rewards, G)
    return objective.dapo_loss(logps, old_logps, advantages, batch.mask, G, EPS, EPS_HIGH)


_CLIP = r"-\min\left[\rho A,\ \mathrm{clip}(\rho, 1-\epsilon, 1+\epsilon) A\right]"
METHODS = (
    Method(
        "PPO",
        "PPO",
        f"${_CLIP}$",
        "GAE from rewards and a critic",
        "`ppo_clip_loss`; no critic here, so the group mean stands in for it",
        _ppo,
    ),
    Method(
        "GRPO",
        "GRPO",
        r"$-\left(\min\left[\rho A,\ \mathrm{clip}(\rho, 1-\epsilon, 1+\epsilon) A\right]"
        r" - \beta\,\mathrm{KL}(\pi_\theta, \pi_{ref})\right)$",
        r"$(R - \mathrm{mean}(R)) / \mathrm{std}(R)$",
        "`grpo_loss`, `grpo_advantages`, `kl_k3`",
        _grpo(BETA),
    ),
    Method("GRPO, β = 0", None, f"${_CLIP}$", r"$(R - \mathrm{mean}(R)) / \mathrm{std}(R)$", "the same", _grpo(0.0)),
    Method(
        "Dr. GRPO",
        "Dr. GRPO",
        f"${_CLIP}$",
        r"$R - \mathrm{mean}(R)$",
        "`dr_grpo_loss`, `dr_grpo_advantages`",
        _dr_grpo,
    ),
    Method(
        "DAPO",
        "DAPO",
        r"$-\min\left[\rho A,\ \mathrm{clip}(\rho, 1-\epsilon_{low}, 1+\epsilon_{high}) A\right]$",
        r"$(R - \mathrm{mean}(R)) / \mathrm{std}(R)$",
        "`dapo_loss`, `dapo_advantages`",
        _dapo,
    ),
    Method(
        "GPG",
        "GPG",
        r"$-\log \pi_\theta\, A$",
        r"$\alpha\,(R - \mathrm{mean}(R))$",
        "`gpg_loss`, `group_advantages`, `valid_groups`, `age_alpha`",
        _gpg("none", True, "group"),
    ),
)


def evaluate(loss: Loss, batch: Batch, off_policy: bool = False) -> tuple[float, Tensor]:
    """Value of a loss and its gradient with respect to the policy's logits."""
    policy = batch.policy.clone().requires_grad_(True)
    logps = batch.logps(policy)
    old = batch.logps(batch.sampled_from) if off_policy else logps.detach()
    value = loss(batch, logps, old)
    (gradient,) = torch.autograd.grad(value, policy)
    return value.item(), gradient


def compare(batch: Batch) -> pd.DataFrame:
    """Every method on the batch: loss, gradient norm, cosine with GPG's gradient, on and off policy.

    Returns:
        Columns method, policy (``on`` or ``off``), loss, gradient_norm, cosine, clipped (share of trained tokens whose
        ratio is outside GRPO's clip range).
    """
    ratios = torch.exp(batch.logps(batch.policy) - batch.logps(batch.sampled_from))
    outside = ((ratios < 1 - EPS) | (ratios > 1 + EPS)).double()
    share = float((outside * batch.mask).sum() / batch.mask.sum())
    lines = []
    for off_policy in (False, True):
        _, own = evaluate(METHODS[-1].loss, batch, off_policy)
        for method in METHODS:
            value, gradient = evaluate(method.loss, batch, off_policy)
            lines.append(
                {
                    "method": method.name,
                    "policy": "off" if off_policy else "on",
                    "loss": value,
                    "gradient_norm": float(gradient.norm()),
                    "cosine": float(torch.cosine_similarity(gradient.flatten(), own.flatten(), dim=0)),
                    "clipped": share if off_policy else 0.0,
                }
            )
    return pd.DataFrame(lines)


def identities(batch: Batch) -> pd.DataFrame:
    """What should be equal on policy, and how far it is from equal off policy.

    Returns:
        Columns identity, on_policy, off_policy (norm of the difference of the two gradients over the norm of the
        second), holds (on policy, to 1e-12).
    """
    tokens_over_constant = float(batch.mask.sum()) / (len(batch.tokens) * MAX_LENGTH)

    def scaled(loss: Loss, factor: float) -> Loss:
        return lambda *arguments: factor * loss(*arguments)

    def valid_only(batch: Batch, logps: Tensor, old_logps: Tensor) -> Tensor:
        keep = objective.valid_groups(batch.rewards, G).repeat_interleave(G)
        advantages = objective.group_advantages(batch.rewards, G)
        return objective.gpg_loss(logps[keep], advantages[keep], batch.mask[keep], G)

    pairs = (
        ("GRPO (β = 0) = GPG (F_norm = std, α = 1, mean per completion)", _grpo(0.0), _gpg("group", False, "sequence")),
        ("DAPO = GPG (F_norm = std, α = 1, mean per group)", _dapo, _gpg("group", False, "group")),
        ("PPO's clip term = GPG (F_norm = 1, α = 1, mean over the batch)", _ppo, _gpg("none", False, "batch")),
        (
            "Dr. GRPO = GPG (F_norm = 1, α = 1, mean over the batch) × tokens / (N · limit)",
            _dr_grpo,
            scaled(_gpg("none", False, "batch"), tokens_over_constant),
        ),
        ("GPG (α = B/(B−M)) = plain mean over the valid groups (Appendix A)", METHODS[-1].loss, valid_only),
    )
    lines = []
    for name, mine, other in pairs:
        gaps = []
        for off_policy in (False, True):
            a, b = (evaluate(loss, batch, off_policy)[1] for loss in (mine, other))
            gaps.append(float((a - b).norm() / b.norm()))
        lines.append({"identity": name, "on_policy": gaps[0], "off_policy": gaps[1], "holds": gaps[0] <= TOLERANCE})
    return pd.DataFrame(lines)


def equation_24(batch: Batch) -> dict[str, float]:
    """GRPO's advantage with the standard deviation (Table 9) against without it (Appendix C, Eq. 24).

    Returns:
        ``cosine`` of the two gradients on policy and ``ratio`` of their norms (with over without).
    """

    def loss(f_norm: str) -> Loss:
        def inner(batch: Batch, logps: Tensor, old_logps: Tensor) -> Tensor:
            advantages = objective.group_advantages(batch.rewards, G, f_norm)
            return objective.grpo_loss(logps, old_logps, advantages, batch.mask, EPS)

        return inner

    (_, with_std), (_, without) = evaluate(loss("group"), batch), evaluate(loss("none"), batch)
    cosine = torch.cosine_similarity(with_std.flatten(), without.flatten(), dim=0)
    return {"cosine": float(cosine), "ratio": float(with_std.norm() / without.norm())}


def multipliers(ratios: Tensor) -> dict[str, tuple[list[float], list[float]]]:
    """Pull on the log-probability of one token, by method, for advantage +1 and -1 at each ratio rho."""
    mask = torch.ones(len(ratios), 1, dtype=ratios.dtype)

    def pull(loss: Callable[[Tensor, Tensor, Tensor], Tensor], advantage: float) -> list[float]:
        logps = ratios.log().unsqueeze(1).requires_grad_(True)
        advantages = torch.full_like(ratios, advantage)
        (gradient,) = torch.autograd.grad(loss(logps, torch.zeros_like(logps), advantages), logps)
        return (-len(ratios) * gradient.squeeze(1)).tolist()

    losses = {
        "PPO, GRPO, Dr. GRPO": lambda logps, old, a: objective.ppo_clip_loss(logps, old, a, mask, EPS),
        "DAPO": lambda logps, old, a: objective.dapo_loss(logps, old, a, mask, 1, EPS, EPS_HIGH),
        "GPG": lambda logps, old, a: objective.gpg_loss(logps, a, mask, 1),
    }
    return {name: (pull(loss, 1.0), pull(loss, -1.0)) for name, loss in losses.items()}


@dataclass
class Losses:
    """What the notebook shows."""

    formulas: str
    """Markdown table with LaTeX."""
    values: pd.DataFrame
    identities: pd.DataFrame
    text: str
    notes: list[str]
    figure: Figure


def build_losses(scale: str = "tiny", *, results: Path | None = None) -> Losses:
    """Evaluate everything and write ``table09.{md,csv,html,png}``; the same at every scale, in seconds."""
    batch = toy_batch()
    compared, checked, eq24 = compare(batch), identities(batch), equation_24(batch)
    printed = published_table("Table 9")
    formulas = pd.DataFrame(
        [
            {
                "method": m.name,
                "loss per token": m.loss_latex,
                "advantage": m.advantage_latex,
                "in `gpg_repro.objective`": m.functions,
                "printed (paper v3)": "–" if m.published is None else _printed(printed.loc[m.published]),
            }
            for m in METHODS
        ]
    ).set_index("method")
    by_method = compared.set_index(["method", "policy"])
    values = pd.DataFrame(
        {
            m.name: {
                (f"{policy} policy", title): f"{by_method.loc[(m.name, policy), column]:.4f}"
                for policy in ("on", "off")
                for column, title in (("loss", "loss"), ("gradient_norm", "‖gradient‖"), ("cosine", "cosine with GPG"))
            }
            for m in METHODS
        }
    ).T.rename_axis("method")
    shown = pd.DataFrame(
        {
            line.identity: {
                "gap on policy": f"{line.on_policy:.1e}",
                "holds": "yes" if line.holds else "NO",
                "gap off policy": f"{line.off_policy:.2f}" if line.off_policy > TOLERANCE else f"{line.off_policy:.1e}",
            }
            for line in checked.itertuples()
        }
    ).T.rename_axis("gradients that should be equal on policy")
    text, notes = _text(compared, checked, eq24), _notes()
    sections = [("Formulas", formulas), ("On one toy batch", values), ("Identities", shown)]
    write_report(
        "table09", TITLE, sections, [*text.split("\n\n"), *notes], scale, compared.assign(scale=scale), results
    )
    ratios = torch.linspace(0.4, 1.8, 141, dtype=torch.float64)
    figure = save_figure(plots.multipliers_figure(ratios.tolist(), multipliers(ratios)), "table09", scale, results)
    return Losses(formulas.to_markdown(), values, shown, text, notes, figure)


def _printed(row: pd.Series) -> str:
    return f"{row['loss']}; A = {row['advantage']}".replace("||", " ‖ ")  # a bar would end a Markdown cell


def _text(compared: pd.DataFrame, checked: pd.DataFrame, eq24: dict[str, float]) -> str:
    by_method = compared.set_index(["method", "policy"])
    failed = [line.identity for line in checked.itertuples() if not line.holds]
    on, off = by_method.loc[("GRPO, β = 0", "on")], by_method.loc[("GRPO, β = 0", "off")]
    own = by_method.loc[("GPG", "on")]
    unchanged = by_method.loc[("GPG", "on"), "gradient_norm"] == by_method.loc[("GPG", "off"), "gradient_norm"]
    lines = [
        f"All {len(checked)} identities hold on policy to {TOLERANCE:g}."
        if not failed
        else f"These identities do NOT hold: {'; '.join(failed)}.",
        f"On policy the printed losses say little: GRPO (β = 0) prints {abs(on['loss']):.4f} and GPG "
        f"{own['loss']:.4f}, while their gradients have the cosine {on['cosine']:.3f}.",
        f"Off policy ({100 * off['clipped']:.0f} % of tokens outside the clip range) the cosine falls to "
        f"{off['cosine']:.3f}; GPG's own gradient "
        + ("does not change: it has no ratio." if unchanged else "changes, which it should not."),
        f"Table 9 prints GRPO's advantage with the standard deviation, Appendix C (Eq. 24) without: here the two "
        f"gradients have the cosine {eq24['cosine']:.3f} and norms in the ratio {eq24['ratio']:.2f}. Table 9 is "
        "followed.",
    ]
    return "\n\n".join(lines)


def _notes() -> list[str]:
    return [
        "Published formulas: Table 9 of arXiv 2504.02546v3; it prints no ε, ε_low, ε_high. Ours: 0.2, and 0.28 for "
        "DAPO's upper bound (DAPO's own paper).",
        "GPG as the method's default: F_norm = 1, α = B/(B−M), token mean inside each group (Eq. 5).",
        f"The toy batch: 12 completions in 3 groups of {G}, the last group all right (α = 1.5), 1 to 6 tokens, "
        "float64, seed 0.",
        "The normalisers differ between the methods (per completion, per group, per batch, a constant): with ragged "
        "lengths that alone turns a gradient, so cosines on policy are below 1.",
        "GRPO with β = 0.04 uses a reference other than the policy here; at the first step of a run they are equal and "
        "the KL term has no gradient.",
    ]
