"""What makes a ledger hard to forge: canonical JSON, digests under a secret, Ed25519 signatures.

A plain SHA-256 of a picture, or of a list of positions, tells anyone who has a guess whether the guess is right, and a
data set has few enough pictures and positions to try them all. Whatever describes what was forgotten is therefore
hashed under a secret (HMAC-SHA-256), which proves the same to whoever has the secret and nothing to all others.
Networks and code cannot be guessed from a short list. They are hashed without the secret, so that an auditor can
recompute the hashes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from scissorhands_jax import files
from scissorhands_jax.base import Dataset
from scissorhands_jax.errors import InputError, LedgerError
from scissorhands_jax.hashing import canonical

SECRET_FILE = "secret"
SIGNING_FILE = "signing"
PUBLIC_FILE = "public_key.pem"
_MAX_PUBLIC = 2**12


@dataclasses.dataclass(frozen=True)
class LedgerKeys:
    """The two keys of a ledger, 32 bytes each; neither is shown where the object is printed."""

    secret: bytes = dataclasses.field(repr=False)
    """Makes the digests."""
    signing: bytes = dataclasses.field(repr=False)
    """The private key that makes the signatures."""

    @property
    def public(self) -> str:
        """The public key of the signatures, in hexadecimal."""
        return _ed25519().Ed25519PrivateKey.from_private_bytes(self.signing).public_key().public_bytes_raw().hex()

    def sign(self, purpose: str, digest: str) -> str:
        """An Ed25519 signature of a digest, in hexadecimal; it is not valid for any other purpose."""
        return _ed25519().Ed25519PrivateKey.from_private_bytes(self.signing).sign(_message(purpose, digest)).hex()

    def digest(self, purpose: str, content: bytes) -> str:
        """The HMAC-SHA-256 of some content, in hexadecimal; for another purpose it is different."""
        return hmac.new(self.secret, purpose.encode() + b"\0" + content, hashlib.sha256).hexdigest()


def signed_by(public: str, purpose: str, digest: str, signature: str) -> bool:
    """Whether a signature was made by `LedgerKeys.sign` with the private key of a public key.

    Args:
      public: The public key in hexadecimal.
      purpose: What the signature must be valid for.
      digest: What must have been signed.
      signature: The signature in hexadecimal, small letters only. Anything else is not a valid signature.
    """
    from cryptography.exceptions import InvalidSignature

    # Python would also read capitals and spaces, so a changed signature could still be valid.
    if not isinstance(signature, str) or re.fullmatch("[0-9a-f]{128}", signature) is None:
        return False
    try:
        key = _ed25519().Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        key.verify(bytes.fromhex(signature), _message(purpose, digest))
    except (InvalidSignature, ValueError):
        return False
    return True


def make_keys(folder: Path) -> LedgerKeys:
    """Reads the keys in a folder, and draws those that are not there yet.

    Only the owner can read the files. If two processes draw keys at the same time, both use those of one of them.

    Raises:
      LedgerError: As for `read_keys`.
      InputError: The package `cryptography` is missing.
    """
    _ed25519()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in (SECRET_FILE, SIGNING_FILE):
        if not (folder / name).exists():
            files.write_new(folder / name, f"{secrets.token_hex(32)}\n".encode(), mode=0o600)
    return read_keys(folder)


def read_keys(folder: Path) -> LedgerKeys:
    """Reads the keys of a ledger from a folder.

    Raises:
      LedgerError: The keys are missing or damaged, or others than their owner can read them.
      InputError: The package `cryptography` is missing.
    """
    _ed25519()
    return LedgerKeys(*(_read_key(folder / name) for name in (SECRET_FILE, SIGNING_FILE)))


def _read_key(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise LedgerError(f"the key {path} is missing; put it back from your backup") from error
    except OSError as error:
        raise LedgerError(f"the key {path} cannot be read: {error.strerror}") from error
    if re.fullmatch(rb"[0-9a-f]{64}\n", content) is None:
        raise LedgerError(f"the key {path} is damaged; put it back from your backup")
    if os.name == "posix" and mode & 0o077:
        raise LedgerError(f"the key {path} can be read by others; make it your own with `chmod 600 {path}`")
    return bytes.fromhex(content.decode())


def public_pem(public: str) -> bytes:
    """A public key, given in hexadecimal, in the PEM form that `openssl` and other tools read."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = _ed25519().Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def read_public(path: Path) -> str:
    """Reads a public key in hexadecimal from a file with the content that `public_pem` returns.

    Raises:
      LedgerError: The file is missing, or does not hold such a key.
      InputError: The package `cryptography` is missing.
    """
    ed25519 = _ed25519()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(files.read_bytes(path, _MAX_PUBLIC))
    except OSError as error:
        raise LedgerError(f"the public key {path} cannot be read: {error.strerror}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise LedgerError(f"{path} holds no public key in PEM form; it is the {PUBLIC_FILE} of a ledger") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise LedgerError(f"{path} holds a key of another kind than Ed25519; it is the {PUBLIC_FILE} of a ledger")
    return key.public_bytes_raw().hex()


def example_digests(keys: LedgerKeys, dataset: Dataset) -> list[str]:
    """A digest of the whole content of each example under the ledger's secret, in hexadecimal.

    Args:
      keys: The keys of the ledger.
      dataset: A dictionary of arrays that share their first axis, such as `{"image": ..., "label": ...}`.
    """
    names = sorted(dataset)
    arrays = [np.asarray(dataset[name]) for name in names]
    head = canonical([[name, a.dtype.str, list(a.shape[1:])] for name, a in zip(names, arrays, strict=True)])
    rows = zip(*arrays, strict=True)
    return [
        keys.digest("example", head + b"".join(np.ascontiguousarray(part).tobytes() for part in row)) for row in rows
    ]


def _message(purpose: str, digest: str) -> bytes:
    return f"scissorhands_jax {purpose} {digest}".encode()


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise InputError(
            "a ledger signs with Ed25519, which takes the package cryptography; install it with "
            "`pip install 'scissorhands-jax[records]'`"
        ) from error
    return ed25519
