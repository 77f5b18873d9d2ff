//! Which clients the coordinator says have shared, and have survived (sections 5 and 6).

use std::sync::Arc;

use unisono_protocol::bitmap;
use unisono_protocol::client::{ClientError, Resumed};
use unisono_protocol::cohort::Cohort;
use unisono_protocol::graph::Graph;
use unisono_protocol::proto::{
    ForwardedTags, MaskingView, RoundParams, ServerMessage, SurvivorsView, Tag, client_message::Step,
    server_message::View,
};
use unisono_protocol::server::Phase;

use crate::harness::{Outbox, Released, Stage, six, spent, twenty};
use crate::world::{CAST, Device, State, params};

/// The survivors that are not `gone`.
fn without(stage: &Stage, gone: &[u32]) -> SurvivorsView {
    let view = stage.survivors_view(0);
    let n = stage.devices.len();
    let mut survivors = bitmap::from_bytes(&view.survivors, n).unwrap();
    gone.iter().for_each(|&i| survivors[i as usize] = false);
    SurvivorsView { survivors: bitmap::to_bytes(&survivors), ..view }
}

fn show(device: &mut Device, view: View) -> Result<(), ClientError> {
    device.receive(&ServerMessage { view: Some(view) })
}

/// A device like this one, in the same state, with a record of its own.
fn copy(device: &Device, stage: &Stage) -> Device {
    let State::Masked(state) = &device.state else { panic!("another phase") };
    let registrar = CAST.registrar.verifying_key();
    let mut copy = Device::new(device.identity.client_id.0[0].into(), stage.server(), 11);
    copy.record = device.record.clone();
    let resumed = Resumed::from_bytes(&state.save(), stage.server().offer(), copy.identity.clone(), Some(&registrar));
    let Ok(Resumed::Masked(state)) = resumed else { panic!("a masked state was saved") };
    copy.state = State::Masked(state);
    copy
}

/// The tags that the devices made for device `i`.
fn tags_for(i: u32, devices: &[Device], cohort_id: &[u8]) -> ForwardedTags {
    use prost::Message;
    let from = |device: &Device| {
        let Some(Step::Tags(signed)) = &device.message()?.step else { return None };
        let tags = unisono_protocol::proto::ConsistencyTags::decode(signed.payload.as_slice()).unwrap();
        let tag = tags.tags.into_iter().find(|tag| tag.neighbour == i)?;
        Some(Tag { neighbour: tags.from, tag: tag.tag })
    };
    ForwardedTags { cohort_id: cohort_id.to_vec(), tags: devices.iter().filter_map(from).collect() }
}

#[test]
fn the_isolated_victim_all_of_whose_neighbours_are_declared_dropped() {
    // In a sparse graph: its neighbours would release their shares of its neighbours' mask secrets, and its pair masks fall.
    let mut stage = Stage::at(Phase::Confirm, &twenty(), 20);
    let neighbours: Vec<u32> = {
        let share = Stage::at(Phase::Share, &twenty(), 20);
        share.cohort_view(0).neighbours.iter().map(|neighbour| neighbour.index).collect()
    };
    assert_eq!(neighbours.len(), 12);
    let isolated = without(&stage, &neighbours);
    let error = stage.refuses(0, View::Survivors(isolated));
    assert_eq!(error, ClientError::TooFew { what: "survive", have: 8, need: 10 });
    // As many left as there must be, yet fewer than the threshold next to the victim.
    let isolated = without(&stage, &neighbours[..6]);
    let error = stage.refuses(0, View::Survivors(isolated));
    assert_eq!(error, ClientError::TooFew { what: "of this device's neighbours survive", have: 6, need: 7 });
    assert!(stage.outbox.released().is_empty());
    stage.completes(&[], 20);
}

