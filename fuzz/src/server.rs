//! A coordinator under clients that send what they like, in any order: live devices' messages, changed, signed again by
//! their senders, repeated, and phases that close at any moment.
//!
//! Beside not panicking, the coordinator must give the exact sum of what it accepted or an error, and accept no changed
//! content under an old signature. Only a wrong mask ciphertext excuses a sum that is noise: it makes its
//! sender's input so. In malicious mode all are shown one certificate, and no device finds fault with it.

use arbitrary::{Result, Unstructured};
use prost::Message;
use unisono_crypto::kdf::{Hasher, Label, label};
use unisono_crypto::ring::RingVector;
use unisono_protocol::client::ClientError;
use unisono_protocol::params::RoundParams;
use unisono_protocol::proto::{self, ClientMessage, Signed, client_message::Step, server_message::View};
use unisono_protocol::server::{Accepted, Closed, Outcome, Phase, Server};
use unisono_protocol::{ClientId, signed};

use super::tamper::Tamper;
use super::world::{CAST, Device, NOW, open, params};

/// Devices of a round.
pub const CLIENTS: usize = 7;

struct Round {
    malicious: bool,
    n_min: usize,
    devices: Vec<Device>,
    /// Packed masked vectors, as the devices made them and as the coordinator took them.
    made: Vec<Option<Vec<u8>>>,
    taken: Vec<Option<Vec<u8>>>,
    history: Vec<ClientMessage>,
    /// A changed mask ciphertext was accepted.
    noise: bool,
    certificate: Option<proto::Certificate>,
}

/// Runs one sequence.
pub fn run(data: &[u8]) {
    // A sequence ends where its bytes do.
    let _ = play(&mut Unstructured::new(data));
}

fn play(u: &mut Unstructured<'_>) -> Result<()> {
    let flags: u8 = u.arbitrary()?;
    // Signatures make a round ten times slower: one in four has them.
    let malicious = flags & 3 == 0;
    let dimension = 1 + u64::from(flags) / 4;
    let strength: u8 = u.arbitrary()?;
    // Up to two of seven drop out.
    let delta = [0.0, 0.2, 0.25, 0.29][strength as usize % 4];
    // One colluder, two, or three of seven, and two honest inputs more.
    let (gamma, n_min) = [(0.0, 3), (0.15, 4), (0.2, 4), (0.29, 5)][strength as usize / 4 % 4];
    let params = params(malicious, n_min, CLIENTS as u32, gamma, delta, dimension);
    if RoundParams::from_payload(&params.encode_to_vec()).is_err() {
        return Ok(());
    }
    let mut server = open(&params);
    let device = |i| {
        let mut device = Device::new(i, &server, 5);
        device.trust.policy.max_delta = 0.5;
        device
    };
    let devices = (0..CLIENTS).map(device).collect();
    let none = vec![None; CLIENTS];
    let (made, taken, history) = (none.clone(), none, Vec::new());
    let n_min = n_min as usize;
    let mut round = Round { malicious, n_min, devices, made, taken, history, noise: false, certificate: None };
    while !u.is_empty() {
        match u.arbitrary::<u8>()? % 6 {
            0 => round.act(&mut server, u.arbitrary()?, &u.arbitrary()?, false),
            1 => round.act(&mut server, u.arbitrary()?, &u.arbitrary()?, true),
            2 => round.upload(&mut server, u.arbitrary()?, &u.arbitrary()?, u.arbitrary()?),
            3 => {
                let which: u8 = u.arbitrary()?;
                let Some(old) = round.history.get(which as usize % round.history.len().max(1)).cloned() else {
                    continue;
                };
                // A message from the past, perhaps under another client's name.
                let Some(mut message) = u.arbitrary::<Tamper>()?.message(&old) else { continue };
                if u.arbitrary()? {
                    message.client_id = vec![which % 7; ClientId::LEN];
                }
                round.deliver(&mut server, &message, &old);
            }
            4 => {
                let stranger = ClientId([u.arbitrary()?; ClientId::LEN]);
                let _ = (server.view(stranger), server.awaited_upload(stranger), server.has_upload(stranger));
                let _ = (server.ready(), server.missing(), server.progress());
            }
            _ => match server.close() {
                Ok(Closed::Next(next)) => server = *next,
                Ok(Closed::Finished(outcome)) => {
                    round.check(&outcome);
                    return Ok(());
                }
                Err(_) => return Ok(()),
            },
        }
    }
    Ok(())
}

fn signed_of(message: &ClientMessage) -> Option<&Signed> {
    match message.step.as_ref()? {
        Step::Advert(signed) | Step::Upload(signed) | Step::Endorsement(signed) | Step::Unmask(signed) => Some(signed),
        Step::ShareKeys(shares) => shares.root.as_ref(),
    }
}

fn label_of(step: &Step) -> Label {
    match step {
        Step::Advert(_) => label::SIG_ADVERT,
        Step::ShareKeys(_) => label::SIG_SHARES,
        Step::Upload(_) => label::SIG_UPLOAD,
        Step::Endorsement(_) => label::SIG_ENDORSEMENT,
        Step::Unmask(_) => label::SIG_UNMASK,
    }
}

/// The mask ciphertexts of a phase 1 message.
fn mask_cts(message: &ClientMessage) -> Vec<Vec<u8>> {
    let Some(Step::ShareKeys(shares)) = &message.step else { return Vec::new() };
    let decode =
        |bytes: &Vec<u8>| proto::NeighbourShares::decode(bytes.as_slice()).expect("an accepted message").mask_ct;
    shares.messages.iter().map(decode).collect()
}

