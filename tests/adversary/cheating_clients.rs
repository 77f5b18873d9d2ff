//! Clients that cheat, with well-signed messages: they are named and left out, and the others get their exact sum (sections 3
//! to 6). What they deal is in `dealers`.

use prost::Message;
use unisono_crypto::kdf::label;
use unisono_protocol::ClientId;
use unisono_protocol::proto::{self, ClientMessage, SecretKind, Signed, UnmaskShares, client_message::Step};
use unisono_protocol::server::{Fault, Phase, Reason, Report};

use crate::harness::{Stage, phase_of, six};
use crate::lying::{Lied, play, resign};
use crate::world::{CAST, NOW, params};

/// A complete graph of ten with threshold 6: nine holders of a secret leave room for three wrong shares.
pub fn ten() -> proto::RoundParams {
    params(true, 4, 10, 0.2, 0.25, 20)
}

pub fn id(i: u8) -> ClientId {
    ClientId([i; 16])
}

/// The one refusal, and that the others' sum is exact without the cheat.
fn left_out(lied: Lied, cheat: u8, survivors: usize) -> Reason {
    let [refusal] = &lied.refusals[..] else { panic!("{:?}", lied.refusals) };
    assert_eq!(refusal.client, Some(id(cheat)));
    let outcome = lied.result.unwrap();
    assert!(lied.exact && outcome.survivors.len() == survivors, "{outcome:?}");
    refusal.reason.clone()
}

/// Garbage in place of a step's content: unsigned, signed by the sender, and no message at all.
fn garbage(step: &mut Step, kind: u8) {
    let junk = vec![0xA5; 300];
    let (signed, label) = match step {
        Step::Advert(signed) => (signed, label::SIG_ADVERT),
        Step::ShareKeys(shares) => {
            if kind == 2 {
                shares.messages.iter_mut().for_each(|message| *message = junk.clone());
            }
            (shares.root.as_mut().unwrap(), label::SIG_SHARES)
        }
        Step::Upload(signed) => (signed, label::SIG_UPLOAD),
        Step::Endorsement(signed) => (signed, label::SIG_ENDORSEMENT),
        Step::Unmask(signed) => (signed, label::SIG_UNMASK),
    };
    *signed = match kind {
        0 => Signed { payload: junk, signature: signed.signature.clone() },
        1 => unisono_protocol::signed::sign_bytes(junk, label, Some(&CAST.identities[2].signing_key)),
        _ => Signed::default(),
    };
}

#[test]
fn a_client_that_sends_garbage_in_each_phase() {
    for phase in Phase::ALL {
        for kind in 0..3 {
            let lied = play(&six(), 6, |i, now, mut message| {
                if i == 2 && now == phase {
                    garbage(message.step.as_mut().unwrap(), kind);
                }
                // It is gone after that; an honest device would repeat itself.
                (i != 2 || now <= phase).then_some(message)
            });
            // Who lied before its upload counted is not in the sum; afterwards its input is, and the sum is exact all the same.
            let survivors = if phase <= Phase::Mask { 5 } else { 6 };
            let reason = left_out(lied, 2, survivors);
            // What is endorsed is known before it is signed: other bytes are not looked at further.
            let expected = match (kind, phase) {
                (_, Phase::Confirm) => "other_sets",
                (1, _) => "malformed",
                _ => "signature",
            };
            assert_eq!(reason.code(), expected, "{phase} {kind}");
        }
    }
}

#[test]
fn a_client_that_sends_nothing_from_each_phase_on() {
    for phase in Phase::ALL {
        let lied = play(&six(), 6, |i, now, message| (i != 2 || now < phase).then_some(message));
        let outcome = lied.result.unwrap();
        assert!(lied.exact && lied.refusals.is_empty());
        assert_eq!(outcome.survivors.len(), if phase <= Phase::Mask { 5 } else { 6 }, "{phase}");
    }
}

#[test]
fn a_client_that_repeats_another_clients_step() {
    for phase in Phase::ALL {
        let mut stolen: Option<ClientMessage> = None;
        let lied = play(&six(), 6, |i, now, message| {
            if now == phase && i == 1 {
                stolen = Some(message.clone());
            }
            match (&stolen, i) {
                (Some(stolen), 2) if now == phase => {
                    Some(ClientMessage { client_id: message.client_id, ..stolen.clone() })
                }
                _ => (i != 2 || now <= phase).then_some(message),
            }
        });
        let reason = left_out(lied, 2, if phase <= Phase::Mask { 5 } else { 6 });
        assert_eq!(reason.code(), "signature", "{phase}");
    }
}

