//! A device under a coordinator that sends what it likes, in any order: views of real rounds, changed, re-signed with the
//! coordinator's own key and those of colluding clients, repeated, from another round, and restarts in between, also to bytes
//! that were saved earlier.
//!
//! Beside not panicking, the device must for one round number share its keys once, mask one input, give one set of tags and
//! release one share of each neighbour, and have recorded the round before its upload exists.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use prost::Message;
use unisono_crypto::kdf::label;
use unisono_crypto::merkle;
use unisono_protocol::client::Resumed;
use unisono_protocol::policy::ParticipationRecord;
use unisono_protocol::proto::{self, ClientMessage, ReleasedShare, RoundOffer, SecretKind, ServerMessage, Signed};
use unisono_protocol::proto::{client_message::Step, server_message::View};
use unisono_protocol::server::{Closed, Phase, Server};
use unisono_protocol::signed;

use super::tamper::Tamper;
use super::world::{CAST, Device, NOW, State, open, params};

const SEED: u64 = 11;

/// What the coordinator of one real round showed everybody.
pub struct Recording {
    /// The round, as opened.
    pub server: Server,
    /// By phase, then by device; the last two phases once more for a round whose last device vanished before its upload.
    pub views: [Vec<Vec<ServerMessage>>; 2],
    /// Payloads of the cohort's adverts, in order.
    adverts: Vec<Vec<u8>>,
    malicious: bool,
}

/// Malicious and semi-honest, and each once more as another round: five clients, all of them neighbours. Then a malicious one of
/// twenty clients with twelve neighbours each.
pub static RECORDINGS: LazyLock<[Recording; 5]> = LazyLock::new(|| {
    let five = |malicious, dimension| record(&params(malicious, 3, 5, 0.0, 0.25, dimension), 5);
    let twenty = record(&params(true, 10, 20, 0.05, 0.2, 22), 20);
    [five(true, 20), five(false, 20), five(true, 21), five(false, 21), twenty]
});

/// Which of them a byte stands for.
fn pick(byte: u8) -> &'static Recording {
    match byte as usize % 8 {
        which @ ..5 => &RECORDINGS[which],
        // Signatures make a round ten times slower: half of the others have none.
        which => &RECORDINGS[1 + which % 2 * 2],
    }
}

fn record(wire: &proto::RoundParams, clients: usize) -> Recording {
    let mut adverts = vec![Vec::new(); clients];
    let views = [false, true].map(|vanishes| {
        let mut server = open(wire);
        let mut devices: Vec<Device> = (0..clients).map(|i| Device::new(i, &server, SEED)).collect();
        let mut views = Vec::new();
        loop {
            let phase = server.phase();
            let gone = |i: usize| vanishes && i == clients - 1 && phase >= Phase::Mask;
            let mut shown = Vec::new();
            for (i, device) in devices.iter_mut().enumerate() {
                match server.view(device.id()) {
                    Some(view) => {
                        device.receive(&view).expect("an honest view");
                        shown.push(view);
                    }
                    None if phase == Phase::Advertise => {
                        device.join(server.offer()).expect("an honest offer");
                        adverts[i] = own_advert(device);
                    }
                    None => continue,
                }
                if !gone(i) {
                    server.absorb(device.message().expect("a step"), NOW).expect("an honest step");
                    if let Some(upload) = device.upload() {
                        server.absorb_upload(device.id(), &upload).expect("an honest upload");
                    }
                }
            }
            views.push(shown);
            match server.close().expect("an honest round") {
                Closed::Next(next) => server = *next,
                Closed::Finished(_) => return views,
            }
        }
    });
    let server = open(wire);
    let malicious = server.params().malicious();
    Recording { server, views, adverts, malicious }
}

impl Recording {
    fn key(&self, client: usize) -> Option<&unisono_crypto::sign::SigningKey> {
        self.malicious.then(|| &CAST.identities[client % self.adverts.len()].signing_key)
    }

    /// A view whose changed parts are signed by those who should, all in league but the device itself.
    fn forge(&self, view: &mut ServerMessage, own: &[u8], which: u8, tamper: &Tamper) {
        match &mut view.view {
            Some(View::Cohort(view)) => self.forge_cohort(view, own, which, tamper),
            Some(View::Masking(view)) => {
                let count = view.deliveries.len().max(1);
                let Some(delivery) = view.deliveries.get_mut(which as usize % count) else { return };
                let Some(root) = delivery.root.as_mut() else { return };
                let Ok(mut message) = proto::SharesRoot::decode(root.payload.as_slice()) else { return };
                tamper.apply(&mut delivery.message);
                // A tree of this one message.
                (delivery.position, delivery.path, message.count) = (0, Vec::new(), 1);
                message.root = merkle::Tree::new(label::TREE_SHARES, [&delivery.message]).root().to_vec();
                *root = signed::sign(&message, label::SIG_SHARES, self.key(message.from as usize));
            }
            Some(View::Survivors(view)) => {
                view.survivors[0] = which;
                tamper.apply(&mut view.survivors);
            }
            Some(View::Tags(view)) => {
                let count = view.tags.len().max(1);
                if let Some(tag) = view.tags.get_mut(which as usize % count) {
                    tamper.apply(&mut tag.tag);
                }
            }
            None => {}
        }
    }

