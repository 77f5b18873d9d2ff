"""The exceptions of unisono. Each carries the words of the Rust error: what, whose, the limit, and what to do.

All derive from :class:`Error`; those about a value that the caller passed derive from :class:`ValueError` too.
"""

from __future__ import annotations

__all__ = [
    "AbortError",
    "ArrayError",
    "ClientError",
    "ConnectionError",
    "CryptoError",
    "EncodingError",
    "Error",
    "KeyFileError",
    "ParamsError",
    "PolicyError",
    "RecordError",
    "RefusalError",
    "ReleaseError",
    "RosterError",
    "StateError",
]


class Error(Exception):
    """Base of all exceptions of this package."""


class ArrayError(Error, ValueError):
    """An argument is no NumPy array of the needed dtype, shape, layout or writability."""


class CryptoError(Error, ValueError):
    """A primitive refused its input: length, range, encoding, signature, tag or ciphertext."""


class EncodingError(Error, ValueError):
    """An update can't be encoded (NaN, weight, length), or a sum not decoded."""


class ParamsError(Error, ValueError):
    """A number is outside its range, or no round can run with these parameters; the text says what would be feasible."""


class KeyFileError(Error, ValueError):
    """A text is not the wanted key file, or a signing key is of another role than the wanted one."""


class RosterError(Error, ValueError):
    """A roster, its head or a leaf was not accepted, or is missing where malicious mode needs one."""


class ClientError(Error):
    """A device did not go on: what the coordinator sent failed a check. Nothing secret was released."""


class PolicyError(ClientError):
    """The device's own policy refuses the round."""


class RecordError(ClientError):
    """The device is bound to another round, cohort or set of survivors, or the durable record can't be read or written."""


class ConnectionError(ClientError):  # noqa: A001 (it is this package's, and always qualified)
    """The coordinator can't be reached or refuses, or the round ended without this device."""


class RefusalError(Error):
    """The coordinator refused a message; the round goes on for everybody else.

    Attributes: ``client_id`` (bytes or None), ``phase`` (str or None), ``code`` (short stable name).
    """

    def __init__(
        self, message: str, client_id: bytes | None = None, phase: str | None = None, code: str = "refused"
    ) -> None:
        super().__init__(message)
        self.client_id = client_id
        self.phase = phase
        self.code = code


class AbortError(Error):
    """The round ended without a sum; nothing was learned.

    Attributes: ``code`` (short stable name), ``suspects`` (list of bytes: the clients whose shares made it end, to be kept out
    of the next rounds by :meth:`ServerRound.suspend`; empty where nobody can be named).
    """

    def __init__(self, message: str, code: str = "aborted", suspects: list[bytes] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.suspects = suspects or []


class ReleaseError(Error):
    """A released model or a grant was refused."""


class StateError(Error, RuntimeError):
    """A call that does not belong to the round's phase, to a finished round, or to a forked process."""
