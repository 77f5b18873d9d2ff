//! A cohort with one advert that is not its owner's, played as far as its members go along: they share their keys (the secrets
//! of this round, that protect nothing yet) and go no further (section 3).

use std::collections::BTreeMap;

use prost::Message;
use unisono_crypto::kdf::label;
use unisono_crypto::merkle;
use unisono_protocol::bitmap;
use unisono_protocol::client::{ClientError, NeighbourFault};
use unisono_protocol::proto::{
    DeliveredShares, MaskingView, ShareKeys, SharesRoot, Signed, client_message::Step, server_message::View,
};
use unisono_protocol::server::Phase;
use unisono_protocol::signed::{self, SignedError};

use crate::coordinator::{Forged, members};
use crate::harness::{Stage, six, spent};
use crate::world::{CAST, Device};

fn shares(device: &Device) -> ShareKeys {
    let Some(Step::ShareKeys(shares)) = &device.message().unwrap().step else { panic!("it has shared no keys") };
    shares.clone()
}

/// What the coordinator delivers to device 0, which is the first neighbour of all.
fn delivery(shares: &ShareKeys) -> DeliveredShares {
    let tree = merkle::Tree::new(label::TREE_SHARES, &shares.messages);
    DeliveredShares {
        root: shares.root.clone(),
        message: shares.messages[0].clone(),
        position: 0,
        path: tree.path(0).unwrap().iter().map(|hash| hash.to_vec()).collect(),
    }
}

fn bad_signature(what: &'static str) -> NeighbourFault {
    SignedError::Signature { what }.into()
}

/// All devices of six but `at` are shown a cohort in which another advert stands at `at`. Whatever the coordinator then says
/// about it, device 0 masks nothing.
pub fn refused_before_masking(at: u32, advert: impl FnOnce(&Stage) -> Signed, what: &str) {
    let mut stage = Stage::at(Phase::Share, &six(), 6);
    let mut all = members(&stage.devices);
    let genuine = all[at as usize].advert.clone();
    let forged = advert(&stage);
    all[at as usize].advert = forged.clone();
    let params = stage.server().params().clone();
    let cohort = Forged::new(&params, &all, |_| {});
    // Its owner does not find its own advert there, and signs nothing.
    let error = stage.refuses(at as usize, View::Cohort(cohort.view(at)));
    assert_eq!(error, ClientError::OwnAdvert(at), "{what}");
    let others: Vec<u32> = (0..6).filter(|&i| i != at).collect();
    for &i in &others {
        stage.show(i as usize, View::Cohort(cohort.view(i))).unwrap();
    }

    let sent: BTreeMap<u32, ShareKeys> = others.iter().map(|&i| (i, shares(&stage.devices[i as usize]))).collect();
    let root = SharesRoot::decode(sent[&0].root.as_ref().unwrap().payload.as_slice()).unwrap();
    let view = |with_it: Option<&DeliveredShares>, absent: &[&Signed]| {
        let shared: Vec<bool> = (0..6).map(|i| i != at || with_it.is_some()).collect();
        let honest = others[1..].iter().map(|i| (*i, delivery(&sent[i])));
        let mut deliveries: BTreeMap<u32, DeliveredShares> = honest.collect();
        deliveries.extend(with_it.map(|delivery| (at, delivery.clone())));
        View::Masking(MaskingView {
            cohort_id: root.cohort_id.clone(),
            shared: bitmap::to_bytes(&shared),
            deliveries: deliveries.into_values().collect(),
            absent: absent.iter().map(|signed| (*signed).clone()).collect(),
        })
    };
    let neighbour = |why| ClientError::Neighbour { index: at, why };

    // It shared keys, says the coordinator, and signs for it; or has a colluder sign.
    let mut made_up = delivery(&sent[&1]);
    let in_its_name = SharesRoot { from: at, ..root.clone() };
    for key in [&CAST.coordinator, &CAST.identities[20].signing_key, &CAST.identities[1].signing_key] {
        made_up.root = Some(signed::sign(&in_its_name, label::SIG_SHARES, Some(key)));
        let error = stage.refuses(0, view(Some(&made_up), &[]));
        assert_eq!(error, neighbour(bad_signature("neighbour's shares")), "{what}");
    }
    // It shared none: with no proof, one too many, the genuine advert, the forged one.
    let count = |have| ClientError::TooFew { what: "that shared no keys have their advert's signature", have, need: 1 };
    assert_eq!(stage.refuses(0, view(None, &[])), count(0), "{what}");
    assert_eq!(stage.refuses(0, view(None, &[&genuine, &genuine])), count(2), "{what}");
    assert_eq!(stage.refuses(0, view(None, &[&genuine])), neighbour(NeighbourFault::OtherAdvert), "{what}");
    let error = stage.refuses(0, view(None, &[&forged]));
    assert_eq!(error, neighbour(bad_signature("neighbour's advert")), "{what}");
    assert!(!spent(&stage.devices[0]), "{what}: an input was masked");
    // With its true advert in the cohort the very same view is accepted: what was refused is the advert.
    let mut stage = Stage::at(Phase::Share, &six(), 6);
    stage.step(&[at as usize]);
    stage.close();
    let view = stage.masking_view(0);
    assert_eq!(view.absent, [genuine], "{what}");
    stage.completes(&[at as usize], 5);
}
