//! A round in memory in which single clients lie: shared by this crate's tests and the adversary target.

use prost::Message;
use unisono_crypto::kdf::{Label, label};
use unisono_crypto::merkle;
use unisono_crypto::sign::SigningKey;
use unisono_protocol::proto::{self, ClientMessage, client_message::Step};
use unisono_protocol::server::{Abort, Accepted, Closed, Outcome, Phase, Refusal, Server};
use unisono_protocol::signed;

use crate::world::{CAST, Device, NOW, open, plain_sum};

/// What came of it.
pub struct Lied {
    pub result: Result<Outcome, Abort>,
    pub devices: Vec<Device>,
    pub refusals: Vec<Refusal>,
    /// Whether the sum is that of the survivors' inputs.
    pub exact: bool,
}

/// Takes part for everybody up to the end; `tamper` sees each message before it is sent, and may withhold it: the device has
/// vanished then.
pub fn play(
    params: &proto::RoundParams,
    count: usize,
    mut tamper: impl FnMut(usize, Phase, ClientMessage) -> Option<ClientMessage>,
) -> Lied {
    play_seeing(params, count, false, |i, _, phase, message| tamper(i, phase, message))
}

/// The same; `tamper` also sees the device, which has taken its step. With `eager`, the last phase is closed as soon as the server
/// is ready, so that the last devices are not heard.
pub fn play_seeing(
    params: &proto::RoundParams,
    count: usize,
    eager: bool,
    mut tamper: impl FnMut(usize, &Device, Phase, ClientMessage) -> Option<ClientMessage>,
) -> Lied {
    let mut server: Server = open(params);
    let round = server.params().clone();
    let mut devices: Vec<Device> = (0..count).map(|i| Device::new(i, &server, 1)).collect();
    let mut refusals = Vec::new();
    let result = loop {
        let phase = server.phase();
        for (i, device) in devices.iter_mut().enumerate() {
            if eager && phase == Phase::Unmask && server.ready() {
                break;
            }
            match server.view(device.id()) {
                None if phase == Phase::Advertise => device.join(server.offer()).unwrap(),
                Some(view) => drop(device.receive(&view)),
                None => continue,
            }
            let message = device.message().cloned();
            let Some(message) = message.and_then(|message| tamper(i, device, phase, message)) else {
                device.session = None;
                continue;
            };
            match (server.absorb(&message, NOW), &message.step) {
                (Err(refusal), _) => refusals.push(refusal),
                // The vector follows its header, and nothing else.
                (Ok(Accepted::New), Some(Step::Upload(_))) => {
                    server.absorb_upload(device.id(), &device.upload().unwrap()).unwrap();
                }
                _ => {}
            }
        }
        match server.close() {
            Ok(Closed::Next(next)) => server = *next,
            Ok(Closed::Finished(outcome)) => break Ok(outcome),
            Err(abort) => break Err(abort),
        }
    };
    let exact = result.as_ref().is_ok_and(|outcome| outcome.sum == plain_sum(&devices, &outcome.survivors, &round));
    Lied { result, devices, refusals, exact }
}

/// Changes a signed step and signs it again with the device's own key.
pub fn resign<M: Message + Default>(i: usize, signed: &mut proto::Signed, label: Label, change: impl FnOnce(&mut M)) {
    let mut message = M::decode(signed.payload.as_slice()).unwrap();
    change(&mut message);
    *signed = signed::sign(&message, label, Some(&CAST.identities[i].signing_key));
}

/// Changes the messages to the neighbours that `change` picks, and signs their root again.
pub fn resign_shares(i: usize, shares: &mut proto::ShareKeys, change: impl Fn(&mut proto::NeighbourShares)) {
    resign_shares_with(&CAST.identities[i].signing_key, shares, change);
}

/// The same with any device's key.
pub fn resign_shares_with(
    key: &SigningKey,
    shares: &mut proto::ShareKeys,
    change: impl Fn(&mut proto::NeighbourShares),
) {
    for bytes in &mut shares.messages {
        let mut message = proto::NeighbourShares::decode(bytes.as_slice()).unwrap();
        change(&mut message);
        *bytes = message.encode_to_vec();
    }
    let signed = shares.root.as_mut().unwrap();
    let mut root = proto::SharesRoot::decode(signed.payload.as_slice()).unwrap();
    root.root = merkle::Tree::new(label::TREE_SHARES, &shares.messages).root().to_vec();
    *signed = signed::sign(&root, label::SIG_SHARES, Some(key));
}