#[test]
fn the_isolated_victim_when_only_the_others_are_told() {
    // The victim hears that all survive, everybody else that the victim dropped out.
    let mut stage = Stage::at(Phase::Confirm, &six(), 6);
    let (all, rest) = (stage.survivors_view(0), without(&stage, &[0]));
    stage.show(0, View::Survivors(all.clone())).unwrap();
    for i in 1..6 {
        stage.show(i, View::Survivors(rest.clone())).unwrap();
    }
    let to_victim = tags_for(0, &stage.devices, &all.cohort_id);
    assert_eq!(to_victim.tags, [], "nobody tags for a client that is not in its set");
    // Their tags for each other, shown to the victim as if for it.
    let mut forged = tags_for(1, &stage.devices, &all.cohort_id);
    forged.tags.push(Tag { neighbour: 1, tag: vec![0; 16] });
    let few = ClientError::TooFew { what: "of this device's neighbours gave a valid tag", have: 0, need: 4 };
    assert_eq!(stage.refuses(0, View::Tags(to_victim)), few);
    assert_eq!(stage.refuses(0, View::Tags(forged)), few);
    // The others release one share each of the victim's mask secret: and the victim's self mask stays.
    let tags: Vec<ForwardedTags> = (1..6).map(|i| tags_for(i, &stage.devices, &all.cohort_id)).collect();
    for (i, tags) in (1..6).zip(tags) {
        stage.show(i, View::Tags(tags)).unwrap();
    }
    let released = stage.outbox.released();
    let of_victim = &released[&0];
    assert_eq!((of_victim.own, of_victim.of_self.len(), of_victim.of_mask.len()), (false, 0, 5));
    assert!(!stage.outbox.opens_an_input(4));
}

/// What leaves the honest ones of six devices that are shown one of two sets each, the second where their bit of `split` is
/// set, and then every tag there is. A colluder tags for both sets, and everybody gets its tag over their own.
fn divided(stage: &Stage, views: &[SurvivorsView; 2], split: u32, colluder: Option<usize>) -> Outbox {
    let tagged = |i: usize, set: usize| {
        let mut device = copy(&stage.devices[i], stage);
        show(&mut device, View::Survivors(views[set].clone())).unwrap();
        device
    };
    let set = |i: usize| (split >> i & 1) as usize;
    let both = colluder.map(|i| [tagged(i, 0), tagged(i, 1)]);
    let honest: Vec<usize> = (0..6).filter(|&i| Some(i) != colluder).collect();
    let mut devices: Vec<Device> = honest.iter().map(|&i| tagged(i, set(i))).collect();
    let tags = |&i: &usize| {
        let mut tags = tags_for(i as u32, &devices, &views[0].cohort_id);
        if let Some(both) = &both {
            let of_colluder = tags_for(i as u32, &both[set(i)..=set(i)], &views[0].cohort_id);
            tags.tags.extend(of_colluder.tags);
        }
        tags
    };
    let tags: Vec<ForwardedTags> = honest.iter().map(tags).collect();
    let mut outbox = Outbox::default();
    for (device, tags) in devices.iter_mut().zip(tags) {
        match show(device, View::Tags(tags)) {
            Ok(()) => outbox.push(device.message().unwrap()),
            Err(error) => assert!(matches!(error, ClientError::TooFew { need: 4, .. }), "{error}"),
        }
    }
    outbox
}

#[test]
fn every_way_to_show_two_survivor_sets_to_six_clients() {
    // All are honest, and the two sets differ in the victim, which itself is only shown the set with it. Whatever the split,
    // the coordinator never has both of the victim's secrets.
    let stage = Stage::at(Phase::Confirm, &six(), 6);
    let views = [stage.survivors_view(0), without(&stage, &[5])];
    let (mut with_self, mut with_mask) = (0, 0);
    for split in 0..32u32 {
        let outbox = divided(&stage, &views, split, None);
        assert!(!outbox.opens_an_input(4), "split {split:05b}: {:?}", outbox.released());
        let of_victim = outbox.released().remove(&5).unwrap_or_default();
        with_self += u32::from(of_victim.own || of_victim.of_self.len() >= 4);
        with_mask += u32::from(of_victim.of_mask.len() >= 4);
    }
    assert!(with_self > 0 && with_mask > 0, "either secret alone can be had: {with_self} {with_mask}");
}

