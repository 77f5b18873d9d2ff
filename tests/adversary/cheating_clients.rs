//! Clients that cheat, with well-signed messages: they are named and left out, and the others get their exact sum. Or, where
//! nobody can have the sum any more, the round ends with the name and nothing was learned (sections 4 and 6).

use std::ops::Range;

use prost::Message;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use unisono_crypto::aead;
use unisono_crypto::kdf::label;
use unisono_crypto::kem::EncapsulationKey;
use unisono_crypto::shamir::{self, SecretScalar, Share};
use unisono_protocol::ClientId;
use unisono_protocol::proto::{
    self, ClientMessage, ConsistencyTags, SecretKind, Signed, UnmaskShares, client_message::Step,
};
use unisono_protocol::server::{Abort, Fault, Phase, Reason, Report};

use crate::derivation;
use crate::harness::{Stage, phase_of, six};
use crate::lying::{Lied, play, resign, resign_shares};
use crate::world::{CAST, Device, NOW, open, params};

/// A complete graph of ten with threshold 6: nine holders of a secret leave room for three wrong shares.
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
        |unmask| unmask.invalid_tags.push(0),
        |unmask| unmask.shares[8].of = 77,
    ] {
        let reason = left_out(releases(change), 0, 10);
        assert!(matches!(reason, Reason::Shape { what: "released shares", .. }), "{reason}");
    }
    let reason = left_out(releases(|unmask| unmask.shares[0].value.truncate(31)), 0, 10);
    assert_eq!(reason.code(), "malformed");
}

/// Device 3 changes what it sends the clients in `holders`: `change` gets everybody's adverts, the cohort id and the message.
/// It is honest otherwise; if it `vanishes`, it does so after that.
fn deals(
    holders: Range<u32>,
    vanishes: bool,
    change: impl Fn(&[proto::Advert], &[u8], &mut proto::NeighbourShares),
) -> Lied {
    let mut adverts: Vec<proto::Advert> = Vec::new();
    play(&ten(), 10, |i, phase, mut message| {
        if let Some(Step::Advert(signed)) = &message.step {
            adverts.push(proto::Advert::decode(signed.payload.as_slice()).unwrap());
        }
        if let (3, Some(Step::ShareKeys(shares))) = (i, &mut message.step) {
            let root = proto::SharesRoot::decode(shares.root.as_ref().unwrap().payload.as_slice()).unwrap();
            resign_shares(3, shares, |message| {
                if holders.contains(&message.to) {
                    change(&adverts, &root.cohort_id, message);
                }
            });
        }
        (i != 3 || !vanishes || phase < Phase::Mask).then_some(message)
    })
}

/// Device 3 sends its first `victims` neighbours an encapsulation that does not give the key under which it sealed: what it
/// sealed is right, and can't be opened.
fn deals_unreadable_shares(victims: u32) -> Lied {
    deals(0..victims, false, |adverts, _, message| {
        let key = EncapsulationKey::from_bytes(&adverts[message.to as usize].channel_ek).unwrap();
        message.channel_ct = key.encapsulate_with_coins(&[1; 64]).0;
    })
}

#[test]
fn shares_that_the_recipient_can_not_open() {
    let lied = deals_unreadable_shares(2);
    let outcome = lied.result.unwrap();
    assert!(lied.exact);
    let unreadable = |by| Report { about: id(3), by: id(by), what: Fault::UnreadableShares };
    assert!(outcome.reports.contains(&unreadable(0)) && outcome.reports.contains(&unreadable(1)), "{outcome:?}");
    // Enough of them, and there is no sum; nothing was learned of it, and the name is there.
    let lied = deals_unreadable_shares(10);
    let (client, at_fault) = (id(3), true);
    assert_eq!(lied.result.unwrap_err(), Abort::UnreadableShares { client, unreadable: 9, have: 0, need: 6, at_fault });
}

#[test]
fn too_many_that_vanish_before_they_release_their_shares() {
    // Five of ten are left, each with shares of the other four: no secret has six.
    let lied = play(&ten(), 10, |i, phase, message| (i < 5 || phase < Phase::Unmask).then_some(message));
    assert!(lied.refusals.is_empty());
    let abort = lied.result.unwrap_err();
    assert_eq!(abort, Abort::TooFewShares { client: id(0), have: 4, need: 6 });
    assert_eq!(abort.suspect(), None, "nobody is to blame");
}

#[test]
fn a_client_that_made_a_round_end_comes_again() {
    // The coordinator names it to the next rounds, which refuse its advert and no other one.
    let mut server = open(&ten());
    server.suspend(id(3), 1, 11);
    for i in 0..10 {
        let mut device = Device::new(i, &server, 1);
        device.join(server.offer()).unwrap();
        let taken = server.absorb(device.message().unwrap(), NOW);
        match taken {
            Err(refusal) => assert_eq!((i, refusal.reason), (3, Reason::Suspended { since: 1, until: 11 })),
            Ok(_) => assert_ne!(i, 3),
        }
    }
    assert_eq!(server.progress().answered, 9);
}

/// The shares for all ten clients of a secret that nobody has committed to.
fn of_another_secret(seed: u64) -> Vec<Share> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let secret = SecretScalar::random(&mut rng);
    shamir::split(&secret, 6, &(1..=10).collect::<Vec<_>>(), &mut rng).unwrap()
}

