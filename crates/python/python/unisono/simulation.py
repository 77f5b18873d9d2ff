"""Thousands of clients in this process: the protocol's own state machines on a virtual clock, seeded."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _unisono
from ._unisono import Quantiser
from .errors import ParamsError

__all__ = ["Measure", "Simulated", "simulate"]


class Measure(NamedTuple):
    """One quantity of one simulation."""

    measure: str
    """Its name, as ``client_seconds``."""
    phase: str | None
    """The phase; None for all phases together."""
    round: int | None
    """The round after which it was measured; None for a mean over the rounds that gave a sum."""
    unit: str
    """``s``, ``B``, ``clients``, ``nats``, or ``1`` for a plain number."""
    value: float
    """Its value."""


class Simulated:
    """What a simulation gave.

    Attributes
    ----------
    settings : the settings as used, with degree, threshold and modulus.
    rounds : one dictionary a round: cohort, survivors, whether the sum was exact, seconds and bytes by phase.
    means : the decoded mean of each round, float32 of ``dim`` elements; ``None`` for a round that ended without a sum.
    metrics : the weighted means of the metrics of each round, in the quantiser's order; ``None`` as in ``means``.
    interrupted : whether it was stopped before its last round: see ``partial`` in :func:`simulate`.
    measures : every quantity that was measured, one :class:`Measure` each, for :func:`repeat`: ``client_seconds`` and
        ``server_seconds`` (CPU), ``sent_bytes`` and ``received_bytes`` of one client and ``virtual_seconds``, for all phases together
        and for each one; ``wall_seconds``, ``survivors``, ``sum_fraction`` (of the rounds, those that gave a sum), and with
        privacy ``epsilon``, ``total_epsilon`` and ``noise_deviation``. :meth:`add_measure` adds your own.
    """

    def __init__(
        self,
        report: dict[str, Any],
        means: list[NDArray[np.float32] | None],
        metrics: list[list[float] | None] | None = None,
    ) -> None:
        self.settings: dict[str, Any] = report["settings"]
        self.rounds: list[dict[str, Any]] = report["rounds"]
        self.interrupted: bool = report["interrupted"]
        self.means = means
        self.metrics = [None] * len(means) if metrics is None else metrics
        self.measures: list[Measure] = [Measure(**measure) for measure in report.get("measures", [])]

    def add_measure(self, measure: str, value: float, *, unit: str = "1", round: int | None = None) -> None:
        """Adds a quantity of your own, as an accuracy after ``round``, for :func:`repeat` to take the mean of.

        Raises :class:`ParamsError` when there is one of this name and round already, or the value is no finite number.
        """
        if not math.isfinite(value):
            raise ParamsError(f"the measure {measure!r} is {value}; a mean needs finite numbers")
        if any((other.measure, other.phase, other.round) == (measure, None, round) for other in self.measures):
            when = "" if round is None else f" after round {round}"
            raise ParamsError(f"there is a measure {measure!r}{when} already; give yours another name")
        self.measures.append(Measure(measure, None, round, unit, float(value)))

    def to_dict(self) -> dict[str, list[Any]]:
        """Columns of equal length, one row for each phase of each round: ``pandas.DataFrame(result.to_dict())``.

        Times are in seconds, sizes in bytes for one client (mean and largest).
        """
        columns: dict[str, list[Any]] = {}
        for played in self.rounds:
            timings = {timing["phase"]: timing for timing in played["timing"]["phases"]}
            for phase in played["phases"]:
                timing = timings.get(phase["phase"], {"client_seconds": {"mean": 0.0, "max": 0.0}, "server_seconds": 0.0})
                row = {
                    "seed": self.settings["seed"],
                    "round": played["round"],
                    "phase": phase["phase"],
                    "expected": phase["expected"],
                    "answered": phase["answered"],
                    "survivors": played["survivors"],
                    "exact_sum": played["exact_sum"],
                    "virtual_seconds": phase["virtual_seconds"],
                    "client_seconds_mean": timing["client_seconds"]["mean"],
                    "client_seconds_max": timing["client_seconds"]["max"],
                    "server_seconds": timing["server_seconds"],
                    "bytes_up_mean": phase["sent"]["mean"],
                    "bytes_up_max": phase["sent"]["max"],
                    "bytes_down_mean": phase["received"]["mean"],
                    "bytes_down_max": phase["received"]["max"],
                }
                for name, value in row.items():
                    columns.setdefault(name, []).append(value)
        return columns

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The columns of :meth:`to_dict` as NumPy arrays."""
        return {name: np.asarray(column) for name, column in self.to_dict().items()}

    def to_pandas(self) -> Any:
        """The columns of :meth:`to_dict` as a ``pandas.DataFrame``. Raises :class:`ImportError` where there is no pandas."""
        return data_frame(self.to_dict())

    def __repr__(self) -> str:
        settings = self.settings
        return (
            f"Simulated(clients={settings['clients']}, dim={settings['dimension']}, mode={settings['mode']!r}, "
            f"rounds={len(self.rounds)}, exact={[played['exact_sum'] for played in self.rounds]})"
        )


