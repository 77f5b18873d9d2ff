"""The script to copy first: federated learning on real data with the real protocol, in one process.

Twelve clinics hold parts of the breast cancer data and train one model together. The coordinator sees masked vectors and, of
each round, one sum. Replace `local_update` by your trainer and the data by yours.

    pip install './crates/python[examples]'
    python first_steps.py
"""

import numpy as np
import unisono
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

CLINICS, ROUNDS, DROPPED = 12, 5, {3}

# --- Data: an uneven split of 455 patients, 114 for the test ---
x, y = load_breast_cancer(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
scaler = StandardScaler().fit(x_train)
x_train, x_test = scaler.transform(x_train), scaler.transform(x_test)
shares = np.random.default_rng(0).dirichlet([2.0] * CLINICS)
owner = np.random.default_rng(1).choice(CLINICS, size=len(y_train), p=shares)
data = [(x_train[owner == clinic], y_train[owner == clinic]) for clinic in range(CLINICS)]


def local_update(model, features, labels, steps=10, rate=0.3):
    """The change of the model (weights and bias, float32) after some steps of logistic regression on local data."""
    weights = model.astype(np.float64)
    for _ in range(steps):
        error = 1 / (1 + np.exp(-(features @ weights[:-1] + weights[-1]))) - labels
        weights[:-1] -= rate * features.T @ error / len(labels)
        weights[-1] -= rate * error.mean()
    return (weights - model).astype(np.float32)


def accuracy(model):
    return ((x_test @ model[:-1] + model[-1] > 0) == y_test).mean()


# --- Provisioning, once: the registrar says which devices exist, and which coordinator may open rounds ---
registrar = unisono.SigningKey.generate("registrar")
coordinator = unisono.SigningKey.generate("coordinator")
devices = [unisono.DeviceKeys.generate() for _ in range(CLINICS)]
records = [unisono.MemoryRecord() for _ in devices]  # on a real device: unisono.FileRecord(folder)
roster = unisono.Roster.publish(
    [device.enrolment() for device in devices], registrar, epoch=1, coordinators=[coordinator.verifying_key]
)
quantiser = unisono.Quantiser(bits=16, clip=1.0, max_weight=200.0)
policy = unisono.Policy(n_min=8, min_interval_s=0)  # rounds follow each other at once here


def secure_round(number, model):
    """One round; what goes between coordinator and devices are bytes, by whatever transport you have."""
    params = unisono.RoundParams(
        task="breast-cancer", round=number, dimension=model.size, n_min=8, n_max=CLINICS, quantiser=quantiser,
        gamma=0.05, delta=0.2, roster=roster,
    )
    server = unisono.ServerRound(params, coordinator_key=coordinator, roster=roster)
    clients = {
        i: unisono.ClientRound(
            server.offer(), devices[i], record=records[i], registrar_key=registrar.verifying_key, policy=policy
        )
        for i in range(CLINICS)
    }
    for client in clients.values():
        server.absorb(client.message())
    outcome = server.close()
    while outcome is None:
        for i, client in list(clients.items()):
            device_id = devices[i].client_id
            view = server.view(device_id)
            if view is None:
                continue  # In a cohort above 32 clients, only a committee confirms who survived.
            if server.phase == "mask":
                if i in DROPPED:
                    del clients[i]  # This device loses its connection before it uploads.
                    continue
                features, labels = data[i]
                update = local_update(model, features, labels)
                server.absorb(client.receive(view, update=update, weight=len(labels)))
                server.absorb_upload(device_id, client.upload())
            else:
                server.absorb(client.receive(view))
        outcome = server.close()
    return outcome.decode(), len(outcome.survivors)


model = np.zeros(x.shape[1] + 1, np.float32)
plain = model.copy()
for number in range(1, ROUNDS + 1):
    aggregate, survivors = secure_round(number, model)
    model = model + aggregate.mean
    alive = [i for i in range(CLINICS) if i not in DROPPED]
    updates = [local_update(plain, *data[i]) for i in alive]
    plain = plain + np.average(updates, axis=0, weights=[len(data[i][1]) for i in alive]).astype(np.float32)
    print(
        f"round {number}: {survivors} of {CLINICS} updates in the sum, accuracy {accuracy(model):.3f} "
        f"(without secure aggregation {accuracy(plain):.3f})"
    )

assert np.abs(model - plain).max() < 0.01, "secure and plain aggregation differ by more than quantisation"
assert accuracy(model) > 0.9
