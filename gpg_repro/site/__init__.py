"""The report: a static site of executed notebooks, tables, figures, records and documentation.

``execute`` runs the notebooks and keeps their copies, ``pages`` turns copies and records into sources, ``build`` hands
them to Sphinx with MyST-NB (settings in ``theme/conf.py``) and checks the result. A site asks no other host for
anything: formulas are MathML, scripts and styles are ours or the theme's.
"""

from gpg_repro.site.build import build_site

__all__ = ["build_site"]
