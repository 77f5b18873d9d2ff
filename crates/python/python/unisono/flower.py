"""Secure aggregation for Flower apps: the same shape as Flower's own SecAgg+, with this protocol inside.

An app changes two lines, ``secaggplus_mod`` and ``SecAggPlusWorkflow``::

    app = ClientApp(client_fn, mods=[unisono.flower.unisono_mod(folder)])
    DefaultWorkflow(fit_workflow=unisono.flower.UnisonoWorkflow(provisioning=folder, clip=0.5))

In malicious mode (the default) devices need identities, and everybody the registrar's word. :func:`provision` makes them
for a simulation; the files are those that the command ``unisono`` makes in production. Each device's ``device.key`` and the public
``registrar.pub`` go to its SuperNode, ``roster.bin`` and the secret ``coordinator.key`` to the SuperLink's host, and
``registrar.key`` to nobody.

What is aggregated is the *update*: the parameters that a client returns minus those that it was sent, weighted by
``num_examples``. The server learns the weighted mean and the sum of the weights, not one client's weight, so the strategy
gets one result: the aggregated parameters with the rounded total weight. Metrics of single clients stay on them.

Tested with ``flwr`` 1.42.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection
from logging import DEBUG, ERROR, INFO, WARN
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import flwr.compat.common.recorddict_compat as compat
import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.message_type import MessageType
from flwr.clientapp.typing import ClientAppCallable
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.serverapp.grid import Grid
from flwr.supercore import log

from . import (
    AbortError,
    ClientRound,
    Error,
    Outcome,
    ParamsError,
    Policy,
    Quantiser,
    RecordError,
    RefusalError,
    Roster,
    RoundParams,
    ServerRound,
    SigningKey,
    default_n_min,
    modulus_bits,
    sender_of,
)
from ._averaging import add, beyond, check_excluded, difference, dimension
from ._flower_keys import ContextRecord, device_keys, provision, registrar_key_of

__all__ = ["UnisonoWorkflow", "provision", "unisono_mod"]

_MESSAGE = "unisono.message"
_STATE = "unisono.state"
#: What a phase may take where there is no limit, in seconds.
_UNLIMITED_S = 6 * 60 * 60.0
#: Rounds by which a run goes on at a time where only a few devices say that they are ahead.
_MOST_AHEAD = 2**16
#: A share of cut elements above this is told.
_CUT = 1e-4
#: Characters of a reason that are kept, and reasons in an error.
_REASON = 400
_REASONS = 5


def unisono_mod(
    provisioning: str | os.PathLike[str] | None = None,
    *,
    policy: Policy | None = None,
) -> Callable[[Message, Context, ClientAppCallable], Message]:
    """The client mod that takes the place of ``secaggplus_mod``.

    ``provisioning`` is the folder with the device's key and ``registrar.pub``; without it, the device takes part in
    semi-honest rounds only. ``policy`` is what the device accepts, whatever the server proposes. The default is
    ``Policy(min_interval_s=0)``, since rounds may follow each other within seconds here: sums of at least 10 updates, or what the
    whole roster can give where that is less (:meth:`Policy.smallest_sum`); in semi-honest mode of at least 3.

    Training starts only when the device has seen who else takes part. A check that fails raises, so the server counts the
    device as dropped; nothing secret has left it then.
    """
    folder = None if provisioning is None else Path(provisioning)
    policy = policy or Policy(allow_semi_honest=folder is None, min_interval_s=0)

    def mod(msg: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if msg.metadata.message_type != MessageType.TRAIN:
            return call_next(msg, context)
        if _MESSAGE not in msg.content.config_records:
            raise RecordError("the server asked for a plain update; this device takes part in secure aggregation only")
        if _STATE not in context.state.config_records:
            context.state.config_records[_STATE] = ConfigRecord({})
        state = context.state.config_records[_STATE]
        incoming = msg.content.config_records[_MESSAGE]
        keys = device_keys(folder or Path(), context, state, folder is not None)
        registrar_key = registrar_key_of(folder) if folder else None
        record = ContextRecord(state)
        started = perf_counter()
        trained = 0.0
        content = RecordDict()
        reply: dict[str, Any] = {}
        if "offer" in incoming:
            offer = cast(bytes, incoming["offer"])
            try:
                client = ClientRound(offer, keys, record=record, registrar_key=registrar_key, policy=policy)
            except RecordError:
                # Of another workflow, or before the server began anew: it goes on above.
                if (last := record.last_round(str(incoming.get("task", "")))) is None:
                    raise
                content.config_records[_MESSAGE] = ConfigRecord({"last_round": last})
                return Message(content, reply_to=msg)
            state["offer"] = offer
            reply["message"] = client.message()
        else:
            if "saved" not in state:
                raise RecordError("the server goes on with a round that this device has not joined")
            client = ClientRound.resume(
                cast(bytes, state["saved"]),
                cast(bytes, state["offer"]),
                keys,
                record=record,
                registrar_key=registrar_key,
                policy=policy,
            )
            view = cast(bytes, incoming["view"])
            # Whatever comes of it: a state that has taken this step is saved below, and one that was erased is forgotten.
            del state["saved"]
            if client.awaits == "mask":
                base = _arrays_of(msg.content)
                del msg.content.config_records[_MESSAGE]
                before = perf_counter()
                out = call_next(msg, context)
                trained = perf_counter() - before
                fitres = compat.recorddict_to_fitres(out.content, keep_input=True)
                excluded = cast("list[int]", incoming.get("exclude", []))
                update = difference(parameters_to_ndarrays(fitres.parameters), base, excluded)
                cut = beyond(update, client.clip, base, excluded)
                for array, share in cut.items():
                    log(WARN, "%.3g %% of array %s lies beyond the clip %s and is cut", 100 * share, array, client.clip)
                elements = sum(share * base[array].size for array, share in cut.items())
                # A workflow of before asks for none.
                metrics = [min(1.0, elements / max(1, update.size))] * min(1, client.metrics)
                weight = float(fitres.num_examples)
                reply["message"] = client.receive(view, update=update, weight=weight, metrics=metrics)
                reply["upload"] = client.upload()
            else:
                reply["message"] = client.receive(view)
        # The new state replaces the old one before the message leaves: a share can't be released twice.
        state["saved"] = client.save()
        reply["seconds"] = perf_counter() - started - trained
        content.config_records[_MESSAGE] = ConfigRecord(reply)
        return Message(content, reply_to=msg)

    return mod


def _arrays_of(content: RecordDict) -> list[np.ndarray]:
    return parameters_to_ndarrays(compat.recorddict_to_fitins(content, keep_input=True).parameters)


class UnisonoWorkflow:
    """The server workflow that takes the place of ``SecAggPlusWorkflow`` in ``DefaultWorkflow(fit_workflow=...)``.

    Parameters
    ----------
    clip : bound of an element of an update (returned minus sent parameters), above 0; larger ones are cut, so it has no default. The
        clients' logs say of which arrays, and the report and the server's log which share of all elements.
    provisioning : folder with ``roster.bin``, ``registrar.pub`` and ``coordinator.key``; ``None`` only in semi-honest mode.
    mode : ``"malicious"`` (default) or ``"semi-honest"``.
    max_weight : largest ``num_examples`` of a client, above 0; a client with more can't take part.
    bits : bits of a quantised element, 1 to 32.
    rounding : ``"stochastic"`` (unbiased) or ``"deterministic"``.
    n_min : smallest number of updates in a sum, from 3; default what :func:`unisono.default_n_min` gives for the clients that the
        strategy samples: 3 of 3, 4 of 5, 7 of 10, 81 of 100. The devices' policies must allow it.
    gamma, delta : fractions (0 to below 1) of the clients that may collude and may drop out. At least one colludes. Up to 32 clients,
        as many may drop out as :attr:`unisono.Topology.tolerated_drop_outs` says, whatever ``delta`` is, if ``n_min`` are left: none
        of 3 or 4, one of 5, three of 10.
    task : name under which devices record the rounds that they took part in, 1 to 64 bytes.
    exclude : indices of the arrays that stay as the server has them, whatever clients make of them: statistics of a BatchNorm layer that
        one clip for all arrays would cut, or what has no average.
    timeout : seconds (above 0) to wait for replies in each phase; ``None`` waits for all. Devices forget a round after twice
        the time that is left for its phases, and after their policy's ``max_round_s`` (a day); ``None`` counts as six hours.

    Raises ``ParamsError`` or ``EncodingError`` for a setting out of its range, and what :class:`SigningKey` and :class:`Roster`
    raise about the files in ``provisioning``. Whether a round is feasible depends on how many clients the strategy samples; one
    that is not ends without a sum, as any that has too many drop-outs. So does one whose default ``n_min`` the default policy of
    devices refuses: a small sample of a large roster. The log says which settings to change.

    After a round, ``report`` holds its clients, drop-outs, seconds and bytes; ``cut``, the share of elements that were beyond the clip,
    weighted like the mean and quantised like it (0 where nothing was cut); and ``error_bound``, which bounds the error of the mean of the
    updates *as they were cut*.
    """

    def __init__(
        self,
        *,
        clip: float,
        provisioning: str | os.PathLike[str] | None = None,
        mode: str = "malicious",
        max_weight: float = 1000.0,
        bits: int = 16,
        rounding: str = "stochastic",
        n_min: int | None = None,
        gamma: float = 0.05,
        delta: float = 0.1,
        task: str = "flower",
        exclude: Collection[int] = (),
        timeout: float | None = None,
    ) -> None:
        _check(mode=mode, n_min=n_min, gamma=gamma, delta=delta, task=task, timeout=timeout)
        if (mode == "malicious") != (provisioning is not None):
            raise ParamsError(
                "malicious mode needs provisioning=.., semi-honest mode has none: see unisono.flower.provision"
            )
        # The metric is the share of a client's elements that are cut.
        self._quantiser = Quantiser(
            bits=bits, clip=clip, max_weight=max_weight, rounding=cast(Any, rounding), metrics=[(0.0, 1.0)]
        )
        self._mode, self._n_min, self._gamma, self._delta = mode, n_min, gamma, delta
        self._task, self._timeout = task, timeout
        self._exclude = sorted(set(exclude))
        #: By how much a round's number is above Flower's.
        self._ahead = 0
        self._coordinator: SigningKey | None = None
        self._roster: Roster | None = None
        if provisioning is not None:
            folder = Path(provisioning)
            self._coordinator = SigningKey.from_text("coordinator", (folder / "coordinator.key").read_text("ascii"))
            self._roster = Roster.from_bytes((folder / "roster.bin").read_bytes(), registrar_key_of(folder))
        self.report: dict[str, Any] = {}

    def __call__(self, grid: Grid, context: Context) -> None:
        """Runs one round. A round that ends without a sum leaves the parameters as they are, and says why in the log."""
        if not isinstance(context, LegacyContext):
            raise TypeError(f"Expect a LegacyContext, but get {type(context).__name__}.")
        if getattr(context.strategy, "fit_metrics_aggregation_fn", None) is not None:
            raise ParamsError(
                "the strategy has fit_metrics_aggregation_fn, and metrics of single clients stay on them: leave it out, and look at "
                "the model with evaluate_fn, or on clients in the evaluation"
            )
        log(INFO, "Secure aggregation commencing (unisono, %s mode).", self._mode)
        try:
            done = self._round(grid, context)
        except (AbortError, ParamsError) as error:
            # ParamsError: no round can run with as many clients as were sampled; another round may sample more.
            log(ERROR, "The round ended without a sum: %s", error)
            done = False
        log(INFO, "Secure aggregation completed." if done else "Secure aggregation halted.")

    def _round(self, grid: Grid, context: LegacyContext) -> bool:
        current_round = cast(int, context.state.config_records[MAIN_CONFIGS_RECORD][WorkflowKey.CURRENT_ROUND])
        record = context.state.array_records[MAIN_PARAMS_RECORD]
        parameters = compat.arrayrecord_to_parameters(record, keep_input=True)
        sampled = context.strategy.configure_fit(current_round, parameters, context.client_manager)
        if not sampled:
            log(INFO, "configure_fit: no clients selected, cancel")
            return False
        base = parameters_to_ndarrays(parameters)
        if any(fitins.parameters.tensors != parameters.tensors for _, fitins in sampled):
            raise ValueError("the strategy sends clients different parameters: their updates have no common base")
        instructions = {proxy.node_id: compat.fitins_to_recorddict(fitins, True) for proxy, fitins in sampled}
        proxies = {proxy.node_id: proxy for proxy, _ in sampled}
        check_excluded(self._exclude, len(base))
        size = dimension(base, self._exclude)
        params, server, exchange = self._open(grid, instructions, size, current_round)
        if (last := exchange.later_round(params.n_min)) is not None and last > current_round + self._ahead - 1:
            log(INFO, "devices have been in round %s, of another workflow or an earlier run: going on above", last)
            # Most have reached it; otherwise a few liars may take the number on, but by no leap that devices don't follow.
            honest = 2 * (params.n_min - len(exchange.clients)) > len(sampled)
            self._ahead = last + 1 - current_round if honest else min(last + 1 - current_round, self._ahead + _MOST_AHEAD)
            params, server, exchange = self._open(grid, instructions, size, current_round)
        try:
            outcome = self._play(exchange, server, params, instructions)
        except AbortError as error:
            if exchange.reasons:
                error.args = (f"{error}; clients did not go on: {exchange.why()}", *error.args[1:])
            raise
        before = perf_counter()
        aggregate = outcome.decode()
        exchange.seconds["server"] += perf_counter() - before
        for about, by, what in outcome.reports:
            log(WARN, "report: %s about client %s, by client %s", what, about.hex(), by.hex())
        cut = min(1.0, aggregate.metrics[0])
        if cut > _CUT:
            log(
                WARN,
                "%.3g %% of the elements of the updates were beyond the clip %s and were cut: the clients' logs say of which arrays. "
                "Raise clip, or leave such arrays out with exclude",
                100 * cut,
                self._quantiser.clip,
            )
        self.report = {
            "round": current_round,
            "clients": len(sampled),
            "survivors": len(outcome.survivors),
            "error_bound": aggregate.error_bound,
            "cut": cut,
            "seconds": exchange.seconds,
            "bytes_up": exchange.bytes_up,
            "bytes_down": exchange.bytes_down,
        }
        alive = set(outcome.survivors)
        survivor = next(node for node, client in exchange.clients.items() if client in alive)
        fitres = FitRes(
            status=Status(code=Code.OK, message="the sum of all survivors"),
            parameters=ndarrays_to_parameters(add(base, aggregate.mean, self._exclude)),
            num_examples=max(1, round(aggregate.total_weight)),
            metrics={},
        )
        log(INFO, "aggregate_fit: %s updates in one sum, %s failures", len(alive), len(exchange.failures))
        aggregated, metrics = context.strategy.aggregate_fit(
            current_round, [(proxies[survivor], fitres)], cast(Any, exchange.failures)
        )
        if aggregated:
            context.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(aggregated, True)
            context.history.add_metrics_distributed_fit(server_round=current_round, metrics=metrics)
        return True

    def _open(
        self, grid: Grid, instructions: dict[int, RecordDict], size: int, current_round: int
    ) -> tuple[RoundParams, ServerRound, _Exchange]:
        """Offers a round."""
        params = self._params(len(instructions), size, current_round + self._ahead)
        server = ServerRound(params, coordinator_key=self._coordinator, roster=self._roster)
        exchange = _Exchange(grid, server, self._task, str(current_round), self._timeout)
        exchange.advertise(instructions)
        return params, server, exchange

    def _play(
        self, exchange: _Exchange, server: ServerRound, params: RoundParams, instructions: dict[int, RecordDict]
    ) -> Outcome:
        """The phases of a round, to its sum."""
        sampled = len(instructions)
        outcome = server.close()
        while outcome is None:
            phase = server.phase
            if phase == "mask" and params.malicious and len(exchange.clients) < sampled:
                log(WARN, "%s of %s clients are left", len(exchange.clients), sampled)
            exchange.step(phase, instructions if phase == "mask" else None, self._exclude)
            before = perf_counter()
            outcome = server.close()
            exchange.seconds["server"] += perf_counter() - before
        return outcome

    def _params(self, clients: int, dimension: int, current_round: int) -> RoundParams:
        n_min = self._n_min
        if n_min is None:
            n_min = default_n_min(clients, gamma=self._gamma, delta=self._delta, mode=cast(Any, self._mode))
            wanted = 3 if self._roster is None else Policy().smallest_sum(len(self._roster))
            if n_min < wanted:
                raise ParamsError(
                    f"{clients} clients were sampled, for sums of n_min = {n_min}; by default, devices of a roster of "
                    f"{len(cast(Roster, self._roster))} refuse sums below {wanted}: sample more clients, or set "
                    f"UnisonoWorkflow(n_min={n_min}) here and unisono_mod(policy=Policy(n_min={n_min}, min_interval_s=0)) on devices"
                )
        return RoundParams(
            task=self._task,
            round=current_round,
            dimension=dimension,
            n_min=n_min,
            n_max=clients,
            quantiser=self._quantiser,
            gamma=self._gamma,
            delta=self._delta,
            mode=cast(Any, self._mode),
            roster=self._roster,
            modulus_bits=modulus_bits(self._quantiser.bits, max(clients, 1)),
            deadline_s=_UNLIMITED_S if self._timeout is None else self._timeout,
        )


def _check(
    *, mode: str, n_min: int | None, gamma: float, delta: float, task: str, timeout: float | None
) -> None:
    """What no round could run with, however many clients it has."""
    if mode not in ("malicious", "semi-honest"):
        raise ParamsError(f'mode is {mode!r}; allowed is "malicious" or "semi-honest"')
    if n_min is not None and n_min < 3:
        raise ParamsError(f"n_min is {n_min}; a number from 3, or None for what fits the clients sampled, is needed")
    for name, fraction in (("gamma", gamma), ("delta", delta)):
        if not 0.0 <= fraction < 1.0:
            raise ParamsError(f"{name} is {fraction}; a fraction from 0 to below 1 is needed")
    if not 1 <= len(task.encode()) <= 64:
        raise ParamsError(f"task is {task!r}; a name of 1 to 64 bytes is needed")
    if timeout is not None and not timeout > 0.0:
        raise ParamsError(f"timeout is {timeout}; a number of seconds above 0, or None to wait for all, is needed")


class _Exchange:
    """Carries the round's messages over Flower's grid, and counts them."""

    def __init__(self, grid: Grid, server: ServerRound, task: str, group: str, timeout: float | None) -> None:
        self._grid, self._server, self._task, self._group, self._timeout = grid, server, task, group, timeout
        #: Which client answers under which Flower node, as the node's signed advert says.
        self.clients: dict[int, bytes] = {}
        self.failures: list[Exception] = []
        #: Why clients did not go on, with their numbers.
        self.reasons: Counter[str] = Counter()
        #: Of devices that have been in this round or a later one.
        self.last_rounds: list[int] = []
        self.bytes_up: dict[str, int] = {}
        self.bytes_down: dict[str, int] = {}
        self.seconds: dict[str, float] = {"server": 0.0, "clients": 0.0}

    def later_round(self, needed: int) -> int | None:
        """Where too few joined because they have been in later rounds: the highest number that as many as are missing have reached."""
        missing = max(0, needed - len(self.clients))
        if not 0 < missing <= len(self.last_rounds):
            return None
        return sorted(self.last_rounds, reverse=True)[missing - 1]

    def why(self) -> str:
        """Why clients did not go on, the most frequent reason first."""
        return "; ".join(f"{count} x {reason}" for reason, count in self.reasons.most_common(_REASONS))

    def _send(self, phase: str, contents: dict[int, RecordDict]) -> list[tuple[int, ConfigRecord]]:
        messages = [
            Message(content=content, dst_node_id=node, message_type=MessageType.TRAIN, group_id=self._group)
            for node, content in contents.items()
        ]
        log(DEBUG, "[%s] sending to %s clients", phase, len(messages))
        answers = []
        reasons: Counter[str] = Counter()
        for reply in self._grid.send_and_receive(messages, timeout=self._timeout):
            if reply.has_error():
                self.failures.append(Exception(reply.error))
                reasons[" ".join((reply.error.reason or "no reason given").split())[:_REASON]] += 1
            elif _MESSAGE in reply.content.config_records:
                answers.append((reply.metadata.src_node_id, reply.content.config_records[_MESSAGE]))
        for reason, count in reasons.most_common():
            log(WARN, "%s of %s clients did not go on in phase %s: %s", count, len(messages), phase, reason)
        self.reasons += reasons
        size = sum(_length(answer, "message") + _length(answer, "upload") for _, answer in answers)
        self.bytes_up[phase] = size
        self.seconds["clients"] += sum(cast(float, answer.get("seconds", 0.0)) for _, answer in answers)
        return answers

    def _absorb(self, node: int, answer: ConfigRecord) -> None:
        message, upload = answer.get("message"), answer.get("upload")
        before = perf_counter()
        try:
            if not isinstance(message, bytes):
                raise RefusalError(f"node {node} sent no message")
            self._server.absorb(message)
            if isinstance(upload, bytes):
                self._server.absorb_upload(self.clients[node], upload)
        except Error as error:
            log(WARN, "refused: %s", error)
            self.failures.append(error)
            self.reasons[str(error)[:_REASON]] += 1
        finally:
            self.seconds["server"] += perf_counter() - before

    def advertise(self, nodes: dict[int, RecordDict]) -> None:
        """Phase 0: the offer goes to all sampled nodes; a node's client id is the one that its accepted advert names."""
        offer = self._server.offer()
        self.bytes_down["advertise"] = len(offer) * len(nodes)
        contents = {
            node: RecordDict({_MESSAGE: ConfigRecord({"offer": offer, "task": self._task})}) for node in nodes
        }
        for node, answer in self._send("advertise", contents):
            if isinstance(last := answer.get("last_round"), int):
                self.last_rounds.append(last)
                self.reasons[f"it has been in round {last}"] += 1
                continue
            known = len(self.failures)
            self._absorb(node, answer)
            if len(self.failures) == known:
                self.clients[node] = sender_of(cast(bytes, answer["message"]))

    def step(self, phase: str, instructions: dict[int, RecordDict] | None, exclude: list[int]) -> None:
        """A later phase: each client that has a part in it gets its view, in phase 2 with the strategy's instructions and the
        arrays that are left out."""
        contents = {}
        size = 0
        for node, client in self.clients.items():
            view = self._server.view(client)
            if view is None:
                continue
            size += len(view)
            content = RecordDict() if instructions is None else instructions[node]
            extra: dict[str, Any] = {} if instructions is None or not exclude else {"exclude": exclude}
            content.config_records[_MESSAGE] = ConfigRecord({"view": view, **extra})
            contents[node] = content
        self.bytes_down[phase] = size
        answers = self._send(phase, contents)
        for node, answer in answers:
            self._absorb(node, answer)
        silent = contents.keys() - {node for node, _ in answers}
        self.clients = {node: client for node, client in self.clients.items() if node not in silent}


def _length(record: ConfigRecord, key: str) -> int:
    value = record.get(key)
    return len(value) if isinstance(value, bytes) else 0
