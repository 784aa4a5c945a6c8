"""One look at a local HTTP server."""

from __future__ import annotations

import urllib.error
import urllib.request


def answers(url: str) -> bool:
    """Whether a server answers; asking for a login is an answer, an error of its own is not."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False
