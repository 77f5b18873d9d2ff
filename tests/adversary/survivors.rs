//! Which clients the coordinator says have shared, and have survived (sections 5 and 6). More attacks with two sets are in the
//! protocol crate's `agreement` tests, of which this has the lying coordinator, its plans, and what it knows in the end.

use std::collections::BTreeSet;

use unisono_protocol::client::{CertificateFault, ClientError};
use unisono_protocol::proto::{MaskingView, SurvivorsView, server_message::View};
use unisono_protocol::server::Phase;

use crate::harness::{Stage, forty, six, spent, without};
use crate::malicious::{self, Attack};
use crate::plan::{Plan, cut, play};
use crate::world::params;

#[test]
fn the_isolated_victim_all_of_whose_neighbours_are_declared_dropped() {
    // In a sparse graph: its neighbours would reveal their shares of its neighbours' mask secrets, and its pair masks fall. The whole
    // committee is in league, so that there is a certificate for it.
    let stage = malicious::Stage::new(&forty());
    let everybody = stage.without([]);
    let mut attack = Attack::new(&stage, []);
    attack.mask_all(&everybody);
    let neighbours = stage.cohort.graph.neighbours(0);
    let isolated = stage.by_all(&everybody, &stage.without(neighbours.iter().copied()));
    for u in (0..40).filter(|u| !neighbours.contains(u)) {
        let error = attack.refuses(u, View::Certificate(isolated.clone()));
        assert!(matches!(error, ClientError::ThinWindow { .. }), "{error}");
    }
    // As thin as windows may be: fewer than the threshold are left next to the victim.
    let place = stage.ring.iter().position(|&u| u == 0).unwrap();
    let gone = [-4, -2, 2, 4].map(|offset| stage.at(place, offset));
    let isolated = stage.by_all(&everybody, &stage.without(gone));
    let few = ClientError::TooFew { what: "of this device's neighbours survive", have: 6, need: 7 };
    assert_eq!(attack.refuses(0, View::Certificate(isolated)), few);
    assert!(attack.sums().is_empty());
}

#[test]
fn the_isolated_victim_when_only_the_others_are_told() {
    // The victim hears that all survive, everybody else that the victim dropped out: that is certified.
    let stage = malicious::Stage::new(&six());
    let (everybody, rest) = (stage.without([]), stage.without([0]));
    let mut attack = Attack::new(&stage, []);
    attack.mask_all(&everybody);
    attack.ask(0, &everybody).unwrap();
    (1..6).for_each(|u| attack.ask(u, &rest).unwrap());
    let certificate = attack.certificate(&everybody, &rest);
    // For the set with itself there is its own endorsement alone.
    let own = attack.certificate(&everybody, &everybody);
    let quorum = ClientError::Certificate(CertificateFault::Quorum { have: 1, need: 4 });
    assert_eq!(attack.refuses(0, View::Certificate(own)), quorum);
    // The others reveal one share each of the victim's mask secret: and the victim's self mask stays.
    (1..6).for_each(|u| attack.show_certificate(u, &certificate).unwrap());
    assert_eq!(attack.sums(), [attack.sum_over(&rest)]);
    let now = crate::world::NOW;
    assert_eq!(attack.closes(0, View::Certificate(certificate), now), ClientError::CertifiedWithout);
}

/// The plan in which client `i` is shown the second set first where bit `i` of `split` is set.
fn split_by(stage: &malicious::Stage, colluder: Option<u32>, sets: [Vec<bool>; 2], split: u32) -> Plan {
    let region = (0..stage.n()).map(|u| (split >> u & 1) as usize).collect();
    Plan { region, ..Plan::honest(stage, colluder, sets) }
}

