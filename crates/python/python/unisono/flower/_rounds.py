"""A secure round, whichever API asks for it, and what is kept from round to round."""

from __future__ import annotations

from dataclasses import dataclass
from logging import ERROR, INFO, WARN
from time import perf_counter
from typing import Any

from flwr.app import Message, RecordDict

from .. import AbortError, Accountant, Outcome, ParamsError, RoundParams, ServerRound
from ._averaging import Arrays, add, check_labels
from ._compat import log
from ._exchange import CUT, Channel, Exchange
from ._settings import Settings

#: Rounds by which a run goes on at a time where only a few devices say that they are ahead.
_MOST_AHEAD = 2**16
#: A share of cut elements above this is told.
_CUT = 1e-4


@dataclass
class Ended:
    """A round that ended. Without a sum, only the failures say something."""

    failures: list[Exception]
    #: Replies that say why a client failed.
    errors: list[Message]
    #: The arrays sent plus the mean update.
    arrays: Arrays | None = None
    total_weight: float = 0.0
    #: Weighted means of the declared metrics.
    metrics: dict[str, float] | None = None
    #: A node whose update is in the sum.
    survivor: int = 0


class SecureRounds:
    """The rounds of a run, one after the other."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        #: By how much a round's number is above Flower's.
        self._ahead = 0
        self.accountant = Accountant() if settings.accountant is None else settings.accountant
        self.report: dict[str, Any] = {}

    def play(
        self, channel: Channel, number: int, instructions: dict[int, RecordDict], base: Arrays
    ) -> Ended:
        """One round, of the nodes that have instructions, about arrays that each of them is sent.

        A round that ends without a sum says why in the log. Raises ``EncodingError`` where ``exclude`` names an array that there isn't.
        """
        log(INFO, "Secure aggregation commencing (unisono, %s mode).", self.settings.mode)
        check_labels("exclude", self.settings.exclude, base)
        check_labels("clips", self.settings.clips, base)
        exchange = None
        try:
            params, server, exchange = self._open(channel, number, instructions, base)
            ended = self._finish(exchange, server, params, number, instructions, base)
        except (AbortError, ParamsError) as error:
            # ParamsError: no round can run with as many clients as were sampled; another round may sample more.
            reasons = f"; clients did not go on: {exchange.why()}" if exchange and exchange.reasons else ""
            log(ERROR, "The round ended without a sum: %s%s", error, reasons)
            log(INFO, "Secure aggregation halted.")
            return Ended(exchange.failures if exchange else [], exchange.errors if exchange else [])
        log(INFO, "Secure aggregation completed.")
        return ended

    def _open(
        self, channel: Channel, number: int, instructions: dict[int, RecordDict], base: Arrays
    ) -> tuple[RoundParams, ServerRound, Exchange]:
        """Offers a round, and once more above the rounds in which devices have been."""
        params, server, exchange = self._offer(channel, number, instructions, base)
        last = exchange.later_round(params.n_min)
        if last is None or last <= number + self._ahead - 1:
            return params, server, exchange
        log(INFO, "devices have been in round %s, of another workflow or an earlier run: going on above", last)
        # Most have reached it; otherwise a few liars may take the number on, but by no leap that devices don't follow.
        honest = 2 * (params.n_min - len(exchange.clients)) > len(instructions)
        self._ahead = last + 1 - number if honest else min(last + 1 - number, self._ahead + _MOST_AHEAD)
        return self._offer(channel, number, instructions, base)

    def _offer(
        self, channel: Channel, number: int, instructions: dict[int, RecordDict], base: Arrays
    ) -> tuple[RoundParams, ServerRound, Exchange]:
        settings = self.settings
        params = settings.params(len(instructions), base, number + self._ahead, channel.timeout)
        server = ServerRound(params, coordinator_key=settings.coordinator, roster=settings.roster)
        exchange = Exchange(channel, server)
        exchange.advertise(list(instructions))
        return params, server, exchange

    def _finish(
        self,
        exchange: Exchange,
        server: ServerRound,
        params: RoundParams,
        number: int,
        instructions: dict[int, RecordDict],
        base: Arrays,
    ) -> Ended:
        """The phases after the offer, and what comes of the sum."""
        outcome = self._phases(exchange, server, params, instructions)
        before = perf_counter()
        aggregate = outcome.decode()
        exchange.seconds["server"] += perf_counter() - before
        for about, by, what in outcome.reports:
            log(WARN, "report: %s about client %s, by client %s", what, about.hex(), by.hex())
        metrics = dict(zip(self.settings.asked, aggregate.metrics, strict=True))
        cut = self._cut(metrics)
        self.report = {
            "round": number,
            "clients": len(instructions),
            "survivors": len(outcome.survivors),
            "total_weight": aggregate.total_weight,
            "error_bound": aggregate.error_bound,
            "cut": cut,
            "metrics": metrics,
            **self._privacy(params, outcome, aggregate.noise_deviation),
            "seconds": exchange.seconds,
            "bytes_up": exchange.bytes_up,
            "bytes_down": exchange.bytes_down,
        }
        alive = set(outcome.survivors)
        log(INFO, "%s updates in one sum, %s failures", len(alive), len(exchange.failures))
        return Ended(
            exchange.failures,
            exchange.errors,
            arrays=add(base, aggregate.mean, self.settings.exclude),
            total_weight=aggregate.total_weight,
            metrics=metrics,
            survivor=next(node for node, client in exchange.clients.items() if client in alive),
        )

    def _phases(
        self, exchange: Exchange, server: ServerRound, params: RoundParams, instructions: dict[int, RecordDict]
    ) -> Outcome:
        extra: dict[str, Any] = {}
        # Records hold no empty lists.
        if self.settings.exclude:
            extra["exclude"] = sorted(set(self.settings.exclude))
        if self.settings.asked:
            extra["metrics"] = self.settings.asked
        if self.settings.private:
            extra["equal"] = True
        outcome = server.close()
        while outcome is None:
            masking = server.phase == "mask"
            if masking and params.malicious and len(exchange.clients) < len(instructions):
                log(WARN, "%s of %s clients are left", len(exchange.clients), len(instructions))
            exchange.step(server.phase, instructions if masking else {}, extra if masking else {})
            before = perf_counter()
            outcome = server.close()
            exchange.seconds["server"] += perf_counter() - before
        return outcome

    def _cut(self, metrics: dict[str, float]) -> float | None:
        """Takes the share of cut elements out of the metrics, and says what to do about it."""
        if CUT not in metrics:
            return None
        cut = min(1.0, metrics.pop(CUT))
        if cut > _CUT:
            log(
                WARN,
                "%.3g %% of the elements of the updates were beyond the clip %s and were cut: the clients' logs say of which arrays. "
                "Raise clip, give such arrays their own (clips), or leave them out with exclude",
                100 * cut,
                self.settings.clip,
            )
        return cut

    def _privacy(self, params: RoundParams, outcome: Outcome, deviation: float) -> dict[str, float | None]:
        """What the round's sum, and all sums so far, reveal at most."""
        if not self.settings.private:
            return {"noise_deviation": None, "epsilon": None, "total_epsilon": None}
        alone = Accountant()
        for account in (alone, self.accountant):
            account.add(params, survivors=len(outcome.survivors), cohort=len(outcome.cohort))
        delta = self.settings.privacy_delta
        epsilon, total = alone.epsilon(delta), self.accountant.epsilon(delta)
        log(INFO, "differential privacy: epsilon %.3g of this round, %.3g of all, at delta %g", epsilon, total, delta)
        return {"noise_deviation": deviation, "epsilon": epsilon, "total_epsilon": total}
