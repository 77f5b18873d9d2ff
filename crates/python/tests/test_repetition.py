"""unisono.repeat: means and intervals over seeds, and runs that must not be averaged."""

import math
import sys

import numpy as np
import pytest
import unisono


def costs(seed, **settings):
    return unisono.simulate(**{"clients": 10, "dim": 50, "rounds": 2, "seed": seed, **settings})


def test_a_quantity_is_the_mean_of_the_runs_with_students_interval():
    repeated = unisono.repeat(costs, range(3, 7))
    assert repeated.seeds == [3, 4, 5, 6] and not repeated.interrupted
    assert repeated.settings["clients"] == 10 and "seed" not in repeated.settings
    values = []
    for run in repeated.runs:
        frame = run.arrays()
        values.append(frame["client_seconds_mean"][frame["phase"] == "mask"].mean())
    found = repeated.quantity("client_seconds", phase="mask")
    # 3.1824 is the 0.975 quantile of Student's t for three degrees of freedom.
    half = 3.1824 * np.std(values, ddof=1) / math.sqrt(4)
    assert (found.runs, found.unit) == (4, "s")
    assert found.mean == pytest.approx(np.mean(values)) and found.deviation == pytest.approx(np.std(values, ddof=1))
    assert (found.low, found.high) == pytest.approx((np.mean(values) - half, np.mean(values) + half))
    assert found.half_width == pytest.approx(half) and "+-" in str(found) and str(found).endswith(" s")


def test_phases_add_up_to_the_round():
    repeated = unisono.repeat(costs, range(2))
    for measure in ("client_seconds", "server_seconds", "sent_bytes", "received_bytes", "virtual_seconds"):
        phases = [repeated.quantity(measure, phase=phase).mean for phase in ("advertise", "share", "mask", "confirm", "unmask")]
        assert repeated.quantity(measure).mean == pytest.approx(sum(phases)) and min(phases) > 0
    assert repeated.quantity("survivors").mean == 10 and repeated.quantity("sum_fraction").mean == 1
    assert "sent_bytes" in str(repeated) and "seeds=[0, 1]" in repr(repeated)


def test_a_single_run_has_no_interval():
    found = unisono.repeat(costs, [4]).quantity("sent_bytes")
    assert found.runs == 1 and found.deviation is found.low is found.high is found.half_width is None
    assert "+-" not in str(found)


def test_measures_of_the_callers_have_a_curve():
    def run(seed):
        result = costs(seed)
        for number, value in enumerate([0.5, 0.7 + seed], 1):
            result.add_measure("accuracy", value, round=number)
        return result

    repeated = unisono.repeat(run, [0, 1, 2])
    curve = repeated.curve("accuracy")
    assert curve["round"].tolist() == [1, 2] and curve["mean"] == pytest.approx([0.5, 1.7])
    assert curve["low"][0] == curve["high"][0] == 0.5 and curve["low"][1] < 1.7 < curve["high"][1]
    assert np.isnan(unisono.repeat(run, [0]).curve("accuracy")["low"]).all()
    with pytest.raises(unisono.ParamsError, match="'sent_bytes' after its rounds; those that have: accuracy"):
        repeated.curve("sent_bytes")
    with pytest.raises(unisono.ParamsError, match="there are: client_seconds, "):
        repeated.quantity("speed")
    with pytest.raises(unisono.ParamsError, match=r"it has \(phase, round\) \[\(None, 1\), \(None, 2\)\]"):
        repeated.quantity("accuracy")


def test_a_measure_that_no_mean_can_have_is_refused():
    result = costs(0)
    result.add_measure("accuracy", 0.5)
    with pytest.raises(unisono.ParamsError, match="another name"):
        result.add_measure("accuracy", 0.6)
    with pytest.raises(unisono.ParamsError, match="another name"):
        result.add_measure("client_seconds", 0.6)
    with pytest.raises(unisono.ParamsError, match="finite"):
        result.add_measure("loss", float("nan"))


@pytest.mark.parametrize(
    ("run", "seeds", "words"),
    [
        (costs, [], "seeds is empty"),
        (costs, [1, 2, 1], "one twice"),
        (lambda seed: costs(0), [0, 1], "pass seed=seed"),
        (lambda seed: costs(seed, dim=50 + seed), [0, 1], "dimension 50 and 51"),
        (lambda seed: costs(seed).rounds, [0], "returned list"),
    ],
)
def test_what_is_no_repetition_is_refused(run, seeds, words):
    with pytest.raises(unisono.ParamsError, match=words):
        unisono.repeat(run, seeds)


def test_runs_that_were_finished_stay_when_one_is_stopped():
    def run(seed):
        if seed == 2:
            raise KeyboardInterrupt
        return costs(seed)

    with pytest.raises(KeyboardInterrupt) as caught:
        unisono.repeat(run)
    partial = caught.value.partial
    assert partial.seeds == [0, 1] and partial.interrupted and partial.quantity("sent_bytes").runs == 2

    with pytest.raises(unisono.ParamsError) as first:
        unisono.repeat(lambda seed: costs(seed, clients=0))
    assert first.value.partial.seeds == [] and first.value.partial.summary() == []


def test_tables_have_the_seed_of_each_row(monkeypatch):
    repeated = unisono.repeat(costs, [7, 9])
    columns = repeated.to_dict()
    assert columns["seed"] == [7] * 10 + [9] * 10 and {len(column) for column in columns.values()} == {20}
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        repeated.to_pandas()


def test_tables_for_pandas():
    pandas = pytest.importorskip("pandas")
    repeated = unisono.repeat(costs, [7, 9])
    frame = repeated.to_pandas()
    assert frame.groupby("seed").size().tolist() == [10, 10] and len(repeated.runs[0].to_pandas()) == 10
    summary = pandas.DataFrame(repeated.summary()).set_index(["measure", "phase", "round"])
    assert {"unit", "runs", "mean", "deviation", "low", "high"} == set(summary.columns)
