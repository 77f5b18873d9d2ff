//! Weak parameters, and different ones for different clients (sections 3, 8, 9).

use unisono_crypto::kdf::label;
use unisono_crypto::sign::{Level, SigningKey};
use unisono_protocol::client::{ClientError, NeighbourFault};
use unisono_protocol::cohort::CohortError;
use unisono_protocol::params::ParamsError;
use unisono_protocol::policy::{ParticipationRecord, TaskEntry};
use unisono_protocol::proto::{self, RoundParams, server_message::View};
use unisono_protocol::server::{Phase, Reason};
use unisono_protocol::signed::{self, SignedError};

use crate::coordinator::{Forged, advert_of, members};
use crate::harness::{Stage, forty, six, spent};
use crate::world::{CAST, Device, NOW, open, params};

/// Shows device 0 of a cohort the same cohort with a lie in its signed description.
fn lie(params: &RoundParams, count: usize, change: impl FnOnce(&mut proto::Cohort)) -> ClientError {
    let mut stage = Stage::at(Phase::Share, params, count);
    let forged = Forged::new(stage.server().params(), &members(&stage.devices), change);
    let error = stage.refuses(0, View::Cohort(forged.view(0)));
    stage.completes(&[], count);
    error
}

#[test]
fn a_cohort_smaller_than_n_min() {
    let mut stage = Stage::at(Phase::Share, &RoundParams { n_min: 5, ..six() }, 6);
    // Four members, all of them real.
    let few = &members(&stage.devices)[..4];
    let forged = Forged::new(stage.server().params(), few, |_| {});
    let error = stage.refuses(0, View::Cohort(forged.view(0)));
    assert_eq!(error, CohortError::Size { n: 4, min: 5, max: 6 }.into());
    stage.completes(&[], 6);
}

#[test]
fn a_cohort_larger_than_n_max() {
    let error = lie(&six(), 6, |cohort| cohort.n = 7);
    assert_eq!(error, CohortError::Size { n: 7, min: 4, max: 6 }.into());
}

#[test]
fn a_wrong_degree_threshold_window_bound_committee_or_quorum() {
    let expected = "(10, 7, Some(2), 7, 5)".to_owned();
    for (change, got) in [
        ((|cohort| cohort.degree = 8) as fn(&mut proto::Cohort), "(8, 7, Some(2), 7, 5)"),
        (|cohort| cohort.threshold = 6, "(10, 6, Some(2), 7, 5)"),
        (|cohort| cohort.threshold = 2, "(10, 2, Some(2), 7, 5)"),
        (|cohort| cohort.window_bound = Some(0), "(10, 7, Some(0), 7, 5)"),
        (|cohort| cohort.window_bound = None, "(10, 7, None, 7, 5)"),
        (|cohort| cohort.committee = 6, "(10, 7, Some(2), 6, 5)"),
        (|cohort| cohort.quorum = 4, "(10, 7, Some(2), 7, 4)"),
    ] {
        let error = lie(&forty(), 40, change);
        assert_eq!(error, CohortError::Topology { got: got.into(), expected: expected.clone() }.into());
    }
}

#[test]
fn parameters_that_have_no_secure_graph() {
    let server = open(&six());
    let weak = RoundParams { gamma: 0.2, delta: 0.6, ..six() };
    let mut offer = server.offer().clone();
    offer.params = Some(signed::sign(&weak, label::SIG_ROUND_PARAMS, Some(&CAST.coordinator)));
    let mut device = Device::new(0, &server, 1);
    assert!(matches!(device.join(&offer), Err(ClientError::Params(ParamsError::Infeasible { n: 6, .. }))));
    assert!(device.message().is_none());
}

#[test]
fn neighbours_that_do_not_follow_from_the_graph() {
    let mut stage = Stage::at(Phase::Share, &forty(), 40);
    let forged = Forged::new(stage.server().params(), &members(&stage.devices), |_| {});
    let view = forged.view(0);
    let honest: Vec<u32> = view.neighbours.iter().map(|neighbour| neighbour.index).collect();
    // One too few; one twice; one that the coordinator prefers; another order.
    let mut few = view.clone();
    few.neighbours.pop();
    let mut twice = view.clone();
    twice.neighbours[1] = twice.neighbours[0].clone();
    let stranger = (1..40).find(|i| !honest.contains(i)).unwrap();
    let mut chosen = view.clone();
    let mut all = (1..40).flat_map(|of| forged.view(of).neighbours);
    chosen.neighbours[0] = all.find(|neighbour| neighbour.index == stranger).unwrap();
    let mut order = view.clone();
    order.neighbours.swap(3, 4);
    for view in [few, twice, chosen, order] {
        let got: Vec<u32> = view.neighbours.iter().map(|neighbour| neighbour.index).collect();
        let error = stage.refuses(0, View::Cohort(view));
        assert_eq!(error, ClientError::Neighbours { expected: honest.clone(), got });
    }
    stage.completes(&[], 40);
}

