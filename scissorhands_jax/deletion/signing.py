"""Keys, digests under a secret, and Ed25519 signatures, which make a ledger hard to forge.

With a plain SHA-256 of a picture, or of a list of positions, anyone could check a guess, and a data set has few enough
pictures and positions to try them all. Everything that describes what was forgotten is therefore hashed under a secret
(HMAC-SHA-256). Such a digest proves as much to someone who has the secret, and reveals nothing to others. What
describes a request or a run has a salt of its own in place of the secret. The salt is destroyed when the requester is
erased, so that from then on not even the ledger's owner can check a guess. Networks and code cannot be guessed from a
short list, so they are hashed without the secret, and an auditor can recompute the hashes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import os
import re
import secrets
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from scissorhands_jax import files, reading
from scissorhands_jax.base import Dataset
from scissorhands_jax.errors import InputError, LedgerError
from scissorhands_jax.hashing import canonical, type_name

SECRET_FILE = "secret"
SIGNING_FILE = "signing"
PUBLIC_FILE = "public_key.pem"
_MAX_PUBLIC = 2**12


@dataclasses.dataclass(frozen=True)
class LedgerKeys:
    """The two keys of a ledger, of 32 bytes each, which are not shown when the object is printed."""

    secret: bytes = dataclasses.field(repr=False)
    """The key of digests."""
    signing: bytes = dataclasses.field(repr=False)
    """The private key of signatures."""

    @property
    def public(self) -> str:
        """The public key of the signatures, in hexadecimal."""
        return public_of(self.signing)

    def sign(self, purpose: str, digest: str) -> str:
        """Signs a digest with Ed25519. The signature, in hexadecimal, is not valid for any other purpose."""
        return sign_digest(self.signing, purpose, digest)

    def sign_message(self, message: bytes) -> bytes:
        """Signs a message with Ed25519. It must begin in a way that no message for another purpose can."""
        return _ed25519().Ed25519PrivateKey.from_private_bytes(self.signing).sign(message)

    def digest(self, purpose: str, content: bytes) -> str:
        """Computes the HMAC-SHA-256 of a content, in hexadecimal. It differs for every purpose."""
        return keyed_digest(self.secret, purpose, content)


def public_of(private: bytes) -> str:
    """Returns the public key, in hexadecimal, of a private key of 32 bytes."""
    return _ed25519().Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw().hex()


def sign_digest(private: bytes, purpose: str, digest: str) -> str:
    """Signs a digest for one purpose with a private key of 32 bytes; `signed_by` verifies the result."""
    return _ed25519().Ed25519PrivateKey.from_private_bytes(private).sign(_message(purpose, digest)).hex()


def draw_salt() -> str:
    """Draws a salt of 32 bytes, in hexadecimal."""
    return secrets.token_hex(32)


def salted_digest(salt: str, purpose: str, content: bytes) -> str:
    """Computes the HMAC-SHA-256 of a content under a salt that `draw_salt` returned. It differs for every purpose.

    Once the salt is destroyed, the digest neither reveals the content nor lets anyone check a guess.
    """
    return keyed_digest(salt.encode(), purpose, content)


def keyed_digest(key: bytes, purpose: str, content: bytes) -> str:
    """Computes the HMAC-SHA-256 of a purpose and a content under a key, in hexadecimal."""
    return hmac.new(key, purpose.encode() + b"\0" + content, hashlib.sha256).hexdigest()


def signed_by(public: str, purpose: str, digest: str, signature: str) -> bool:
    """Says whether `LedgerKeys.sign` made a signature with the private key that belongs to a public key.

    Args:
      public: The public key in hexadecimal.
      purpose: The purpose of the signature.
      digest: The digest that must have been signed.
      signature: The signature in lower-case hexadecimal. Anything else is not a valid signature.
    """
    # Python would also accept capitals and spaces, so a signature could be changed and still be valid.
    if not isinstance(signature, str) or re.fullmatch("[0-9a-f]{128}", signature) is None:
        return False
    return message_signed_by(public, _message(purpose, digest), bytes.fromhex(signature))


def message_signed_by(public: str, message: bytes, signature: bytes) -> bool:
    """Says whether `LedgerKeys.sign_message` signed a message with the private key that belongs to a public key.

    Args:
      public: The public key in hexadecimal.
      message: The message that must have been signed.
      signature: The signature.
    """
    from cryptography.exceptions import InvalidSignature

    try:
        _ed25519().Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def make_keys(folder: Path) -> LedgerKeys:
    """Reads the keys in a folder, and draws those that do not exist yet.

    Only the owner can read the files. If two processes draw keys at the same time, both use the keys of one of them.

    Raises:
      LedgerError: The keys cannot be used; see `read_keys`.
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
        content = reading.read_bytes(path, _MAX_PUBLIC)
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise LedgerError(
            f"the key {path} is missing; name the folder of the keys with --keys, or put it back from your backup (an "
            "auditor's copy has none, and can be verified)"
        ) from error
    except OSError as error:
        raise LedgerError(f"the key {path} cannot be read: {error.strerror}; make it readable and try again") from error
    except ValueError as error:
        raise LedgerError(f"the key {path} is damaged: {error}; put it back from your backup") from error
    if re.fullmatch(rb"[0-9a-f]{64}\n", content) is None:
        raise LedgerError(f"the key {path} is damaged; put it back from your backup")
    if os.name == "posix" and mode & 0o077:
        raise LedgerError(f"the key {path} can be read by others; make it your own with {_closing(path)}")
    return bytes.fromhex(content.decode())


