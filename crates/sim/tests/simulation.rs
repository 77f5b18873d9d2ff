//! Whole simulations: exact sums whoever vanishes, the same report for the same seed, and the researcher's own updates.

use unisono_protocol::degree::SecurityMode;
use unisono_protocol::encoding::{Aggregate, Quantiser, Rounding};
use unisono_protocol::server::Phase;
use unisono_sim::{Builder, Dropout, Network, Observer, RoundReport, SimError, Simulation, Update, updates};

fn small() -> Builder {
    Simulation::builder().clients(20).dimension(300).seed(7)
}

#[test]
fn the_sum_is_exact_in_whatever_phase_clients_vanish() {
    for mode in [SecurityMode::Malicious, SecurityMode::SemiHonest] {
        for (phase, survivors) in
            [(Phase::Advertise, 18), (Phase::Share, 18), (Phase::Mask, 18), (Phase::Confirm, 20), (Phase::Unmask, 20)]
        {
            let dropout = Dropout::phases([(phase, 0.1)]).unwrap();
            let report = small().mode(mode).dropout(dropout).build().unwrap().run(&mut ()).unwrap();
            let round = &report.rounds[0];
            assert_eq!(round.abort, None, "{mode:?} {phase}");
            assert_eq!((round.exact_sum, round.survivors), (Some(true), survivors), "{mode:?} {phase}");
        }
    }
}

#[test]
fn one_seed_gives_one_report_whatever_the_threads_and_another_seed_another() {
    let run = |seed, threads| {
        let dropout = Dropout::parse("class:mobile=0.1,slow=0.1").unwrap();
        let network = Network::parse("mixed").unwrap();
        let simulation =
            small().seed(seed).threads(threads).rounds(2).delta(0.2).network(network).dropout(dropout).build().unwrap();
        let report = simulation.run(&mut ()).unwrap();
        assert!(report.rounds.iter().all(|round| round.timing.is_some()));
        serde_json::to_string(&report.without_timings()).unwrap()
    };
    let first = run(1, 1);
    assert_eq!(first, run(1, 3));
    assert_ne!(first, run(2, 1));
    assert!(first.contains("\"exact_sum\":true"), "{first}");
}

#[test]
fn shared_checks_change_nothing_but_the_times_and_are_told() {
    let run = |share| {
        let dropout = Dropout::constant(0.1).unwrap();
        let simulation = small().rounds(2).dropout(dropout).share_checks(share).build().unwrap();
        simulation.run(&mut ()).unwrap().without_timings()
    };
    let (alone, mut shared) = (run(false), run(true));
    assert!(!alone.settings.shared_checks && shared.settings.shared_checks);
    assert!(alone.rounds.iter().all(|round| round.exact_sum == Some(true)));
    shared.settings.shared_checks = false;
    assert_eq!(alone, shared);
}

#[test]
fn a_device_that_is_slower_than_the_deadline_is_left_out_of_the_sum() {
    // 20 devices in turn with a line to themselves; two of them upload 300 elements at 0.001 Mbit/s.
    let mut lines = "latency_ms,up_mbit,down_mbit,slowdown\n".to_owned();
    (0..20).for_each(|i| lines += if i % 10 == 3 { "1,0.001,100,1\n" } else { "1,100,100,1\n" });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lines).unwrap();
    let network = Network::from_trace(file.path()).unwrap();
    let simulation = small().mode(SecurityMode::SemiHonest).delta(0.2).network(network).deadline(5.0);
    let round = simulation.build().unwrap().run(&mut ()).unwrap().rounds.remove(0);
    assert_eq!((round.exact_sum, round.survivors, round.phases[0].late), (Some(true), 18, 2));
    // The coordinator waited for them, once.
    assert_eq!(round.phases[0].virtual_seconds, 5.0);
    assert!(round.phases[1].virtual_seconds < 1.0);
}

#[test]
fn too_many_drop_outs_abort_the_round_and_the_next_one_begins() {
    let dropout = Dropout::constant(0.6).unwrap();
    let report = small().delta(0.1).rounds(2).dropout(dropout).build().unwrap().run(&mut ()).unwrap();
    assert_eq!(report.rounds.len(), 2);
    assert!(report.rounds.iter().all(|round| round.abort.is_some() && round.exact_sum.is_none()));
}