    /// The offer with changed parameters, which the coordinator signs.
    fn reoffer(&self, tamper: &Tamper) -> RoundOffer {
        let mut offer = self.server.offer().clone();
        if let Some(signed) = &mut offer.params {
            tamper.apply(&mut signed.payload);
            let payload = std::mem::take(&mut signed.payload);
            *signed = signed::sign_bytes(payload, label::SIG_ROUND_PARAMS, self.malicious.then_some(&CAST.coordinator));
        }
        offer
    }

    /// Changes one neighbour's advert, or with `which` above their number the cohort itself, and proves all of it.
    fn forge_cohort(&self, view: &mut proto::CohortView, own: &[u8], which: u8, tamper: &Tamper) {
        let resign = |signed: &mut Signed, label, key| {
            *signed = signed::sign_bytes(std::mem::take(&mut signed.payload), label, key);
        };
        if let Some(neighbour) = view.neighbours.get_mut(which as usize)
            && let Some(advert) = neighbour.advert.as_mut()
        {
            tamper.apply(&mut advert.payload);
            resign(advert, label::SIG_ADVERT, self.key(neighbour.index as usize));
        }
        let mut payloads: Vec<&[u8]> = self.adverts.iter().map(Vec::as_slice).collect();
        payloads[view.index as usize] = own;
        for neighbour in &view.neighbours {
            let advert = neighbour.advert.as_ref();
            payloads[neighbour.index as usize] = advert.map_or(&[][..], |advert| &advert.payload);
        }
        let tree = merkle::Tree::new(label::TREE_ADVERTS, &payloads);
        let path =
            |index: u32| tree.path(index as usize).unwrap_or_default().iter().map(|hash| hash.to_vec()).collect();
        view.own_path = path(view.index);
        view.neighbours.iter_mut().for_each(|v| v.advert_path = path(v.index));
        let Some(signed) = view.cohort.as_mut() else { return };
        let Ok(mut cohort) = proto::Cohort::decode(signed.payload.as_slice()) else { return };
        cohort.adverts_root = tree.root().to_vec();
        signed.payload = cohort.encode_to_vec();
        if which as usize >= view.neighbours.len() {
            tamper.apply(&mut signed.payload);
        }
        resign(signed, label::SIG_COHORT, self.malicious.then_some(&CAST.coordinator));
    }
}

/// A task and the number of a round: what the device's record counts by.
type Number = (String, u64);

/// What must never happen twice, over the whole life of the device, whatever it is restarted with. By round number, not by
/// round or cohort: a second one under the same number is what a coordinator would try.
#[derive(Default)]
struct Watch {
    /// The one message of each kind: a second advert is harmless, a second of these is not.
    shared: BTreeMap<Number, ClientMessage>,
    masked: BTreeMap<Number, ClientMessage>,
    tagged: BTreeMap<Number, ClientMessage>,
    /// By neighbour: the cohort and the one share.
    released: BTreeMap<(Number, u32), (Vec<u8>, ReleasedShare)>,
}

impl Watch {
    fn check(&mut self, device: &Device, accepted: &RoundOffer) {
        let masked = matches!(device.state, State::Masked(_) | State::Confirmed(_) | State::Done(_));
        assert!(!masked || device.record.last("test").unwrap().is_some(), "masked before it was recorded");
        let Some(message) = device.message() else { return };
        let number = number(accepted);
        let once = |known: &mut BTreeMap<Number, ClientMessage>, what| {
            let first = known.entry(number.clone()).or_insert_with(|| message.clone());
            assert!(first == message, "{what} for one round number");
        };
        match &message.step {
            Some(Step::ShareKeys(_)) => once(&mut self.shared, "keys were shared twice"),
            Some(Step::Upload(_)) => once(&mut self.masked, "two inputs were masked"),
            Some(Step::Tags(_)) => once(&mut self.tagged, "two sets of tags were given"),
            Some(Step::Unmask(signed)) => {
                let malicious = accepted.roster_head.is_some();
                assert!(!malicious || self.tagged.contains_key(&number), "shares were released before tags");
                let message = proto::UnmaskShares::decode(signed.payload.as_slice()).unwrap();
                let own = ReleasedShare {
                    of: message.from,
                    kind: SecretKind::SelfMask as i32,
                    value: message.self_mask_secret,
                };
                assert!(
                    message.shares.iter().all(|share| share.of != message.from),
                    "a share of its own secret was released"
                );
                for share in message.shares.into_iter().chain([own]) {
                    let first = (message.cohort_id.clone(), share.clone());
                    let (cohort, known) = self.released.entry((number.clone(), share.of)).or_insert(first);
                    assert_eq!(*known, share, "two shares of client {} were released", share.of);
                    assert_eq!(*cohort, message.cohort_id, "shares were released in two cohorts");
                }
            }
            _ => {}
        }
    }
}

