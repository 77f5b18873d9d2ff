"""A scikit-learn estimator as the trainer of a device: `MLPClassifier.partial_fit`, its weights as one float32 vector.

    pip install './crates/python[examples]'
    python sklearn_trainer.py                   # or --model sgd for SGDClassifier

`vector_of` and `load` are all that an estimator needs: its arrays in one float32 vector, and back. The same `train` serves a
device of a running coordinator:

    unisono.Client(endpoint, task, keys, lambda round: train(round.parameters, *data), ...)
"""

import argparse
import warnings

import numpy as np
import unisono
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

# Some devices have less than a batch.
warnings.filterwarnings("ignore", "Got `batch_size`")

DEVICES, DROPOUT = 12, 0.1
# Above the elements of an update here, as the end checks: what lies beyond is cut off.
CLIP = {"mlp": 2.0, "sgd": 25.0}
MODELS = {
    # Plain gradient descent: an optimiser with a state of its own would have to begin anew in each round.
    "mlp": lambda: MLPClassifier(
        hidden_layer_sizes=(32,), solver="sgd", momentum=0.0, learning_rate_init=0.2, batch_size=16, random_state=0
    ),
    "sgd": lambda: SGDClassifier(loss="log_loss", alpha=1e-3, random_state=0),
}


def arrays_of(model):
    """The arrays that training changes."""
    return [*model.coefs_, *model.intercepts_] if isinstance(model, MLPClassifier) else [model.coef_, model.intercept_]


def vector_of(model):
    return np.concatenate([array.ravel() for array in arrays_of(model)]).astype(np.float32)


def load(model, vector):
    """Puts the vector's elements into the estimator's arrays, where they lie."""
    ends = np.cumsum([array.size for array in arrays_of(model)])
    for array, part in zip(arrays_of(model), np.split(vector, ends[:-1]), strict=True):
        array[...] = part.reshape(array.shape)


def fresh(name, x, y, classes):
    """An estimator whose arrays exist: scikit-learn makes them in the first `partial_fit`."""
    return MODELS[name]().partial_fit(x[:16], y[:16], classes=classes)


def train(parameters, name, x, y, classes, epochs=3):
    """What a device sends: the change of the weights by some epochs over its own data, and its number of examples."""
    model = fresh(name, x, y, classes)
    load(model, parameters)
    for _ in range(epochs):
        model.partial_fit(x, y)
    return vector_of(model) - parameters, float(len(y))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="mlp")
    parser.add_argument("--rounds", type=int, default=10)
    a = parser.parse_args()
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x / 16, y, test_size=0.25, random_state=0, stratify=y)
    shares = np.random.default_rng(0).dirichlet([2.0] * DEVICES)
    owner = np.random.default_rng(1).choice(DEVICES, size=len(y_train), p=shares)
    classes = np.unique(y)
    model = fresh(a.model, x_train, y_train, classes)
    state = {"parameters": vector_of(model), "largest": 0.0}

    def updates(device, number):
        mine = owner == device
        update, weight = train(state["parameters"], a.model, x_train[mine], y_train[mine], classes)
        state["largest"] = max(state["largest"], float(np.abs(update).max()))
        return update, weight

    def finished(number, mean):
        state["parameters"] = state["parameters"] + mean
        load(model, state["parameters"])
        print(f"round {number}: accuracy {model.score(x_test, y_test):.3f}", flush=True)

    result = unisono.simulate(
        clients=DEVICES,
        dim=state["parameters"].size,
        dropout=DROPOUT,
        rounds=a.rounds,
        quantiser=unisono.Quantiser(bits=16, clip=CLIP[a.model], max_weight=float(len(y_train))),
        updates=updates,
        round_finished=finished,
        # One at a time: partial_fit holds the GIL.
        threads=1,
    )
    assert all(played["exact_sum"] for played in result.rounds)
    assert state["largest"] < CLIP[a.model], f"an update had an element of {state['largest']}: raise CLIP"
    assert model.score(x_test, y_test) > 0.85


if __name__ == "__main__":
    main()
