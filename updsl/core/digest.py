"""Digests of nested texts and numbers, the same in every process and version of Python."""

from __future__ import annotations

import hashlib
import json


def digest(*parts: object) -> str:
    """SHA-256, in hexadecimal, of texts, whole numbers, booleans, None, and lists and tuples of them."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
