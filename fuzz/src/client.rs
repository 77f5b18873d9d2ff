//! A device under a coordinator that sends what it likes, in any order: views of real rounds, changed, re-signed with the
//! coordinator's own key and those of colluding clients, repeated, from another round, and restarts in between, also to bytes
//! that were saved earlier, or with a record that was set back. All other devices are in league with it.
//!
//! Beside not panicking, the device must for one round number share its keys once, mask one input, endorse and reveal for one set of
//! survivors and reveal one share of each neighbour; each step only when its record says so, before its time is over, and in
//! malicious mode shares only under a certificate of the quorum. A record that is set back forgets what came after, and nothing
//! that came before: no step contradicts what it still has.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use prost::Message;
use unisono_crypto::kdf::{hash, label};
use unisono_crypto::merkle;
use unisono_protocol::CohortId;
use unisono_protocol::client::{ClientError, Session};
use unisono_protocol::cohort::Cohort;
use unisono_protocol::params::RoundParams;
use unisono_protocol::policy::{MemoryRecord, ParticipationRecord, TaskEntry};
use unisono_protocol::proto::{self, RoundOffer, SecretKind, ServerMessage, Signed};
use unisono_protocol::proto::{client_message::Step, server_message::View};
use unisono_protocol::server::{Closed, Phase, Server};
use unisono_protocol::{bitmap, signed};

use super::tamper::Tamper;
use super::world::{CAST, Device, NOW, open, params};

const SEED: u64 = 11;

/// What the coordinator of one real round showed everybody.
pub struct Recording {
    /// The round, as opened.
    pub server: Server,
    /// By phase, then by device; once more for a round whose last device vanished before its upload.
    pub views: [Vec<Vec<Option<ServerMessage>>>; 2],
    /// The closed cohort.
    pub cohort: Cohort,
    /// Payloads of the cohort's adverts, in order.
    adverts: Vec<Vec<u8>>,
    malicious: bool,
}