/// Two coordinators with one key show device 0 other parameters than the rest, and bring all adverts together.
fn split_by(change: impl FnOnce(&mut RoundParams)) {
    let mut other = six();
    change(&mut other);
    let (apart, mut stage) = (open(&other), Stage::at(Phase::Share, &six(), 6));
    assert_ne!(apart.params().round_id, stage.server().params().round_id);
    let mut victim = Device::new(0, &apart, 31);
    victim.join(apart.offer()).unwrap();

    // The victim among the others' adverts: they are of another round for it.
    let mut all = members(&stage.devices);
    all[0].advert = advert_of(&victim);
    let forged = Forged::new(apart.params(), &all, |_| {});
    let before = victim.message().cloned();
    let view = proto::ServerMessage { view: Some(View::Cohort(forged.view(0))) };
    let of_another = |index| ClientError::Neighbour {
        index,
        why: SignedError::Malformed { what: "advert", why: "it is of another round".into() }.into(),
    };
    assert_eq!(victim.receive(&view), Err(of_another(1)));
    assert_eq!(victim.message().cloned(), before);
    // And the others refuse a cohort with the victim's advert in it.
    let forged = Forged::new(stage.server().params(), &all, |_| {});
    assert_eq!(stage.refuses(1, View::Cohort(forged.view(1))), of_another(0));
    // An honest coordinator does not take its steps into the other round either.
    let refusal = stage.server_mut().absorb(victim.message().unwrap(), NOW).unwrap_err();
    assert_eq!((refusal.client, refusal.reason), (Some(victim.id()), Reason::OtherRound));
    stage.completes(&[], 6);
}

#[test]
fn different_parameters_for_different_clients() {
    split_by(|params| params.n_min = 5);
    split_by(|params| params.quantiser.as_mut().unwrap().clip = 2.0);
}

#[test]
fn different_base_models_for_different_clients() {
    split_by(|params| params.model_hash = vec![1; 32]);
}

#[test]
fn different_cohorts_for_different_clients() {
    // The victim, device 0, is shown a cohort with device 6 in device 5's place; the rest the other one.
    let seven = RoundParams { n_max: 7, ..six() };
    let mut stage = Stage::at(Phase::Share, &seven, 7);
    let all = members(&stage.devices);
    let params = stage.server().params().clone();
    let one = Forged::new(&params, &[&all[..5], &all[6..]].concat(), |_| {});
    let other = Forged::new(&params, &all[..6], |_| {});
    stage.show(0, View::Cohort(one.view(0))).unwrap();
    for i in 1..5 {
        stage.show(i, View::Cohort(other.view(i as u32))).unwrap();
    }
    // What the others shared is of another cohort for it, whatever the coordinator writes around it.
    let cohort_id = {
        use prost::Message;
        let message = stage.devices[0].message().unwrap();
        let Some(proto::client_message::Step::ShareKeys(shares)) = &message.step else { panic!() };
        let root = proto::SharesRoot::decode(shares.root.as_ref().unwrap().payload.as_slice()).unwrap();
        root.cohort_id
    };
    let delivery = |i: usize| {
        let Some(proto::client_message::Step::ShareKeys(shares)) = &stage.devices[i].message().unwrap().step else {
            panic!()
        };
        let tree = unisono_crypto::merkle::Tree::new(label::TREE_SHARES, &shares.messages);
        proto::DeliveredShares {
            root: shares.root.clone(),
            message: shares.messages[0].clone(),
            position: 0,
            path: tree.path(0).unwrap().iter().map(|hash| hash.to_vec()).collect(),
        }
    };
    let view = proto::MaskingView { cohort_id, shared: vec![0b01_1111], deliveries: (1..5).map(delivery).collect() };
    let honest_id = proto::MaskingView { cohort_id: vec![0; 32], ..view.clone() };
    assert_eq!(stage.refuses(0, View::Masking(honest_id)), ClientError::OtherCohort);
    let error = stage.refuses(0, View::Masking(view));
    assert_eq!(error, ClientError::Neighbour { index: 1, why: NeighbourFault::Addressee });
    assert!(!spent(&stage.devices[0]), "no input was masked");
}