/// Keeps the means.
#[derive(Default)]
struct Means(Vec<Vec<f32>>);

impl Observer for Means {
    fn round_finished(&mut self, _: &RoundReport, aggregate: Option<&Aggregate>) {
        self.0.push(aggregate.unwrap().mean.clone());
    }
}

#[test]
fn the_mean_is_the_weighted_mean_of_the_researchers_own_updates() {
    let quantiser = Quantiser {
        bits: 20,
        clip: 10.0,
        clips: Vec::new(),
        l2_clip: None,
        max_weight: 4.0,
        rounding: Rounding::Deterministic,
        metric_bounds: Vec::new(),
        privacy: None,
        rotation: None,
    };
    // Client i has the value i / 10 in round 1, and twice that in round 2, with weight 1 or 3.
    let source = updates(|client, round| Update {
        values: vec![client as f32 / 10.0 * round as f32; 3],
        metrics: Vec::new(),
        weight: if client < 10 { 1.0 } else { 3.0 },
    });
    let mut means = Means::default();
    small().dimension(3).quantiser(quantiser).updates(source).rounds(2).build().unwrap().run(&mut means).unwrap();
    // (0 + .. + 9 + 3 (10 + .. + 19)) / 10 / 40
    let expected = (45.0 + 3.0 * 145.0) / 10.0 / 40.0;
    for (round, mean) in means.0.iter().enumerate() {
        let expected = expected * (round + 1) as f32;
        assert!(mean.iter().all(|x| (x - expected).abs() < 1e-4), "round {round}: {mean:?}, expected {expected}");
    }
}

#[test]
fn an_update_that_can_not_be_sent_costs_only_its_own_client() {
    let source = updates(|client, _| Update {
        values: vec![if client == 4 { f32::NAN } else { 0.5 }; 300],
        metrics: Vec::new(),
        weight: 1.0,
    });
    let round = small().updates(source).build().unwrap().run(&mut ()).unwrap().rounds.remove(0);
    assert_eq!((round.exact_sum, round.survivors, round.refusals), (Some(true), 19, 1));
    assert!(round.first_refusal.unwrap().contains("client 4, phase mask"));
}

/// Stops after the first round.
#[derive(Default)]
struct Impatient(usize);

impl Observer for Impatient {
    fn round_finished(&mut self, _: &RoundReport, _: Option<&Aggregate>) {
        self.0 += 1;
    }

    fn cancelled(&self) -> bool {
        self.0 == 1
    }
}

#[test]
fn a_stopped_simulation_keeps_the_rounds_it_finished() {
    let report = small().rounds(5).build().unwrap().run(&mut Impatient::default()).unwrap();
    assert_eq!((report.rounds.len(), report.interrupted), (1, true));
}

#[test]
fn settings_that_can_not_work_are_refused_with_what_would() {
    let refused = |builder: Builder| builder.build().err().unwrap();
    let infeasible = refused(small().clients(10).gamma(0.3).delta(0.4));
    assert!(matches!(infeasible, SimError::Params(_)));
    assert!(infeasible.to_string().contains("feasible would be"), "{infeasible}");
    let mut without_classes = Network::lan();
    without_classes.classes.clear();
    for (builder, name) in [
        (small().clients(2), "clients"),
        (small().dimension(0), "dimension"),
        (small().rounds(0), "rounds"),
        (small().deadline(f64::NAN), "deadline"),
        (small().threads(1_000_000), "1024"),
        (small().dropout(Dropout::parse("class:mobil=0.5").unwrap()), "mobil"),
        (
            small().dropout(Dropout::Trace { name: "a trace".into(), fates: [((1, 20), Phase::Mask)].into() }),
            "client 20",
        ),
        (small().network(without_classes), "network"),
    ] {
        assert!(refused(builder).to_string().contains(name));
    }
    assert!(matches!(refused(small().gamma(f64::NAN)), SimError::Params(_)));
    let quantiser = Quantiser {
        bits: 40,
        clip: 1.0,
        clips: Vec::new(),
        l2_clip: None,
        max_weight: 1.0,
        rounding: Rounding::Stochastic,
        metric_bounds: Vec::new(),
        privacy: None,
        rotation: None,
    };
    assert!(matches!(refused(small().quantiser(quantiser)), SimError::Encoding(_)));
}

