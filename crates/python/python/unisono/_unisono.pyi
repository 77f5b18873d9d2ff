"""Types of the extension module. Every name is documented on the object itself and in docs/python.md."""

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from typing_extensions import Self, disjoint_base

from .records import Record

__version__: str

_Mode = Literal["malicious", "semi-honest"]
_Role = Literal["registrar", "coordinator", "publisher"]
_Purpose = Literal["roster", "round-params", "cohort", "release", "grant", "client-request"]
_Ring = NDArray[np.uint16] | NDArray[np.uint32] | NDArray[np.uint64]

def ring_dtype(modulus_bits: int) -> str: ...
def modulus_bits(bits: int, clients: int) -> int: ...
def mask(vector: _Ring, modulus_bits: int, *, add: Sequence[bytes] = ..., subtract: Sequence[bytes] = ...) -> None: ...
def unmask(vector: _Ring, modulus_bits: int, *, add: Sequence[bytes] = ..., subtract: Sequence[bytes] = ...) -> None: ...
def quantise(
    update: NDArray[np.float32],
    weight: float,
    quantiser: Quantiser,
    modulus_bits: int,
    *,
    metrics: Sequence[float] = ...,
    seed: bytes | None = None,
) -> _Ring: ...
def dequantise(sum: _Ring, quantiser: Quantiser, modulus_bits: int, dimension: int, clients: int) -> Aggregate: ...
def pack(vector: _Ring, modulus_bits: int) -> bytes: ...
def unpack(packed: bytes, modulus_bits: int, length: int) -> _Ring: ...
def random_secret(*, seed: bytes | None = None) -> bytes: ...
def split_secret(
    secret: bytes, threshold: int, abscissas: Sequence[int], *, seed: bytes | None = None
) -> list[tuple[int, bytes]]: ...
def rebuild_secret(shares: Sequence[tuple[int, bytes]], threshold: int) -> tuple[bytes, list[int]]: ...
def encapsulate(encapsulation_key: bytes, *, seed: bytes | None = None) -> tuple[bytes, bytes]: ...
def verify(verifying_key: bytes, purpose: _Purpose, message: bytes, signature: bytes) -> None: ...
def read_public_key(role: _Role, text: str) -> bytes: ...
def find_degree(clients: int, *, gamma: float = 0.05, delta: float = 0.1, mode: _Mode = "malicious") -> Topology: ...
def seal(
    payload: bytes,
    publisher: SigningKey,
    *,
    model_id: str,
    version: int,
    previous: bytes | None = None,
    not_after: int = ...,
    key_id: str = "python",
    roster_epoch: int = 0,
    now: int | None = None,
) -> tuple[Release, ContentKey]: ...
def grant(
    release: Release,
    key: ContentKey,
    issuer: SigningKey,
    *,
    client_id: bytes,
    release_key: bytes,
    roster_epoch: int = 0,
) -> Grant: ...

def simulate(
    clients: int,
    dim: int,
    *,
    dropout: str,
    mode: _Mode,
    rounds: int,
    seed: int,
    quantiser: Quantiser,
    gamma: float,
    delta: float | None,
    n_min: int | None,
    deadline: float,
    noise_multiplier: float | None,
    privacy_delta: float,
    threads: int,
    share_checks: bool,
    updates: Callable[
        [int, int], tuple[NDArray[np.float32], float] | tuple[NDArray[np.float32], float, Sequence[float]]
    ]
    | None = None,
    round_finished: Callable[[int, NDArray[np.float32] | None], object] | None = None,
    progress: Callable[[int, str, int, int], object] | None = None,
) -> tuple[str, list[NDArray[np.float32] | None], list[list[float] | None], BaseException | None]: ...
def sender_of(message: bytes) -> bytes: ...

@disjoint_base
class Client:
    def __new__(
        cls,
        endpoint: str,
        task: str,
        keys: DeviceKeys,
        trainer: Callable[
            [TrainingRound], tuple[NDArray[np.float32], float] | tuple[NDArray[np.float32], float, Sequence[float]]
        ],
        *,
        registrar_key: bytes | None = None,
        policy: Policy | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        max_failures: int | None = None,
    ) -> Self: ...
    def run(self) -> dict[str, int]: ...
    def run_round(self) -> bool | None: ...
    def open_release(self, model_id: str, *, max_payload: int = ...) -> tuple[bytes, int]: ...