def data_frame(columns: dict[str, list[Any]]) -> Any:
    """pandas is no dependency: it is looked for when it is asked for."""
    try:
        pandas = importlib.import_module("pandas")
    except ImportError as missing:
        raise ImportError("to_pandas() needs pandas: pip install pandas; to_dict() gives the same columns without it") from missing
    return pandas.DataFrame(columns)


def simulate(
    clients: int = 100,
    dim: int = 10_000,
    *,
    dropout: float | str = 0.0,
    mode: str = "malicious",
    rounds: int = 1,
    seed: int = 0,
    quantiser: Quantiser | None = None,
    gamma: float = 0.05,
    delta: float | None = None,
    n_min: int | None = None,
    deadline: float = 60.0,
    noise_multiplier: float | None = None,
    privacy_delta: float = 1e-5,
    threads: int = 0,
    share_checks: bool = False,
    updates: Callable[
        [int, int], tuple[NDArray[np.float32], float] | tuple[NDArray[np.float32], float, Sequence[float]]
    ]
    | None = None,
    round_finished: Callable[[int, NDArray[np.float32] | None], object] | None = None,
    progress: Callable[[int, str, int, int], object] | None = None,
) -> Simulated:
    """Plays whole rounds with the real protocol and no network.

    Parameters
    ----------
    clients, dim : devices (from 3) and elements of an update.
    dropout : fraction that vanishes before uploading, or a model: ``"share=0.02,mask=0.05"``, ``"trace:FILE"``.
    mode : ``"malicious"`` or ``"semi-honest"``.
    seed : everything but measured times repeats with it; also the clients' keys, so never use it for real data.
    quantiser : how updates become integers. Needed with ``updates``, because its ``clip`` decides what is cut off; by default
        ``Quantiser(clip=1.0)``, within which the random updates lie.
    gamma : assumed fraction of colluding clients, 0 to below 1.
    delta : assumed drop-out fraction, 0 to below 1; by default what ``dropout`` leads one to expect.
    n_min : smallest number of updates in a sum, from 3; by default what :func:`default_n_min` gives.
    deadline : virtual seconds (above 0) after which a phase is closed without those that have not answered.
    noise_multiplier : differential privacy: deviation of the noise in the smallest allowed sum, in units of what one client
        can change; the quantiser needs an ``l2_clip`` and equal weights. ``rounds[i]["privacy"]`` of
        the result has epsilon.
    privacy_delta : the delta for which epsilon is reported.
    threads : 0 for as many as there are cores.
    share_checks : each signature is verified once for all clients, as they are in one process. Rounds take less time, but
        ``client_seconds`` is no longer that of a device; ``settings["shared_checks"]`` tells.
    updates : ``updates(client, round)`` gives a float32 array of ``dim`` elements and a weight (above 0, up to the quantiser's
        ``max_weight``), and where the quantiser has ``metrics``, a list of as many numbers: ``(update, weight, metrics)``. By
        default random updates. It is called on any thread, once for each pair of client (from 0) and round (from 1); the
        array is copied.
    round_finished : called after each round with its number and mean (``None`` without a sum).
    progress : ``progress(round, phase, done, clients)``, called some times in each phase, ``"advertise"`` to ``"unmask"``:
        ``done`` of ``clients`` had their turn.

    Raises
    ------
    ParamsError, EncodingError : settings with which no round can run, and what would be feasible.
    ArrayError, EncodingError, ParamsError : an update, weight or metric that a device could not send.
    Anything that a callable raises, and ``KeyboardInterrupt``: the simulation looks for Ctrl-C after each batch of clients, at
    most 512. What is raised after the simulation began has an attribute ``partial``: a :class:`Simulated` with the rounds that
    were finished.
    """
    if quantiser is None:
        if updates is not None:
            raise ParamsError(
                "updates=.. needs quantiser=..: elements beyond its clip are cut off, so it can't be guessed; pass "
                "quantiser=unisono.Quantiser(clip=..) with a clip above the updates' elements"
            )
        quantiser = Quantiser(clip=1.0)
    report, means, metrics, raised = _unisono.simulate(
        clients,
        dim,
        dropout=str(dropout),
        mode=mode,  # type: ignore[arg-type]
        rounds=rounds,
        seed=seed,
        quantiser=quantiser,
        gamma=gamma,
        delta=delta,
        n_min=n_min,
        deadline=deadline,
        noise_multiplier=noise_multiplier,
        privacy_delta=privacy_delta,
        threads=threads,
        share_checks=share_checks,
        updates=updates,
        round_finished=round_finished,
        progress=progress,
    )
    result = Simulated(json.loads(report), means, metrics)
    if raised is not None:
        # An exception with __slots__ has no place for it.
        with contextlib.suppress(AttributeError):
            setattr(raised, "partial", result)
        raise raised
    return result
