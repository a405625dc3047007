"""The paper's printed numbers, checked against each other and against what their item counts can carry.

``rules`` turns printed rows into findings, ``readings`` printed differences into intervals, ``report`` both into files.
Everything is computed from ``results/paper``; docs/audit.md tells the rules.
"""
