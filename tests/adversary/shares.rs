//! Both secrets of one client, asked in one message, in two, and across a restart; phases out of order; tags that lie
//! (section 6).

use std::collections::BTreeSet;

use prost::Message;
use unisono_protocol::bitmap;
use unisono_protocol::client::{ClientError, Resumed};
use unisono_protocol::policy::ParticipationRecord;
use unisono_protocol::proto::{
    self, ForwardedTags, MaskingView, RoundParams, SurvivorsView, Tag, UnmaskShares, client_message::Step,
    server_message::View,
};
use unisono_protocol::server::Phase;

use crate::coordinator::{Forged, members};
use crate::harness::{Stage, six};
use crate::world::{CAST, Device, State, open};

/// What a device would keep on disk now.
fn saved(device: &Device) -> Vec<u8> {
    match &device.state {
        State::Idle => panic!("nothing to save"),
        State::Advertised(state) => state.save(),
        State::Shared(state) => state.save(),
        State::Masked(state) => state.save(),
        State::Confirmed(state) => state.save(),
        State::Done(state) => state.save(),
    }
    .to_vec()
}

/// Restarts device `i` from bytes that it saved at some time. Its record is the one at hand.
fn restart(stage: &mut Stage, i: usize, bytes: &[u8]) {
    let (offer, identity) = (stage.server().offer().clone(), stage.devices[i].identity.clone());
    let resumed = Resumed::from_bytes(bytes, &offer, identity, Some(&CAST.registrar.verifying_key())).unwrap();
    stage.devices[i].state = match resumed {
        Resumed::Advertised(state) => State::Advertised(state),
        Resumed::Shared(state) => State::Shared(state),
        Resumed::Masked(state) => State::Masked(state),
        Resumed::Confirmed(state) => State::Confirmed(state),
        Resumed::Done(state) => State::Done(state),
    };
}