#[test]
fn a_coordinator_that_the_roster_does_not_name() {
    let server = open(&six());
    let stranger = SigningKey::generate(
        Level::L65,
        &mut <rand_chacha::ChaCha8Rng as rand_chacha::rand_core::SeedableRng>::seed_from_u64(8),
    );
    let mut offer = server.offer().clone();
    offer.params = Some(signed::sign(&six(), label::SIG_ROUND_PARAMS, Some(&stranger)));
    let mut device = Device::new(0, &server, 1);
    assert_eq!(device.join(&offer), Err(ClientError::UntrustedCoordinator));
    assert!(device.message().is_none());
    // The right key on the parameters, another on the cohort.
    let mut stage = Stage::at(Phase::Share, &six(), 6);
    let mut view = stage.cohort_view(0);
    let cohort = view.cohort.as_mut().unwrap();
    cohort.signature = stranger.sign(label::SIG_COHORT, &cohort.payload);
    let error = stage.refuses(0, View::Cohort(view));
    assert_eq!(error, SignedError::Signature { what: "cohort" }.into());
    stage.completes(&[], 6);
}

#[test]
fn parameters_beyond_the_devices_own_policy() {
    let refused = |params: RoundParams, change: fn(&mut unisono_protocol::policy::Policy)| {
        let server = open(&params);
        let mut device = Device::new(0, &server, 1);
        device.trust.policy.allow_semi_honest = false;
        change(&mut device.trust.policy);
        let Err(ClientError::Policy(refusal)) = device.join(server.offer()) else { panic!("joined") };
        assert!(device.message().is_none(), "not even an advert");
        refusal.setting
    };
    assert_eq!(refused(six(), |policy| policy.n_min = 5), "n_min");
    assert_eq!(refused(six(), |policy| policy.min_gamma = 0.2), "min_gamma");
    assert_eq!(refused(six(), |policy| policy.max_delta = 0.1), "max_delta");
    assert_eq!(refused(six(), |policy| policy.max_dimension = 10), "max_dimension");
    assert_eq!(refused(six(), |policy| policy.min_model_version = 2), "min_model_version");
    assert_eq!(refused(six(), |policy| policy.suites = vec![2]), "suites");
    // A limit that is no number is not taken for none.
    assert_eq!(refused(six(), |policy| policy.min_gamma = f64::NAN), "min_gamma");
    assert_eq!(refused(six(), |policy| policy.max_delta = f64::NAN), "max_delta");
    assert_eq!(refused(params(false, 4, 6, 0.0, 0.2, 20), |_| {}), "allow_semi_honest");
}

#[test]
fn rounds_of_one_task_that_follow_each_other_too_fast() {
    let next = RoundParams { round: 2, ..six() };
    let joins = |server: &unisono_protocol::server::Server, last_at: u64| {
        let mut device = Device::new(0, server, 1);
        device.trust.policy.min_interval_s = 60;
        let spent = unisono_protocol::policy::Spent { rounds: 1, last_at, ..Default::default() };
        let cohort = unisono_protocol::CohortId([1; 32]);
        let entry = TaskEntry { round: 1, cohort, masked_for: Some([1; 32]), survivors: None, spent };
        device.record.replace("test", None, entry).unwrap();
        device.join(server.offer()).map(|()| assert!(device.message().is_some()))
    };
    let server = open(&next);
    let Err(ClientError::Policy(refusal)) = joins(&server, NOW - 59) else { panic!("joined") };
    assert_eq!((refusal.setting, refusal.value.as_str(), refusal.limit.as_str()), ("min_interval_s", "59 s", "60 s"));
    assert_eq!(joins(&server, NOW - 60), Ok(()));
    // A clock that was ahead at the last round does not end in an underflow, nor in a round.
    assert!(joins(&server, NOW + 500).is_err());
}

#[test]
fn a_downgrade_to_semi_honest_mode() {
    // Semi-honest parameters beside a roster head, and malicious ones without it.
    let (malicious, semi_honest) = (open(&six()), open(&params(false, 4, 6, 0.0, 0.2, 20)));
    let mut device = Device::new(0, &malicious, 1);
    device.trust.policy.allow_semi_honest = true;
    let mut offer = malicious.offer().clone();
    offer.roster_head = None;
    let missing = ClientError::Missing("roster head, which a round in malicious mode needs");
    assert_eq!(device.join(&offer), Err(missing));
    let mut offer = semi_honest.offer().clone();
    offer.roster_head = malicious.offer().roster_head.clone();
    assert_eq!(device.join(&offer), Err(ClientError::UntrustedCoordinator));
    assert!(device.message().is_none());
}
