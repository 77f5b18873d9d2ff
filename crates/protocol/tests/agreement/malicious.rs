//! A coordinator that keeps all it hears, has its colluders' secrets, and tells each device what it likes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost::Message;
use unisono_crypto::kdf::label;
use unisono_protocol::bitmap;
use unisono_protocol::client::{ClientError, Session, SharedChecks};
use unisono_protocol::cohort::Cohort;
use unisono_protocol::policy::MemoryRecord;
use unisono_protocol::proto::{
    self, Certificate, CohortView, Endorsement, MaskingView, ServerMessage, SurvivorsView, client_message::Step,
    server_message::View,
};
use unisono_protocol::server::{Closed, Phase, Server};
use unisono_protocol::signed;

use crate::derivation;
use crate::knowledge::Knowledge;
use crate::world::{CAST, Device, NOW, open, params};

/// Sparse: degree 10, threshold 7, windows of 5 hold more than 2, 5 of a committee of 7 sign; 2 are assumed to collude.
pub fn forty() -> proto::RoundParams {
    params(true, 30, 40, 0.05, 0.05, 20)
}

/// Complete: threshold 7, 7 of 12 sign; 1 is assumed to collude.
pub fn twelve() -> proto::RoundParams {
    params(true, 8, 12, 0.05, 0.05, 20)
}

pub fn close(server: Server) -> Server {
    let Ok(Closed::Next(next)) = server.close() else { panic!("the round ends here") };
    *next
}

/// The session's bytes, and the record that goes with them.
#[derive(Clone)]
pub struct Kept {
    pub session: Vec<u8>,
    pub record: MemoryRecord,
}

/// A round up to phase 2, honest so far. Devices start from here as often as a test needs.
pub struct Stage {
    pub server: Server,
    pub cohort: Cohort,
    /// Client at each place of the ring.
    pub ring: Vec<u32>,
    pub adverts: Vec<proto::Advert>,
    pub cohort_views: Vec<CohortView>,
    /// By dealer and holder.
    pub messages: BTreeMap<(u32, u32), proto::NeighbourShares>,
    views: Vec<MaskingView>,
    /// By client, after each of its first two steps.
    pub kept: Vec<[Kept; 2]>,
    checks: Arc<SharedChecks>,
}

fn keep(device: &Device) -> Kept {
    Kept { session: device.session.as_ref().unwrap().save().unwrap().to_vec(), record: device.record.clone() }
}

impl Stage {
    pub fn new(params: &proto::RoundParams) -> Self {
        Self::of(open(params), |_| NOW)
    }

    /// With a server that was opened elsewhere; each device accepts the cohort at its own time.
    pub fn of(mut server: Server, accepts_at: impl Fn(&CohortView) -> u64) -> Self {
        let count = server.params().wire.n_max as usize;
        let mut devices: Vec<Device> = (0..count).map(|i| Device::new(i, &server, 1)).collect();
        let mut adverts = Vec::new();
        for device in &mut devices {
            device.join(server.offer()).unwrap();
            let message = device.message().unwrap();
            let Some(Step::Advert(signed)) = &message.step else { panic!() };
            adverts.push(proto::Advert::decode(signed.payload.as_slice()).unwrap());
            server.absorb(message, NOW).unwrap();
        }
        server = close(server);
        let advertised: Vec<Kept> = devices.iter().map(keep).collect();
        let mut cohort_views = Vec::new();
        let mut messages = BTreeMap::new();
        for device in &mut devices {
            let message = server.view(device.id()).unwrap();
            let Some(View::Cohort(view)) = message.view.clone() else { panic!() };
            device.receive_at(&message, accepts_at(&view)).unwrap();
            cohort_views.push(view);
            let message = device.message().unwrap();
            let Some(Step::ShareKeys(shares)) = &message.step else { panic!() };
            for bytes in &shares.messages {
                let message = proto::NeighbourShares::decode(bytes.as_slice()).unwrap();
                messages.insert((message.from, message.to), message);
            }
            server.absorb(message, NOW).unwrap();
        }
        server = close(server);
        assert_eq!(server.phase(), Phase::Mask);
        let view = |device: &Device| match server.view(device.id()).unwrap().view {
            Some(View::Masking(view)) => view,
            _ => panic!("another phase"),
        };
        let views = devices.iter().map(view).collect();
        let payload = &cohort_views[0].cohort.as_ref().unwrap().payload;
        let cohort = Cohort::from_payload(payload, server.params()).unwrap();
        let kept = advertised.into_iter().zip(&devices).map(|(first, device)| [first, keep(device)]).collect();
        let ring = ring(&cohort);
        Self { server, cohort, ring, adverts, cohort_views, messages, views, kept, checks: Arc::default() }
    }

