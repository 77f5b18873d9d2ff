"""Secure aggregation for Flower apps, in both of Flower's APIs. Two lines change.

With the Message API (``@app.train``, ``Strategy.start``)::

    app = ClientApp(mods=[unisono_mod(folder)])                                           # on clients
    strategy.start(grid=SecureGrid(grid, clip=0.5, provisioning=folder), ...)             # on the server

With the workflow API (``client_fn``, ``DefaultWorkflow``), the shape of Flower's own SecAgg+::

    app = ClientApp(client_fn, mods=[unisono_mod(folder)])
    DefaultWorkflow(fit_workflow=UnisonoWorkflow(clip=0.5, provisioning=folder))

:class:`Settings` has the keyword arguments of both: clipping, differential privacy, metrics, rotation, sizes.

In malicious mode (the default) devices need identities, and everybody the registrar's word. :func:`provision` makes them
for a simulation; the files are those that the command ``unisono`` makes in production. Each device's ``device.key`` and the public
``registrar.pub`` go to its SuperNode, ``roster.bin`` and the secret ``coordinator.key`` to the SuperLink's host, and
``registrar.key`` to nobody.

What is aggregated is the *update*: the arrays that a client returns minus those that it was sent, weighted by its number of
examples. The server learns the weighted mean and the sum of the weights, not one client's weight, so the strategy gets one result. Of the
clients' metrics it learns the weighted means of those that both sides declare.

After a round, ``report`` of :class:`SecureGrid` and :class:`UnisonoWorkflow` holds

- ``round``, ``clients`` (sampled), ``survivors`` (in the sum), ``total_weight``;
- ``error_bound``, which bounds the error of the mean of the updates *as they were cut*, without noise;
- ``cut``, the share of elements that were beyond the clip, weighted like the mean and quantised like it (0 where nothing was cut,
  ``None`` with ``rotate`` or ``l2_clip``);
- ``metrics``, the weighted means of the declared metrics;
- ``noise_deviation`` on an element of the mean, ``epsilon`` of this round's sum and ``total_epsilon`` of all (``None`` without noise);
- ``seconds`` of the server and of all clients without training, ``bytes_up`` and ``bytes_down`` by phase, of all clients.

Importing it raises ``ImportError`` where Flower is missing or of an unsupported version.
"""

from __future__ import annotations

# First, so that an unsupported version of Flower is named before an import of it fails.
from . import _compat as _compat
from ._grid import SecureGrid
from ._keys import provision
from ._mod import unisono_mod
from ._settings import Settings
from ._workflow import UnisonoWorkflow

__all__ = ["SecureGrid", "Settings", "UnisonoWorkflow", "provision", "unisono_mod"]