/// Of a round that the device has joined.
fn number(offer: &RoundOffer) -> Number {
    let signed = offer.params.as_ref().expect("an accepted offer");
    let params = proto::RoundParams::decode(signed.payload.as_slice()).expect("accepted parameters");
    (params.task, params.round)
}

/// Runs one sequence.
pub fn run(data: &[u8]) {
    // A sequence ends where its bytes do.
    let _ = play(&mut Unstructured::new(data));
}

fn play(u: &mut Unstructured<'_>) -> Result<()> {
    let home = pick(u.arbitrary()?);
    let mut accepted = home.server.offer().clone();
    let mut device = Device::new(0, &home.server, SEED);
    device.trust.policy.allow_semi_honest |= u.arbitrary::<bool>()?;
    let mut watch = Watch::default();
    // All states that the device has been in, as saved, each with its round's offer.
    let mut saved: Vec<(Vec<u8>, RoundOffer)> = Vec::new();
    while !u.is_empty() {
        let kind = u.arbitrary::<u8>()? % 5;
        match kind {
            0 => {
                let (byte, tamper) = (u.arbitrary::<u8>()?, u.arbitrary::<Tamper>()?);
                let other = pick(byte);
                let offer =
                    if byte < 0x80 { tamper.message(other.server.offer()) } else { Some(other.reoffer(&tamper)) };
                if let Some(offer) = offer.filter(|offer| device.join(offer).is_ok()) {
                    accepted = offer;
                }
            }
            1 | 2 => {
                let [from, phase, client, vanishes] = u.arbitrary::<[u8; 4]>()?;
                let from = pick(from);
                let views = &from.views[vanishes as usize % 2];
                let Some(view) = views.get(phase as usize).and_then(|views| views.get(client as usize)) else {
                    continue;
                };
                let view = if kind == 1 {
                    u.arbitrary::<Tamper>()?.message(view)
                } else {
                    let (which, mut forged) = (u.arbitrary()?, view.clone());
                    from.forge(&mut forged, &own_advert(&device), which, &u.arbitrary()?);
                    Some(forged)
                };
                if let Some(view) = view.filter(|view| view.view.is_some()) {
                    let _ = device.receive(&view);
                }
            }
            3 => restart(&mut device, &accepted),
            _ => {
                // Set back to bytes saved earlier; the record is not.
                let which: u8 = u.arbitrary()?;
                let Some((bytes, offer)) = saved.get(which as usize % saved.len().max(1)) else { continue };
                let resumed = resume(&device, bytes, offer);
                put(&mut device, resumed);
                accepted = offer.clone();
            }
        }
        watch.check(&device, &accepted);
        if let Some(bytes) = save(&device).filter(|bytes| saved.iter().all(|(known, _)| known != bytes)) {
            saved.push((bytes, accepted.clone()));
        }
    }
    Ok(())
}

fn own_advert(device: &Device) -> Vec<u8> {
    match device.message().and_then(|message| message.step.as_ref()) {
        Some(Step::Advert(signed)) => signed.payload.clone(),
        _ => Vec::new(),
    }
}

/// The device's state as bytes.
pub fn save(device: &Device) -> Option<Vec<u8>> {
    let saved = match &device.state {
        State::Idle => return None,
        State::Advertised(state) => state.save(),
        State::Shared(state) => state.save(),
        State::Masked(state) => state.save(),
        State::Confirmed(state) => state.save(),
        State::Done(state) => state.save(),
    };
    Some(saved.to_vec())
}

/// Puts a resumed state in a device's place.
pub fn put(device: &mut Device, resumed: Resumed) {
    device.state = match resumed {
        Resumed::Advertised(state) => State::Advertised(state),
        Resumed::Shared(state) => State::Shared(state),
        Resumed::Masked(state) => State::Masked(state),
        Resumed::Confirmed(state) => State::Confirmed(state),
        Resumed::Done(state) => State::Done(state),
    };
}

fn resume(device: &Device, saved: &[u8], offer: &RoundOffer) -> Resumed {
    let registrar = CAST.registrar.verifying_key();
    let resumed = Resumed::from_bytes(saved, offer, device.identity.clone(), Some(&registrar));
    resumed.expect("a state that was saved is resumed")
}

fn restart(device: &mut Device, offer: &RoundOffer) {
    let Some(saved) = save(device) else { return };
    let before = device.message().cloned();
    let resumed = resume(device, &saved, offer);
    put(device, resumed);
    assert_eq!(device.message().cloned(), before, "a restart changed the message that is owed");
}
