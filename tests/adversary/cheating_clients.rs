//! Clients that cheat, with well-signed messages: they are named and left out, and the others get their exact sum. Or, where
//! nobody can have the sum any more, the round ends with the name and nothing was learned (sections 4 and 6).

use prost::Message;
use unisono_crypto::kdf::label;
use unisono_crypto::kem::EncapsulationKey;
use unisono_crypto::shamir::{self, SecretScalar};
use unisono_protocol::ClientId;
use unisono_protocol::proto::{
    self, ClientMessage, ConsistencyTags, SecretKind, Signed, UnmaskShares, client_message::Step,
};
use unisono_protocol::server::{Abort, Fault, Phase, Reason, Report};

use crate::harness::{phase_of, six};
use crate::lying::{Lied, play, resign, resign_shares};
use crate::world::{CAST, Device, NOW, open, params};

/// A complete graph of ten with threshold 6: nine holders of a secret leave room for one wrong share.
fn ten() -> proto::RoundParams {
    params(true, 4, 10, 0.2, 0.25, 20)
}

fn id(i: u8) -> ClientId {
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
        Step::Tags(signed) => (signed, label::SIG_CONFIRM),
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
            let expected: &[&str] = match kind {
                1 => &["malformed"],
                _ => &["signature"],
            };
            assert!(expected.contains(&reason.code()), "{phase} {kind}: {reason}");
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
    // Whatever a client of another round has to say in another phase.
    let mut steps: Vec<ClientMessage> = Vec::new();
    play(&six(), 6, |i, _, message| {
        if i == 2 {
            steps.push(message.clone());
        }
        Some(message)
    });
    assert_eq!(steps.len(), 5);
    for phase in Phase::ALL {
        for other in steps.iter().filter(|step| phase_of(step).unwrap() > phase) {
            let lied = play(&six(), 6, |i, now, message| {
                if i == 2 && now == phase {
                    return Some(ClientMessage { round_id: message.round_id, ..other.clone() });
                }
                (i != 2 || now < phase).then_some(message)
            });
            let reason = left_out(lied, 2, if phase <= Phase::Mask { 5 } else { 6 });
            assert_eq!(reason, Reason::WrongPhase { step: phase_of(other).unwrap() });
        }
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
    // Each is the share of the same secret at another abscissa, as far as anybody can tell: another client's share.
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
        |unmask| unmask.invalid_tags.push(0),
        |unmask| unmask.shares[8].of = 77,
    ] {
        let reason = left_out(releases(change), 0, 10);
        assert!(matches!(reason, Reason::Shape { what: "released shares", .. }), "{reason}");
    }
    let reason = left_out(releases(|unmask| unmask.shares[0].value.truncate(31)), 0, 10);
    assert_eq!(reason.code(), "malformed");
}

/// Device 3 deals shares of another secret than the one it committed to, to its first `victims` neighbours. It is honest
/// otherwise, and vanishes in phase `until`.
fn deals_wrong_shares(victims: u32, until: Option<Phase>) -> Lied {
    // A cheat writes its own message: keys and coins are its own, so it is free in what it seals.
    let mut adverts: Vec<Vec<u8>> = Vec::new();
    play(&ten(), 10, |i, phase, mut message| {
        if let (Phase::Advertise, Some(Step::Advert(signed))) = (phase, &message.step) {
            adverts.push(proto::Advert::decode(signed.payload.as_slice()).unwrap().channel_ek);
        }
        if let (3, Some(Step::ShareKeys(shares))) = (i, &mut message.step) {
            resign_shares(3, shares, |to| {
                if to.to < victims {
                    // Sealed under a fresh secret to the same recipient, with a key that the recipient does not derive: what
                    // it opens is not what was meant. (A wrong sealed pair is unreadable; see below for wrong values.)
                    let key = EncapsulationKey::from_bytes(&adverts[to.to as usize]).unwrap();
                    to.channel_ct = key.encapsulate_with_coins(&[1; 64]).0;
                }
            });
        }
        until.is_none_or(|until| i != 3 || phase < until).then_some(message)
    })
}

#[test]
fn shares_that_the_recipient_can_not_open() {
    let lied = deals_wrong_shares(2, None);
    let outcome = lied.result.unwrap();
    assert!(lied.exact);
    let unreadable = |by| Report { about: id(3), by: id(by), what: Fault::UnreadableShares };
    assert!(outcome.reports.contains(&unreadable(0)) && outcome.reports.contains(&unreadable(1)), "{outcome:?}");
    // Enough of them, and there is no sum; nothing was learned of it, and the name is there.
    let lied = deals_wrong_shares(10, None);
    assert_eq!(lied.result.unwrap_err(), Abort::UnreadableShares { client: id(3), unreadable: 9, have: 0, need: 6 });
}

