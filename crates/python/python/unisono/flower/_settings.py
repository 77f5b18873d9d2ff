"""The settings of rounds, the same for both APIs."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, cast

from .. import Accountant, ParamsError, Policy, Quantiser, Roster, RoundParams, SigningKey, default_n_min
from ._averaging import Arrays, Label, dimension, runs
from ._exchange import CUT
from ._keys import registrar_key_of

#: What a phase may take where there is no limit, in seconds.
_UNLIMITED_S = 6 * 60 * 60.0
#: The default of ``max_weight``.
_MAX_WEIGHT = 1000.0


class SettingsArguments(TypedDict, total=False):
    """The keyword arguments of :class:`Settings`, of which ``clip`` is needed, for type checkers."""

    clip: float
    clips: Mapping[Label, float]
    provisioning: str | os.PathLike[str] | None
    mode: str
    max_weight: float | None
    bits: int
    rounding: str
    rotate: bool
    l2_clip: float | None
    noise_multiplier: float | None
    privacy_delta: float
    accountant: Accountant | None
    metrics: Mapping[str, tuple[float, float]]
    n_min: int | None
    gamma: float
    delta: float
    min_colluders: int
    task: str
    exclude: Collection[Label]
    timeout: float | None


@dataclass(kw_only=True, eq=False)
class Settings:
    """What the rounds of a run are made of: the keyword arguments of :class:`UnisonoWorkflow` and :class:`SecureGrid`.

    Parameters
    ----------
    clip : bound of an element of an update (returned minus sent arrays), above 0; larger ones are cut, so it has no default. With
        ``rotate`` it bounds an element of the rotated update. The clients' logs say of which arrays elements were cut, and the
        report and the server's log which share of all elements; neither with ``rotate``, ``l2_clip`` or noise.
    clips : clips of some arrays in the place of ``clip``, by name (Message API) or by number from 0: statistics of a BatchNorm layer, for
        instance, which move by larger steps than weights. Not with ``rotate`` or noise.
    provisioning : folder with ``roster.bin``, ``registrar.pub`` and ``coordinator.key``; ``None`` only in semi-honest mode.
    mode : ``"malicious"`` (default) or ``"semi-honest"``.
    max_weight : largest number of examples of a client, above 0, by default 1000; a client with more can't take part. Not with
        noise, where all updates count alike.
    bits : bits of a quantised element, 1 to 32, with ``rotate`` to 24.
    rounding : ``"stochastic"`` (unbiased) or ``"deterministic"``.
    rotate : whether updates are rotated before they are clipped, so that a smaller ``clip`` serves where few elements are large.
    l2_clip : bound of the L2 norm of an update, above 0; longer ones are scaled down. ``None`` for none.
    noise_multiplier : differential privacy, above 0: deviation of the noise in the smallest sum, in units of ``l2_clip``, which it needs.
        Every update then has the same weight, and there are no metrics.
    privacy_delta : the delta, above 0 and below 1, for which the report gives epsilon.
    accountant : what earlier runs with the same devices have spent: one that was kept after each round (``to_json``, pickle). The rounds
        of this run are added to it, so that a run that is started again does not report less than was spent. ``None``: nothing yet.
    metrics : bounds of the training metrics whose weighted mean is learned, as ``{"train_loss": (0.0, 10.0)}``; values outside are
        cut. The devices declare the same names: ``unisono_mod(metrics=["train_loss"])``.
    n_min : smallest number of updates in a sum, from 3; default what :func:`unisono.default_n_min` gives for the clients that the
        strategy samples: 3 of 3, 4 of 5, 7 of 10, 81 of 100. The devices' policies must allow it.
    gamma, delta : fractions (0 to below 1) of the clients that may collude and may drop out. Up to 32 clients, as many may drop out as
        :attr:`unisono.Topology.tolerated_drop_outs` says, whatever ``delta`` is, if ``n_min`` are left: none of 3 or 4, one of 5,
        three of 10.
    min_colluders : so many collude at the least, from 1.
    task : name under which devices record the rounds that they took part in, 1 to 64 bytes.
    exclude : the arrays that stay as the server has them, whatever clients make of them, by name (Message API) or by number from 0:
        statistics of a BatchNorm layer that one clip for all arrays would cut, or what has no average.
    timeout : seconds (above 0) to wait for replies in each phase. ``None`` waits for all; in the Message API it is then what
        ``Strategy.start`` has. Devices forget a round after twice the time that is left for its phases, and after their
        policy's ``max_round_s`` (a day); ``None`` counts as six hours.

    Raises ``ParamsError`` or ``EncodingError`` for a setting out of its range, and what :class:`unisono.SigningKey` and
    :class:`unisono.Roster` raise about the files in ``provisioning``.
    """

    clip: float
    clips: Mapping[Label, float] = field(default_factory=dict)
    provisioning: str | os.PathLike[str] | None = None
    mode: str = "malicious"
    max_weight: float | None = None
    bits: int = 16
    rounding: str = "stochastic"
    rotate: bool = False
    l2_clip: float | None = None
    noise_multiplier: float | None = None
    privacy_delta: float = 1e-5
    accountant: Accountant | None = None
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    n_min: int | None = None
    gamma: float = 0.05
    delta: float = 0.1
    min_colluders: int = 1
    task: str = "flower"
    exclude: Collection[Label] = ()
    timeout: float | None = None
    quantiser: partial[Quantiser] = field(init=False, repr=False)
    coordinator: SigningKey | None = field(init=False, repr=False, default=None)
    roster: Roster | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        self._check()
        self._check_privacy()
        bounds = [(0.0, 1.0)] if self.asked[:1] == [CUT] else []
        self.quantiser = partial(
            Quantiser,
            bits=self.bits,
            clip=self.clip,
            max_weight=1.0 if self.private else _MAX_WEIGHT if self.max_weight is None else self.max_weight,
            l2_clip=self.l2_clip,
            rounding=cast(Any, self.rounding),
            metrics=bounds + [self.metrics[name] for name in sorted(self.metrics)],
            rotate=self.rotate,
        )
        # What is wrong with the settings is said now.
        self.quantiser(clips=[(1, clip) for clip in self.clips.values()])
        if self.provisioning is not None:
            folder = Path(self.provisioning)
            self.coordinator = SigningKey.from_text("coordinator", (folder / "coordinator.key").read_text("ascii"))
            self.roster = Roster.from_bytes((folder / "roster.bin").read_bytes(), registrar_key_of(folder))

    @property
    def private(self) -> bool:
        """Whether rounds are differentially private."""
        return self.noise_multiplier is not None

    @property
    def asked(self) -> list[str]:
        """Names of the metrics of a round, in their order. The share of elements that are cut is the first, where a device can
        compare an update with the clip as it is."""
        cut = [] if self.rotate or self.l2_clip is not None else [CUT]
        return cut + sorted(self.metrics)

    def params(self, clients: int, base: Arrays, number: int, timeout: float | None) -> RoundParams:
        """The round of so many sampled clients about these arrays. Raises ``ParamsError`` where none can be run with them."""
        n_min = self.n_min
        if n_min is None:
            n_min = default_n_min(
                clients, gamma=self.gamma, delta=self.delta, mode=cast(Any, self.mode), min_colluders=self.min_colluders
            )
            devices = 0 if self.roster is None else len(self.roster)
            wanted = 3 if self.roster is None else Policy().smallest_sum(devices)
            if n_min < wanted:
                raise ParamsError(
                    f"{clients} clients were sampled, for sums of n_min = {n_min}; by default, devices of a roster of {devices} "
                    f"refuse sums below {wanted}: sample more clients, or set n_min={n_min} here and "
                    f"unisono_mod(policy=Policy(n_min={n_min}, min_interval_s=0)) on devices"
                )
        return RoundParams(
            task=self.task,
            round=number,
            dimension=dimension(base, self.exclude),
            n_min=n_min,
            n_max=clients,
            quantiser=self.quantiser(clips=runs(base, self.exclude, self.clip, self.clips) if self.clips else []),
            gamma=self.gamma,
            delta=self.delta,
            min_colluders=self.min_colluders,
            mode=cast(Any, self.mode),
            roster=self.roster,
            noise_multiplier=self.noise_multiplier,
            deadline_s=_UNLIMITED_S if timeout is None else timeout,
        )

    def _check(self) -> None:
        """What no round could run with, however many clients it has."""
        if self.mode not in ("malicious", "semi-honest"):
            raise ParamsError(f'mode is {self.mode!r}; allowed is "malicious" or "semi-honest"')
        if self.n_min is not None and self.n_min < 3:
            raise ParamsError(f"n_min is {self.n_min}; a number from 3, or None for what fits the clients sampled, is needed")
        if self.min_colluders < 1:
            raise ParamsError(f"min_colluders is {self.min_colluders}; a number from 1 is needed")
        for name, fraction in (("gamma", self.gamma), ("delta", self.delta)):
            if not 0.0 <= fraction < 1.0:
                raise ParamsError(f"{name} is {fraction}; a fraction from 0 to below 1 is needed")
        if not 1 <= len(self.task.encode()) <= 64:
            raise ParamsError(f"task is {self.task!r}; a name of 1 to 64 bytes is needed")
        if self.timeout is not None and not self.timeout > 0.0:
            raise ParamsError(f"timeout is {self.timeout}; a number of seconds above 0, or None to wait for all, is needed")
        if not isinstance(self.metrics, Mapping) or not all(isinstance(name, str) for name in self.metrics):
            raise ParamsError(f'metrics is {self.metrics!r}; names with bounds are needed: {{"train_loss": (0.0, 10.0)}}')
        if CUT in self.metrics:
            raise ParamsError(f"metrics names {CUT}, which is the plug-in's own: take another name")
        if (self.mode == "malicious") != (self.provisioning is not None):
            raise ParamsError(
                "malicious mode needs provisioning=.., semi-honest mode has none: see unisono.flower.provision"
            )

    def _check_privacy(self) -> None:
        if not 0.0 < self.privacy_delta < 1.0:
            raise ParamsError(f"privacy_delta is {self.privacy_delta}; a number above 0 and below 1 is needed")
        if self.noise_multiplier is None:
            return
        if not 0.0 < self.noise_multiplier < math.inf:
            raise ParamsError(f"noise_multiplier is {self.noise_multiplier}; a finite number above 0 is needed")
        if self.l2_clip is None:
            raise ParamsError("noise_multiplier needs l2_clip=..: the bound on what one client can change")
        if self.clips:
            raise ParamsError(f"clips is {dict(self.clips)}; a round with noise_multiplier has one clip for all: leave it out")
        if self.metrics:
            raise ParamsError(
                f"metrics is {list(self.metrics)}; a round with noise_multiplier has none, since the noise covers the update only"
            )
        if self.max_weight is not None:
            raise ParamsError(
                f"max_weight is {self.max_weight}; with noise_multiplier every update has the same weight: leave it out"
            )