#[test]
fn a_step_of_another_phase_in_each_phase() {
    // All that the client has to say in this round, from a first run of it: the same seeds give the same bytes.
    let mut steps: Vec<ClientMessage> = Vec::new();
    play(&six(), 6, |i, _, message| {
        if i == 2 {
            steps.push(message.clone());
        }
        Some(message)
    });
    assert_eq!(steps.len(), 5);
    for phase in Phase::ALL {
        let survivors = if phase <= Phase::Mask { 5 } else { 6 };
        let sends = |other: &ClientMessage| {
            play(&six(), 6, |i, now, message| {
                if i == 2 && now == phase {
                    return Some(other.clone());
                }
                (i != 2 || now < phase).then_some(message)
            })
        };
        for later in steps.iter().filter(|step| phase_of(step).unwrap() > phase) {
            let reason = left_out(sends(later), 2, survivors);
            assert_eq!(reason, Reason::WrongPhase { step: phase_of(later).unwrap() });
        }
        for earlier in steps.iter().filter(|step| phase_of(step).unwrap() < phase) {
            // The same again is a repeat, and does not count as the step of this phase.
            let lied = sends(earlier);
            let outcome = lied.result.unwrap();
            assert!(lied.exact && lied.refusals.is_empty(), "{:?}", lied.refusals);
            assert_eq!((outcome.survivors.len(), &outcome.reports[..]), (survivors, &[][..]));
            // With other content, which the client has signed as well, it can't take back the first.
            let mut other = earlier.clone();
            garbage(other.step.as_mut().unwrap(), 1);
            assert_eq!(left_out(sends(&other), 2, survivors), Reason::Conflict);
        }
    }
}

#[test]
fn a_step_that_arrives_after_its_phase() {
    // An honest one, held up on the way: each later phase refuses it, and the round goes on.
    for late in [Phase::Advertise, Phase::Share, Phase::Mask, Phase::Confirm] {
        let mut stage = Stage::at(late, &six(), 6);
        let (offer, view) = (stage.server().offer().clone(), stage.server().view(id(2)));
        match view {
            Some(view) => stage.devices[2].receive(&view).unwrap(),
            None => stage.devices[2].join(&offer).unwrap(),
        }
        let message = stage.devices[2].message().unwrap().clone();
        assert_eq!(phase_of(&message), Some(late));
        while stage.server().phase() < Phase::Unmask {
            stage.step(&[2]);
            stage.close();
            let refusal = stage.server_mut().absorb(&message, NOW).unwrap_err();
            assert_eq!((refusal.client, refusal.reason), (Some(id(2)), Reason::WrongPhase { step: late }));
        }
        stage.completes(&[2], if late <= Phase::Mask { 5 } else { 6 });
    }
}

/// Device 0 changes what it releases.
fn releases(change: impl Fn(&mut UnmaskShares)) -> Lied {
    play(&ten(), 10, |i, phase, mut message| {
        if let (0, Phase::Unmask, Some(Step::Unmask(signed))) = (i, phase, &mut message.step) {
            resign::<UnmaskShares>(0, signed, label::SIG_UNMASK, &change);
        }
        Some(message)
    })
}

/// Every wrong share is laid at the door of its releaser, and the sum is exact.
fn attributed(lied: Lied, shares: usize) {
    let outcome = lied.result.unwrap();
    assert!(lied.exact && lied.refusals.is_empty());
    let wrong: Vec<&Report> = outcome.reports.iter().filter(|report| report.what == Fault::WrongShare).collect();
    assert_eq!(wrong.len(), shares, "{:?}", outcome.reports);
    assert!(wrong.iter().all(|report| report.by == id(0)));
}

#[test]
fn shares_from_a_wrong_point() {
    // Each is the share of the right secret at another abscissa: what another holder released in a first run of the same round.
    let mut held: Vec<UnmaskShares> = Vec::new();
    play(&ten(), 10, |_, phase, message| {
        if let (Phase::Unmask, Some(Step::Unmask(signed))) = (phase, &message.step) {
            held.push(UnmaskShares::decode(signed.payload.as_slice()).unwrap());
        }
        Some(message)
    });
    attributed(
        releases(|unmask| {
            assert_eq!(*unmask, held[0], "the same seeds, the same shares");
            for share in &mut unmask.shares {
                let holder = if share.of == 9 { 8 } else { 9 };
                share.value = held[holder].shares.iter().find(|other| other.of == share.of).unwrap().value.clone();
            }
        }),
        9,
    );
}

