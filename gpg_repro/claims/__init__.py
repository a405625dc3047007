"""The paper's claims: one row each, with printed evidence, what was found here, and a word that only a rule can give.

``rule`` assigns the words, ``data`` holds the claims (``results/paper/claims.json``), ``checks`` and ``evidence`` find
numbers, ``report`` makes the page.
"""

from gpg_repro.claims.data import Claim, load_claims
from gpg_repro.claims.report import ClaimsReport, build_claims
from gpg_repro.claims.rule import Finding, Verdict, combine, judge, judge_range

__all__ = [
    "Claim",
    "ClaimsReport",
    "Finding",
    "Verdict",
    "build_claims",
    "combine",
    "judge",
    "judge_range",
    "load_claims",
]
