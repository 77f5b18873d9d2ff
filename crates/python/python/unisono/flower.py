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
from collections.abc import Callable
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
    DeviceKeys,
    EncodingError,
    Error,
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
    read_public_key,
    sender_of,
)
__all__ = ["UnisonoWorkflow", "provision", "unisono_mod"]

_MESSAGE = "unisono.message"
_STATE = "unisono.state"
#: What a phase may take where there is no limit, in seconds.
_UNLIMITED_S = 6 * 60 * 60.0


def provision(folder: str | os.PathLike[str], devices: int) -> Path:
    """Makes keys and a roster for a simulation of ``devices`` devices, and returns the folder.

    Writes ``registrar.pub``, ``roster.bin``, ``coordinator.key`` and, for each partition id, ``device-<id>.key``. The
    registrar's signing key is forgotten. Key files are readable by their owner only.
    """
    if devices < 3:
        raise ParamsError(f"devices is {devices}; a cohort has at least 3 members")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    registrar, coordinator = SigningKey.generate("registrar"), SigningKey.generate("coordinator")
    keys = [DeviceKeys.generate() for _ in range(devices)]
    roster = Roster.publish(
        [key.enrolment() for key in keys], registrar, epoch=1, coordinators=[coordinator.verifying_key]
    )
    (folder / "registrar.pub").write_text(registrar.public_text(), encoding="ascii")
    (folder / "roster.bin").write_bytes(roster.to_bytes())
    _write_secret(folder / "coordinator.key", coordinator.to_text())
    for i, key in enumerate(keys):
        _write_secret(folder / f"device-{i}.key", key.to_text())
    return folder


