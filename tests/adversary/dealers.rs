//! Clients that deal wrong shares, and holders that release wrong ones: they are named, and the sum is exact as long as somebody
//! has the right secret. Where nobody has, the round ends with the name, and nothing was learned (sections 4 and 6).

use std::ops::Range;

use prost::Message;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use unisono_crypto::aead;
use unisono_crypto::kdf::label;
use unisono_crypto::kem::EncapsulationKey;
use unisono_crypto::shamir::{self, SecretScalar, Share};
use unisono_protocol::ClientId;
use unisono_protocol::proto::{self, UnmaskShares, client_message::Step, server_message::View};
use unisono_protocol::server::{Abort, Fault, Lost, Phase, Reason, Report};

use crate::cheating_clients::{id, ten};
use crate::derivation;
use crate::harness::{Stage, forty};
use crate::lying::{Lied, play, resign, resign_shares};
use crate::world::{Device, NOW, open};

/// What a device that deals knows, besides the message that it sends.
struct Dealer {
    index: u32,
    adverts: Vec<proto::Advert>,
    cohort_id: Vec<u8>,
}

impl Dealer {
    fn new(index: usize, adverts: &[proto::Advert], shares: &proto::ShareKeys) -> Self {
        let root = proto::SharesRoot::decode(shares.root.as_ref().unwrap().payload.as_slice()).unwrap();
        Self { index: index as u32, adverts: adverts.to_vec(), cohort_id: root.cohort_id }
    }

    /// To the share that it deals `to`, of its self-mask secret (1) or its mask secret (2).
    fn commitment(&self, to: u32, share: &[u8], kind: u8) -> Vec<u8> {
        derivation::share_commitment(share, &self.cohort_id, self.index, to, kind)
    }

    /// Puts `content` in the place of what is sealed in a message, sealed as it should be.
    fn seal(&self, message: &mut proto::NeighbourShares, content: &[u8]) {
        let end = |index: u32| {
            let advert = &self.adverts[index as usize];
            derivation::End(index, &advert.client_id, &advert.channel_ek)
        };
        let channel = EncapsulationKey::from_bytes(&self.adverts[message.to as usize].channel_ek).unwrap();
        let (channel_ct, sent) = channel.encapsulate_with_coins(&[2; 64]);
        message.channel_ct = channel_ct;
        let key = derivation::share_key(&sent, &self.cohort_id, end(self.index), end(message.to));
        message.sealed = aead::seal(&key, self.cohort_id.as_slice(), content).unwrap();
    }
}

/// When a cheat is gone, if it is: from this phase on it sends nothing.
type Gone = Option<Phase>;

/// The `dealers` change what they send the clients in `holders`. They are honest otherwise, as long as they are there.
fn deal(dealers: &[(usize, Gone)], holders: Range<u32>, change: impl Fn(&Dealer, &mut proto::NeighbourShares)) -> Lied {
    let mut adverts: Vec<proto::Advert> = Vec::new();
    play(&ten(), 10, |i, phase, mut message| {
        if let Some(Step::Advert(signed)) = &message.step {
            adverts.push(proto::Advert::decode(signed.payload.as_slice()).unwrap());
        }
        let Some((_, gone)) = dealers.iter().find(|(dealer, _)| *dealer == i) else { return Some(message) };
        if let Some(Step::ShareKeys(shares)) = &mut message.step {
            let dealer = Dealer::new(i, &adverts, shares);
            resign_shares(i, shares, |message| {
                if holders.contains(&message.to) {
                    change(&dealer, message);
                }
            });
        }
        gone.is_none_or(|gone| phase < gone).then_some(message)
    })
}

/// The one sum of all ten, exact although `lost` could not be rebuilt.
fn given_by_its_owner(lied: Lied, lost: &Lost) {
    assert!(lied.exact && lied.refusals.is_empty());
    let outcome = lied.result.unwrap();
    assert_eq!((outcome.survivors.len(), &outcome.misdealt[..]), (10, std::slice::from_ref(lost)));
    assert_eq!(outcome.suspects(), Vec::from_iter(lost.suspect()), "the next rounds go on without it");
}

/// No sum, and whose doing it is.
fn ended(lied: Lied, lost: &[Lost]) {
    let abort = lied.result.unwrap_err();
    assert!(matches!(&abort, Abort::Lost { lost: found, .. } if found == lost), "{abort}");
    let mut suspects: Vec<ClientId> = lost.iter().filter_map(Lost::suspect).collect();
    suspects.sort();
    assert_eq!(abort.suspects(), suspects, "the next rounds go on without them");
}

