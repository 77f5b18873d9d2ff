//! An honest cohort in memory, stopped in any phase. An attack shows one of its devices something else; what leaves the
//! devices is kept, so that a test can count which secrets went out.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use unisono_protocol::ClientId;
use unisono_protocol::bitmap;
use unisono_protocol::client::{ClientError, Session};
use unisono_protocol::policy::ParticipationRecord;
use unisono_protocol::proto::{
    self, Certificate, ClientMessage, CohortView, MaskingView, RoundParams, SecretKind, ServerMessage, SurvivorsView,
    client_message::Step, server_message::View,
};
use unisono_protocol::server::{Closed, Outcome, Phase, Server};

pub use crate::malicious::forty;
use crate::world::{Device, NOW, open, params, plain_sum};

/// A complete graph of six: threshold 4, four must sign; one may collude, one may drop out.
pub fn six() -> RoundParams {
    params(true, 4, 6, 0.16, 0.2, 20)
}

/// What left the devices of one client's secrets.
#[derive(Debug, Default)]
pub struct Released {
    /// From whom shares of its self-mask secret.
    pub of_self: BTreeSet<u32>,
    /// From whom shares of its mask secret.
    pub of_mask: BTreeSet<u32>,
    /// Whether it gave its self-mask secret itself.
    pub own: bool,
}

/// Everything that left the devices.
#[derive(Default)]
pub struct Outbox(pub Vec<ClientMessage>);

impl Outbox {
    pub fn push(&mut self, message: &ClientMessage) {
        self.0.push(message.clone());
    }

    /// By owner's cohort index: what was released of its secrets.
    pub fn released(&self) -> BTreeMap<u32, Released> {
        let mut released: BTreeMap<u32, Released> = BTreeMap::new();
        for message in &self.0 {
            let Some(Step::Unmask(signed)) = &message.step else { continue };
            let unmask = proto::UnmaskShares::decode(signed.payload.as_slice()).unwrap();
            for share in unmask.shares {
                let Released { of_self, of_mask, .. } = released.entry(share.of).or_default();
                let set = if share.kind() == SecretKind::SelfMask { of_self } else { of_mask };
                set.insert(unmask.from);
            }
            released.entry(unmask.from).or_default().own = !unmask.self_mask_secret.is_empty();
        }
        released
    }

    /// Whether the coordinator has what it takes to open one client's input: both of its secrets.
    pub fn opens_an_input(&self, threshold: usize) -> bool {
        self.released().values().any(|released| {
            let Released { of_self, of_mask, own } = released;
            (*own || of_self.len() >= threshold) && of_mask.len() >= threshold
        })
    }

    /// Encoded steps of one kind that one client sent, without repeats. Who lost its stored bytes signs the same content afresh, so
    /// signatures don't count.
    pub fn distinct(&self, client: ClientId, phase: Phase) -> BTreeSet<Vec<u8>> {
        let of_client = self.0.iter().filter(|message| message.client_id == client.0);
        of_client.filter(|message| phase_of(message) == Some(phase)).map(unsigned).collect()
    }
}

fn unsigned(message: &ClientMessage) -> Vec<u8> {
    let mut message = message.clone();
    match message.step.as_mut().unwrap() {
        Step::Advert(signed) | Step::Upload(signed) | Step::Endorsement(signed) | Step::Unmask(signed) => {
            signed.signature.clear();
        }
        Step::ShareKeys(shares) => shares.root.as_mut().unwrap().signature.clear(),
    }
    message.encode_to_vec()
}

/// Whether a device has recorded that it masked an input.
pub fn spent(device: &Device) -> bool {
    device.record.entry("test").unwrap().is_some_and(|entry| entry.masked_for.is_some())
}

/// What a device would keep on disk now.
pub fn saved(device: &Device) -> Vec<u8> {
    device.session.as_ref().unwrap().save().unwrap().to_vec()
}

/// Restarts device `i` from bytes that it saved at some time. Its record is the one at hand.
pub fn restart(stage: &mut Stage, i: usize, bytes: &[u8]) {
    let offer = stage.server().offer().clone();
    let device = &mut stage.devices[i];
    device.session = Some(Session::resume(bytes, &offer, device.identity.clone(), &device.trust).unwrap());
}

/// The survivors that are not `gone`.
pub fn without(view: &SurvivorsView, n: usize, gone: &[u32]) -> SurvivorsView {
    let mut survivors = bitmap::from_bytes(&view.survivors, n).unwrap();
    gone.iter().for_each(|&i| survivors[i as usize] = false);
    SurvivorsView { survivors: bitmap::to_bytes(&survivors), ..view.clone() }
}