/// Device 3 deals the clients in `holders` shares of two other secrets than those it committed to, sealed as they should be.
/// Those of its self mask count if it stays, those of its mask secret if it `vanishes`.
fn deals_other_secrets(holders: Range<u32>, vanishes: bool) -> Lied {
    let (of_self, of_mask) = (of_another_secret(3), of_another_secret(4));
    deals_sealed(holders, vanishes, |to| {
        let pair = proto::SharePair {
            from: 3,
            to,
            self_mask_share: of_self[to as usize].value_bytes().to_vec(),
            mask_share: of_mask[to as usize].value_bytes().to_vec(),
        };
        pair.encode_to_vec()
    })
}

/// Device 3 seals for the clients in `holders`, as it should be sealed, what `content` gives for each.
fn deals_sealed(holders: Range<u32>, vanishes: bool, content: impl Fn(u32) -> Vec<u8>) -> Lied {
    deals(holders, vanishes, |adverts, cohort_id, message| {
        let end = |index: u32| {
            let advert = &adverts[index as usize];
            derivation::End(index, &advert.client_id, &advert.channel_ek)
        };
        let channel = EncapsulationKey::from_bytes(&adverts[message.to as usize].channel_ek).unwrap();
        let (channel_ct, secret) = channel.encapsulate_with_coins(&[1; 64]);
        let key = derivation::share_key(&secret, cohort_id, end(3), end(message.to));
        message.channel_ct = channel_ct;
        message.sealed = aead::seal(&key, cohort_id, &content(message.to)).unwrap();
    })
}

#[test]
fn shares_that_are_sealed_well_and_are_none() {
    let pair = |to: u32| proto::SharePair { from: 3, to, self_mask_share: vec![1; 32], mask_share: vec![1; 32] };
    let contents: [&dyn Fn(u32) -> Vec<u8>; 7] = [
        &|_| vec![0xA5; 80],
        &|_| Vec::new(),
        &|to| proto::SharePair { mask_share: vec![1; 31], ..pair(to) }.encode_to_vec(),
        // Not below the order of the group.
        &|to| proto::SharePair { self_mask_share: vec![0xff; 32], ..pair(to) }.encode_to_vec(),
        &|to| proto::SharePair { from: to, to: 3, ..pair(to) }.encode_to_vec(),
        &|to| pair(to + 1).encode_to_vec(),
        &|to| [pair(to).encode_to_vec(), vec![0xff]].concat(),
    ];
    for (case, content) in contents.into_iter().enumerate() {
        let lied = deals_sealed(0..2, false, content);
        assert!(lied.exact && lied.refusals.is_empty(), "{case}");
        let outcome = lied.result.unwrap();
        for by in [0, 1] {
            let report = Report { about: id(3), by: id(by), what: Fault::UnreadableShares };
            assert!(outcome.reports.contains(&report), "{case}: {outcome:?}");
        }
        assert_eq!(outcome.survivors.len(), 10);
    }
}

#[test]
fn shares_of_a_wrong_secret() {
    let report = |what| move |(about, by): (u32, u32)| Report { about: id(about as u8), by: id(by as u8), what };
    // Up to three of nine holders have wrong ones: they open, so that no holder finds anything wrong itself. Their shares do not
    // lie on the polynomial of the others', which comes out, and the sum is exact.
    for holders in [0..1, 0..3] {
        let wrong: Vec<Report> = holders.clone().map(|by| report(Fault::WrongShare)((3, by))).collect();
        // Those of the self-mask secret. (The dealer did not keep what it encapsulated to these holders, so its tags for them and
        // theirs for it do not fit either.)
        let lied = deals_other_secrets(holders.clone(), false);
        assert!(lied.exact && lied.refusals.is_empty());
        let outcome = lied.result.unwrap();
        let ends = holders.clone().map(|by| (3, by)).chain(holders.clone().map(|about| (about, 3)));
        let tags: Vec<Report> = ends.map(report(Fault::InvalidTag)).collect();
        assert_eq!((outcome.survivors.len(), outcome.reports), (10, [tags, wrong.clone()].concat()));
        // Those of the mask secret, which is asked for when the dealer has vanished.
        let lied = deals_other_secrets(holders, true);
        assert!(lied.exact && lied.refusals.is_empty());
        let outcome = lied.result.unwrap();
        assert_eq!((outcome.survivors.len(), outcome.reports), (9, wrong));
    }
    // Four have, and five right ones do not make the secret; then all have, and together they make one that nobody committed to.
    // Nobody has the right one, so nobody can have the sum. It is never a wrong sum.
    for (holders, vanishes) in [(0..5, false), (0..5, true), (0..10, false), (0..10, true)] {
        let abort = deals_other_secrets(holders, vanishes).result.unwrap_err();
        assert_eq!(abort, Abort::WrongShares { client: id(3), at_fault: true });
        assert_eq!(abort.suspect(), Some(id(3)), "the next rounds go on without it");
    }
}

#[test]
fn holders_that_release_shares_of_a_wrong_secret() {
    // The dealer is honest, the first holders say that they have shares of another secret.
    let other = of_another_secret(3);
    let told_by = |holders: usize| {
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
    let lied = told_by(3);
    let outcome = lied.result.unwrap();
    assert!(lied.exact);
    let wrong = |by| Report { about: id(9), by: id(by), what: Fault::WrongShare };
    assert_eq!(outcome.reports, [0, 1, 2].map(wrong));
    // All of them: no sum, and never a wrong one. Of ten clients two are assumed to lie, so it looks as if the dealer did.
    let abort = told_by(9).result.unwrap_err();
    assert_eq!(abort, Abort::WrongShares { client: id(9), at_fault: true });
    assert_eq!(abort.suspect(), Some(id(9)), "a suspect, and not guilty");
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