#[test]
fn shares_that_the_recipient_can_not_open() {
    let deals = |victims: u32, gone: Gone| deal(&[(3, gone)], 0..victims, |_, message| message.sealed[0] ^= 1);
    let lied = deals(2, None);
    let outcome = lied.result.unwrap();
    assert!(lied.exact);
    let unreadable = |by| Report { about: id(3), by: id(by), what: Fault::UnreadableShares };
    assert!(outcome.reports.contains(&unreadable(0)) && outcome.reports.contains(&unreadable(1)), "{outcome:?}");
    // Nobody can open any: it gives its secret itself, or there is no sum; nothing was learned then, and the name is there.
    let (client, at_fault) = (id(3), true);
    let lost = Lost::UnreadableShares { client, unreadable: 9, have: 0, need: 6, at_fault };
    given_by_its_owner(deals(10, None), &lost);
    for gone in [Phase::Mask, Phase::Confirm, Phase::Unmask] {
        ended(deals(10, Some(gone)), std::slice::from_ref(&lost));
    }
}

#[test]
fn encapsulations_that_do_not_give_the_key_of_the_sealed_shares() {
    // What is sealed is right, and can't be opened.
    let deals = |victims: u32| {
        deal(&[(3, None)], 0..victims, |dealer, message| {
            let key = EncapsulationKey::from_bytes(&dealer.adverts[message.to as usize].channel_ek).unwrap();
            message.channel_ct = key.encapsulate_with_coins(&[1; 64]).0;
        })
    };
    let lied = deals(2);
    assert!(lied.exact);
    let outcome = lied.result.unwrap();
    for by in [0, 1] {
        let what = Fault::UnreadableShares;
        assert!(outcome.reports.contains(&Report { about: id(3), by: id(by), what }), "{outcome:?}");
    }
    let (client, at_fault) = (id(3), true);
    given_by_its_owner(deals(10), &Lost::UnreadableShares { client, unreadable: 9, have: 0, need: 6, at_fault });
}