    pub fn n(&self) -> u32 {
        self.cohort.graph.n()
    }

    /// All clients but these.
    pub fn without(&self, gone: impl IntoIterator<Item = u32>) -> Vec<bool> {
        let mut set = vec![true; self.n() as usize];
        gone.into_iter().for_each(|u| set[u as usize] = false);
        set
    }

    /// The client so many places after (before, if negative) place `at` of the ring.
    pub fn at(&self, at: usize, offset: i64) -> u32 {
        self.ring[(at as i64 + offset).rem_euclid(i64::from(self.n())) as usize]
    }

    /// A device as it was when it was last kept.
    pub fn device(&self, u: u32, kept: &Kept) -> Device {
        let mut device = Device::new(u as usize, &self.server, 1);
        device.record = kept.record.clone();
        let offer = self.server.offer();
        let mut session = Session::resume(&kept.session, offer, device.identity.clone(), &device.trust).unwrap();
        session.share_checks(&self.checks);
        device.session = Some(session);
        device
    }

    /// What the coordinator sends client `u` when it wants it to mask for `sharers`.
    pub fn masking_view(&self, u: u32, sharers: &[bool]) -> MaskingView {
        let view = &self.views[u as usize];
        let neighbours = self.cohort.graph.neighbours(u);
        let told = neighbours.iter().zip(&view.deliveries).filter(|(v, _)| sharers[**v as usize]);
        MaskingView {
            shared: bitmap::to_bytes(sharers),
            deliveries: told.map(|(_, delivery)| delivery.clone()).collect(),
            ..view.clone()
        }
    }

    pub fn survivors_view(&self, survivors: &[bool]) -> SurvivorsView {
        SurvivorsView { cohort_id: self.cohort.id.to_vec(), survivors: bitmap::to_bytes(survivors) }
    }

    /// What a member signs for a pair of sets.
    pub fn endorsed_bytes(&self, sharers: &[bool], survivors: &[bool]) -> Vec<u8> {
        let [sharers, survivors] = [sharers, survivors].map(bitmap::to_bytes);
        let count = survivors.iter().map(|byte| byte.count_ones()).sum();
        let (sharers, survivors) = (derivation::sharers_hash(&sharers), derivation::survivors_hash(&survivors));
        derivation::endorsement(&self.cohort.id.0, &sharers, &survivors, count).to_vec()
    }

    /// A certificate with these signatures, leaves where they are needed.
    pub fn certificate(
        &self,
        sharers: &[bool],
        survivors: &[bool],
        signatures: impl IntoIterator<Item = (u32, Vec<u8>)>,
    ) -> Certificate {
        let endorsement = |(signer, signature): (u32, Vec<u8>)| Endorsement {
            signer,
            signature,
            roster: if self.cohort.graph.complete() { None } else { self.leaf(signer) },
        };
        Certificate {
            cohort_id: self.cohort.id.to_vec(),
            sharers_hash: derivation::sharers_hash(&bitmap::to_bytes(sharers)).to_vec(),
            survivors: bitmap::to_bytes(survivors),
            endorsements: signatures.into_iter().map(endorsement).collect(),
        }
    }

