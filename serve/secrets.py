"""The server's secrets: the key that signs cookies, and the operator token. Kept in `secrets.json`, mode 0600."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from serve.errors import StartupError


@dataclass(frozen=True)
class Secrets:
    """Signs values, and knows the operator token by its hash."""

    key: bytes
    token_hash: str
    """SHA-256 of the operator token, in hex. A token made here has 192 random bits, so a fast hash is enough."""

    @classmethod
    def load_or_create(cls, path: Path, operator_token: str | None) -> tuple[Secrets, str | None]:
        """Read `path`, or make it. The second value is the operator token if it was made just now: show it once.

        A token given by the operator is used as it is and not written down. Raises StartupError when the file is
        damaged.
        """
        stored = _read(path)
        key = stored.get("key") or secrets.token_hex(32)
        token_hash = stored.get("token_hash")
        made = None
        if operator_token is None and token_hash is None:
            made = secrets.token_urlsafe(24)
            token_hash = _hash(made)
        wanted = {"key": key} | ({"token_hash": token_hash} if token_hash else {})
        if wanted != stored:
            _write(path, wanted)
        in_use = _hash(operator_token) if operator_token is not None else str(token_hash)
        return cls(bytes.fromhex(key), in_use), made

    @property
    def fingerprint(self) -> str:
        """Changes with the operator token, so that sessions end with it; says nothing of the token."""
        return self._signature(self.token_hash, "fingerprint")[:16]

    def sign(self, value: str, purpose: str) -> str:
        """The value with its signature, fit for a cookie if the value is. Good for this purpose alone."""
        return f"{value}.{self._signature(value, purpose)}"

    def unsign(self, signed: str, purpose: str) -> str | None:
        """The value, or None if it was not signed here for this purpose."""
        value, _, signature = signed.rpartition(".")
        good = hmac.compare_digest(self._signature(value, purpose).encode(), signature.encode("utf-8", "replace"))
        return value if good else None

    def is_operator_token(self, token: str) -> bool:
        """Whether this is the operator token; takes as long either way."""
        return hmac.compare_digest(_hash(token), self.token_hash)

    def _signature(self, value: str, purpose: str) -> str:
        return hmac.new(self.key, f"{purpose}\n{value}".encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def _read(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        bytes.fromhex(content["key"])
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise StartupError(f"{path} is damaged ({error}); delete it, and voters and operators log in anew") from None
    return dict(content)


def _write(path: Path, content: dict[str, str]) -> None:
    """Replace the file so that it is never half written, and never readable by others."""
    temporary = path.with_name(path.name + ".new")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
