"""The participation record: compare and set, one holder, no round of its own, no copy in a forked process."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import unisono
from rounds import World, forked


@pytest.fixture(scope="module")
def world():
    return World(5)


def opened(world, **settings):
    return world.open(dimension=10, quantiser=unisono.Quantiser(clip=1.0), **settings)


def entry(number, rounds=0):
    fields = {"round": number, "cohort": "07" * 32, "masked_for": None, "survivors": None, "rounds": rounds, "last_at": 0}
    fields |= {"unprotected": 0, "account": ""}
    return json.dumps(fields, separators=(",", ":")).encode()


class Dictionary:
    """A record of one's own: bytes in a dictionary."""

    def __init__(self):
        self.entries, self.epoch = {}, 0

    def entry(self, task):
        return self.entries.get(task)

    def replace(self, task, expected, new):
        if self.entries.get(task) != expected:
            return False
        self.entries[task] = new
        return True

    def roster_epoch(self):
        return self.epoch

    def see_roster_epoch(self, epoch):
        self.epoch = max(epoch, self.epoch)


def played(world, server, records):
    """A round to its end; what the first device's record held after each phase."""
    clients = [world.join(server, i, record) for i, record in enumerate(records)]
    noted = {}
    for client in clients:
        server.absorb(client.message())
    while (outcome := server.close()) is None:
        for keys, client in zip(world.keys, clients, strict=True):
            view = server.view(keys.client_id)
            update = np.zeros(10, np.float32) if server.phase == "mask" else None
            server.absorb(client.receive(view, update=update, now=7))
            if update is not None:
                server.absorb_upload(keys.client_id, client.upload())
        noted[server.phase] = json.loads(records[0].entry("python"))
    assert len(outcome.survivors) == len(clients)
    return noted


@pytest.mark.parametrize("kind", ["memory", "file", "own"])
def test_a_record_notes_each_step_before_it_leaves(world, kind, tmp_path):
    make = {
        "memory": lambda i: unisono.MemoryRecord(),
        "file": lambda i: unisono.FileRecord(tmp_path / "states" / str(i)),
        "own": lambda i: Dictionary(),
    }[kind]
    records = [make(i) for i in range(5)]
    noted = played(world, opened(world, now=0), records)
    shared, masked, confirmed, done = (noted[phase] for phase in ("share", "mask", "confirm", "unmask"))
    assert (shared["round"], shared["masked_for"], shared["rounds"]) == (1, None, 0)
    assert (masked["rounds"], masked["last_at"], masked["survivors"]) == (1, 7, None) and masked["masked_for"]
    assert confirmed["survivors"] and confirmed == done
    assert all(step["cohort"] == shared["cohort"] for step in noted.values())
    assert records[0].roster_epoch() == 1
    # The next round goes on from there.
    again = played(world, opened(world, round=2, now=0), records)
    assert (again["share"]["rounds"], again["unmask"]["rounds"]) == (1, 2)


def test_a_file_record_survives_its_object_and_a_damaged_one_is_no_empty_one(tmp_path):
    folder = tmp_path / "deep" / "state"
    record = unisono.FileRecord(folder)
    assert record.entry("t") is None and record.roster_epoch() == 0
    assert record.replace("t", None, entry(4))
    assert not record.replace("t", None, entry(5)) and not record.replace("t", entry(3), entry(5))
    record.see_roster_epoch(3)
    record.see_roster_epoch(2)
    with pytest.raises(unisono.RecordError, match="in use"):
        unisono.FileRecord(folder)
    del record
    record = unisono.FileRecord(folder)
    assert record.entry("t") == entry(4) and record.roster_epoch() == 3
    for damaged in (b"", b"{", b"null", entry(5).replace(b"07", b"0X"), entry(5)[:-1] + b',"more":1}'):
        with pytest.raises(unisono.RecordError, match="no entry of a participation record"):
            record.replace("t", entry(4), damaged)
    assert record.entry("t") == entry(4)
    del record
    (folder / "record.json").write_text("{")
    with pytest.raises(unisono.RecordError, match="damaged"):
        unisono.FileRecord(folder)
    with pytest.raises(unisono.RecordError, match="file"):
        (tmp_path / "file").write_text("")
        unisono.FileRecord(tmp_path / "file")