    pub fn leaf(&self, u: u32) -> Option<proto::RosterProof> {
        self.cohort_views.iter().flat_map(|view| &view.neighbours).find(|it| it.index == u)?.roster.clone()
    }

    /// A certificate that the whole committee signed, colluding.
    pub fn by_all(&self, sharers: &[bool], survivors: &[bool]) -> Certificate {
        let payload = self.endorsed_bytes(sharers, survivors);
        let signers = self.cohort.graph.committee().iter().filter(|&&u| sharers[u as usize]);
        let signatures = signers.take(self.cohort.graph.quorum()).map(|&u| self.signature(u, &payload));
        self.certificate(sharers, survivors, signatures)
    }

    /// The signature of a client that signs whatever the coordinator likes.
    pub fn signature(&self, u: u32, payload: &[u8]) -> (u32, Vec<u8>) {
        let key = &CAST.identities[u as usize].signing_key;
        (u, signed::sign_bytes(payload.to_vec(), label::SIG_ENDORSEMENT, Some(key)).signature)
    }
}

fn ring(cohort: &Cohort) -> Vec<u32> {
    let graph = &cohort.graph;
    let follower = |u: u32| {
        let after: Vec<u32> = graph.neighbours(u).into_iter().filter(|&v| graph.encapsulates(u, v)).collect();
        *after.iter().find(|&&v| after.iter().all(|&w| v == w || graph.encapsulates(v, w))).unwrap()
    };
    let mut ring = vec![0];
    while ring.len() < graph.n() as usize {
        ring.push(follower(ring[ring.len() - 1]));
    }
    ring
}

/// The rest of a round, with a lying coordinator and colluders.
pub struct Attack<'a> {
    pub stage: &'a Stage,
    pub devices: Vec<Device>,
    pub colluders: BTreeSet<u32>,
    pub knowledge: Knowledge<'a>,
    /// By what was signed and by whom.
    endorsed: BTreeMap<Vec<u8>, BTreeMap<u32, Vec<u8>>>,
}

impl<'a> Attack<'a> {
    pub fn new(stage: &'a Stage, colluders: impl IntoIterator<Item = u32>) -> Self {
        let devices = (0..stage.n()).map(|u| stage.device(u, &stage.kept[u as usize][1])).collect();
        let colluders: BTreeSet<u32> = colluders.into_iter().collect();
        let mut knowledge = Knowledge::new(stage);
        colluders.iter().for_each(|&u| knowledge.corrupt(u, &stage.kept[u as usize][1].session));
        Self { stage, devices, colluders, knowledge, endorsed: BTreeMap::new() }
    }

    pub fn honest(&self) -> impl Iterator<Item = u32> + use<> {
        let colluders = self.colluders.clone();
        (0..self.stage.n()).filter(move |u| !colluders.contains(u))
    }

    pub fn show(&mut self, u: u32, view: View) -> Result<(), ClientError> {
        self.show_at(u, view, NOW)
    }

    pub fn show_at(&mut self, u: u32, view: View, now: u64) -> Result<(), ClientError> {
        self.devices[u as usize].receive_at(&ServerMessage { view: Some(view) }, now)
    }

    /// Shows a device what it must refuse. It has nothing new to send then, and waits on.
    pub fn refuses(&mut self, u: u32, view: View) -> ClientError {
        let before = self.devices[u as usize].message().cloned();
        let error = self.show(u, view).expect_err("the attack went through");
        assert_eq!(self.devices[u as usize].message(), before.as_ref(), "something leaves the device after {error}");
        error
    }

    /// Shows a device what closes the round for it: nothing of it is left.
    pub fn closes(&mut self, u: u32, view: View, now: u64) -> ClientError {
        let error = self.show_at(u, view.clone(), now).expect_err("the attack went through");
        let session = self.devices[u as usize].session.as_ref().unwrap();
        assert!(session.message().is_none() && session.awaits().is_none());
        assert_eq!(session.save().err(), Some(ClientError::Erased));
        assert_eq!(self.show(u, view), Err(ClientError::Erased));
        error
    }

