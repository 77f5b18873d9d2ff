//! What a simulation measured, quantity by quantity, and its mean and confidence interval over repetitions with other seeds.

use serde::Serialize;

use crate::report::{PhaseReport, PhaseTiming, Report, RoundReport};

/// One quantity of one simulation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Measure {
    /// Its name: `client_seconds` and `server_seconds` (CPU), `sent_bytes` and `received_bytes` of one client, `virtual_seconds`,
    /// `wall_seconds`, `survivors`, `sum_fraction` (of the rounds, those that gave a sum), `epsilon`, `noise_deviation`,
    /// `total_epsilon`, `accuracy`, `loss`.
    pub measure: &'static str,
    /// The phase; `None` for all phases together.
    pub phase: Option<&'static str>,
    /// The round after which it was measured; `None` for a mean over the rounds that gave a sum.
    pub round: Option<u64>,
    /// `s`, `B`, `clients`, `nats`, or `1` for a plain number.
    pub unit: &'static str,
    /// Its value.
    pub value: f64,
}

/// A quantity over simulations that differ in their seeds only.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantity {
    /// As in [`Measure`].
    pub measure: &'static str,
    /// As in [`Measure`].
    pub phase: Option<&'static str>,
    /// As in [`Measure`].
    pub round: Option<u64>,
    /// As in [`Measure`].
    pub unit: &'static str,
    /// Its values.
    #[serde(flatten)]
    pub estimate: Estimate,
}

/// Mean, and how well it is known.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// Values.
    pub count: usize,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation (of a sample, divided by `count - 1`); `None` for a single value.
    pub deviation: Option<f64>,
    /// Lower end of the 95 % confidence interval of the mean, by Student's t; `None` for a single value.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
}

impl Estimate {
    /// `None` without a value.
    pub fn of(values: &[f64]) -> Option<Self> {
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count as f64;
        match count {
            0 => None,
            1 => Some(Self { count, mean, deviation: None, low: None, high: None }),
            _ => {
                let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
                let deviation = (squares / (count - 1) as f64).sqrt();
                let half = student(count - 1) * deviation / (count as f64).sqrt();
                Some(Self { count, mean, deviation: Some(deviation), low: Some(mean - half), high: Some(mean + half) })
            }
        }
    }
}

