"""A Flower grid in this process: each message is a call of the client app, one node after the other.

Flower's simulation engine hands messages to Ray, whose start, scheduling and serialisation take longer than a round of secure
aggregation. Here nothing but the workflow and the mods runs, so that two of them can be compared, or stepped through.
"""

from importlib import import_module
from types import SimpleNamespace
from uuid import uuid4

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.serverapp import Grid


def _identify():
    """Messages say who sends them; before flwr 1.40 or so, they need not."""
    try:
        identity = import_module("flwr.supercore.task_identity").TaskIdentity
    except ModuleNotFoundError:
        return
    identity.task_id = identity.run_id = identity.node_id = 1


def _copy(content):
    """What the other side gets: its own records, as after a transport. Bytes and arrays are not copied."""
    records = ((name, ConfigRecord(dict(r)) if isinstance(r, ConfigRecord) else r) for name, r in content.items())
    return RecordDict(dict(records))


def _size(content):
    """Bytes of the values in a message's records: configuration and arrays."""

    def length(value):
        if isinstance(value, list):
            return sum(map(length, value))
        return len(value) if isinstance(value, bytes | str) else 8

    arrays = (len(array.data) for r in content.values() if isinstance(r, ArrayRecord) for array in r.values())
    return sum(arrays) + sum(length(v) for r in content.values() if isinstance(r, ConfigRecord) for v in r.values())


class LocalGrid(Grid):
    """Plays `app` on `nodes` nodes, whose `partition-id` is 0, 1, ... `bytes_up` counts what their answers hold."""

    def __init__(self, app, nodes):
        self._app, self._replies = app, {}
        self.bytes_up = 0
        _identify()
        self._contexts = {
            node + 2: Context(
                run_id=1,
                node_id=node + 2,
                node_config={"partition-id": node, "num-partitions": nodes},
                state=RecordDict(),
                run_config={},
            )
            for node in range(nodes)
        }

    def set_run(self, run):
        pass

    @property
    def run(self):
        return SimpleNamespace(run_id=1)

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self):
        return list(self._contexts)

    def _play(self, message):
        node = message.metadata.dst_node_id
        incoming = Message(_copy(message.content), node, message.metadata.message_type, group_id=message.metadata.group_id)
        incoming.metadata.__dict__.update(_message_id=str(uuid4()))
        try:
            reply = self._app(incoming, self._contexts[node])
        except Exception as error:  # noqa: BLE001 (as Flower's engine does: the server sees an error reply)
            return Message(Error(code=0, reason=f"{type(error).__name__}: {error}"), reply_to=incoming)
        return reply

    def push_messages(self, messages):
        ids = []
        for message in messages:
            reply = self._play(message)
            self.bytes_up += _size(reply.content) if reply.has_content() else 0
            ids.append(reply.metadata.reply_to_message_id)
            self._replies[ids[-1]] = reply
        return ids

    def pull_messages(self, message_ids):
        return [self._replies.pop(number) for number in list(message_ids) if number in self._replies]

    def send_and_receive(self, messages, *, timeout=None):
        return self.pull_messages(self.push_messages(messages))