impl Round {
    /// A device takes what the coordinator shows it, and sends its step: changed on the way, or changed and signed by itself.
    fn act(&mut self, server: &mut Server, which: u8, tamper: &Tamper, signs: bool) {
        let i = which as usize % CLIENTS;
        let device = &mut self.devices[i];
        match (server.phase(), &device.session) {
            (Phase::Advertise, None) => device.join(server.offer()).expect("an honest offer"),
            _ => {
                if let Some(view) = server.view(device.id()) {
                    if let Some(View::Certificate(certificate)) = &view.view {
                        let first = self.certificate.get_or_insert_with(|| certificate.clone());
                        assert!(first == certificate, "two certificates in one round");
                    }
                    // A refused view leaves the device where it was.
                    let refused = device.receive(&view).err();
                    let fault = matches!(refused, Some(ClientError::Certificate(_)));
                    assert!(!fault, "a certificate that was made is refused: {refused:?}");
                }
            }
        }
        if let Some(made) = device.upload() {
            self.made[i].get_or_insert(made);
        }
        let Some(original) = device.message().cloned() else { return };
        self.history.push(original.clone());
        let message = if signs { Some(self.lie(i, &original, tamper)) } else { tamper.message(&original) };
        if let Some(message) = message {
            self.deliver(server, &message, &original);
        }
    }

    /// The step with a changed payload, well signed.
    fn lie(&self, i: usize, original: &ClientMessage, tamper: &Tamper) -> ClientMessage {
        let mut message = original.clone();
        let key = self.malicious.then(|| &CAST.identities[i].signing_key);
        let Some(step) = message.step.as_mut() else { return message };
        let label = label_of(step);
        match step {
            Step::ShareKeys(shares) => {
                if let Some(first) = shares.messages.first_mut() {
                    tamper.apply(first);
                }
                let Some(root) = shares.root.as_mut() else { return message };
                let Ok(mut payload) = proto::SharesRoot::decode(root.payload.as_slice()) else { return message };
                let tree = unisono_crypto::merkle::Tree::new(label::TREE_SHARES, &shares.messages);
                payload.root = tree.root().to_vec();
                *root = signed::sign(&payload, label, key);
            }
            Step::Advert(signed) | Step::Upload(signed) | Step::Endorsement(signed) | Step::Unmask(signed) => {
                let mut payload = std::mem::take(&mut signed.payload);
                tamper.apply(&mut payload);
                *signed = signed::sign_bytes(payload, label, key);
            }
        }
        message
    }

    fn deliver(&mut self, server: &mut Server, message: &ClientMessage, original: &ClientMessage) {
        let accepted = server.absorb(message, NOW);
        if accepted != Ok(Accepted::New) || message == original {
            return;
        }
        // What else is changed in phase 1 must not show in the sum.
        self.noise |= mask_cts(message) != mask_cts(original);
        let (Some(now), Some(then)) = (signed_of(message), signed_of(original)) else { return };
        if self.malicious && now.signature == then.signature {
            assert_eq!(now.payload, then.payload, "changed content was accepted under an old signature");
            assert_eq!(message.client_id, original.client_id, "a message was accepted under another client's name");
        }
    }

    /// Sends the vector that a device has masked, or another one, with its header changed to match if asked to.
    fn upload(&mut self, server: &mut Server, which: u8, tamper: &Tamper, signs: bool) {
        let i = which as usize % CLIENTS;
        let Some(mut bytes) = self.made[i].clone() else { return };
        tamper.apply(&mut bytes);
        let id = self.devices[i].id();
        if signs && let Some(original) = self.devices[i].message().cloned() {
            let mut message = original.clone();
            if let Some(Step::Upload(signed)) = &mut message.step
                && let Ok(mut header) = proto::UploadHeader::decode(signed.payload.as_slice())
            {
                header.hash = Hasher::new(label::UPLOAD).update(&bytes).finalize().to_vec();
                let key = self.malicious.then(|| &CAST.identities[i].signing_key);
                *signed = signed::sign(&header, label::SIG_UPLOAD, key);
                self.deliver(server, &message, &original);
            }
        }
        if server.absorb_upload(id, &bytes) == Ok(Accepted::New) {
            assert!(self.taken[i].is_none(), "two vectors of one client were taken");
            self.taken[i] = Some(bytes);
        }
    }

    /// The sum is that of the survivors' inputs, each changed as its upload was.
    fn check(&self, outcome: &Outcome) {
        assert!(outcome.survivors.len() >= self.n_min, "a sum over {}", outcome.survivors.len());
        let modulus = outcome.sum.modulus();
        let len = outcome.sum.len();
        let mut expected = vec![0u64; len];
        for (i, device) in self.devices.iter().enumerate().filter(|(_, d)| outcome.survivors.contains(&d.id())) {
            let taken = self.taken[i].as_ref().expect("a survivor has an upload");
            let made = self.made[i].as_ref().expect("a survivor has masked");
            let values = |bytes: &[u8]| RingVector::unpack(modulus, len, bytes).expect("an accepted upload").to_u64();
            let terms = values(taken).into_iter().zip(values(made)).zip(device.input.to_u64());
            for (sum, ((taken, made), input)) in expected.iter_mut().zip(terms) {
                *sum = sum.wrapping_add(input).wrapping_add(taken).wrapping_sub(made) & modulus.mask();
            }
        }
        assert!(self.noise || outcome.sum.to_u64() == expected, "a wrong sum over {:?}", outcome.survivors);
    }
}