#[test]
fn every_way_to_show_two_survivor_sets_when_one_of_six_colludes() {
    // Client 4 tags for both sets and gives the coordinator both shares that it has of everybody. One set leaves the victim out;
    // the other has all, or leaves another one out, which is a victim as well then. A client is not shown a set without it.
    const COLLUDER: u32 = 4;
    let stage = Stage::at(Phase::Confirm, &six(), 6);
    let (mut with_self, mut with_mask) = (0, 0);
    for (first, splits) in
        [(vec![], (0..16).collect::<Vec<u32>>()), (vec![0], (0..16).filter(|i| i % 2 == 1).collect())]
    {
        let views = [without(&stage, &first), without(&stage, &[5])];
        for split in splits {
            let mut released = divided(&stage, &views, split, Some(COLLUDER as usize)).released();
            for honest in [0, 1, 2, 3, 5] {
                let Released { of_self, of_mask, own } = released.entry(honest).or_default();
                let from_honest = (of_self.len(), of_mask.len(), *own);
                of_self.insert(COLLUDER);
                of_mask.insert(COLLUDER);
                let had = (*own || of_self.len() >= 4, of_mask.len() >= 4);
                assert_ne!(had, (true, true), "{first:?} {split:04b}: client {honest} is opened by {from_honest:?}");
                with_self += u32::from(honest == 5 && had.0 && from_honest.0 < 4);
                with_mask += u32::from(honest == 5 && had.1);
            }
        }
    }
    // Three honest neighbours and the colluder are enough for a secret; without its tags and its share they would not be.
    assert!(with_self > 0 && with_mask > 0, "either secret alone can be had: {with_self} {with_mask}");
}

/// The graph of the round that `Stage` plays, and the clients in the order of the ring.
fn graph_and_ring(params: &RoundParams) -> (Arc<Graph>, Vec<u32>) {
    let stage = Stage::at(Phase::Share, params, 20);
    let cohort = stage.cohort_view(0).cohort.unwrap();
    let graph = Cohort::from_payload(&cohort.payload, stage.server().params()).unwrap().graph;
    let ring = ring(&graph);
    (graph, ring)
}

#[test]
fn an_arc_of_the_ring_cut_off() {
    // One consistent set, chosen after the graph was seen: five clients in a row stay, and half the degree on either side of
    // them are declared dropped. No mask goes from them to the other nine: the coordinator would have the sum of the five.
    let params = params(true, 10, 20, 0.05, 0.05, 20);
    let mut stage = Stage::at(Phase::Confirm, &params, 20);
    let (graph, ring) = graph_and_ring(&params);
    assert_eq!((graph.topology().degree, graph.topology().threshold), (6, 4));
    for (start, one_left) in (0..20).flat_map(|start| [(start, false), (start, true)]) {
        let at = |step: usize| ring[(start + step) % 20];
        let arc: Vec<u32> = (0..5).map(at).collect();
        let rest: Vec<u32> = (8..17).map(at).collect();
        assert!(!arc.iter().any(|&u| rest.iter().any(|&v| graph.adjacent(u, v))), "cut off");
        // The middle of each gap may stay: a colluder, through whose masks the coordinator sees.
        let gone: Vec<u32> =
            [5, 6, 7, 17, 18, 19].into_iter().filter(|step| !one_left || step % 6 != 0).map(at).collect();
        let view = without(&stage, &gone);
        let place = graph.thin_window(&bitmap::from_bytes(&view.survivors, 20).unwrap()).expect("the gaps are seen");
        for i in (0..20).filter(|i| !gone.contains(i)) {
            let error = stage.refuses(i as usize, View::Survivors(view.clone()));
            // Beside an empty gap there are too few neighbours, which is checked first. With the colluders there are enough for
            // everybody, and nothing but the windows tells.
            let beside = !one_left && [0, 4, 8, 16].map(at).contains(&i);
            if beside {
                assert!(matches!(error, ClientError::TooFew { have: 3, need: 4, .. }), "{error}");
            } else {
                assert_eq!(error, ClientError::ThinWindow { place });
            }
        }
    }
    assert!(stage.outbox.released().is_empty());
    stage.completes(&[], 20);
}

