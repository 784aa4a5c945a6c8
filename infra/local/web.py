"""One look at a local HTTP server."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any


def answers(url: str) -> bool:
    """Whether a server answers with success."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (OSError, urllib.error.HTTPError):
        return False


def get_json(url: str, token: str) -> Any:
    """The JSON behind a URL that wants a bearer token; None while the server does not answer with success."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return json.load(response)
    except (OSError, urllib.error.HTTPError):
        return None