#[test]
fn a_client_that_made_a_round_end_comes_again() {
    // The coordinator names it to the next rounds, which refuse its advert and no other one.
    let mut server = open(&ten());
    server.leave_out(id(3), 1, 11);
    for i in 0..10 {
        let mut device = Device::new(i, &server, 1);
        device.join(server.offer()).unwrap();
        let taken = server.absorb(device.message().unwrap(), NOW);
        match taken {
            Err(refusal) => assert_eq!((i, refusal.reason), (3, Reason::LeftOut { since: 1, until: 11 })),
            Ok(_) => assert_ne!(i, 3),
        }
    }
    assert_eq!(server.progress().answered, 9);
}

#[test]
fn shares_of_a_wrong_secret() {
    // Some holders have shares of another secret: which ones comes out, and the round completes. (What each neighbour holds is
    // what it releases, so the lie is told where it is easiest to tell.)
    let other = {
        let mut rng = <rand_chacha::ChaCha8Rng as rand_chacha::rand_core::SeedableRng>::seed_from_u64(3);
        let secret = SecretScalar::random(&mut rng);
        shamir::split(&secret, 6, &(1..=10).collect::<Vec<_>>(), &mut rng).unwrap()
    };
    let dealt_to = |holders: usize| {
        play(&ten(), 10, |i, phase, mut message| {
            if let (true, Phase::Unmask, Some(Step::Unmask(signed))) = (i < holders, phase, &mut message.step) {
                resign::<UnmaskShares>(i, signed, label::SIG_UNMASK, |unmask| {
                    let share = unmask.shares.iter_mut().find(|share| share.of == 9).unwrap();
                    share.value = other[i].value_bytes().to_vec();
                });
            }
            Some(message)
        })
    };
    let lied = dealt_to(1);
    let outcome = lied.result.unwrap();
    assert!(lied.exact);
    assert_eq!(outcome.reports, [Report { about: id(9), by: id(0), what: Fault::WrongShare }]);
    // All of them: nobody has the committed secret, so nobody can have the sum. It is never a wrong sum.
    let lied = dealt_to(9);
    let abort = lied.result.unwrap_err();
    assert_eq!(abort, Abort::WrongShares { client: id(9) });
    assert_eq!(abort.suspect(), Some(id(9)), "the next rounds go on without it");
}

#[test]
fn a_mask_ciphertext_that_does_not_come_from_the_secret() {
    let cheat = |vanishes: bool| {
        play(&ten(), 10, move |i, phase, mut message| {
            if let (3, Some(Step::ShareKeys(shares))) = (i, &mut message.step) {
                resign_shares(3, shares, |to| to.mask_ct.iter_mut().for_each(|byte| *byte ^= 1));
            }
            (i != 3 || !vanishes || phase < Phase::Mask).then_some(message)
        })
    };
    // Vanished: its masks can't be removed, the round ends with its name. (Staying, it has only spoilt the sum by an input of
    // its choice, as any client can.)
    assert_eq!(cheat(true).result.unwrap_err(), Abort::WrongCiphertext { client: id(3) });
    assert_eq!(cheat(false).result.unwrap().survivors.len(), 10);
}

#[test]
fn wrong_tags() {
    let lied = play(&ten(), 10, |i, _, mut message| {
        if let (4, Some(Step::Tags(signed))) = (i, &mut message.step) {
            resign::<ConsistencyTags>(4, signed, label::SIG_CONFIRM, |tags| {
                tags.tags.iter_mut().for_each(|tag| tag.tag[15] ^= 1);
            });
        }
        Some(message)
    });
    let outcome = lied.result.unwrap();
    assert!(lied.exact);
    let about = |report: &&Report| **report == Report { about: id(4), by: report.by, what: Fault::InvalidTag };
    assert_eq!(outcome.reports.iter().filter(about).count(), 9, "{outcome:?}");
}

#[test]
fn tags_that_are_not_one_for_each_neighbour() {
    for change in [
        (|tags| drop(tags.tags.pop())) as fn(&mut ConsistencyTags),
        |tags| tags.tags[0].tag.push(1),
        |tags| tags.tags.swap(0, 1),
        |tags| tags.tags[0].neighbour = 4,
    ] {
        let lied = play(&ten(), 10, |i, _, mut message| {
            if let (4, Some(Step::Tags(signed))) = (i, &mut message.step) {
                resign::<ConsistencyTags>(4, signed, label::SIG_CONFIRM, change);
            }
            Some(message)
        });
        // Its vector is in the sum, and it is not asked for shares any more.
        assert_eq!(left_out(Lied { refusals: lied.refusals[..1].to_vec(), ..lied }, 4, 10).code(), "shape");
    }
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