@final
class TrainingRound:
    @property
    def number(self) -> int: ...
    @property
    def task(self) -> str: ...
    @property
    def clip(self) -> float: ...
    @property
    def max_weight(self) -> float: ...
    @property
    def parameters(self) -> NDArray[np.float32]: ...
    def tensor(self, name: str) -> NDArray[np.float32]: ...

@final
class DecapsulationKey:
    @staticmethod
    def generate(seed: bytes | None = None) -> DecapsulationKey: ...
    def seed(self) -> bytes: ...
    @property
    def encapsulation_key(self) -> bytes: ...
    def decapsulate(self, ciphertext: bytes) -> bytes: ...

@final
class Topology:
    @property
    def degree(self) -> int: ...
    @property
    def threshold(self) -> int: ...
    @property
    def window_bound(self) -> int | None: ...

@final
class Quantiser:
    def __new__(
        cls,
        *,
        clip: float,
        bits: int = 16,
        max_weight: float = 1.0,
        l2_clip: float | None = None,
        rounding: Literal["stochastic", "deterministic"] = "stochastic",
        metrics: Sequence[tuple[float, float]] = ...,
        rotate: bool = False,
    ) -> Quantiser: ...
    @property
    def bits(self) -> int: ...
    @property
    def clip(self) -> float: ...
    @property
    def l2_clip(self) -> float | None: ...
    @property
    def max_weight(self) -> float: ...
    @property
    def rounding(self) -> Literal["stochastic", "deterministic"]: ...
    @property
    def metrics(self) -> list[tuple[float, float]]: ...
    @property
    def rotate(self) -> bool: ...

@final
class Aggregate:
    @property
    def mean(self) -> NDArray[np.float32]: ...
    @property
    def metrics(self) -> list[float]: ...
    @property
    def total_weight(self) -> float: ...
    @property
    def error_bound(self) -> float: ...
    @property
    def noise_deviation(self) -> float: ...

@final
class RoundParams:
    def __new__(
        cls,
        *,
        dimension: int,
        n_min: int,
        n_max: int,
        quantiser: Quantiser,
        task: str = "python",
        round: int = 1,
        gamma: float = 0.05,
        delta: float = 0.1,
        mode: _Mode = "malicious",
        roster: Roster | None = None,
        model_version: int = 0,
        model_hash: bytes | None = None,
        modulus_bits: int | None = None,
        chunk_elements: int = 65536,
        noise_multiplier: float | None = None,
        now: int | None = None,
    ) -> RoundParams: ...
    @property
    def round_id(self) -> bytes: ...
    @property
    def dimension(self) -> int: ...
    @property
    def modulus_bits(self) -> int: ...
    @property
    def malicious(self) -> bool: ...
    @property
    def vector_len(self) -> int: ...
    @property
    def upload_len(self) -> int: ...
    def epsilon(self, privacy_delta: float = 1e-05) -> float | None: ...
    def topology(self, n: int) -> Topology: ...

@final
class Policy:
    def __new__(
        cls,
        *,
        n_min: int = 10,
        min_gamma: float = 0.01,
        max_delta: float = 0.4,
        max_dimension: int = ...,
        allow_semi_honest: bool = False,
        min_roster_epoch: int = 0,
        min_model_version: int = 0,
        min_interval_s: int = 0,
        tasks: Sequence[str] = ...,
        max_epsilon: float | None = None,
        privacy_delta: float = 1e-05,
    ) -> Policy: ...

@final
class Accountant:
    def __new__(cls) -> Accountant: ...
    def add(
        self, params: RoundParams, *, survivors: int | None = None, cohort: int | None = None, rounds: int = 1
    ) -> None: ...
    def epsilon(self, privacy_delta: float = 1e-05) -> float: ...

@final
class SigningKey:
    @staticmethod
    def generate(role: _Role, *, seed: bytes | None = None) -> SigningKey: ...
    @staticmethod
    def from_text(role: _Role, text: str) -> SigningKey: ...
    def to_text(self) -> str: ...
    @property
    def verifying_key(self) -> bytes: ...
    def public_text(self) -> str: ...
    @property
    def role(self) -> str: ...
    def sign(self, purpose: _Purpose, message: bytes) -> bytes: ...