#[test]
fn a_gap_in_the_ring() {
    // One gap alone cuts nothing off a ring, yet every arc needs one at either end: it is refused already, and when one of its
    // places is still taken.
    let mut stage = Stage::at(Phase::Confirm, &twenty(), 20);
    let (graph, ring) = graph_and_ring(&twenty());
    let mut found = 0;
    for start in 0..20u32 {
        // Five members of one window of six gone.
        let gone: Vec<u32> = (0..5).map(|step| ring[((start + step) % 20) as usize]).collect();
        let view = without(&stage, &gone);
        let set = bitmap::from_bytes(&view.survivors, 20).unwrap();
        let place = graph.thin_window(&set).expect("the gap is seen");
        for i in 0..20usize {
            if gone.contains(&(i as u32)) {
                assert_eq!(stage.refuses(i, View::Survivors(view.clone())), ClientError::LeftOut("survive"));
                continue;
            }
            match stage.refuses(i, View::Survivors(view.clone())) {
                ClientError::ThinWindow { place: at } => {
                    assert_eq!(at, place);
                    found += 1;
                }
                // Those beside the gap see too few neighbours, which is checked first.
                ClientError::TooFew { have, need: 7, .. } => assert!(have < 7),
                other => panic!("{other}"),
            }
        }
    }
    assert!(found > 100, "{found}");
    stage.completes(&[], 20);
}

/// The clients in the order of the ring: `u` follows `v` where nobody stands between them.
fn ring(graph: &Graph) -> Vec<u32> {
    // The follower of `u` is the one to which `u` encapsulates and which encapsulates to all others that `u` does.
    let follower = |u: u32| {
        let after: Vec<u32> = graph.neighbours(u).into_iter().filter(|&v| graph.encapsulates(u, v)).collect();
        let first = after.iter().find(|&&v| after.iter().all(|&w| v == w || graph.encapsulates(v, w)));
        *first.unwrap()
    };
    let mut ring = vec![0];
    while ring.len() < graph.n() as usize {
        ring.push(follower(ring[ring.len() - 1]));
    }
    ring
}

#[test]
fn a_client_told_that_it_dropped_itself() {
    let mut stage = Stage::at(Phase::Confirm, &six(), 6);
    let view = without(&stage, &[2]);
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
    let view = without(&stage, &[1, 2, 3]);
    assert_eq!(stage.refuses(0, View::Survivors(view)), ClientError::TooFew { what: "survive", have: 3, need: 4 });
    let honest = stage.survivors_view(0);
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
    // Its pair mask with device 5 is missing then; whoever was left out is refused as a survivor, so that no such sum is opened.
    let mut stage = Stage::at(Phase::Mask, &six(), 6);
    let honest = stage.masking_view(0);
    let view = MaskingView { shared: vec![0b01_1111], deliveries: honest.deliveries[..4].to_vec(), ..honest };
    stage.show(0, View::Masking(view)).unwrap();
    let (message, upload) = (stage.devices[0].message().unwrap().clone(), stage.devices[0].upload().unwrap());
    let id = stage.devices[0].id();
    stage.server_mut().absorb(&message, crate::world::NOW).unwrap();
    stage.server_mut().absorb_upload(id, &upload).unwrap();
    stage.step(&[0]);
    stage.close();
    let view = stage.survivors_view(0);
    assert_eq!(stage.refuses(0, View::Survivors(view)), ClientError::NotInU1(5));
    assert!(stage.outbox.released().is_empty());
}