#[test]
fn shares_of_another_owner() {
    // Right points on the wrong clients' polynomials.
    attributed(
        releases(|unmask| {
            let first = unmask.shares[0].value.clone();
            for i in 1..unmask.shares.len() {
                let next = unmask.shares[i].value.clone();
                unmask.shares[i - 1].value = next;
            }
            unmask.shares.last_mut().unwrap().value = first;
        }),
        9,
    );
}

#[test]
fn shares_that_are_random_numbers() {
    attributed(releases(|unmask| unmask.shares.iter_mut().for_each(|share| share.value = vec![3; 32])), 9);
}

#[test]
fn shares_that_are_no_numbers_missing_doubled_or_of_the_other_secret() {
    for change in [
        (|unmask| unmask.shares[0].value = vec![0xff; 32]) as fn(&mut UnmaskShares),
        |unmask| unmask.shares[3].kind = SecretKind::Mask as i32,
        |unmask| drop(unmask.shares.pop()),
        |unmask| unmask.shares[1] = unmask.shares[0].clone(),
        |unmask| unmask.unreadable.push(5),
        |unmask| unmask.shares[8].of = 77,
        |unmask| unmask.self_mask_secret[0] ^= 1,
        |unmask| unmask.self_mask_secret = vec![0xff; 32],
    ] {
        let reason = left_out(releases(change), 0, 10);
        assert!(matches!(reason, Reason::Shape { what: "revealed shares", .. }), "{reason}");
    }
    for change in [(|unmask| unmask.shares[0].value.truncate(31)) as fn(&mut UnmaskShares), |unmask| {
        unmask.self_mask_secret.clear()
    }] {
        assert_eq!(left_out(releases(change), 0, 10).code(), "malformed");
    }
}

/// Client 4 endorses something else, or signs something else: it is not counted, and the others are enough.
#[test]
fn an_endorsement_of_other_sets_or_with_another_signature() {
    let endorses = |change: &dyn Fn(&mut Signed)| {
        let lied = play(&ten(), 10, |i, _, mut message| {
            if let (4, Some(Step::Endorsement(signed))) = (i, &mut message.step) {
                change(signed);
            }
            Some(message)
        });
        // Its vector is in the sum, and so are its shares.
        left_out(lied, 4, 10)
    };
    let key = Some(&CAST.identities[4].signing_key);
    let signs = |payload: Vec<u8>| unisono_protocol::signed::sign_bytes(payload, label::SIG_ENDORSEMENT, key);
    for byte in [0, 32, 64, 96] {
        let reason = endorses(&|signed| {
            signed.payload[byte] ^= 1;
            *signed = signs(signed.payload.clone());
        });
        assert_eq!(reason, Reason::OtherSets, "{byte}");
    }
    assert_eq!(endorses(&|signed| *signed = signs([&signed.payload[..], &[0]].concat())), Reason::OtherSets);
    assert_eq!(endorses(&|signed| signed.signature[70] ^= 1).code(), "signature");
    assert_eq!(endorses(&|signed| signed.signature.clear()).code(), "signature");
}

#[test]
fn shares_for_a_graph_of_its_own() {
    for change in [
        (|shares| drop(shares.messages.pop())) as fn(&mut proto::ShareKeys),
        |shares| shares.messages.swap(0, 1),
        |shares| shares.messages[0] = shares.messages[1].clone(),
        |shares| shares.messages[0] = vec![0x80; 64],
        |shares| shares.messages[2].push(0),
        |shares| shares.messages[3].resize(3_000_000, 0),
        |shares| shares.root = None,
        |shares| {
            let mut message = proto::NeighbourShares::decode(shares.messages[0].as_slice()).unwrap();
            message.mask_commitment.pop();
            shares.messages[0] = message.encode_to_vec();
        },
    ] {
        let lied = play(&six(), 6, |i, _, mut message| {
            if let (2, Some(Step::ShareKeys(shares))) = (i, &mut message.step) {
                change(shares);
                if let Some(root) = &mut shares.root {
                    let tree = unisono_crypto::merkle::Tree::new(label::TREE_SHARES, &shares.messages);
                    let count = shares.messages.len() as u32;
                    resign::<proto::SharesRoot>(2, root, label::SIG_SHARES, |root| {
                        (root.root, root.count) = (tree.root().to_vec(), count);
                    });
                }
            }
            Some(message)
        });
        let reason = left_out(lied, 2, 5);
        assert!(matches!(reason, Reason::Shape { what: "shares", .. }), "{reason}");
    }
}