/// Malicious and semi-honest, and each once more as another round: five clients, all of them neighbours. Then a malicious one of
/// 33 clients, the fewest with a sparse graph and a committee.
pub static RECORDINGS: LazyLock<[Recording; 5]> = LazyLock::new(|| {
    let five = |malicious, dimension| record(&params(malicious, 3, 5, 0.0, 0.25, dimension), 5);
    let sparse = record(&params(true, 20, 33, 0.05, 0.05, 22), 33);
    [five(true, 20), five(false, 20), five(true, 21), five(false, 21), sparse]
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
                let view = server.view(device.id());
                match &view {
                    Some(view) => match device.receive(view) {
                        Err(ClientError::CertifiedWithout) if gone(i) => {}
                        result => result.expect("an honest view"),
                    },
                    None if phase == Phase::Advertise => {
                        device.join(server.offer()).expect("an honest offer");
                        adverts[i] = own_advert(device);
                    }
                    None => {}
                }
                let acts = view.is_some() || phase == Phase::Advertise;
                shown.push(view);
                if acts && !gone(i) {
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
    let Some(View::Cohort(view)) = views[0][1][0].as_ref().and_then(|shown| shown.view.as_ref()) else {
        panic!("the cohort comes first")
    };
    let payload = &view.cohort.as_ref().expect("a cohort").payload;
    let cohort = Cohort::from_payload(payload, server.params()).expect("a real cohort");
    Recording { server, views, cohort, adverts, malicious }
}

impl Recording {
    /// What device `client` was shown in a phase; with `vanishes`, of the round whose last device did.
    pub fn shown(&self, vanishes: bool, phase: usize, client: usize) -> Option<&ServerMessage> {
        self.views[usize::from(vanishes)].get(phase)?.get(client)?.as_ref()
    }

    fn key(&self, client: usize) -> Option<&unisono_crypto::sign::SigningKey> {
        self.malicious.then(|| &CAST.identities[client % self.adverts.len()].signing_key)
    }

    /// A view whose changed parts are signed by those who should, all in league but the device itself. What comes after the
    /// cohort is made for the one that the device is in, if it is in one.
    fn forge(&self, view: &mut ServerMessage, own: &[u8], cohort: Option<CohortId>, which: u8, tamper: &Tamper) {
        let cohort = cohort.unwrap_or(self.cohort.id);
        match &mut view.view {
            Some(View::Cohort(view)) => self.forge_cohort(view, own, which, tamper),
            Some(View::Masking(view)) => self.forge_masking(view, cohort, which, tamper),
            Some(View::Survivors(view)) => {
                view.cohort_id = cohort.to_vec();
                view.survivors[0] = which;
                tamper.apply(&mut view.survivors);
            }
            Some(View::Certificate(view)) => self.forge_certificate(view, cohort, which, tamper),
            None => {}
        }
    }

    /// One of the messages changed, all of them in trees of one message.
    fn forge_masking(&self, view: &mut proto::MaskingView, cohort: CohortId, which: u8, tamper: &Tamper) {
        if which >= 0x80 {
            tamper.apply(&mut view.shared);
        }
        let moved = view.cohort_id != cohort.0;
        view.cohort_id = cohort.to_vec();
        let count = view.deliveries.len().max(1);
        for (i, delivery) in view.deliveries.iter_mut().enumerate() {
            let changed = i == which as usize % count;
            let Some(root) = delivery.root.as_mut().filter(|_| changed || moved) else { continue };
            let Ok(mut message) = proto::SharesRoot::decode(root.payload.as_slice()) else { continue };
            if changed && which < 0x80 {
                tamper.apply(&mut delivery.message);
            }
            (delivery.position, delivery.path, message.count) = (0, Vec::new(), 1);
            message.root = merkle::Tree::new(label::TREE_SHARES, [&delivery.message]).root().to_vec();
            message.cohort_id = cohort.to_vec();
            *root = signed::sign(&message, label::SIG_SHARES, self.key(message.from as usize));
        }
    }

    /// A set of the coordinator's choice under the signatures of the whole committee but the device itself, or with fewer of them,
    /// some twice, or changed.
    fn forge_certificate(&self, view: &mut proto::Certificate, cohort: CohortId, which: u8, tamper: &Tamper) {
        match which % 8 {
            0 | 1 => tamper.apply(&mut view.survivors),
            2 => {
                self.drop_arc(&mut view.survivors, cohort, which / 8);
                tamper.apply(&mut view.survivors);
            }
            3 => tamper.apply(&mut view.sharers_hash),
            _ => {}
        }
        let set: [u8; 32] = hash(label::SURVIVORS, &[&view.survivors]);
        let count: u32 = view.survivors.iter().map(|byte| byte.count_ones()).sum();
        let bytes = [&cohort.0[..], &view.sharers_hash, &set, &count.to_le_bytes()].concat();
        view.cohort_id = cohort.to_vec();
        let (graph, complete) = (&self.cohort.graph, self.cohort.graph.complete());
        let endorsement = |&signer: &u32| proto::Endorsement {
            signer,
            signature: self.key(signer as usize).map_or_else(Vec::new, |key| key.sign(label::SIG_ENDORSEMENT, &bytes)),
            roster: CAST
                .roster
                .proof(CAST.identities[signer as usize].client_id)
                .expect("in memory")
                .filter(|_| !complete),
        };
        let colluders = graph.committee().iter().filter(|&&signer| signer != 0);
        view.endorsements = colluders.take(graph.quorum()).map(endorsement).collect();
        let at = which as usize / 8 % view.endorsements.len().max(1);
        match which % 8 {
            4 => drop(view.endorsements.pop()),
            5 if !view.endorsements.is_empty() => view.endorsements[at] = view.endorsements[0].clone(),
            6 => view.endorsements.iter_mut().skip(at).take(1).for_each(|one| tamper.apply(&mut one.signature)),
            7 => view.endorsements.iter_mut().skip(at).take(1).for_each(|one| {
                *one = tamper.message(one).unwrap_or_default();
            }),
            _ => {}
        }
    }

    /// Leaves a run of the ring out of a set: as many places as a window has, but for the device itself.
    fn drop_arc(&self, survivors: &mut [u8], cohort: CohortId, start: u8) {
        let n = self.cohort.graph.n();
        let mut ring: Vec<u32> = (0..n).collect();
        ring.sort_by_key(|i| hash(label::GRAPH_SEED, &[&cohort.0, &i.to_le_bytes()]));
        let width = self.cohort.graph.topology().degree as usize / 2;
        for &i in ring.iter().cycle().skip(usize::from(start)).take(width).filter(|&&i| i != 0) {
            if let Some(byte) = survivors.get_mut(i as usize / 8) {
                *byte &= !(1 << (i % 8));
            }
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

/// A cohort that the device was shown, with the members' places in the roster.
#[derive(Clone)]
struct Known {
    cohort: Cohort,
    places: Vec<u64>,
    n_min: usize,
    malicious: bool,
}

/// What must never happen twice, over the whole life of the device, whatever it is restarted with. By round number, not by
/// round or cohort: a second one under the same number is what a coordinator would try. What a record that is set back forgets
/// is forgotten here too.
#[derive(Clone, Default)]
struct Watch {
    /// The one cohort.
    shared: BTreeMap<Number, CohortId>,
    /// The one upload's header, as signed.
    masked: BTreeMap<Number, Vec<u8>>,
    /// The hash of the one set of survivors.
    answered: BTreeMap<Number, [u8; 32]>,
    /// What was revealed, as signed.
    revealed: BTreeMap<Number, Vec<u8>>,
}

/// What the device was shown: what its messages are judged by.
#[derive(Default)]
struct Shown {
    cohorts: BTreeMap<CohortId, Known>,
    /// Sets U1 by hash.
    sharers: BTreeMap<[u8; 32], Vec<u8>>,
}

impl Shown {
    fn note(&mut self, view: &View, offer: &RoundOffer) {
        match view {
            View::Cohort(view) => {
                let Some(signed) = &view.cohort else { return };
                let params = params_of(offer);
                let Ok(cohort) = Cohort::from_payload(&signed.payload, &params) else { return };
                let places = view.members.iter().scan(0u64, |place, step| {
                    *place = place.wrapping_add(*step);
                    Some(*place)
                });
                let (n_min, malicious) = (params.wire.n_min as usize, params.malicious());
                self.cohorts.insert(cohort.id, Known { cohort, places: places.collect(), n_min, malicious });
            }
            View::Masking(view) => {
                drop(self.sharers.insert(hash(label::SHARERS, &[&view.shared]), view.shared.clone()))
            }
            _ => {}
        }
    }
}

impl Watch {
    /// Judges a step that the device has just taken, after `view`.
    fn step(&mut self, device: &Device, offer: &RoundOffer, view: &View, shown: &Shown) {
        let params = params_of(offer);
        let number: Number = (params.wire.task.clone(), params.wire.round);
        let entry = device.record.entry(&params.wire.task).expect("memory").expect("a step that nothing records");
        let TaskEntry { round, cohort, masked_for, survivors, .. } = entry;
        assert_eq!(round, params.wire.round, "a step in another round than the recorded one");
        let known = &shown.cohorts[&cohort];
        match device.message().and_then(|message| message.step.as_ref()).expect("a step has a message") {
            Step::Advert(_) => panic!("a view was answered with an advert"),
            Step::ShareKeys(shares) => {
                let root = shares.root.as_ref().expect("a root");
                let root = proto::SharesRoot::decode(root.payload.as_slice()).expect("its own message");
                assert_eq!(root.cohort_id, cohort.0, "keys were shared in another cohort than the recorded one");
                assert_eq!(self.shared.insert(number, cohort), None, "keys were shared twice for one round number");
            }
            Step::Upload(signed) => {
                let View::Masking(view) = view else { panic!("an input was masked for no set") };
                let header = proto::UploadHeader::decode(signed.payload.as_slice()).expect("its own message");
                assert_eq!(header.cohort_id, cohort.0, "an input was masked in another cohort than the recorded one");
                assert_eq!(
                    masked_for,
                    Some(hash(label::SHARERS, &[&view.shared])),
                    "masked for a set that is not recorded"
                );
                let payload = signed.payload.clone();
                assert_eq!(self.masked.insert(number, payload), None, "two inputs were masked for one round number");
            }
            Step::Endorsement(signed) => {
                let View::Survivors(view) = view else { panic!("no set was shown for an endorsement") };
                let set = self.answer(number, view.survivors.as_slice(), survivors);
                let sharers = masked_for.expect("endorsed without a masked input");
                known.check_set(&view.survivors, &shown.sharers[&sharers]);
                let count: u32 = view.survivors.iter().map(|byte| byte.count_ones()).sum();
                let expected = [&cohort.0[..], &sharers, &set, &count.to_le_bytes()].concat();
                assert_eq!(signed.payload, expected, "an endorsement is of something else");
            }
            Step::Unmask(signed) => {
                let bytes = match view {
                    View::Certificate(certificate) => &certificate.survivors,
                    View::Survivors(view) if !known.malicious => &view.survivors,
                    _ => panic!("shares were revealed without a certificate"),
                };
                let set = self.answer(number.clone(), bytes, survivors);
                let sharers = masked_for.expect("shares were revealed without a masked input");
                let survivors = known.check_set(bytes, &shown.sharers[&sharers]);
                if let View::Certificate(certificate) = view {
                    known.check_certificate(certificate, &sharers, &set, &shown.sharers[&sharers]);
                }
                let message = proto::UnmaskShares::decode(signed.payload.as_slice()).expect("its own message");
                assert_eq!(message.cohort_id, cohort.0, "shares were revealed in another cohort than the recorded one");
                assert!(survivors[message.from as usize], "a client that is not in the sum revealed shares");
                let mut last = None;
                for share in &message.shares {
                    let kind = if survivors[share.of as usize] { SecretKind::SelfMask } else { SecretKind::Mask };
                    assert!(
                        share.kind() == kind && share.of != message.from,
                        "a share of the wrong secret was revealed"
                    );
                    assert!(last < Some(share.of), "two shares of client {} were revealed", share.of);
                    last = Some(share.of);
                }
                let known = self.revealed.entry(number).or_insert_with(|| signed.payload.clone());
                assert_eq!(known, &signed.payload, "other shares were revealed for one round number");
            }
        }
    }

    /// The hash of the set that the device has answered for, which is the one recorded and the only one.
    fn answer(&mut self, number: Number, survivors: &[u8], recorded: Option<[u8; 32]>) -> [u8; 32] {
        let set = hash(label::SURVIVORS, &[survivors]);
        assert_eq!(recorded, Some(set), "answered for a set that is not recorded");
        assert_eq!(*self.answered.entry(number).or_insert(set), set, "answered for two sets of survivors");
        set
    }
}

impl Known {
    /// The set of survivors, which is large enough, inside U1, and thick at every place of the ring.
    fn check_set(&self, survivors: &[u8], sharers: &[u8]) -> Vec<bool> {
        let n = self.cohort.graph.n() as usize;
        let read = |bytes| bitmap::from_bytes(bytes, n).expect("an accepted set");
        let (survivors, sharers) = (read(survivors), read(sharers));
        assert!(
            survivors.iter().zip(&sharers).all(|(survives, shared)| *shared || !survives),
            "a survivor is not in U1"
        );
        assert!(bitmap::count(&survivors) >= self.n_min, "a sum over too few");
        assert!(!self.malicious || self.cohort.graph.thin_window(&survivors).is_none(), "a part can be cut off");
        survivors
    }

    /// As many members of the committee as are needed, all in U1, have signed both sets.
    fn check_certificate(&self, view: &proto::Certificate, sharers: &[u8; 32], set: &[u8; 32], u1: &[u8]) {
        let graph = &self.cohort.graph;
        let count: u32 = view.survivors.iter().map(|byte| byte.count_ones()).sum();
        let bytes = [&self.cohort.id.0[..], sharers, set, &count.to_le_bytes()].concat();
        let signers: BTreeMap<u32, &Vec<u8>> =
            view.endorsements.iter().map(|endorsement| (endorsement.signer, &endorsement.signature)).collect();
        assert!(signers.len() == graph.quorum() && signers.len() == view.endorsements.len(), "not a quorum");
        for (signer, signature) in signers {
            assert!(graph.committee().contains(&signer), "a signer is not on the committee");
            assert!(u1[signer as usize / 8] >> (signer % 8) & 1 == 1, "a signer is not in U1");
            // Identities stand in the roster in the order in which they were made.
            let identity = &CAST.identities[self.places[signer as usize] as usize];
            let verified = identity.signing_key.verifying_key().verify(label::SIG_ENDORSEMENT, &bytes, signature);
            assert_eq!(verified, Ok(()), "shares were revealed under a signature that is none");
        }
    }
}

/// Of a round that the device has joined.
fn params_of(offer: &RoundOffer) -> RoundParams {
    let signed = offer.params.as_ref().expect("an accepted offer");
    RoundParams::from_payload(&signed.payload).expect("accepted parameters")
}

/// Runs one sequence.
pub fn run(data: &[u8]) {
    // A sequence ends where its bytes do.
    let _ = play(&mut Unstructured::new(data));
}

fn play(u: &mut Unstructured<'_>) -> Result<()> {
    let home = pick(u.arbitrary()?);
    let mut life = Life::new(home, u.arbitrary()?);
    while !u.is_empty() {
        match u.arbitrary::<u8>()? % 10 {
            0 | 9 => {
                let (byte, tamper) = (u.arbitrary::<u8>()?, u.arbitrary::<Tamper>()?);
                let other = pick(byte);
                let offer =
                    if byte < 0x80 { tamper.message(other.server.offer()) } else { Some(other.reoffer(&tamper)) };
                offer.into_iter().for_each(|offer| life.join(offer));
            }
            kind @ (1 | 2 | 7 | 8) => {
                let [from, phase, client, vanishes] = u.arbitrary::<[u8; 4]>()?;
                let from = pick(from);
                let which = if kind % 2 == 0 { Some(u.arbitrary::<u8>()?) } else { None };
                let tamper = u.arbitrary::<Tamper>()?;
                let Some(view) = from.shown(vanishes % 2 == 1, phase.into(), client.into()) else { continue };
                let view = match which {
                    None => tamper.message(view),
                    Some(which) => {
                        let mut forged = view.clone();
                        from.forge(&mut forged, &own_advert(&life.device), life.cohort(), which, &tamper);
                        Some(forged)
                    }
                };
                view.iter().filter(|view| view.view.is_some()).for_each(|view| life.receive(view));
            }
            3 => life.restart(),
            4 => life.set_back(u.arbitrary()?),
            5 => life.set_record_back(u.arbitrary()?),
            _ => life.now += 1 << (u.arbitrary::<u8>()? % 12),
        }
        life.save();
    }
    Ok(())
}

/// A device over all its restarts.
struct Life {
    device: Device,
    /// Of the round that it has joined.
    accepted: RoundOffer,
    watch: Watch,
    shown: Shown,
    /// All sessions that the device has had, as saved, each with its round's offer.
    saved: Vec<(Vec<u8>, RoundOffer)>,
    /// All records that it has had, and what they know of.
    records: Vec<(MemoryRecord, Watch)>,
    now: u64,
}

impl Life {
    fn new(home: &Recording, semi_honest: bool) -> Self {
        let accepted = home.server.offer().clone();
        let mut device = Device::new(0, &home.server, SEED);
        device.trust.policy.allow_semi_honest |= semi_honest;
        device.trust.policy.min_interval_s = 0;
        let records = vec![(device.record.clone(), Watch::default())];
        let (watch, shown) = (Watch::default(), Shown::default());
        Self { device, accepted, watch, shown, saved: Vec::new(), records, now: NOW }
    }

    /// The cohort that the device is in, if it is in one.
    fn cohort(&self) -> Option<CohortId> {
        let task = params_of(&self.accepted).wire.task;
        Some(self.device.record.entry(&task).expect("memory")?.cohort)
    }

    fn join(&mut self, offer: RoundOffer) {
        if self.device.join(&offer).is_ok() {
            self.accepted = offer;
        }
    }

    /// Takes a view, and judges the step that comes of it.
    fn receive(&mut self, view: &ServerMessage) {
        let Some(session) = &self.device.session else { return };
        let (before, erase_at) = (session.message().cloned(), session.erase_at());
        let view_of = view.view.as_ref().expect("a view");
        let result = self.device.receive_at(view, self.now);
        if self.device.message().cloned() == before {
            return;
        }
        match result {
            Ok(()) => {
                assert!(erase_at.is_none_or(|last| self.now <= last), "a step after the round's time was over");
                self.shown.note(view_of, &self.accepted);
                self.watch.step(&self.device, &self.accepted, view_of, &self.shown);
            }
            Err(error) => {
                assert!(error.closes_round() && self.device.message().is_none(), "{error} changed the session");
            }
        }
        let record = self.device.record.clone();
        self.records.push((record, self.watch.clone()));
    }

    fn save(&mut self) {
        let saved = save(&self.device).filter(|bytes| self.saved.iter().all(|(known, _)| known != bytes));
        self.saved.extend(saved.map(|bytes| (bytes, self.accepted.clone())));
    }

    fn restart(&mut self) {
        let Some(saved) = save(&self.device) else { return };
        let state = |device: &Device| {
            let session = device.session.as_ref().expect("a session");
            (session.message().cloned(), session.awaits(), session.erase_at(), session.owes_endorsement())
        };
        let before = state(&self.device);
        self.device.session = Some(resume(&self.device, &saved, &self.accepted));
        assert!(state(&self.device) == before, "a restart changed what is owed or awaited");
    }

    /// The session becomes one that was saved earlier; the record does not.
    fn set_back(&mut self, which: u8) {
        let Some((bytes, offer)) = self.saved.get(which as usize % self.saved.len().max(1)) else { return };
        self.device.session = Some(resume(&self.device, bytes, offer));
        self.accepted = offer.clone();
    }

    /// The record becomes one of those that were; the session stays.
    fn set_record_back(&mut self, which: u8) {
        let (record, watch) = self.records[which as usize % self.records.len()].clone();
        (self.device.record, self.watch) = (record, watch);
    }
}

fn own_advert(device: &Device) -> Vec<u8> {
    match device.message().and_then(|message| message.step.as_ref()) {
        Some(Step::Advert(signed)) => signed.payload.clone(),
        _ => Vec::new(),
    }
}

/// The device's session as bytes.
pub fn save(device: &Device) -> Option<Vec<u8>> {
    device.session.as_ref()?.save().ok().map(|saved| saved.to_vec())
}

fn resume(device: &Device, saved: &[u8], offer: &RoundOffer) -> Session {
    let resumed = Session::resume(saved, offer, device.identity.clone(), &device.trust);
    resumed.expect("a session that was saved is resumed")
}