#[test]
fn every_way_to_show_two_survivor_sets_to_six_clients() {
    // All are honest, or client 4 colludes, and the sets differ in client 5 or in 5 and 0. Whatever the split, the coordinator has the sum
    // over the one set that is certified, if any.
    let stage = malicious::Stage::new(&six());
    let mut certified = BTreeSet::new();
    for (colluder, first) in [(None, vec![]), (Some(4), vec![]), (None, vec![0]), (Some(4), vec![0])] {
        let (mut whole, mut none) = (0, 0);
        for split in 0..64u32 {
            let sets = [stage.without(first.clone()), stage.without([5])];
            let verdict = play(&stage, &split_by(&stage, colluder, sets, split));
            if verdict.holds() {
                whole += 1
            } else {
                none += 1
            }
            certified.extend(verdict.certified.into_iter().map(|(_, survivors)| survivors));
        }
        assert!(whole > 0 && none > 0, "{colluder:?} {first:?}: {whole} with a sum, {none} without");
    }
    assert_eq!(certified.len(), 3, "either set can be had");
}

#[test]
fn two_survivor_sets_and_false_sharers_for_regions_of_a_sparse_graph() {
    // The committee of seven in many ways in two; an arc hears of other sharers, which would cut it off, or the truth.
    let stage = malicious::Stage::new(&forty());
    let committee = stage.cohort.graph.committee();
    let (mut whole, mut none) = (0, 0);
    for (at, split) in (0..128u32).step_by(11).enumerate() {
        for beside in ["mmC", "m.m"] {
            let mut plan = cut(&stage, &[(3 * at, 9)], beside);
            if at % 2 == 0 {
                plan.told = vec![stage.without([]); 40];
            }
            for (bit, &member) in committee.iter().enumerate() {
                plan.region[member as usize] = (split >> bit & 1) as usize;
            }
            if play(&stage, &plan).holds() { whole += 1 } else { none += 1 }
        }
    }
    assert!(whole > 0 && none > 0, "{whole} with a sum, {none} without");
}

#[test]
fn an_arc_or_a_gap_of_the_ring_cut_off() {
    // One consistent set, chosen after the graph was seen: clients in a row stay, and half the degree on either side of them are
    // declared dropped, or all but two. No honest mask goes across then. One gap alone cuts nothing off a ring, yet every arc needs one at
    // either end: it is refused already. The committee is in league.
    let stage = malicious::Stage::new(&forty());
    let everybody = stage.without([]);
    let mut attack = Attack::new(&stage, []);
    attack.mask_all(&everybody);
    let gaps: [&[i64]; 4] =
        [&[-1, -2, -3, -4, -5, 9, 10, 11, 12, 13], &[-1, -3, -5, 9, 11, 13], &[-1, -2, -3], &[-1, -3, -4, -5]];
    for (start, gap) in (0..40).step_by(5).flat_map(|start| gaps.map(|gap| (start, gap))) {
        let gone: Vec<u32> = gap.iter().map(|&offset| stage.at(start, offset)).collect();
        let survivors = stage.without(gone);
        let place = stage.cohort.graph.thin_window(&survivors).expect("the gaps are seen");
        let certificate = stage.by_all(&everybody, &survivors);
        for u in 0..40u32 {
            let error = attack.refuses(u, View::Certificate(certificate.clone()));
            assert_eq!(error, ClientError::ThinWindow { place });
            if stage.cohort.graph.on_committee(u).is_some() {
                let error = attack.refuses(u, View::Survivors(stage.survivors_view(&survivors)));
                assert_eq!(error, ClientError::ThinWindow { place });
            }
        }
    }
    // Every device is as it was.
    let certificate = stage.by_all(&everybody, &everybody);
    (0..40).for_each(|u| attack.show_certificate(u, &certificate).unwrap());
    assert_eq!(attack.sums(), [attack.sum_over(&everybody)]);
}