def test_threads_that_share_a_file_record_lose_no_round_that_it_acknowledged(tmp_path):
    record = unisono.FileRecord(tmp_path)
    acknowledged = []

    def spend(number):
        for step in range(40):
            # Every task has one writer, so every step succeeds; all of them are in one file.
            task = f"t{number}"
            assert record.replace(task, entry(step, step) if step else None, entry(step + 1, step + 1))
            while not record.replace("all", before := record.entry("all"), entry(1, counted(before) + 1)):
                pass
            acknowledged.append(number)

    def counted(found):
        return json.loads(found)["rounds"] if found else 0

    threads = [threading.Thread(target=spend, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(acknowledged) == 120 == counted(record.entry("all"))
    del record
    again = unisono.FileRecord(tmp_path)
    assert [counted(again.entry(f"t{i}")) for i in range(3)] == [40] * 3 and counted(again.entry("all")) == 120


def test_another_process_can_not_open_it(tmp_path):
    record = unisono.FileRecord(tmp_path)
    script = "import sys, unisono\ntry: unisono.FileRecord(sys.argv[1])\nexcept unisono.RecordError as e: print(e)"
    run = [sys.executable, "-c", script, str(tmp_path)]
    assert "in use by another process" in subprocess.run(run, capture_output=True, text=True, check=True).stdout
    del record
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == ""


def test_two_sessions_of_one_device_share_their_keys_once(world):
    record = unisono.MemoryRecord()
    server = opened(world)
    twins = [world.join(server, 0, record) for _ in range(2)]
    server.absorb(twins[0].message())
    for i in range(1, 5):
        server.absorb(world.join(server, i).message())
    server.close()
    view = server.view(world.keys[0].client_id)
    twins[0].receive(view)
    with pytest.raises(unisono.Error):
        twins[1].receive(view)


def test_a_record_that_touches_a_round_is_refused_and_waits_for_nothing(world):
    class Curious(Dictionary):
        """Looks at the round that asks it."""

        def __init__(self):
            super().__init__()
            self.said, self.client = [], None

        def entry(self, task):
            if self.client is not None:
                try:
                    self.client.message()
                except unisono.StateError as error:
                    self.said.append(str(error))
            return super().entry(task)

        def replace(self, task, expected, new):
            if self.client is not None:
                self.client.save()
            return super().replace(task, expected, new)

    record = Curious()
    server = opened(world)
    clients = [world.join(server, i, record if i == 0 else None) for i in range(5)]
    for client in clients:
        server.absorb(client.message())
    server.close()
    record.client = clients[0]
    finished = []

    def step():
        with pytest.raises(unisono.RecordError, match="must not use a round"):
            clients[0].receive(server.view(world.keys[0].client_id))
        finished.append(True)

    thread = threading.Thread(target=step, daemon=True)
    thread.start()
    thread.join(60)
    assert finished and record.said
    # Nothing was noted, so the device can go on.
    record.client = None
    assert clients[0].awaits == "share"
    assert server.absorb(clients[0].receive(server.view(world.keys[0].client_id)))


@pytest.mark.parametrize("answer", [None, 1, "yes"])
def test_a_record_says_whether_it_replaced(world, answer):
    class Vague(Dictionary):
        def replace(self, task, expected, new):
            super().replace(task, expected, new)
            return answer

    server = opened(world)
    clients = [world.join(server, i, Vague() if i == 0 else None) for i in range(5)]
    for client in clients:
        server.absorb(client.message())
    server.close()
    with pytest.raises(unisono.RecordError, match="True when the entry was replaced"):
        clients[0].receive(server.view(world.keys[0].client_id))


def _use_in_child(record, folder, queue):
    said = []
    for call in (lambda: record.entry("t"), lambda: record.replace("t", None, entry(1)), lambda: unisono.FileRecord(folder)):
        try:
            call()
            said.append("done")
        except (unisono.StateError, unisono.RecordError) as error:
            said.append(str(error))
    queue.put(said)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_inherited_record_is_refused(tmp_path):
    assert "fork" in multiprocessing.get_all_start_methods()
    record = unisono.FileRecord(tmp_path)
    asked, replaced, opened_anew = forked(_use_in_child, record, tmp_path)
    assert "another process" in asked and "another process" in replaced
    assert "in use by another process" in opened_anew
    assert record.replace("t", None, entry(1))


def test_what_a_client_keeps_is_such_a_record(tmp_path):
    keys = unisono.DeviceKeys.generate()
    client = unisono.Client("http://localhost:1", "t", keys, print, state_dir=tmp_path)
    with pytest.raises(unisono.RecordError, match="in use"):
        unisono.FileRecord(tmp_path)
    del client
    unisono.FileRecord(tmp_path)