def _write_secret(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(text)


def _registrar_key(folder: Path) -> bytes:
    return read_public_key("registrar", (folder / "registrar.pub").read_text("ascii"))


class _ContextRecord:
    """A participation record in the client's Flower context, which outlives the message."""

    def __init__(self, state: ConfigRecord) -> None:
        self._state = state

    def entry(self, task: str) -> bytes | None:
        return cast("bytes | None", self._state.get(f"entry:{task}"))

    def replace(self, task: str, expected: bytes | None, new: bytes) -> bool:
        if self.entry(task) != expected:
            return False
        self._state[f"entry:{task}"] = new
        return True

    def roster_epoch(self) -> int:
        return cast(int, self._state.get("roster_epoch", 0))

    def see_roster_epoch(self, epoch: int) -> None:
        self._state["roster_epoch"] = max(epoch, self.roster_epoch())


def _device_keys(provisioning: Path, context: Context, state: ConfigRecord, malicious: bool) -> DeviceKeys:
    """The device's keys: of its partition, or of the one device in the folder; without signatures any will do."""
    if "device" in state:
        return DeviceKeys.from_text(cast(str, state["device"]))
    if not malicious:
        keys = DeviceKeys.generate()
        state["device"] = keys.to_text()
        return keys
    path = provisioning / "device.key"
    if not path.exists():
        if "partition-id" not in context.node_config:
            raise RecordError(f"there is no {path}, and no partition-id in the node's configuration to choose a key by")
        path = provisioning / f"device-{context.node_config['partition-id']}.key"
    return DeviceKeys.from_text(path.read_text(encoding="ascii"))


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
        keys = _device_keys(folder or Path(), context, state, folder is not None)
        registrar_key = _registrar_key(folder) if folder else None
        record = _ContextRecord(state)
        started = perf_counter()
        trained = 0.0
        content = RecordDict()
        reply: dict[str, Any] = {}
        if "offer" in incoming:
            offer = cast(bytes, incoming["offer"])
            client = ClientRound(offer, keys, record=record, registrar_key=registrar_key, policy=policy)
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
                update = _difference(parameters_to_ndarrays(fitres.parameters), base)
                reply["message"] = client.receive(view, update=update, weight=float(fitres.num_examples))
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


def _difference(after: list[np.ndarray], before: list[np.ndarray]) -> np.ndarray:
    if [a.shape for a in after] != [b.shape for b in before]:
        raise EncodingError("the client returned parameters of other shapes than it was sent")
    update = np.empty(sum(array.size for array in before), np.float32)
    start = 0
    for a, b in zip(after, before, strict=True):
        part = update[start : start + b.size].reshape(b.shape)
        # float32 in place: rounded once either way. Integers of 8 bytes and the like need more than its 24 bits.
        dtype = np.float32 if a.dtype == b.dtype == np.float32 else np.float64
        np.subtract(a, b, out=part, dtype=dtype, casting="unsafe")
        start += b.size
    return update


class UnisonoWorkflow:
    """The server workflow that takes the place of ``SecAggPlusWorkflow`` in ``DefaultWorkflow(fit_workflow=...)``.

    Parameters
    ----------
    clip : bound of an element of an update (returned minus sent parameters), above 0; larger ones are cut off by the client
        without a word, so it has no default.
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
    timeout : seconds (above 0) to wait for replies in each phase; ``None`` waits for all. Devices forget a round after twice
        the time that is left for its phases, and after their policy's ``max_round_s`` (a day); ``None`` counts as six hours.

    Raises ``ParamsError`` or ``EncodingError`` for a setting out of its range, and what :class:`SigningKey` and :class:`Roster`
    raise about the files in ``provisioning``. Whether a round is feasible depends on how many clients the strategy samples; one
    that is not ends without a sum, as any that has too many drop-outs. So does one whose default ``n_min`` the default policy of
    devices refuses: a small sample of a large roster. The log says which settings to change.

    After a round, ``report`` holds its clients, drop-outs, seconds and bytes.
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
        timeout: float | None = None,
    ) -> None:
        _check(mode=mode, n_min=n_min, gamma=gamma, delta=delta, task=task, timeout=timeout)
        if (mode == "malicious") != (provisioning is not None):
            raise ParamsError(
                "malicious mode needs provisioning=.., semi-honest mode has none: see unisono.flower.provision"
            )
        self._quantiser = Quantiser(bits=bits, clip=clip, max_weight=max_weight, rounding=cast(Any, rounding))
        self._mode, self._n_min, self._gamma, self._delta = mode, n_min, gamma, delta
        self._task, self._timeout = task, timeout
        self._coordinator: SigningKey | None = None
        self._roster: Roster | None = None
        if provisioning is not None:
            folder = Path(provisioning)
            self._coordinator = SigningKey.from_text("coordinator", (folder / "coordinator.key").read_text("ascii"))
            self._roster = Roster.from_bytes((folder / "roster.bin").read_bytes(), _registrar_key(folder))
        self.report: dict[str, Any] = {}

    def __call__(self, grid: Grid, context: Context) -> None:
        """Runs one round. A round that ends without a sum leaves the parameters as they are, and says why in the log."""
        if not isinstance(context, LegacyContext):
            raise TypeError(f"Expect a LegacyContext, but get {type(context).__name__}.")
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
        params = self._params(len(sampled), sum(array.size for array in base), current_round)
        server = ServerRound(params, coordinator_key=self._coordinator, roster=self._roster)
        exchange = _Exchange(grid, server, str(current_round), self._timeout)
        exchange.advertise(instructions)
        outcome = server.close()
        while outcome is None:
            phase = server.phase
            if phase == "mask" and params.malicious and len(exchange.clients) < len(sampled):
                log(WARN, "%s of %s clients are left", len(exchange.clients), len(sampled))
            exchange.step(phase, instructions if phase == "mask" else None)
            before = perf_counter()
            outcome = server.close()
            exchange.seconds["server"] += perf_counter() - before
        before = perf_counter()
        aggregate = outcome.decode()
        exchange.seconds["server"] += perf_counter() - before
        for about, by, what in outcome.reports:
            log(WARN, "report: %s about client %s, by client %s", what, about.hex(), by.hex())
        self.report = {
            "round": current_round,
            "clients": len(sampled),
            "survivors": len(outcome.survivors),
            "error_bound": aggregate.error_bound,
            "seconds": exchange.seconds,
            "bytes_up": exchange.bytes_up,
            "bytes_down": exchange.bytes_down,
        }
        alive = set(outcome.survivors)
        survivor = next(node for node, client in exchange.clients.items() if client in alive)
        fitres = FitRes(
            status=Status(code=Code.OK, message="the sum of all survivors"),
            parameters=ndarrays_to_parameters(_add(base, aggregate.mean)),
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


def _add(base: list[np.ndarray], mean: np.ndarray) -> list[np.ndarray]:
    """The parameters plus the mean update, in the shapes and dtypes of the parameters."""
    ends = np.cumsum([array.size for array in base])[:-1]
    parts = np.split(mean.astype(np.float64), ends)
    sums = [array + part.reshape(array.shape) for array, part in zip(base, parts, strict=True)]
    rounded = (np.rint(s) if np.issubdtype(b.dtype, np.integer) else s for s, b in zip(sums, base, strict=True))
    return [s.astype(b.dtype) for s, b in zip(rounded, base, strict=True)]


class _Exchange:
    """Carries the round's messages over Flower's grid, and counts them."""

    def __init__(self, grid: Grid, server: ServerRound, group: str, timeout: float | None) -> None:
        self._grid, self._server, self._group, self._timeout = grid, server, group, timeout
        #: Which client answers under which Flower node, as the node's signed advert says.
        self.clients: dict[int, bytes] = {}
        self.failures: list[Exception] = []
        self.bytes_up: dict[str, int] = {}
        self.bytes_down: dict[str, int] = {}
        self.seconds: dict[str, float] = {"server": 0.0, "clients": 0.0}

    def _send(self, phase: str, contents: dict[int, RecordDict]) -> list[tuple[int, ConfigRecord]]:
        messages = [
            Message(content=content, dst_node_id=node, message_type=MessageType.TRAIN, group_id=self._group)
            for node, content in contents.items()
        ]
        log(DEBUG, "[%s] sending to %s clients", phase, len(messages))
        answers = []
        for reply in self._grid.send_and_receive(messages, timeout=self._timeout):
            if reply.has_error():
                self.failures.append(Exception(reply.error))
                if len(self.failures) == 1:
                    log(WARN, "a client did not go on in phase %s: %s", phase, reply.error.reason)
            elif _MESSAGE in reply.content.config_records:
                answers.append((reply.metadata.src_node_id, reply.content.config_records[_MESSAGE]))
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
        finally:
            self.seconds["server"] += perf_counter() - before

    def advertise(self, nodes: dict[int, RecordDict]) -> None:
        """Phase 0: the offer goes to all sampled nodes; a node's client id is the one that its accepted advert names."""
        offer = self._server.offer()
        self.bytes_down["advertise"] = len(offer) * len(nodes)
        contents = {
            node: RecordDict({_MESSAGE: ConfigRecord({"offer": offer})}) for node in nodes
        }
        for node, answer in self._send("advertise", contents):
            known = len(self.failures)
            self._absorb(node, answer)
            if len(self.failures) == known:
                self.clients[node] = sender_of(cast(bytes, answer["message"]))

    def step(self, phase: str, instructions: dict[int, RecordDict] | None) -> None:
        """A later phase: each client that has a part in it gets its view, in phase 2 with the strategy's instructions."""
        contents = {}
        size = 0
        for node, client in self.clients.items():
            view = self._server.view(client)
            if view is None:
                continue
            size += len(view)
            content = RecordDict() if instructions is None else instructions[node]
            content.config_records[_MESSAGE] = ConfigRecord({"view": view})
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
