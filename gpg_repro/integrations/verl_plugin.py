"""Imported by verl in each of its processes (``VERL_USE_EXTERNAL_MODULES``): registers the estimators."""

from gpg_repro.integrations.verl import register

register()