#[test]
fn too_many_that_vanish_before_they_release_their_shares() {
    // Five of ten are left, who give their own secrets and five shares of each other one.
    let lied = play(&ten(), 10, |i, phase, message| (i < 5 || phase < Phase::Unmask).then_some(message));
    assert!(lied.refusals.is_empty());
    let lost: Vec<Lost> = (5..10).map(|i| Lost::TooFewShares { client: id(i), have: 5, need: 6 }).collect();
    assert!(lost.iter().all(|lost| lost.suspect().is_none()), "nobody is to blame");
    ended(lied, &lost);
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

/// The `dealers` deal the clients in `holders` shares of two other secrets than those in their adverts, sealed as they should be.
/// Those of the self mask count for who uploads, those of the mask secret for who is gone before. If they `commit` to both, no
/// holder finds anything wrong.
fn deal_other_secrets(dealers: &[(usize, Gone)], holders: Range<u32>, commit: [bool; 2]) -> Lied {
    let (of_self, of_mask) = (of_another_secret(3), of_another_secret(4));
    deal(dealers, holders, |dealer, message| {
        let (from, to) = (dealer.index, message.to);
        let self_mask_share = of_self[to as usize].value_bytes().to_vec();
        let mask_share = of_mask[to as usize].value_bytes().to_vec();
        if commit[0] {
            message.self_mask_commitment = dealer.commitment(to, &self_mask_share, 1);
        }
        if commit[1] {
            message.mask_commitment = dealer.commitment(to, &mask_share, 2);
        }
        dealer.seal(message, &proto::SharePair { from, to, self_mask_share, mask_share }.encode_to_vec());
    })
}

#[test]
fn shares_that_were_not_committed_to() {
    // Who gets them takes none of them; nobody else has to believe it.
    let nothing_taken = |lied: Lied, holders: Range<u8>| {
        assert!(lied.exact && lied.refusals.is_empty());
        let outcome = lied.result.unwrap();
        let report = |by| Report { about: id(3), by: id(by), what: Fault::UnreadableShares };
        assert_eq!((outcome.reports, outcome.misdealt), (holders.map(report).collect(), vec![]));
    };
    for gone in [None, Some(Phase::Mask)] {
        for commit in [[false, false], [true, false], [false, true]] {
            nothing_taken(deal_other_secrets(&[(3, gone)], 0..3, commit), 0..3);
        }
        // Right shares, and each commitment that of the other.
        let exchanged = deal(&[(3, gone)], 0..1, |_, message| {
            std::mem::swap(&mut message.self_mask_commitment, &mut message.mask_commitment);
        });
        nothing_taken(exchanged, 0..1);
    }
    let lost = Lost::UnreadableShares { client: id(3), unreadable: 9, have: 0, need: 6, at_fault: true };
    ended(deal_other_secrets(&[(3, Some(Phase::Mask))], 0..10, [false; 2]), &[lost]);
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
        let lied = deal(&[(3, None)], 0..2, |dealer, message| {
            let commitment = |kind| dealer.commitment(message.to, &[1; 32], kind);
            (message.self_mask_commitment, message.mask_commitment) = (commitment(1), commitment(2));
            dealer.seal(message, &content(message.to));
        });
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
    let wrong = |i: usize| Lost::WrongShares { client: id(i as u8) };
    // Up to three of nine holders have wrong ones: they open, so that no holder finds anything wrong itself. Their shares do not
    // lie on the polynomial of the others', which comes out, and the sum is exact: whether the dealer stays, is gone before it
    // uploads (its mask secret is needed then), or after (its self-mask secret). It committed to them, so it is the cheat.
    for holders in [0..1, 0..3] {
        for (gone, survivors) in
            [(None, 10), (Some(Phase::Mask), 9), (Some(Phase::Confirm), 10), (Some(Phase::Unmask), 10)]
        {
            let lied = deal_other_secrets(&[(3, gone)], holders.clone(), [true; 2]);
            assert!(lied.exact && lied.refusals.is_empty());
            let outcome = lied.result.unwrap();
            let misdealt = |by: u32| Report { about: id(3), by: id(by as u8), what: Fault::MisdealtShare };
            assert_eq!(outcome.suspects(), [id(3)], "the next rounds go on without it");
            assert_eq!((outcome.survivors.len(), outcome.misdealt), (survivors, vec![wrong(3)]));
            assert_eq!(outcome.reports, holders.clone().map(misdealt).collect::<Vec<_>>());
        }
    }
    // Four have, and five right ones do not make the secret; then all have, and together they make one that nobody advertised.
    // As long as the dealer is there, it gives the right secret itself, and the sum is exact.
    for holders in [0..5, 0..10] {
        given_by_its_owner(deal_other_secrets(&[(3, None)], holders.clone(), [true; 2]), &wrong(3));
        // Once it is gone nobody has the right one, so nobody can have the sum. It is never a wrong sum.
        for gone in [Phase::Mask, Phase::Confirm, Phase::Unmask] {
            ended(deal_other_secrets(&[(3, Some(gone))], holders.clone(), [true; 2]), &[wrong(3)]);
        }
    }
    // Wrong ones beyond those that are used harm nobody, and are not looked at.
    let lied = deal_other_secrets(&[(3, None)], 7..10, [true; 2]);
    assert!(lied.exact && lied.result.unwrap().misdealt.is_empty());
    // Two that do it in one round are both named, also where one of them is still there.
    let gone = Some(Phase::Mask);
    ended(deal_other_secrets(&[(3, gone), (7, gone)], 0..10, [true; 2]), &[wrong(3), wrong(7)]);
    ended(deal_other_secrets(&[(3, None), (7, gone)], 0..10, [true; 2]), &[wrong(7), wrong(3)]);
}

#[test]
fn everybody_reveals_its_own_self_mask_secret_in_a_sparse_graph_too() {
    let mut stage = Stage::at(Phase::Unmask, &forty(), 40);
    let view = stage.certificate_view(0);
    stage.show(0, View::Certificate(view)).unwrap();
    assert!(stage.outbox.released()[&0].own);
    // Another one than it advertised is refused, and it may say the right one then.
    let mut message = stage.devices[0].message().unwrap().clone();
    let Some(Step::Unmask(signed)) = &mut message.step else { panic!("another step") };
    resign::<UnmaskShares>(0, signed, label::SIG_UNMASK, |unmask| unmask.self_mask_secret = vec![1; 32]);
    let refusal = stage.server_mut().absorb(&message, NOW).unwrap_err();
    assert!(matches!(refusal.reason, Reason::Shape { what: "revealed shares", .. }), "{refusal}");
    stage.completes(&[], 40);
}

#[test]
fn holders_that_release_shares_of_a_wrong_secret() {
    // The dealer is honest, the first holders say that they have shares of another secret.
    let other = of_another_secret(3);
    let told_by = |holders: usize, gone: Gone| {
        play(&ten(), 10, |i, phase, mut message| {
            if let (true, Phase::Unmask, Some(Step::Unmask(signed))) = (i < holders, phase, &mut message.step) {
                resign::<UnmaskShares>(i, signed, label::SIG_UNMASK, |unmask| {
                    let share = unmask.shares.iter_mut().find(|share| share.of == 9).unwrap();
                    share.value = other[i].value_bytes().to_vec();
                });
            }
            (i != 9 || gone.is_none_or(|gone| phase < gone)).then_some(message)
        })
    };
    let lied = told_by(3, None);
    let outcome = lied.result.unwrap();
    assert!(lied.exact);
    let wrong = |by| Report { about: id(9), by: id(by), what: Fault::WrongShare };
    assert_eq!((outcome.reports, outcome.misdealt), (Vec::from([0, 1, 2].map(wrong)), vec![]));
    // All of them: it gives its secret itself, and is not suspected, because it committed to other shares.
    let lied = told_by(9, None);
    assert!(lied.exact);
    let outcome = lied.result.unwrap();
    assert_eq!((outcome.reports.len(), outcome.suspects(), outcome.misdealt), (9, vec![], vec![]));
    // Gone, there is no sum, and never a wrong one.
    ended(told_by(9, Some(Phase::Unmask)), &[Lost::TooFewShares { client: id(9), have: 0, need: 6 }]);
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
    ended(cheat(true), &[Lost::WrongCiphertext { client: id(3) }]);
    assert_eq!(cheat(false).result.unwrap().survivors.len(), 10);
}