/// The 0.975 quantile of Student's t: for up to 10 degrees of freedom from a table (NIST/SEMATECH e-Handbook of Statistical
/// Methods, 1.3.6.7.2), above by the expansion 26.7.5 of Abramowitz and Stegun, Handbook of Mathematical Functions.
fn student(freedom: usize) -> f64 {
    const TABLE: [f64; 10] = [12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281];
    if let Some(quantile) = freedom.checked_sub(1).and_then(|i| TABLE.get(i)) {
        return *quantile;
    }
    let (z, v) = (1.959_963_985_f64, freedom as f64);
    let terms = [
        (z.powi(3) + z) / 4.0,
        (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0,
        (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0,
        (79.0 * z.powi(9) + 776.0 * z.powi(7) + 1482.0 * z.powi(5) - 1920.0 * z.powi(3) - 945.0 * z) / 92160.0,
    ];
    terms.iter().rev().fold(0.0, |sum, term| (sum + term) / v) + z
}

impl Report {
    /// Every quantity that was measured: costs as means over the rounds that gave a sum, in all phases together and in each one;
    /// what the devices learned, after each round.
    pub fn measures(&self) -> Vec<Measure> {
        let mut measures = Vec::new();
        let rounds: Vec<&RoundReport> = self.rounds.iter().filter(|round| round.abort.is_none()).collect();
        // A mean over rounds all of which have a value.
        let mut add = |measure, phase, unit, of: &dyn Fn(&RoundReport) -> Option<f64>| {
            let values: Option<Vec<f64>> = rounds.iter().map(|round| of(round)).collect();
            // An infinite epsilon has no mean.
            let mean = values.and_then(|values| Estimate::of(&values)).filter(|estimate| estimate.mean.is_finite());
            if let Some(Estimate { mean: value, .. }) = mean {
                measures.push(Measure { measure, phase, round: None, unit, value });
            }
        };
        let names: Vec<&'static str> =
            rounds.first().map(|round| round.phases.iter().map(|phase| phase.phase).collect()).unwrap_or_default();
        for phase in std::iter::once(None).chain(names.into_iter().map(Some)) {
            let here = |name: &str| phase.is_none_or(|phase| phase == name);
            let timed = |round: &RoundReport, of: fn(&PhaseTiming) -> f64| {
                Some(round.timing.as_ref()?.phases.iter().filter(|timing| here(timing.phase)).map(of).sum())
            };
            let summed = |round: &RoundReport, of: fn(&PhaseReport) -> f64| {
                Some(round.phases.iter().filter(|other| here(other.phase)).map(of).sum())
            };
            add("client_seconds", phase, "s", &|round| timed(round, |timing| timing.client_seconds.mean));
            add("server_seconds", phase, "s", &|round| timed(round, |timing| timing.server_seconds));
            add("sent_bytes", phase, "B", &|round| summed(round, |phase| phase.sent.mean));
            add("received_bytes", phase, "B", &|round| summed(round, |phase| phase.received.mean));
            add("virtual_seconds", phase, "s", &|round| summed(round, |phase| phase.virtual_seconds));
            if phase.is_none() {
                add("wall_seconds", None, "s", &|round| Some(round.timing.as_ref()?.wall_seconds));
                add("survivors", None, "clients", &|round| Some(round.survivors as f64));
                add("epsilon", None, "1", &|round| Some(round.privacy?.epsilon));
                add("noise_deviation", None, "1", &|round| Some(round.privacy?.noise_deviation));
            }
        }
        if !self.rounds.is_empty() {
            let value = rounds.len() as f64 / self.rounds.len() as f64;
            measures.push(Measure { measure: "sum_fraction", phase: None, round: None, unit: "1", value });
        }
        for round in &self.rounds {
            let mut add = |measure, unit, value: Option<f64>| {
                let round = Some(round.round);
                measures.extend(value.filter(|value| value.is_finite()).map(|value| Measure {
                    measure,
                    phase: None,
                    round,
                    unit,
                    value,
                }));
            };
            add("total_epsilon", "1", round.privacy.map(|spent| spent.total_epsilon));
            add("accuracy", "1", round.learned.map(|learned| learned.accuracy.into()));
            add("loss", "nats", round.learned.map(|learned| learned.loss.into()));
        }
        measures
    }
}

/// The reports that count: a simulation that was stopped only where all were, since its mean is one of fewer rounds.
pub fn counted(reports: &[Report]) -> impl Iterator<Item = &Report> + Clone {
    let none_finished = reports.iter().all(|report| report.interrupted);
    reports.iter().filter(move |report| none_finished || !report.interrupted)
}

/// Every quantity over reports that differ in their seeds only, those that are [`counted`], in the order in which the first one
/// has them.
pub fn summarise(reports: &[Report]) -> Vec<Quantity> {
    let mut quantities: Vec<(Measure, Vec<f64>)> = Vec::new();
    for measure in counted(reports).flat_map(Report::measures) {
        let same = |other: &Measure| {
            (other.measure, other.phase, other.round) == (measure.measure, measure.phase, measure.round)
        };
        match quantities.iter_mut().find(|(other, _)| same(other)) {
            Some((_, values)) => values.push(measure.value),
            None => quantities.push((measure, vec![measure.value])),
        }
    }
    let quantity = |(Measure { measure, phase, round, unit, .. }, values): (Measure, Vec<f64>)| {
        Some(Quantity { measure, phase, round, unit, estimate: Estimate::of(&values)? })
    };
    quantities.into_iter().filter_map(quantity).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dropout, Learned, Simulation};

    #[test]
    fn nineteen_of_twenty_values_of_students_t_lie_within_the_quantile() {
        // With x = sqrt(v) tan(a) the density is proportional to cos(a)^(v - 1).
        let integral = |freedom: usize, end: f64| -> f64 {
            let steps = 20_000;
            let width = end / f64::from(steps);
            (0..steps).map(|i| ((f64::from(i) + 0.5) * width).cos().powi(freedom as i32 - 1) * width).sum()
        };
        for freedom in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15, 30, 120, 1000] {
            let inside = integral(freedom, (student(freedom) / (freedom as f64).sqrt()).atan());
            let part = inside / integral(freedom, std::f64::consts::FRAC_PI_2);
            assert!((part - 0.95).abs() < 5e-6, "{freedom}: {part}");
        }
    }

    #[test]
    fn an_estimate_is_that_of_a_worked_example() {
        // Mean 5, squares 10 + 0 + ... over 4 degrees of freedom: deviation sqrt(2.5), half 2.7764 sqrt(2.5 / 5).
        let estimate = Estimate::of(&[3.0, 4.0, 5.0, 6.0, 7.0]).unwrap();
        assert_eq!((estimate.count, estimate.mean), (5, 5.0));
        assert!((estimate.deviation.unwrap() - 2.5f64.sqrt()).abs() < 1e-12);
        let half = 2.7764 * 0.5f64.sqrt();
        assert!((estimate.low.unwrap() - (5.0 - half)).abs() < 1e-12);
        assert!((estimate.high.unwrap() - (5.0 + half)).abs() < 1e-12);
        let single = Estimate::of(&[2.0]).unwrap();
        assert_eq!((single.mean, single.deviation, single.low), (2.0, None, None));
        assert_eq!(Estimate::of(&[]), None);
    }

    fn report(seed: u64, dropout: &str) -> Report {
        let builder = Simulation::builder().clients(20).dimension(10).rounds(2).seed(seed).delta(0.1);
        builder.dropout(Dropout::parse(dropout).unwrap()).build().unwrap().run(&mut ()).unwrap()
    }

    fn quantity(all: &[Quantity], measure: &str, phase: Option<&str>, round: Option<u64>) -> Estimate {
        let same = |q: &&Quantity| (q.measure, q.phase, q.round) == (measure, phase, round);
        all.iter().find(same).unwrap_or_else(|| panic!("no {measure} in {all:?}")).estimate
    }

    #[test]
    fn phases_add_up_to_the_round_and_repetitions_to_their_mean() {
        let reports = [report(0, "0.1"), report(1, "0.1"), report(2, "0.1")];
        let all = summarise(&reports);
        for measure in ["client_seconds", "server_seconds", "sent_bytes", "virtual_seconds"] {
            let whole = quantity(&all, measure, None, None);
            let phases = ["advertise", "share", "mask", "confirm", "unmask"];
            let sum: f64 = phases.iter().map(|phase| quantity(&all, measure, Some(phase), None).mean).sum();
            assert!((whole.mean - sum).abs() <= 1e-9 * sum.max(1.0), "{measure}: {} and {sum}", whole.mean);
            assert_eq!(whole.count, 3);
        }
        let sent = |report: &Report| {
            let of = |round: &RoundReport| round.phases.iter().map(|phase| phase.sent.mean).sum::<f64>();
            report.rounds.iter().map(of).sum::<f64>() / 2.0
        };
        let values: Vec<f64> = reports.iter().map(sent).collect();
        assert_eq!(quantity(&all, "sent_bytes", None, None).mean, Estimate::of(&values).unwrap().mean);
        assert_eq!(quantity(&all, "survivors", None, None).mean, 18.0);
        assert_eq!(quantity(&all, "sum_fraction", None, None).mean, 1.0);
    }

    #[test]
    fn what_was_learned_is_told_by_round_and_a_stopped_run_is_left_out() {
        let mut reports = [report(0, "0"), report(1, "0"), report(2, "0")];
        for (report, accuracy) in reports.iter_mut().zip([0.5, 0.7, 0.1]) {
            report.rounds[1].learned = Some(Learned { accuracy, loss: 1.0 });
        }
        reports[2].interrupted = true;
        let accuracy = quantity(&summarise(&reports), "accuracy", None, Some(2));
        assert!(accuracy.count == 2 && (accuracy.mean - 0.6).abs() < 1e-6, "{accuracy:?}");
        let alone = summarise(&reports[2..]);
        assert_eq!(quantity(&alone, "accuracy", None, Some(2)).count, 1);
    }

    #[test]
    fn times_that_were_left_out_and_rounds_without_a_sum_are_no_quantities() {
        let untimed = summarise(&[report(0, "0").without_timings()]);
        assert!(untimed.iter().all(|quantity| quantity.unit != "s" || quantity.measure == "virtual_seconds"));
        let failed = summarise(&[report(0, "0.95")]);
        assert_eq!(
            failed.iter().map(|quantity| (quantity.measure, quantity.estimate.mean)).collect::<Vec<_>>(),
            [("sum_fraction", 0.0)]
        );
    }
}