fn without(view: &SurvivorsView, gone: usize) -> SurvivorsView {
    let mut survivors = bitmap::from_bytes(&view.survivors, 6).unwrap();
    survivors[gone] = false;
    SurvivorsView { survivors: bitmap::to_bytes(&survivors), ..view.clone() }
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
    let mut tags = stage.tags_view(0);
    let again = tags.tags.clone();
    tags.tags.extend(again);
    stage.show(0, View::Tags(tags)).unwrap();
    let unmask = released(stage.devices[0].message().unwrap());
    assert_eq!(unmask.shares.iter().map(|share| share.of).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
}

#[test]
fn both_shares_of_one_client_asked_in_two_messages() {
    let mut stage = Stage::at(Phase::Confirm, &six(), 6);
    let (all, other) = (stage.survivors_view(0), without(&stage.survivors_view(0), 5));
    // Before the tags, after them, and after the shares. That the device does not move again is the types' doing: the state that
    // could answer was taken by value, and is gone. (The world's device passes a view by for which its state has no method.)
    stage.show(0, View::Survivors(all)).unwrap();
    let tagged = stage.devices[0].message().unwrap().clone();
    stage.show(0, View::Survivors(other.clone())).unwrap();
    assert_eq!(stage.devices[0].message(), Some(&tagged));
    for device in 1..6 {
        let view = stage.survivors_view(device);
        stage.show(device, View::Survivors(view)).unwrap();
    }
    for device in &stage.devices {
        stage.outbox.push(device.message().unwrap());
    }
    let messages: Vec<_> = stage.devices.iter().map(|device| device.message().unwrap().clone()).collect();
    for message in &messages {
        stage.server_mut().absorb(message, crate::world::NOW).unwrap();
    }
    stage.close();
    let tags = stage.tags_view(0);
    stage.show(0, View::Tags(tags.clone())).unwrap();
    let shares = stage.devices[0].message().unwrap().clone();
    for view in [View::Survivors(other), View::Tags(tags), View::Tags(ForwardedTags::default())] {
        stage.show(0, view).unwrap();
        assert_eq!(stage.devices[0].message(), Some(&shares), "the same bytes again, and no others");
    }
    let of_five = &stage.outbox.released()[&5];
    assert_eq!((&of_five.of_self, of_five.of_mask.len(), of_five.own), (&BTreeSet::from([0]), 0, false));
}

#[test]
fn both_shares_of_one_client_asked_across_a_restart() {
    let mut stage = Stage::at(Phase::Confirm, &six(), 6);
    let before_tags = saved(&stage.devices[0]);
    let view = stage.survivors_view(0);
    stage.step(&[]);
    stage.close();
    let before_shares = saved(&stage.devices[0]);
    let tags = stage.tags_view(0);
    stage.show(0, View::Tags(tags.clone())).unwrap();
    let shares = stage.devices[0].message().unwrap().clone();

    // Back to before the tags: another set is refused, the same one gives the same bytes.
    restart(&mut stage, 0, &before_tags);
    let error = stage.refuses(0, View::Survivors(without(&view, 5)));
    assert_eq!(error, ClientError::OtherSurvivors { task: "test".into(), round: 1 });
    stage.show(0, View::Survivors(view)).unwrap();
    assert_eq!(stage.outbox.distinct(stage.devices[0].id(), Phase::Confirm).len(), 1);
    stage.show(0, View::Tags(tags.clone())).unwrap();
    assert_eq!(stage.devices[0].message(), Some(&shares));
    // Back to before the shares: the same.
    restart(&mut stage, 0, &before_shares);
    stage.show(0, View::Tags(tags)).unwrap();
    assert_eq!(stage.devices[0].message(), Some(&shares));
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
    let shares = stage.devices[0].message().unwrap().clone();
    restart(&mut stage, 0, &before);
    let error = stage.refuses(0, View::Survivors(without(&view, 5)));
    assert_eq!(error, ClientError::OtherSurvivors { task: "test".into(), round: 1 });
    stage.show(0, View::Survivors(view)).unwrap();
    assert_eq!(stage.devices[0].message(), Some(&shares));
    stage.completes(&[], 6);
}

#[test]
fn secrets_shared_in_two_cohorts_across_a_restart() {
    // The neighbours of one cohort would release the mask secret, those of the other the self mask: an input opened.
    let seven = RoundParams { n_max: 7, ..six() };
    let mut stage = Stage::at(Phase::Share, &seven, 7);
    let params = stage.server().params().clone();
    let other = Forged::new(&params, &members(&stage.devices)[..6], |_| {}).view(0);
    let (before, view) = (saved(&stage.devices[0]), stage.cohort_view(0));
    stage.show(0, View::Cohort(view.clone())).unwrap();
    let shared = stage.devices[0].message().unwrap().clone();
    let kept = saved(&stage.devices[0]);
    restart(&mut stage, 0, &before);
    let again = ClientError::AlreadyShared { task: "test".into(), round: 1, last: 1 };
    assert_eq!(stage.refuses(0, View::Cohort(other)), again);
    // Nor twice in the same cohort: the second sharing would have other polynomials.
    assert_eq!(stage.refuses(0, View::Cohort(view)), again);
    assert_eq!(stage.outbox.distinct(stage.devices[0].id(), Phase::Share).len(), 1);
    // From the state that was saved after the shares were made, it goes on, with the same bytes.
    restart(&mut stage, 0, &kept);
    assert_eq!(stage.devices[0].message(), Some(&shared));
    stage.server_mut().absorb(&shared, crate::world::NOW).unwrap();
    stage.step(&[]);
    stage.close();
    stage.completes(&[], 7);
}

#[test]
fn two_inputs_masked_with_one_mask_across_a_restart() {
    let mut stage = Stage::at(Phase::Mask, &six(), 6);
    let (before, view) = (saved(&stage.devices[0]), stage.masking_view(0));
    stage.show(0, View::Masking(view.clone())).unwrap();
    restart(&mut stage, 0, &before);
    let spent = ClientError::Spent { task: "test".into(), round: 1, last: 1 };
    assert_eq!(stage.refuses(0, View::Masking(view.clone())), spent);
    let fewer = MaskingView { shared: vec![0b01_1111], deliveries: view.deliveries[..4].to_vec(), ..view };
    assert_eq!(stage.refuses(0, View::Masking(fewer)), spent);
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
    let (unmasking, tags) = (saved(&stage.devices[0]), stage.tags_view(0));
    let commitment = stage.devices[0].record.commitment("test").unwrap().unwrap();
    let later = unisono_protocol::policy::Commitment { round: 2, survivors: None, ..commitment };
    stage.devices[0].record.commit("test", later).unwrap();
    let error = ClientError::NotRecorded { task: "test".into(), round: 1 };
    for (bytes, view) in
        [(masking, View::Masking(view)), (confirming, View::Survivors(survivors)), (unmasking, View::Tags(tags))]
    {
        restart(&mut stage, 0, &bytes);
        assert_eq!(stage.refuses(0, view), error);
    }
    // The same when the record was lost: what it does not say does not go on.
    let mut stage = Stage::at(Phase::Confirm, &six(), 6);
    stage.devices[0].record = Default::default();
    let view = stage.survivors_view(0);
    assert_eq!(stage.refuses(0, View::Survivors(view)), error);
}

#[test]
fn the_same_round_run_again_with_another_cohort() {
    // After the input was masked, and after the shares alone were made: a fresh process joins neither.
    for (phase, spent) in [(Phase::Mask, false), (Phase::Confirm, true)] {
        let stage = Stage::at(phase, &six(), 6);
        let again = open(&RoundParams { opened_at: 5, ..six() });
        let mut device = Device::new(0, &again, 8);
        device.record = stage.devices[0].record.clone();
        for offer in [again.offer(), stage.server().offer()] {
            let expected = if spent {
                ClientError::Spent { task: "test".into(), round: 1, last: 1 }
            } else {
                ClientError::AlreadyShared { task: "test".into(), round: 1, last: 1 }
            };
            assert_eq!(device.join(offer), Err(expected));
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
        for (_, view) in views.iter().filter(|(of, _)| *of != phase) {
            stage.show(0, view.clone()).unwrap();
            assert_eq!(stage.devices[0].message(), before.as_ref(), "a view of another phase moves nothing");
        }
        stage.completes(&[], 6);
    }
}

#[test]
fn the_consistency_check_left_out() {
    // A loop that takes the shorter way of semi-honest rounds in a malicious one: the shares stay where they are.
    let mut stage = Stage::at(Phase::Confirm, &six(), 6);
    let view = stage.survivors_view(0);
    let device = &mut stage.devices[0];
    let before = device.message().cloned();
    let State::Masked(masked) = std::mem::replace(&mut device.state, State::Idle) else { panic!("another phase") };
    let rejected = masked.release(&view, &mut device.record).err().expect("shares were released without tags");
    assert_eq!(rejected.error, ClientError::OtherMode("malicious"));
    assert_eq!(Some(rejected.state.message()), before.as_ref());
    device.state = State::Masked(*rejected.state);
    stage.completes(&[], 6);
    // And the other way about.
    let mut stage = Stage::at(Phase::Unmask, &crate::world::params(false, 4, 6, 0.0, 0.2, 20), 6);
    let view = stage.survivors_view(0);
    let device = &mut stage.devices[0];
    let State::Masked(masked) = std::mem::replace(&mut device.state, State::Idle) else { panic!("another phase") };
    let rejected = masked.confirm(&view, &mut device.record).err().expect("tags in a round that has none");
    assert_eq!(rejected.error, ClientError::OtherMode("semi-honest"));
}

/// The victim is shown changed tags: how many of them it found valid, when it refused.
fn lying_tags(change: impl FnOnce(&Stage, &mut ForwardedTags)) -> usize {
    let mut stage = Stage::at(Phase::Unmask, &six(), 6);
    let mut tags = stage.tags_view(0);
    change(&stage, &mut tags);
    let error = stage.refuses(0, View::Tags(tags));
    assert!(stage.outbox.released().is_empty());
    stage.completes(&[], 6);
    let ClientError::TooFew { what: "of this device's neighbours gave a valid tag", have, need: 4 } = error else {
        panic!("{error}")
    };
    have
}

/// The tags that device `i` sent.
fn sent_by(stage: &Stage, i: usize) -> Vec<Tag> {
    let Some(Step::Tags(signed)) = &stage.devices[i].message().unwrap().step else { panic!("no tags") };
    proto::ConsistencyTags::decode(signed.payload.as_slice()).unwrap().tags
}

#[test]
fn forged_tags() {
    assert_eq!(lying_tags(|_, tags| tags.tags[1..].iter_mut().for_each(|tag| tag.tag = vec![0; 16])), 1);
    // Truncated and extended ones are none, although a part of them fits.
    assert_eq!(lying_tags(|_, tags| tags.tags[1..].iter_mut().for_each(|tag| tag.tag.truncate(8))), 1);
    assert_eq!(lying_tags(|_, tags| tags.tags[1..].iter_mut().for_each(|tag| tag.tag.push(0))), 1);
    assert_eq!(lying_tags(|_, tags| tags.tags.iter_mut().for_each(|tag| tag.tag.clear())), 0);
    assert_eq!(lying_tags(|_, tags| tags.tags.clear()), 0);
}

#[test]
fn reflected_tags() {
    // The victim's own tags sent back to it as its neighbours'.
    assert_eq!(lying_tags(|stage, tags| tags.tags = sent_by(stage, 0)), 0);
}

#[test]
fn tags_under_another_senders_index() {
    assert_eq!(lying_tags(|_, tags| tags.tags.iter_mut().for_each(|tag| tag.neighbour = 1 + tag.neighbour % 5)), 0);
    // One valid tag repeated under every name.
    let repeat = |_: &Stage, tags: &mut ForwardedTags| {
        let tag = tags.tags[0].tag.clone();
        tags.tags.iter_mut().for_each(|other| other.tag = tag.clone());
    };
    assert_eq!(lying_tags(repeat), 1);
}

#[test]
fn tags_of_another_round() {
    // The same devices in round 2, with the same survivors.
    let other = Stage::at(Phase::Unmask, &RoundParams { round: 2, ..six() }, 6);
    assert_eq!(lying_tags(|_, tags| tags.tags = other.tags_view(0).tags), 0);
    let mut stage = Stage::at(Phase::Unmask, &six(), 6);
    assert_eq!(stage.refuses(0, View::Tags(other.tags_view(0))), ClientError::OtherCohort);
    stage.completes(&[], 6);
}

#[test]
fn tags_for_another_recipient() {
    assert_eq!(lying_tags(|stage, tags| tags.tags = stage.tags_view(1).tags), 0);
}
