"""What records, logs and executed notebooks must not tell: secrets, the home folder, this machine's name and user."""

from __future__ import annotations

import base64
import getpass
import json
import os
import re
import socket
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

SECRET_VALUE = re.compile(r"\b(hf_|sk-|ghp_|glpat-|AKIA)[A-Za-z0-9_-]{8,}")
"""Tokens that tell what they are by how they begin."""
_SECRET_VARIABLE = re.compile(r"(?i)(^|_)(TOKEN|SECRET|PASS(WORD|WD|PHRASE)?|CREDENTIALS?|(API)?KEY|AUTH)(_|$)")
_SHORTEST_SECRET = 6
"""Shorter values of such variables (``true``, ``0``) are no secrets, and stand in many a text."""
_USERINFO = re.compile(r"(?<=://)[^\s/@'\"]+@")
_keys: set[str] = set()
"""The keys this process was given to use, in every form that a server may send back."""


def remember(key: str) -> None:
    """Have a key hidden from now on, whatever the variable is called that holds it.

    Less than six characters (``EMPTY``, ``none``) are a placeholder for a server that wants any key, and no secret.
    """
    if len(key) >= _SHORTEST_SECRET:
        encoded = base64.b64encode(key.encode()).decode().rstrip("=")
        _keys.update({key, quote(key, safe=""), json.dumps(key)[1:-1], encoded})


def hide_keys(text: str) -> str:
    """Text with ``***`` for the keys in use alone: for answers of servers, in which nothing else may be changed."""
    for key in sorted(_keys, key=len, reverse=True):
        text = text.replace(key, "***")
    return text


def hide_secrets(text: str) -> str:
    """Text with ``***`` for secrets: for messages, which may name files of this machine.

    Secrets are the keys in use, the values of environment variables that are named like one (``HF_TOKEN``,
    ``OPENAI_API_KEY``), what looks like a token, and what stands before the ``@`` of a URL.
    """
    text = hide_keys(text)
    for secret in _secrets():
        text = text.replace(secret, "***")
    text = SECRET_VALUE.sub("***", text)
    return _USERINFO.sub("***@", text)


def hide(text: str) -> str:
    """Text with ``***`` for secrets, ``~`` for the home folder, ``USER`` and ``HOST`` for those names: for records.

    User and host are hidden where their names have more than three letters; the user's as a part of a path only.
    """
    text = hide_secrets(text)
    home, user, host = _names(os.environ.get("HOME", ""))
    for place in home:
        text = re.sub(re.escape(place) + r"(?![\w.-])", "~", text)
    if user:
        text = re.sub(rf"(?<=[/\\_]){re.escape(user)}(?![\w-])", "USER", text)
    if host:
        text = re.sub(rf"(?<![\w-]){re.escape(host)}(?![\w-])", "HOST", text)
    return text


def hidden(value: Any) -> Any:
    """The same for every text in a structure of lists and dictionaries, keys included."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {hidden(key): hidden(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [hidden(entry) for entry in value]
    return value


def _secrets() -> list[str]:
    named = {value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name)}
    kept = (value for value in named if len(value) >= _SHORTEST_SECRET and not value.isdigit())
    return sorted(kept, key=len, reverse=True)


@lru_cache(maxsize=8)
def _names(home: str) -> tuple[tuple[str, ...], str, str]:
    """Forms of the home folder, user and host; empty where there is nothing worth hiding."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a number without a name, in a container
        user = ""
    host = socket.gethostname()
    homes = {home.rstrip("/"), str(Path(home).resolve()) if home else ""}
    return (
        tuple(sorted((place for place in homes if place.count("/") and len(place) > 1), key=len, reverse=True)),
        user if len(user) > 3 and user != "root" else "",
        host if len(host) > 3 and host != "localhost" else "",
    )
