//! The model of SecAgg+ beside a report: its graph, and the drop-outs of the report's own rounds.

use unisono_protocol::degree::SecurityMode;
use unisono_sim::secaggplus::{LABEL, Model};
use unisono_sim::{Dropout, Simulation};

#[test]
fn the_model_has_the_degree_of_the_semi_honest_conditions_and_the_rounds_own_drop_outs() {
    let builder = Simulation::builder().clients(100).dimension(50).delta(0.05).mode(SecurityMode::SemiHonest);
    let report = builder.dropout(Dropout::constant(0.04).unwrap()).build().unwrap().run(&mut ()).unwrap();
    let model = Model::beside(&report).unwrap();
    assert_eq!(model.what, LABEL);
    assert_eq!((model.degree, model.threshold), (report.settings.degree, report.settings.threshold));
    // 100 updates of 16 bits fit into 23.
    assert_eq!((model.degree, model.threshold, model.element_bits), (12, 6, 23));
    let round = &model.rounds[0];
    assert_eq!((round.round, round.clients, round.survivors), (1, 100, 96));
    let unmask = &round.phases[3];
    assert_eq!(unmask.server_operations.rebuilds, 100.0);
    assert_eq!(unmask.server_operations.agreements, 4.0 * 12.0 * 96.0 / 99.0);
    let masking = &round.phases[2];
    let costs = model.costs.unwrap();
    let expected = 12.0 * costs.agreement + 13.0 * 50.0 * costs.expansion_element;
    assert!((masking.client_seconds.unwrap() / expected - 1.0).abs() < 1e-9);
}

#[test]
fn without_timings_two_models_of_one_report_are_equal() {
    let report = Simulation::builder().clients(20).dimension(10).build().unwrap().run(&mut ()).unwrap();
    let model = || Model::beside(&report).unwrap().without_timings();
    assert_eq!(model(), model());
    assert_eq!((model().costs, model().rounds[0].phases[2].client_seconds), (None, None));
    // Left out before the rounds are counted, or after them.
    let mut early = Model::of(&report.settings).unwrap().without_timings();
    early.add(&report.rounds[0]);
    assert_eq!(early, model());
}

#[test]
fn a_round_without_a_sum_is_not_in_the_model() {
    let dropout = Dropout::constant(0.6).unwrap();
    let report = Simulation::builder().clients(20).dimension(10).delta(0.1).dropout(dropout).build().unwrap();
    let report = report.run(&mut ()).unwrap();
    assert!(report.rounds[0].abort.is_some());
    assert!(Model::beside(&report).unwrap().rounds.is_empty());
}
