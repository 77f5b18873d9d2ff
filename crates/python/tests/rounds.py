"""A whole round in memory, as somebody with their own transport drives it; and a forked process."""

import multiprocessing

import unisono


def forked(work, *arguments):
    """What `work(*arguments, queue)` puts into the queue in a forked process."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=work, args=(*arguments, queue))
    child.start()
    try:
        return queue.get(timeout=120)
    finally:
        child.kill()
        child.join()


POLICY = unisono.Policy(n_min=3, min_gamma=0.0, allow_semi_honest=True, min_interval_s=0)


class World:
    """A registrar, a coordinator and devices; in semi-honest mode their keys are not used."""

    def __init__(self, devices):
        self.registrar = unisono.SigningKey.generate("registrar")
        self.coordinator = unisono.SigningKey.generate("coordinator")
        self.keys = [unisono.DeviceKeys.generate() for _ in range(devices)]
        self.roster = unisono.Roster.publish(
            [keys.enrolment() for keys in self.keys],
            self.registrar,
            epoch=1,
            coordinators=[self.coordinator.verifying_key],
        )

    def open(self, mode="malicious", **settings):
        settings = {"n_min": 3, "n_max": len(self.keys), "gamma": 0.0, "delta": 0.3, **settings}
        malicious = mode == "malicious"
        params = unisono.RoundParams(mode=mode, roster=self.roster if malicious else None, **settings)
        if malicious:
            return unisono.ServerRound(params, coordinator_key=self.coordinator, roster=self.roster)
        return unisono.ServerRound(params)

    def join(self, server, device, record=None, policy=POLICY):
        return unisono.ClientRound(
            server.offer(),
            self.keys[device],
            record=record or unisono.MemoryRecord(),
            registrar_key=self.registrar.verifying_key,
            policy=policy,
        )


def play(world, server, updates, weights, dropped=(), restart=False, policy=POLICY, records=None):
    """Runs the round; the devices in `dropped` vanish after they shared their keys."""
    offer = server.offer()
    registrar_key = world.registrar.verifying_key
    records = records or [unisono.MemoryRecord() for _ in updates]
    clients = {i: world.join(server, i, records[i], policy) for i in range(len(updates))}
    for client in clients.values():
        assert server.absorb(client.message())
        assert not server.absorb(client.message()), "a repeated message is not new"
    while True:
        outcome = server.close()
        if outcome is not None:
            return outcome
        if server.phase == "mask":
            clients = {i: client for i, client in clients.items() if i not in dropped}
        for i, client in clients.items():
            view = server.view(world.keys[i].client_id)
            if view is None:
                # Only the committee confirms.
                assert server.phase == "confirm" and client.awaits == "unmask"
                continue
            if server.phase == "mask":
                message = client.receive(view, update=updates[i], weight=weights[i])
                server.absorb(message)
                server.absorb_upload(world.keys[i].client_id, client.upload())
            else:
                server.absorb(client.receive(view))
            if restart:
                clients[i] = unisono.ClientRound.resume(
                    client.save(), offer, world.keys[i], record=records[i], registrar_key=registrar_key, policy=policy
                )
        assert server.ready or server.phase == "mask"