pub fn phase_of(message: &ClientMessage) -> Option<Phase> {
    Some(match message.step.as_ref()? {
        Step::Advert(_) => Phase::Advertise,
        Step::ShareKeys(_) => Phase::Share,
        Step::Upload(_) => Phase::Mask,
        Step::Endorsement(_) => Phase::Confirm,
        Step::Unmask(_) => Phase::Unmask,
    })
}

/// A round in the given phase: every device has taken the steps before, and has not been shown this phase's view.
pub struct Stage {
    server: Option<Server>,
    pub devices: Vec<Device>,
    pub outbox: Outbox,
}

impl Stage {
    pub fn at(phase: Phase, params: &RoundParams, count: usize) -> Self {
        Self::of(open(params), phase, count)
    }

    /// As [`Self::at`], with a server that was opened elsewhere.
    pub fn of(server: Server, phase: Phase, count: usize) -> Self {
        let devices = (0..count).map(|i| Device::new(i, &server, 11)).collect();
        let mut stage = Self { server: Some(server), devices, outbox: Outbox::default() };
        while stage.server().phase() < phase {
            stage.step(&[]);
            stage.close();
        }
        stage
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    pub fn server_mut(&mut self) -> &mut Server {
        self.server.as_mut().unwrap()
    }

    /// What the honest coordinator shows device `i` in this phase.
    fn view(&self, i: usize) -> View {
        self.server().view(self.devices[i].id()).unwrap().view.unwrap()
    }

    pub fn cohort_view(&self, i: usize) -> CohortView {
        let View::Cohort(view) = self.view(i) else { panic!("another phase") };
        view
    }

    pub fn masking_view(&self, i: usize) -> MaskingView {
        let View::Masking(view) = self.view(i) else { panic!("another phase") };
        view
    }

    pub fn survivors_view(&self, i: usize) -> SurvivorsView {
        let View::Survivors(view) = self.view(i) else { panic!("another phase") };
        view
    }

    pub fn certificate_view(&self, i: usize) -> Certificate {
        let View::Certificate(view) = self.view(i) else { panic!("another phase") };
        view
    }

    /// Shows device `i` a view; what it sends then goes to the outbox, not to the server.
    pub fn show(&mut self, i: usize, view: View) -> Result<(), ClientError> {
        let before = self.devices[i].message().cloned();
        let result = self.devices[i].receive(&ServerMessage { view: Some(view) });
        let after = self.devices[i].message();
        if let Some(message) = after.filter(|_| after != before.as_ref()) {
            self.outbox.push(message);
        }
        result
    }

    /// Shows device `i` a view that it must refuse: it has nothing new to send then, no message and no masked input.
    pub fn refuses(&mut self, i: usize, view: View) -> ClientError {
        let owes = |device: &Device| (device.message().cloned(), device.upload());
        let before = owes(&self.devices[i]);
        let error = self.show(i, view).expect_err("the attack went through");
        assert!(owes(&self.devices[i]) == before, "something new leaves the device after {error}");
        error
    }

    /// Shows device `i` a view that closes the round for it: nothing leaves it any more.
    pub fn closes(&mut self, i: usize, view: View) -> ClientError {
        let error = self.devices[i].receive(&ServerMessage { view: Some(view) }).expect_err("the attack went through");
        let session = self.devices[i].session.as_ref().unwrap();
        assert!(session.message().is_none() && session.save().is_err(), "the secrets are kept after {error}");
        error
    }

    /// Everybody but the given devices gets the honest view and takes its step.
    pub fn step(&mut self, gone: &[usize]) {
        let server = self.server.as_mut().unwrap();
        let phase = server.phase();
        for (_, device) in self.devices.iter_mut().enumerate().filter(|(i, _)| !gone.contains(i)) {
            match server.view(device.id()) {
                Some(view) => device.receive(&view).unwrap(),
                None if phase == Phase::Advertise && device.session.is_none() => {
                    device.join(server.offer()).unwrap();
                }
                None => continue,
            }
            let message = device.message().unwrap();
            self.outbox.push(message);
            server.absorb(message, NOW).unwrap();
            if let Some(bytes) = device.upload() {
                server.absorb_upload(device.id(), &bytes).unwrap();
            }
        }
    }

    pub fn close(&mut self) -> Option<Outcome> {
        match self.server.take().unwrap().close().unwrap() {
            Closed::Next(next) => {
                self.server = Some(*next);
                None
            }
            Closed::Finished(outcome) => Some(outcome),
        }
    }

    /// Goes on honestly without the given devices, and checks that the sum is exact over so many.
    pub fn completes(mut self, gone: &[usize], survivors: usize) -> Outcome {
        let params = self.server().params().clone();
        loop {
            self.step(gone);
            if let Some(outcome) = self.close() {
                assert_eq!(outcome.survivors.len(), survivors);
                assert!(outcome.sum == plain_sum(&self.devices, &outcome.survivors, &params), "a wrong sum");
                return outcome;
            }
        }
    }
}
