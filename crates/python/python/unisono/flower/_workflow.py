"""The server's side in the workflow API."""

from __future__ import annotations

from logging import INFO
from typing import TYPE_CHECKING, Any, cast

from flwr.app import Context, MessageType
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.serverapp import Grid

from .. import Accountant, ParamsError
from ._averaging import Arrays
from ._compat import log, recorddict_compat
from ._exchange import Channel
from ._rounds import Ended, SecureRounds
from ._settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._settings import SettingsArguments


class UnisonoWorkflow:
    """The server workflow that takes the place of ``SecAggPlusWorkflow`` in ``DefaultWorkflow(fit_workflow=...)``.

    The keyword arguments are those of :class:`Settings`: ``UnisonoWorkflow(clip=0.5, provisioning=folder)``. It raises what they raise.

    Whether a round is feasible depends on how many clients the strategy samples; one that is not ends without a sum, as any that has too
    many drop-outs. So does one whose default ``n_min`` the default policy of devices refuses: a small sample of a large roster. The log
    says which settings to change.

    The strategy's ``aggregate_fit`` gets one result: the aggregated parameters, the rounded total weight as ``num_examples``, and the
    weighted means of the declared ``metrics``. ``fit_metrics_aggregation_fn`` sees that one result; without such a function the means go
    to the history as they are.
    """

    def __init__(self, **settings: Unpack[SettingsArguments]) -> None:
        self._rounds = SecureRounds(Settings(**settings))

    @property
    def report(self) -> dict[str, Any]:
        """What the last round with a sum gave, see :mod:`unisono.flower`; empty before."""
        return self._rounds.report

    @property
    def accountant(self) -> Accountant:
        """The privacy spent by all rounds with a sum."""
        return self._rounds.accountant

    def __call__(self, grid: Grid, context: Context) -> None:
        """Runs one round. A round that ends without a sum leaves the parameters as they are, and says why in the log."""
        if not isinstance(context, LegacyContext):
            raise TypeError(f"Expect a LegacyContext, but get {type(context).__name__}.")
        settings = self._rounds.settings
        if getattr(context.strategy, "fit_metrics_aggregation_fn", None) is not None and not settings.metrics:
            raise ParamsError(
                "the strategy has fit_metrics_aggregation_fn, and metrics of single clients stay on them: declare those whose mean "
                'is to be learned, metrics={"train_loss": (0.0, 10.0)} here and unisono_mod(metrics=["train_loss"]) on devices, or '
                "leave the function out, and look at the model with evaluate_fn, or on clients in the evaluation"
            )
        number = cast(int, context.state.config_records[MAIN_CONFIGS_RECORD][WorkflowKey.CURRENT_ROUND])
        record = context.state.array_records[MAIN_PARAMS_RECORD]
        parameters = recorddict_compat.arrayrecord_to_parameters(record, keep_input=True)
        sampled = context.strategy.configure_fit(number, parameters, context.client_manager)
        if not sampled:
            log(INFO, "configure_fit: no clients selected, cancel")
            return
        if any(fitins.parameters.tensors != parameters.tensors for _, fitins in sampled):
            raise ParamsError("the strategy sends clients different parameters: their updates have no common base")
        base: Arrays = dict(enumerate(parameters_to_ndarrays(parameters)))
        instructions = {proxy.node_id: recorddict_compat.fitins_to_recorddict(fitins, True) for proxy, fitins in sampled}
        channel = Channel(grid, MessageType.TRAIN, str(number), settings.task, settings.timeout)
        ended = self._rounds.play(channel, number, instructions, base)
        if ended.arrays is not None:
            self._aggregate(context, number, ended, {proxy.node_id: proxy for proxy, _ in sampled})

    def _aggregate(self, context: LegacyContext, number: int, ended: Ended, proxies: dict[int, Any]) -> None:
        """Hands the one result to the strategy."""
        means = ended.metrics or {}
        fitres = FitRes(
            status=Status(code=Code.OK, message="the sum of all survivors"),
            parameters=ndarrays_to_parameters(list((ended.arrays or {}).values())),
            num_examples=max(1, round(ended.total_weight)),
            metrics=dict(means),
        )
        aggregated, metrics = context.strategy.aggregate_fit(
            number, [(proxies[ended.survivor], fitres)], cast(Any, ended.failures)
        )
        if aggregated:
            context.state.array_records[MAIN_PARAMS_RECORD] = recorddict_compat.parameters_to_arrayrecord(aggregated, True)
            context.history.add_metrics_distributed_fit(server_round=number, metrics=metrics or dict(means))