    /// Puts a device back to the state in which it was kept, record and all or without it.
    pub fn set_back(&mut self, u: u32, kept: &Kept, with_record: bool) {
        let before = &self.devices[u as usize];
        let (record, input) = (before.record.clone(), before.input.clone());
        let mut device = self.stage.device(u, kept);
        device.input = input;
        if !with_record {
            device.record = record;
        }
        self.devices[u as usize] = device;
    }

    pub fn keep(&self, u: u32) -> Kept {
        keep(&self.devices[u as usize])
    }

    /// Tells a device that `sharers` have shared their keys; it uploads.
    pub fn mask(&mut self, u: u32, sharers: &[bool]) -> Result<(), ClientError> {
        self.show(u, View::Masking(self.stage.masking_view(u, sharers)))?;
        let device = &self.devices[u as usize];
        self.knowledge.upload(u, sharers, device.upload().unwrap(), device.input.to_u64());
        Ok(())
    }

    /// All honest devices mask for `sharers`.
    pub fn mask_all(&mut self, sharers: &[bool]) {
        self.honest().filter(|&u| sharers[u as usize]).for_each(|u| self.mask(u, sharers).unwrap());
    }

    /// Asks a member of the committee to endorse a set of survivors.
    pub fn ask(&mut self, u: u32, survivors: &[bool]) -> Result<(), ClientError> {
        self.show(u, View::Survivors(self.stage.survivors_view(survivors)))?;
        let message = self.devices[u as usize].message().unwrap();
        let Some(Step::Endorsement(signed)) = &message.step else { panic!("no endorsement") };
        self.endorsed.entry(signed.payload.clone()).or_default().insert(u, signed.signature.clone());
        Ok(())
    }

    /// The best certificate that the coordinator can make for a pair: with as many signatures as it has, at most the quorum. Colluders
    /// sign everything.
    pub fn certificate(&self, sharers: &[bool], survivors: &[bool]) -> Certificate {
        let payload = self.stage.endorsed_bytes(sharers, survivors);
        let mut signatures = self.endorsed.get(&payload).cloned().unwrap_or_default();
        let graph = &self.stage.cohort.graph;
        let members = self.colluders.iter().filter(|&&u| graph.on_committee(u).is_some());
        signatures.extend(members.map(|&u| self.stage.signature(u, &payload)));
        self.stage.certificate(sharers, survivors, signatures.into_iter().take(graph.quorum()))
    }

    /// Shows a device a certificate; it reveals its shares.
    pub fn show_certificate(&mut self, u: u32, certificate: &Certificate) -> Result<(), ClientError> {
        let device = &self.devices[u as usize];
        if device.session.as_ref().is_none_or(Session::is_done) {
            return Ok(());
        }
        self.show(u, View::Certificate(certificate.clone()))?;
        let Some(Step::Unmask(signed)) = &self.devices[u as usize].message().unwrap().step else { panic!("no shares") };
        self.knowledge.revealed(&proto::UnmaskShares::decode(signed.payload.as_slice()).unwrap());
        Ok(())
    }

    /// The sums of honest inputs that the coordinator can compute, each checked by computing it: clients with coefficients.
    pub fn sums(&self) -> Vec<Vec<(u32, i64)>> {
        let combinations = self.knowledge.combinations(crate::knowledge::Seeds::Bound);
        combinations
            .iter()
            .map(|combination| {
                self.knowledge.read(combination);
                self.knowledge.inputs_in(combination)
            })
            .collect()
    }

    /// The one sum that may open: of all honest members of `survivors`.
    pub fn sum_over(&self, survivors: &[bool]) -> Vec<(u32, i64)> {
        self.honest().filter(|&u| survivors[u as usize]).map(|u| (u, 1)).collect()
    }
}