#[test]
fn a_round_that_does_not_fit_into_memory_is_refused() {
    // 2^20 vectors of 2^30 elements, 1024 of them at a time: more than any machine has.
    let refused = small().dimension(1 << 30).clients(1 << 20).threads(1024).build().err().unwrap();
    let SimError::Memory { bytes } = refused else { panic!("{refused}") };
    assert!(bytes > 1024 * (8 << 30), "{bytes}");
    assert!(refused.to_string().contains("GiB"), "{refused}");
}

#[test]
fn more_threads_than_a_batch_has_clients_are_no_trouble() {
    let run = |threads| small().clients(5).dimension(10).threads(threads).build().unwrap().run(&mut ()).unwrap();
    assert_eq!(run(600).without_timings(), run(1).without_timings());
}

#[test]
fn a_report_describes_its_own_run() {
    let network = Network::parse("mixed").unwrap();
    let dropout = Dropout::parse("class:slow=0.1").unwrap();
    let simulation = small().network(network).dropout(dropout).deadline(7.5).rounds(3).build().unwrap();
    let settings = serde_json::to_value(simulation.settings()).unwrap();
    assert_eq!(settings["network"], "mixed");
    assert_eq!(settings["dropout"], "class:slow=0.1");
    assert_eq!((&settings["deadline"], &settings["rounds"]), (&7.5.into(), &3.into()));
}

fn private(noise_multiplier: f64) -> Builder {
    let quantiser = Quantiser {
        bits: 12,
        clip: 1.0,
        clips: Vec::new(),
        l2_clip: Some(1.0),
        max_weight: 1.0,
        rounding: Rounding::Stochastic,
        metric_bounds: Vec::new(),
        privacy: None,
        rotation: None,
    };
    small().dimension(20_000).mode(SecurityMode::SemiHonest).quantiser(quantiser).privacy(noise_multiplier, 1e-5)
}

#[test]
fn noise_for_privacy_is_in_the_sum_and_its_epsilon_in_the_report() {
    let zeros = updates(|_, _| Update { values: vec![0.0; 20_000], metrics: Vec::new(), weight: 1.0 });
    let dropout = Dropout::constant(0.1).unwrap();
    let simulation = private(2.0).n_min(15).rounds(3).dropout(dropout).updates(zeros).build().unwrap();
    let settings = simulation.settings().privacy.unwrap();
    // One of 20 may collude, so 14 of the smallest sum of 15 count.
    assert_eq!(settings.contributions, 14);
    let mut means = Means::default();
    let report = simulation.run(&mut means).unwrap();
    for (round, mean) in report.rounds.iter().zip(&means.0) {
        assert_eq!((round.exact_sum, round.survivors), (Some(true), 18));
        let spent = round.privacy.unwrap();
        // 17 contributions count, not 14.
        assert!(spent.epsilon < settings.epsilon && spent.epsilon > 0.8 * settings.epsilon);
        let variance = mean.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / mean.len() as f64;
        // Stochastic rounding of the half-integer middle adds a quarter of a step a client; noise is hundreds of them.
        assert!((variance.sqrt() / spent.noise_deviation - 1.0).abs() < 0.03, "{variance} {spent:?}");
    }
    let totals: Vec<f64> = report.rounds.iter().map(|round| round.privacy.unwrap().total_epsilon).collect();
    assert!(totals[0] < totals[1] && totals[1] < totals[2] && totals[2] < 3.0 * totals[0], "{totals:?}");
}

#[test]
fn privacy_that_can_not_be_had_says_what_is_missing() {
    let refused = |builder: Builder| builder.build().err().expect("settings that can't work");
    let without_clip = small().privacy(1.0, 1e-5);
    assert!(refused(without_clip).to_string().contains("`l2_clip` is absent"));
    for builder in [private(0.0), private(f64::NAN), private(f64::INFINITY)] {
        assert!(refused(builder).to_string().contains("noise multiplier"));
    }
    assert!(refused(private(1.0).privacy(1.0, 0.0)).to_string().contains("delta"));
    // So much that one client's noise no longer fits.
    assert!(refused(private(1e6)).to_string().contains("noise_variance"));
}

#[test]
fn a_report_without_privacy_does_not_mention_it() {
    let report = small().mode(SecurityMode::SemiHonest).build().unwrap().run(&mut ()).unwrap();
    assert!(!serde_json::to_string(&report).unwrap().contains("privacy"));
}
