"""The messages of one round over Flower's grid."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from logging import DEBUG, WARN
from time import perf_counter
from typing import Any, cast

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from .. import Error, RefusalError, ServerRound, sender_of
from ._compat import log

#: The record with the protocol's part of a message.
MESSAGE = "unisono.message"
#: The metric that the plug-in adds: the share of a client's elements that the clip cuts.
CUT = "unisono.cut"
#: Characters of a reason that are kept, and reasons in an error.
_REASON = 400
_REASONS = 5


@dataclass(frozen=True)
class Channel:
    """How messages of a round are sent: the grid, their type and group, the task, and the seconds that a phase may take."""

    grid: Grid
    message_type: str
    group: str
    task: str
    timeout: float | None


class Exchange:
    """Carries the round's messages over Flower's grid, and counts them."""

    def __init__(self, channel: Channel, server: ServerRound) -> None:
        self._channel, self._server = channel, server
        #: Which client answers under which Flower node, as the node's signed advert says.
        self.clients: dict[int, bytes] = {}
        self.failures: list[Exception] = []
        #: Replies that say why a client failed.
        self.errors: list[Message] = []
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

    def advertise(self, nodes: list[int]) -> None:
        """Phase 0: the offer goes to all sampled nodes; a node's client id is the one that its accepted advert names."""
        offer = self._server.offer()
        self.bytes_down["advertise"] = len(offer) * len(nodes)
        contents = {
            node: RecordDict({MESSAGE: ConfigRecord({"offer": offer, "task": self._channel.task})}) for node in nodes
        }
        for node, answer in self._send("advertise", contents):
            if isinstance(last := answer.get("last_round"), int):
                self.last_rounds.append(last)
                self.reasons[f"it has been in round {last}"] += 1
                continue
            if self._absorb(node, answer):
                self.clients[node] = sender_of(cast(bytes, answer["message"]))

    def step(self, phase: str, instructions: dict[int, RecordDict], extra: dict[str, Any]) -> None:
        """A later phase: each client that has a part in it gets its view, beside its instructions where there are some."""
        contents = {}
        size = 0
        for node, client in self.clients.items():
            view = self._server.view(client)
            if view is None:
                continue
            size += len(view)
            # The strategy may send the same records to all.
            content = RecordDict(dict(instructions.get(node, {})))
            content.config_records[MESSAGE] = ConfigRecord({"view": view, **extra})
            contents[node] = content
        self.bytes_down[phase] = size
        answers = self._send(phase, contents)
        for node, answer in answers:
            self._absorb(node, answer)
        silent = contents.keys() - {node for node, _ in answers}
        self.clients = {node: client for node, client in self.clients.items() if node not in silent}

    def _send(self, phase: str, contents: dict[int, RecordDict]) -> list[tuple[int, ConfigRecord]]:
        channel = self._channel
        messages = [
            Message(content=content, dst_node_id=node, message_type=channel.message_type, group_id=channel.group)
            for node, content in contents.items()
        ]
        log(DEBUG, "[%s] sending to %s clients", phase, len(messages))
        answers = []
        reasons: Counter[str] = Counter()
        for reply in channel.grid.send_and_receive(messages, timeout=channel.timeout):
            if reply.has_error():
                self.failures.append(Exception(reply.error))
                self.errors.append(reply)
                reasons[" ".join((reply.error.reason or "no reason given").split())[:_REASON]] += 1
            elif MESSAGE in reply.content.config_records:
                answers.append((reply.metadata.src_node_id, reply.content.config_records[MESSAGE]))
        for reason, count in reasons.most_common():
            log(WARN, "%s of %s clients did not go on in phase %s: %s", count, len(messages), phase, reason)
        self.reasons += reasons
        self.bytes_up[phase] = sum(_length(answer, "message") + _length(answer, "upload") for _, answer in answers)
        self.seconds["clients"] += sum(cast(float, answer.get("seconds", 0.0)) for _, answer in answers)
        return answers

    def _absorb(self, node: int, answer: ConfigRecord) -> bool:
        """Whether the server accepted a client's message."""
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
            return False
        finally:
            self.seconds["server"] += perf_counter() - before
        return True


def _length(record: ConfigRecord, key: str) -> int:
    value = record.get(key)
    return len(value) if isinstance(value, bytes) else 0
