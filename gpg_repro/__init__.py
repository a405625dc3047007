"""GPG paper companion: the objective, the trainer, the recipes, the tables.

``gpg_repro.objective`` is the paper on one page (needs only torch); ``gpg_repro.trainer`` runs it on TRL.
"""

__version__ = "0.1.0"