def public_pem(public: str) -> bytes:
    """Converts a public key from hexadecimal to the PEM form, which `openssl` and other tools read."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = _ed25519().Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def read_public(path: Path) -> str:
    """Reads a public key from a file in PEM form, and returns it in hexadecimal.

    Raises:
      LedgerError: The file is missing, or does not hold such a key.
      InputError: The package `cryptography` is missing.
    """
    ed25519 = _ed25519()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(reading.read_bytes(path, _MAX_PUBLIC))
    except OSError as error:
        raise LedgerError(f"the public key {path} cannot be read: {error.strerror}; name another file") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise LedgerError(f"{path} holds no public key in PEM form; name a file such as {PUBLIC_FILE}") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise LedgerError(f"{path} holds a key of another kind than Ed25519; name a file such as {PUBLIC_FILE}")
    return key.public_bytes_raw().hex()


def make_private(path: Path, public: Path) -> None:
    """Draws a private key, and writes it and its public key to two files in PEM form.

    Only the owner can read the private key.

    Raises:
      InputError: One of the files exists already, both are one, or the package `cryptography` is missing.
      OSError: A file cannot be written.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = _ed25519().Ed25519PrivateKey.generate()
    content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    if os.path.realpath(path) == os.path.realpath(public):
        raise InputError(f"{path} cannot hold both keys; name another file for the public one")
    advice = "exists already; name another file, because a key that is lost cannot be replaced"
    for file in (path, public):
        if os.path.lexists(file):
            raise InputError(f"{file} {advice}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not files.write_new(path, content, mode=0o600):  # Another process was faster.
        raise InputError(f"{path} {advice}")
    files.write_bytes(public, public_pem(key.public_key().public_bytes_raw().hex()))


def read_private(path: Path) -> bytes:
    """Reads a private key from a file in PEM form (PKCS8), as `make_private` and `openssl genpkey` write it.

    Returns:
      The 32 bytes of the key.

    Raises:
      InputError: The file is missing, does not hold an Ed25519 key without a password, or others than its owner can
        read it.
    """
    ed25519 = _ed25519()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        content, mode = reading.read_bytes(path, _MAX_PUBLIC), path.stat().st_mode
        key = load_pem_private_key(content, password=None)
    except OSError as error:
        raise InputError(f"the private key {path} cannot be read: {error.strerror}; name another file") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"{path} holds no private key in PEM form without a password; `scissorhands audit key` makes one"
        ) from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise InputError(f"{path} holds a key of another kind than Ed25519; `scissorhands audit key` makes one")
    if os.name == "posix" and mode & 0o077:
        raise InputError(f"the private key {path} can be read by others; make it your own with {_closing(path)}")
    return key.private_bytes_raw()


def example_digests(keys: LedgerKeys, dataset: Dataset) -> list[str]:
    """Computes a digest of the whole content of each example under the ledger's secret, in hexadecimal.

    Args:
      keys: The keys of the ledger.
      dataset: A dictionary of arrays that share their first axis, such as `{"image": ..., "label": ...}`.
    """
    names = sorted(dataset)
    arrays = [np.asarray(dataset[name]) for name in names]
    head = canonical([[name, type_name(a.dtype), list(a.shape[1:])] for name, a in zip(names, arrays, strict=True)])
    rows = zip(*arrays, strict=True)
    return [
        keys.digest("example", head + b"".join(np.ascontiguousarray(part).tobytes() for part in row)) for row in rows
    ]


def _closing(path: Path) -> str:
    """Returns the command, as it can be typed, that keeps others from reading a file."""
    return f"`chmod 600 {shlex.quote(str(path))}`"


def _message(purpose: str, digest: str) -> bytes:
    return f"scissorhands_jax {purpose} {digest}".encode()


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise InputError(
            "a ledger signs with Ed25519, which takes the package cryptography; install it with "
            "`pip install '.[records]'` in a clone of the repository"
        ) from error
    return ed25519