@final
class DeviceKeys:
    @staticmethod
    def generate(*, seed: bytes | None = None) -> DeviceKeys: ...
    @staticmethod
    def from_text(text: str) -> DeviceKeys: ...
    def to_text(self) -> str: ...
    def enrolment(self) -> str: ...
    @property
    def client_id(self) -> bytes: ...
    @property
    def release_key(self) -> bytes: ...

@final
class Roster:
    @staticmethod
    def publish(
        enrolments: Sequence[str],
        registrar: SigningKey,
        *,
        epoch: int,
        coordinators: Sequence[bytes],
        publishers: Sequence[bytes] = ...,
        not_before: int = 0,
        not_after: int = ...,
        issued_at: int | None = None,
    ) -> Roster: ...
    @staticmethod
    def from_bytes(file: bytes, registrar_key: bytes) -> Roster: ...
    def to_bytes(self) -> bytes: ...
    @property
    def epoch(self) -> int: ...
    @property
    def client_ids(self) -> list[bytes]: ...
    def __len__(self) -> int: ...

@final
class ClientRound:
    def __new__(
        cls,
        offer: bytes,
        keys: DeviceKeys,
        *,
        record: Record,
        registrar_key: bytes | None = None,
        policy: Policy | None = None,
        now: int | None = None,
    ) -> ClientRound: ...
    @staticmethod
    def resume(
        saved: bytes, offer: bytes, keys: DeviceKeys, *, record: Record, registrar_key: bytes | None = None
    ) -> ClientRound: ...
    def save(self) -> bytes: ...
    def message(self) -> bytes: ...
    @property
    def phase(self) -> Literal["advertised", "shared", "masked", "confirmed", "done"]: ...
    @property
    def dimension(self) -> int: ...
    def receive(
        self,
        view: bytes,
        *,
        update: NDArray[np.float32] | None = None,
        weight: float = 1.0,
        metrics: Sequence[float] = ...,
        now: int | None = None,
    ) -> bytes: ...
    def upload(self) -> bytes: ...

@final
class ServerRound:
    def __new__(
        cls, params: RoundParams, *, coordinator_key: SigningKey | None = None, roster: Roster | None = None
    ) -> ServerRound: ...
    def offer(self) -> bytes: ...
    @property
    def phase(self) -> Literal["advertise", "share", "mask", "confirm", "unmask"]: ...
    def absorb(self, message: bytes, *, now: int | None = None) -> bool: ...
    def absorb_upload(self, client_id: bytes, packed: bytes) -> bool: ...
    def suspend(self, client_id: bytes, since: int, until: int) -> None: ...
    def view(self, client_id: bytes) -> bytes | None: ...
    @property
    def progress(self) -> tuple[int, int]: ...
    @property
    def ready(self) -> bool: ...
    @property
    def missing(self) -> list[bytes]: ...
    def close(self) -> Outcome | None: ...

@final
class Outcome:
    @property
    def sum(self) -> NDArray[Any]: ...
    def decode(self) -> Aggregate: ...
    @property
    def cohort(self) -> list[bytes]: ...
    @property
    def survivors(self) -> list[bytes]: ...
    @property
    def reports(self) -> list[tuple[bytes, bytes, str]]: ...
    @property
    def suspects(self) -> list[bytes]: ...

@final
class ContentKey: ...

@final
class Release:
    @staticmethod
    def from_bytes(file: bytes) -> Release: ...
    def to_bytes(self) -> bytes: ...
    @property
    def model_id(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def header_hash(self) -> bytes: ...
    def verify(self, publishers: Sequence[bytes]) -> None: ...
    def open(
        self,
        key: ContentKey,
        publishers: Sequence[bytes],
        *,
        model_id: str | None = None,
        seen: int = 0,
        min_roster_epoch: int = 0,
        max_payload: int = ...,
        now: int | None = None,
    ) -> bytes: ...

@final
class Grant:
    @staticmethod
    def from_bytes(bytes: bytes) -> Grant: ...
    def to_bytes(self) -> bytes: ...
    def open(
        self, release: Release, keys: DeviceKeys, issuers: Sequence[bytes], *, min_roster_epoch: int = 0
    ) -> ContentKey: ...
