"""The same simulation with several seeds: means and confidence intervals."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _unisono
from .errors import ParamsError
from .simulation import Simulated, data_frame

__all__ = ["Quantity", "Repeated", "repeat"]


class Quantity(NamedTuple):
    """A quantity over runs that differ in their seeds only: mean, and how well it is known."""

    measure: str
    """Its name, as in :class:`Measure`."""
    phase: str | None
    """The phase; None for all phases together."""
    round: int | None
    """The round after which it was measured; None for a mean over rounds."""
    unit: str
    """Its unit."""
    runs: int
    """Runs that have it."""
    mean: float
    """Mean over the runs."""
    deviation: float | None
    """Standard deviation over the runs (divided by ``runs - 1``); None for a single run."""
    low: float | None
    """Lower end of the mean's 95 % confidence interval by Student's t; None for a single run."""
    high: float | None
    """Upper end of it."""

    @property
    def half_width(self) -> float | None:
        """Half of the interval's width: what stands behind the +- of a table."""
        return None if self.high is None else self.high - self.mean

    def __str__(self) -> str:
        spread = "" if self.half_width is None else f" +- {self.half_width:.2g}"
        return f"{self.mean:.4g}{spread}" + ("" if self.unit == "1" else f" {self.unit}")


class Repeated:
    """What :func:`repeat` gave.

    Attributes
    ----------
    runs : one :class:`Simulated` for each seed.
    seeds : their seeds.
    settings : the settings that all runs have in common.
    interrupted : whether it was stopped before its last run: see ``partial`` in :func:`repeat`.
    """

    def __init__(self, runs: list[Simulated], *, interrupted: bool = False) -> None:
        self.runs = runs
        self.interrupted = interrupted
        self.seeds: list[int] = [run.settings["seed"] for run in runs]
        self.settings: dict[str, Any] = _common(runs[0]) if runs else {}

    def summary(self) -> list[Quantity]:
        """Every quantity with its mean and 95 % confidence interval; ``pandas.DataFrame(repeated.summary())`` is a table of them."""
        values: dict[tuple[str, str | None, int | None], list[float]] = {}
        units: dict[tuple[str, str | None, int | None], str] = {}
        for run in self.runs:
            for measure in run.measures:
                key = (measure.measure, measure.phase, measure.round)
                values.setdefault(key, []).append(measure.value)
                units.setdefault(key, measure.unit)
        quantities = []
        for key, found in values.items():
            estimate = _unisono.estimate(found)
            if estimate is not None:
                mean, deviation, low, high = estimate
                quantities.append(Quantity(*key, units[key], len(found), mean, deviation, low, high))
        return quantities

    def quantity(self, measure: str, *, phase: str | None = None, round: int | None = None) -> Quantity:
        """One of them. Raises :class:`ParamsError`, with the names that there are."""
        summary = self.summary()
        for quantity in summary:
            if (quantity.measure, quantity.phase, quantity.round) == (measure, phase, round):
                return quantity
        same = [(found.phase, found.round) for found in summary if found.measure == measure]
        if same:
            raise ParamsError(f"{measure!r} has no phase {phase!r} and round {round!r}; it has (phase, round) {same}")
        names = ", ".join(dict.fromkeys(found.measure for found in summary))
        raise ParamsError(f"no run has a measure {measure!r}; there are: {names or 'none, as no run was finished'}")

    def curve(self, measure: str) -> dict[str, NDArray[Any]]:
        """A quantity that was measured after rounds, as arrays ``round``, ``mean``, ``low`` and ``high``, for a plot with a band.

        The ends are NaN for a single run. Raises :class:`ParamsError` when it was measured after no round.
        """
        found = [q for q in self.summary() if q.measure == measure and q.round is not None]
        if not found:
            rounds = dict.fromkeys(q.measure for q in self.summary() if q.round is not None)
            raise ParamsError(f"no run has {measure!r} after its rounds; those that have: {', '.join(rounds) or 'none'}")
        columns = {"round": [q.round for q in found], "mean": [q.mean for q in found]}
        ends = {"low": [q.low for q in found], "high": [q.high for q in found]}
        return {name: np.array(column) for name, column in columns.items()} | {
            name: np.array(column, dtype=np.float64) for name, column in ends.items()
        }

    def to_dict(self) -> dict[str, list[Any]]:
        """The columns of :meth:`Simulated.to_dict` of all runs, one below the other; ``seed`` tells them apart."""
        columns: dict[str, list[Any]] = {}
        for run in self.runs:
            for name, column in run.to_dict().items():
                columns.setdefault(name, []).extend(column)
        return columns

    def to_pandas(self) -> Any:
        """The columns of :meth:`to_dict` as a ``pandas.DataFrame``. Raises :class:`ImportError` where there is no pandas."""
        return data_frame(self.to_dict())

    def __str__(self) -> str:
        last = max((q.round for q in self.summary() if q.round is not None), default=None)
        lines = [f"{len(self.runs)} runs, seeds {self.seeds}: mean +- half of the 95 % confidence interval"]
        for quantity in self.summary():
            if quantity.phase is None and quantity.round in (None, last):
                lines.append(f"  {quantity.measure:<16} {quantity}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Repeated(seeds={self.seeds}, clients={self.settings.get('clients')}, dim={self.settings.get('dimension')})"


def _common(run: Simulated) -> dict[str, Any]:
    return {name: value for name, value in run.settings.items() if name != "seed"}


def repeat(run: Callable[[int], Simulated], seeds: Iterable[int] = range(5)) -> Repeated:
    """Plays one simulation with several seeds.

    ``run(seed)`` plays it and returns its :class:`Simulated`. What it trains begins anew with each seed::

        costs = unisono.repeat(lambda seed: unisono.simulate(100, 10_000, seed=seed))
        print(costs.quantity("client_seconds"))

        def run(seed):
            learner = Learner(seed)                         # split of the data, first weights
            result = unisono.simulate(20, learner.size, seed=seed, rounds=10, quantiser=quantiser,
                                      updates=learner.update, round_finished=learner.step)
            for number, accuracy in enumerate(learner.accuracies, 1):
                result.add_measure("accuracy", accuracy, round=number)
            return result

        accuracy = unisono.repeat(run, range(10)).curve("accuracy")

    An interval says how far the mean of other seeds would lie from this one; two runs make one, five make one that is of use.
    Times of one machine differ from run to run for reasons that no seed has: compare them within one session only.

    Raises
    ------
    ParamsError : no seeds, one twice, or a run that was not played with its seed or has other settings than the first.
    Anything that ``run`` raises, and ``KeyboardInterrupt``, with an attribute ``partial``: a :class:`Repeated` of the runs that
    were finished.
    """
    chosen = list(seeds)
    if not chosen:
        raise ParamsError("seeds is empty; give at least one, or two and more for an interval: seeds=range(5)")
    if len(set(chosen)) < len(chosen):
        raise ParamsError(f"seeds has one twice: {chosen}; that would count one run as two")
    runs: list[Simulated] = []
    try:
        for seed in chosen:
            result = run(seed)
            if not isinstance(result, Simulated):
                raise ParamsError(f"run({seed}) returned {type(result).__name__}; it must return what unisono.simulate gave")
            if result.settings["seed"] != seed:
                raise ParamsError(
                    f"run({seed}) was played with the seed {result.settings['seed']}: pass seed=seed to unisono.simulate"
                )
            if runs and (others := _differences(runs[0], result)):
                raise ParamsError(
                    f"run({seed}) has other settings than run({chosen[0]}): {others}; a mean needs the same ones, so repeat each "
                    "setting by itself"
                )
            runs.append(result)
    except BaseException as raised:
        # An exception with __slots__ has no place for it.
        with contextlib.suppress(AttributeError):
            setattr(raised, "partial", Repeated(runs, interrupted=True))
        raise
    return Repeated(runs)


def _differences(one: Simulated, other: Simulated) -> str:
    before, after = _common(one), _common(other)
    names = [name for name in before | after if before.get(name) != after.get(name)]
    return ", ".join(f"{name} {before.get(name)!r} and {after.get(name)!r}" for name in names)