#[test]
fn a_client_told_that_it_dropped_itself() {
    // Without signatures the set alone counts; with them, a certificate without it (see above).
    let mut stage = Stage::at(Phase::Unmask, &params(false, 4, 6, 0.0, 0.2, 20), 6);
    let view = without(&stage.survivors_view(0), 6, &[2]);
    assert_eq!(stage.refuses(2, View::Survivors(view)), ClientError::LeftOut("survive"));
    stage.completes(&[], 6);
    let mut stage = Stage::at(Phase::Mask, &six(), 6);
    let view = MaskingView { shared: vec![0b11_1011], ..stage.masking_view(2) };
    assert_eq!(stage.refuses(2, View::Masking(view)), ClientError::LeftOut("shared keys"));
    stage.completes(&[], 6);
}

#[test]
fn survivors_that_never_shared_their_keys() {
    let mut stage = Stage::at(Phase::Share, &six(), 6);
    stage.step(&[5]);
    stage.close();
    stage.step(&[5]);
    stage.close();
    let honest = stage.survivors_view(0);
    let view = SurvivorsView { survivors: vec![honest.survivors[0] | 1 << 5], ..honest };
    assert_eq!(stage.refuses(0, View::Survivors(view)), ClientError::NotInU1(5));
    stage.completes(&[5], 5);
}

#[test]
fn fewer_survivors_than_the_sum_needs() {
    let mut stage = Stage::at(Phase::Confirm, &six(), 6);
    let honest = stage.survivors_view(0);
    let view = without(&honest, 6, &[1, 2, 3]);
    assert_eq!(stage.refuses(0, View::Survivors(view)), ClientError::TooFew { what: "survive", have: 3, need: 4 });
    for survivors in [vec![], vec![0b11_1111, 0], vec![0b111_1111]] {
        let view = SurvivorsView { survivors, ..honest.clone() };
        assert!(matches!(stage.refuses(0, View::Survivors(view)), ClientError::Bitmap(_)));
    }
    let view = SurvivorsView { cohort_id: vec![4; 32], ..honest };
    assert_eq!(stage.refuses(0, View::Survivors(view)), ClientError::OtherCohort);
    stage.completes(&[], 6);
}

#[test]
fn too_few_that_shared_or_fewer_messages_than_clients() {
    let mut stage = Stage::at(Phase::Mask, &six(), 6);
    let honest = stage.masking_view(0);
    let view = MaskingView { shared: vec![0b00_0111], deliveries: honest.deliveries[..2].to_vec(), ..honest.clone() };
    assert_eq!(stage.refuses(0, View::Masking(view)), ClientError::TooFew { what: "shared keys", have: 3, need: 4 });
    let view = MaskingView { deliveries: honest.deliveries[..4].to_vec(), ..honest.clone() };
    assert_eq!(stage.refuses(0, View::Masking(view)), ClientError::TooFew { what: "were delivered", have: 4, need: 5 });
    let view = MaskingView { cohort_id: vec![4; 32], ..honest };
    assert_eq!(stage.refuses(0, View::Masking(view)), ClientError::OtherCohort);
    assert!(!spent(&stage.devices[0]));
    stage.completes(&[], 6);
}

#[test]
fn a_smaller_set_of_sharers_shown_to_the_victim_alone() {
    // Its pair mask with device 5 is missing then. What is certified is the others' set, and it reveals nothing for that; its upload
    // has no mask in common with the others', so nothing opens at all, also not for the coordinator.
    let stage = malicious::Stage::new(&six());
    let (everybody, fewer) = (stage.without([]), stage.without([5]));
    let mut attack = Attack::new(&stage, []);
    attack.mask(0, &fewer).unwrap();
    (1..6).for_each(|u| attack.mask(u, &everybody).unwrap());
    let with_five = View::Survivors(stage.survivors_view(&everybody));
    assert_eq!(attack.refuses(0, with_five), ClientError::NotInU1(5));
    (1..6).for_each(|u| attack.ask(u, &everybody).unwrap());
    let certificate = attack.certificate(&everybody, &everybody);
    let other = ClientError::Certificate(CertificateFault::OtherSharers);
    assert_eq!(attack.refuses(0, View::Certificate(certificate.clone())), other);
    (1..6).for_each(|u| attack.show_certificate(u, &certificate).unwrap());
    assert!(attack.sums().is_empty());
}
