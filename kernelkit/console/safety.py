"""Takes out of a text what must not be shown: credentials, and what makes an address secret."""

from __future__ import annotations

import re
from collections.abc import Iterable

HIDDEN = "[hidden]"

_USER_INFO = re.compile(r"(https?://)[^\s/?#@\"'<>]*@", re.IGNORECASE)
_SIGNED_QUERY = re.compile(
    r"\?(?=[^\s\"'<>]*(?:sig(?:nature)?|token|key|credential|secret|password|accessid|auth)"
    r"[\w.%-]*=)[^\s\"'<>]*",
    re.IGNORECASE,
)
"""The query of an address that carries its own permission."""


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """A text, or JSON, without `secrets`."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text


def without_signatures(text: str) -> str:
    """A text without the user info of addresses and without signed queries."""
    if "://" in text or "?" in text:
        text = _USER_INFO.sub(rf"\1{HIDDEN}@", text)
        text = _SIGNED_QUERY.sub(f"?{HIDDEN}", text)
    return text
