"""The server's side in the Message API."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from .. import Accountant, ParamsError
from ._exchange import Channel
from ._mod import is_training
from ._records import arrays_key, sent_arrays
from ._rounds import Ended, SecureRounds
from ._settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._settings import SettingsArguments


class SecureGrid(Grid):
    """A grid that turns each exchange of training messages into a round of secure aggregation; all else passes to the grid inside.

    ``strategy.start(grid=SecureGrid(grid, clip=0.5, provisioning=folder), ...)`` is the one line that changes on the server. The other
    keyword arguments are those of :class:`Settings`, and it raises what they raise. ``weight_key`` is the strategy's ``weighted_by_key``.

    ``Strategy.start`` hands the messages of ``configure_train`` to ``send_and_receive``, and its replies to ``aggregate_train``. Here these
    are *one* reply for all clients whose update is in the sum: the arrays sent plus the weighted mean update, under their names, and
    a ``MetricRecord`` with the total weight under ``weight_key`` and the weighted means of the declared ``metrics``. Any strategy
    that averages works unchanged: FedAvg, FedAvgM, FedProx, FedAdam, FedYogi, FedAdagrad. One that compares clients (medians, Krum,
    trimmed means) gets nothing to compare. Replies of clients that failed follow as they are. A round without a sum has only these, so
    that a strategy keeps its arrays; the log says why.

    A strategy must send all clients the same arrays, in one ``ArrayRecord``; the rest of the messages may differ. Integers and booleans,
    of which strategies make floats when they average, are sent in their own types again where that changes no value.
    """

    def __init__(self, grid: Grid, *, weight_key: str = "num-examples", **settings: Unpack[SettingsArguments]) -> None:
        self._grid = grid
        self._weight_key = weight_key
        self._rounds = SecureRounds(Settings(**settings))
        self._number = 0
        #: Types of the arrays when they were first sent.
        self._types: dict[str, np.dtype[Any]] = {}

    @property
    def report(self) -> dict[str, Any]:
        """What the last round with a sum gave, see :mod:`unisono.flower`; empty before."""
        return self._rounds.report

    @property
    def accountant(self) -> Accountant:
        """The privacy spent by all rounds with a sum."""
        return self._rounds.accountant

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Plays a round with the training messages among these, if there are any, and sends the others as they are.

        ``timeout`` is in seconds, for each phase of a round; :attr:`Settings.timeout` goes before it. Raises ``ParamsError`` for training
        messages that have no common base, or of which a node gets two.
        """
        messages = list(messages)
        training = [message for message in messages if is_training(message)]
        others = [message for message in messages if not is_training(message)]
        replies = list(self._grid.send_and_receive(others, timeout=timeout)) if others or not training else []
        return replies + self._round(training, timeout) if training else replies

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sends messages other than for training, for which ``ParamsError`` is raised: a round has several exchanges."""
        messages = list(messages)
        if any(is_training(message) for message in messages):
            raise ParamsError("training messages of a SecureGrid are sent with send_and_receive, which plays a whole round")
        return self._grid.push_messages(messages)

    def _round(self, training: list[Message], timeout: float | None) -> list[Message]:
        first = training[0]
        key = arrays_key(first.content)
        sent = first.content.array_records[key]
        instructions: dict[int, RecordDict] = {}
        record = self._in_first_types(sent)
        for message in training:
            node = message.metadata.dst_node_id
            if message.metadata.message_type != first.metadata.message_type or node in instructions:
                raise ParamsError("a round has one training message a node, and all of one type: send others afterwards")
            if not _same(message.content, key, sent):
                raise ParamsError("the strategy sends clients different arrays: their updates have no common base")
            instructions[node] = RecordDict({**message.content, key: record})
        self._number += 1
        settings = self._rounds.settings
        limit = timeout if settings.timeout is None else settings.timeout
        channel = Channel(self._grid, first.metadata.message_type, str(self._number), settings.task, limit)
        ended = self._rounds.play(channel, self._number, instructions, sent_arrays(instructions[first.metadata.dst_node_id]))
        if ended.arrays is None:
            return ended.errors
        survivor = next(message for message in training if message.metadata.dst_node_id == ended.survivor)
        return [Message(self._content(key, ended), reply_to=survivor), *ended.errors]

    def _content(self, key: str, ended: Ended) -> RecordDict:
        """The one result."""
        arrays = {str(name): Array(np.asarray(array)) for name, array in (ended.arrays or {}).items()}
        metrics = {self._weight_key: ended.total_weight, **(ended.metrics or {})}
        return RecordDict({key: ArrayRecord(arrays), "metrics": MetricRecord(dict(metrics))})

    def _in_first_types(self, record: ArrayRecord) -> ArrayRecord:
        """The record with integers and booleans in the types that they had in the first round."""
        changed = {}
        for name, array in record.items():
            first = self._types.setdefault(name, np.dtype(array.dtype))
            if first.kind in "biu" and np.dtype(array.dtype).kind == "f":
                values = array.numpy()
                with np.errstate(invalid="ignore"):
                    back = values.astype(first)
                if np.array_equal(back, values):
                    changed[name] = Array(back)
        return ArrayRecord({name: changed.get(name, array) for name, array in record.items()}) if changed else record

    # The rest is the grid's.

    def set_run(self, run: Any) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[Any]:
        return self._grid.get_nodes()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def __getattr__(self, name: str) -> Any:
        # What a version of Flower, or a grid of one's own, has beyond.
        if name == "_grid":
            raise AttributeError(name)
        return getattr(self._grid, name)


def _same(content: RecordDict, key: str, record: ArrayRecord) -> bool:
    """Whether the content's only arrays are those of the record."""
    if list(content.array_records) != [key]:
        return False
    other = content.array_records[key]
    return other is record or (
        list(other) == list(record) and all(other[name].data == record[name].data for name in record)
    )
