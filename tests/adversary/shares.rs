//! Both secrets of one client, asked in one message, in two, and across a restart; phases out of order (section 6). What certificates
//! are refused is in the protocol crate's `agreement` tests.

use std::collections::BTreeSet;

use prost::Message;
use unisono_protocol::client::ClientError;
use unisono_protocol::policy::ParticipationRecord;
use unisono_protocol::proto::{
    self, Certificate, MaskingView, RoundParams, SurvivorsView, UnmaskShares, client_message::Step,
    server_message::View,
};
use unisono_protocol::server::Phase;

use crate::coordinator::{Forged, members};
use crate::harness::{Stage, restart, saved, six, without};
use crate::world::{Device, open};

fn old(last: u64) -> ClientError {
    ClientError::OldRound { task: "test".into(), round: 1, last }
}

fn other_survivors() -> ClientError {
    ClientError::OtherSurvivors { task: "test".into(), round: 1 }
}

fn released(message: &proto::ClientMessage) -> UnmaskShares {
    let Some(Step::Unmask(signed)) = &message.step else { panic!("no shares") };
    UnmaskShares::decode(signed.payload.as_slice()).unwrap()
}

#[test]
fn both_shares_of_one_client_asked_in_one_message() {
    // A set has each client once; a set with more bits than clients is none. What comes out has each neighbour once.
    let mut stage = Stage::at(Phase::Confirm, &six(), 6);
    let view = stage.survivors_view(0);
    let twice = SurvivorsView { survivors: [view.survivors.clone(), view.survivors.clone()].concat(), ..view.clone() };
    assert!(matches!(stage.refuses(0, View::Survivors(twice)), ClientError::Bitmap(_)));
    let mut stage = Stage::at(Phase::Unmask, &six(), 6);
    let view = stage.certificate_view(0);
    let twice = Certificate { survivors: [view.survivors.clone(), view.survivors.clone()].concat(), ..view.clone() };
    assert!(matches!(stage.refuses(0, View::Certificate(twice)), ClientError::Bitmap(_)));
    stage.show(0, View::Certificate(view)).unwrap();
    let unmask = released(stage.devices[0].message().unwrap());
    assert_eq!(unmask.shares.iter().map(|share| share.of).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
}

#[test]
fn both_shares_of_one_client_asked_in_two_messages() {
    let mut stage = Stage::at(Phase::Confirm, &six(), 6);
    let all = stage.survivors_view(0);
    let other = without(&all, 6, &[5]);
    // Another set after the endorsement, and after the shares. That the device does not move again is the types' doing: the state
    // that could answer was taken by value, and is gone. (The world's device passes a view by that its session does not await.)
    stage.show(0, View::Survivors(all)).unwrap();
    let endorsed = stage.devices[0].message().unwrap().clone();
    stage.show(0, View::Survivors(other.clone())).unwrap();
    assert_eq!(stage.devices[0].message(), Some(&endorsed));
    stage.server_mut().absorb(&endorsed, crate::world::NOW).unwrap();
    stage.step(&[0]);
    stage.close();
    let certificate = stage.certificate_view(0);
    stage.show(0, View::Certificate(certificate.clone())).unwrap();
    let shares = stage.devices[0].message().unwrap().clone();
    let changed = Certificate { survivors: other.survivors.clone(), ..certificate.clone() };
    for view in [View::Survivors(other), View::Certificate(certificate), View::Certificate(changed)] {
        stage.show(0, view).unwrap();
        assert_eq!(stage.devices[0].message(), Some(&shares), "the same bytes again, and no others");
    }
    let of_five = &stage.outbox.released()[&5];
    assert_eq!((&of_five.of_self, of_five.of_mask.len(), of_five.own), (&BTreeSet::from([0]), 0, false));
}

#[test]
fn both_shares_of_one_client_asked_across_a_restart() {
    let mut stage = Stage::at(Phase::Confirm, &six(), 6);
    let before_endorsing = saved(&stage.devices[0]);
    let view = stage.survivors_view(0);
    stage.step(&[]);
    stage.close();
    let before_shares = saved(&stage.devices[0]);
    let certificate = stage.certificate_view(0);
    stage.show(0, View::Certificate(certificate.clone())).unwrap();
    let shares = released(stage.devices[0].message().unwrap());

    // Back to before the endorsement: another set is refused, the same one is endorsed again.
    restart(&mut stage, 0, &before_endorsing);
    let error = stage.refuses(0, View::Survivors(without(&view, 6, &[5])));
    assert_eq!(error, other_survivors());
    stage.show(0, View::Survivors(view)).unwrap();
    assert_eq!(stage.outbox.distinct(stage.devices[0].id(), Phase::Confirm).len(), 1);
    stage.show(0, View::Certificate(certificate.clone())).unwrap();
    assert_eq!(released(stage.devices[0].message().unwrap()), shares);
    // Back to before the shares: the same. And from before the endorsement to the shares at once.
    for before in [&before_shares, &before_endorsing] {
        restart(&mut stage, 0, before);
        stage.show(0, View::Certificate(certificate.clone())).unwrap();
        assert_eq!(released(stage.devices[0].message().unwrap()), shares);
    }
    assert_eq!(stage.outbox.distinct(stage.devices[0].id(), Phase::Unmask).len(), 1);
    assert!(!stage.outbox.opens_an_input(4));
    stage.completes(&[], 6);
}

#[test]
fn both_shares_in_semi_honest_mode_across_a_restart() {
    let params = crate::world::params(false, 4, 6, 0.0, 0.2, 20);
    let mut stage = Stage::at(Phase::Unmask, &params, 6);
    let (view, before) = (stage.survivors_view(0), saved(&stage.devices[0]));
    stage.show(0, View::Survivors(view.clone())).unwrap();
    let shares = released(stage.devices[0].message().unwrap());
    restart(&mut stage, 0, &before);
    let error = stage.refuses(0, View::Survivors(without(&view, 6, &[5])));
    assert_eq!(error, other_survivors());
    stage.show(0, View::Survivors(view)).unwrap();
    assert_eq!(released(stage.devices[0].message().unwrap()), shares);
    stage.completes(&[], 6);
}

#[test]
fn secrets_shared_in_two_cohorts_across_a_restart() {
    // The neighbours of one cohort would reveal the mask secret, those of the other the self mask: an input opened.
    let seven = RoundParams { n_max: 7, ..six() };
    let mut stage = Stage::at(Phase::Share, &seven, 7);
    let params = stage.server().params().clone();
    let other = Forged::new(&params, &members(&stage.devices)[..6], |_| {}).view(0);
    let (before, view) = (saved(&stage.devices[0]), stage.cohort_view(0));
    stage.show(0, View::Cohort(view.clone())).unwrap();
    let shared = stage.devices[0].message().unwrap().clone();
    let kept = saved(&stage.devices[0]);
    // Nor twice in the same cohort: the second sharing would have other polynomials.
    for view in [other, view] {
        restart(&mut stage, 0, &before);
        assert_eq!(stage.closes(0, View::Cohort(view)), old(1));
    }
    assert_eq!(stage.outbox.distinct(stage.devices[0].id(), Phase::Share).len(), 1);
    // From the state that was saved after the shares were made, it goes on, with the same bytes.
    restart(&mut stage, 0, &kept);
    assert_eq!(stage.devices[0].message(), Some(&shared));
    stage.server_mut().absorb(&shared, crate::world::NOW).unwrap();
    stage.step(&[0]);
    stage.close();
    stage.completes(&[], 7);
}

#[test]
fn two_inputs_masked_with_one_mask_across_a_restart() {
    let mut stage = Stage::at(Phase::Mask, &six(), 6);
    let (before, view) = (saved(&stage.devices[0]), stage.masking_view(0));
    stage.show(0, View::Masking(view.clone())).unwrap();
    restart(&mut stage, 0, &before);
    let once = ClientError::AlreadyMasked { task: "test".into(), round: 1 };
    assert_eq!(stage.refuses(0, View::Masking(view.clone())), once);
    let fewer = MaskingView { shared: vec![0b01_1111], deliveries: view.deliveries[..4].to_vec(), ..view };
    assert_eq!(stage.refuses(0, View::Masking(fewer)), once);
    stage.completes(&[0], 5);
}

#[test]
fn a_state_older_than_the_record() {
    // Saved in round 1, resumed when the record is at round 2: none of the phases goes on.
    let mut stage = Stage::at(Phase::Mask, &six(), 6);
    let (masking, view) = (saved(&stage.devices[0]), stage.masking_view(0));
    stage.step(&[]);
    stage.close();
    let (confirming, survivors) = (saved(&stage.devices[0]), stage.survivors_view(0));
    stage.step(&[]);
    stage.close();
    let (unmasking, certificate) = (saved(&stage.devices[0]), stage.certificate_view(0));
    let record = &mut stage.devices[0].record;
    let entry = record.entry("test").unwrap().unwrap();
    let later = unisono_protocol::policy::TaskEntry { round: 2, masked_for: None, survivors: None, ..entry.clone() };
    record.replace("test", Some(&entry), later).unwrap();
    for (bytes, view) in [
        (&masking, View::Masking(view)),
        (&confirming, View::Survivors(survivors)),
        (&confirming, View::Certificate(certificate.clone())),
        (&unmasking, View::Certificate(certificate)),
    ] {
        restart(&mut stage, 0, bytes);
        assert_eq!(stage.closes(0, view), old(2));
    }
    // The same when the record was lost: what it does not say does not go on.
    let mut stage = Stage::at(Phase::Confirm, &six(), 6);
    stage.devices[0].record = Default::default();
    let view = stage.survivors_view(0);
    let error = ClientError::NotRecorded { task: "test".into(), round: 1 };
    assert_eq!(stage.refuses(0, View::Survivors(view)), error);
}

#[test]
fn the_same_round_run_again_with_another_cohort() {
    // After the input was masked, and after the shares alone were made: a fresh process joins neither.
    for phase in [Phase::Mask, Phase::Confirm] {
        let stage = Stage::at(phase, &six(), 6);
        let again = open(&RoundParams { opened_at: 5, ..six() });
        let mut device = Device::new(0, &again, 8);
        device.trust.policy.min_interval_s = 0;
        device.record = stage.devices[0].record.clone();
        for offer in [again.offer(), stage.server().offer()] {
            assert_eq!(device.join(offer), Err(old(1)));
            assert!(device.message().is_none(), "not even an advert");
        }
        let next = open(&RoundParams { round: 2, ..six() });
        assert_eq!(device.join(next.offer()), Ok(()));
    }
}

/// In memory the types are the mechanism: each state has methods for its own phase's view alone, which take it by value, so
/// that no other phase's view fits. (For the one step that the modes take differently see the next test.) The world's device stands for the loop around them, which passes other views by; what is
/// shown here is that such a round is none the worse for it.
#[test]
fn a_phase_skipped_repeated_or_out_of_order() {
    // All views of a round that is over, shown to a device in each of its phases.
    let mut views = Vec::new();
    let mut stage = Stage::at(Phase::Share, &six(), 6);
    for phase in [Phase::Share, Phase::Mask, Phase::Confirm, Phase::Unmask] {
        assert_eq!(stage.server().phase(), phase);
        views.push((phase, stage.server().view(stage.devices[0].id()).unwrap().view.unwrap()));
        stage.step(&[]);
        stage.close();
    }
    for phase in [Phase::Share, Phase::Mask, Phase::Confirm, Phase::Unmask] {
        let mut stage = Stage::at(phase, &six(), 6);
        let before = stage.devices[0].message().cloned();
        // A member of the committee that was not asked takes a certificate.
        let awaits = |of: Phase| of == phase || (phase, of) == (Phase::Confirm, Phase::Unmask);
        for (_, view) in views.iter().filter(|(of, _)| !awaits(*of)) {
            stage.show(0, view.clone()).unwrap();
            assert_eq!(stage.devices[0].message(), before.as_ref(), "a view of another phase moves nothing");
        }
        stage.completes(&[], 6);
    }
}

#[test]
fn the_certificate_left_out() {
    // The shorter way of semi-honest rounds in a malicious one: a set of survivors alone is endorsed, and no share leaves.
    let mut stage = Stage::at(Phase::Confirm, &six(), 6);
    let view = stage.survivors_view(0);
    stage.show(0, View::Survivors(view)).unwrap();
    assert!(matches!(stage.devices[0].message().unwrap().step, Some(Step::Endorsement(_))));
    assert!(stage.outbox.released().is_empty());
    // And the other way about.
    let mut stage = Stage::at(Phase::Unmask, &crate::world::params(false, 4, 6, 0.0, 0.2, 20), 6);
    let certificate = Stage::at(Phase::Unmask, &six(), 6).certificate_view(0);
    assert_eq!(stage.refuses(0, View::Certificate(certificate)), ClientError::OtherMode("semi-honest"));
    stage.completes(&[], 6);
}
