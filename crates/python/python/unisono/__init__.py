"""Secure aggregation for federated learning: the real protocol, NumPy in, NumPy out.

- a round without a network: :class:`RoundParams`, :class:`ServerRound`, :class:`ClientRound`, bytes in and bytes out;
- a device of a running coordinator: :class:`Client` with a trainer in Python;
- keys and rosters: :class:`DeviceKeys`, :class:`SigningKey`, :class:`Roster`;
- primitives: :func:`mask`, :func:`unmask`, :func:`quantise`, :func:`dequantise`, :func:`split_secret`, ...;
- released models: :func:`seal`, :func:`grant`, :class:`Release`, :class:`Grant`;
- experiments: :func:`simulate`, thousands of clients in this process, and :func:`repeat` with several seeds;
- differential privacy: ``RoundParams(noise_multiplier=..)``, ``Policy(max_epsilon=..)``, :class:`Accountant`;
- Flower: :mod:`unisono.flower` (needs the extra ``flower``).

Arrays that are passed in are read where they lie, with the GIL released: don't write to them from another thread meanwhile.
A round is used by one call at a time and refused in a forked process.

Exceptions about values (a number out of range, bytes of another length, an array that does not fit), keys, rounds and
messages derive from :class:`Error`. Others are Python's own: ``TypeError`` for a missing or unknown keyword and for an argument
of another type (a ``str`` where ``bytes`` are needed), ``KeyError`` from :meth:`TrainingRound.tensor`, ``MemoryError``,
``KeyboardInterrupt``, and whatever a callable of yours raises in :func:`simulate`.
"""

from __future__ import annotations

from ._unisono import (
    Accountant,
    Aggregate,
    ClientRound,
    ContentKey,
    DecapsulationKey,
    DeviceKeys,
    Grant,
    Outcome,
    Policy,
    Quantiser,
    Release,
    Roster,
    RoundParams,
    ServerRound,
    SigningKey,
    Topology,
    TrainingRound,
    __version__,
    default_n_min,
    dequantise,
    encapsulate,
    find_degree,
    grant,
    mask,
    modulus_bits,
    pack,
    quantise,
    random_secret,
    read_public_key,
    rebuild_secret,
    ring_dtype,
    seal,
    sender_of,
    split_secret,
    unmask,
    unpack,
    verify,
)
from .errors import (
    AbortError,
    ArrayError,
    ClientError,
    ConnectionError,
    CryptoError,
    EncodingError,
    Error,
    KeyFileError,
    ParamsError,
    PolicyError,
    RecordError,
    RefusalError,
    ReleaseError,
    RosterError,
    StateError,
)
from .client import Client
from .records import FileRecord, MemoryRecord, Record
from .repetition import Quantity, Repeated, repeat
from .simulation import Measure, Simulated, simulate
from .suggestion import suggest_quantiser

__all__ = [
    "AbortError",
    "Accountant",
    "Aggregate",
    "ArrayError",
    "Client",
    "ClientError",
    "ClientRound",
    "ConnectionError",
    "ContentKey",
    "CryptoError",
    "DecapsulationKey",
    "DeviceKeys",
    "EncodingError",
    "Error",
    "FileRecord",
    "Grant",
    "KeyFileError",
    "Measure",
    "MemoryRecord",
    "Outcome",
    "ParamsError",
    "Policy",
    "PolicyError",
    "Quantiser",
    "Quantity",
    "Record",
    "RecordError",
    "RefusalError",
    "Release",
    "ReleaseError",
    "Repeated",
    "Roster",
    "RosterError",
    "RoundParams",
    "ServerRound",
    "SigningKey",
    "Simulated",
    "StateError",
    "Topology",
    "TrainingRound",
    "__version__",
    "default_n_min",
    "dequantise",
    "encapsulate",
    "find_degree",
    "grant",
    "mask",
    "modulus_bits",
    "pack",
    "quantise",
    "random_secret",
    "read_public_key",
    "rebuild_secret",
    "repeat",
    "ring_dtype",
    "seal",
    "sender_of",
    "simulate",
    "split_secret",
    "suggest_quantiser",
    "unmask",
    "unpack",
    "verify",
]
