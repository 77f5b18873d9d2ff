//! Clients that follow the protocol up to a point, then lie. Their messages are well-signed.

use prost::Message;
use unisono_crypto::kdf::label;
use unisono_protocol::client::Session;
use unisono_protocol::proto::{self, ClientMessage, SecretKind, client_message::Step};
use unisono_protocol::server::{Abort, Fault, Lost, Outcome, Phase, Reason, Report};

use crate::lying::{self, resign, resign_shares};
use crate::world::{Device, params};

/// The outcome, with the exact sum where there is one, and why steps were refused.
fn play(
    delta: f64,
    count: usize,
    tamper: impl FnMut(usize, Phase, ClientMessage) -> Option<ClientMessage>,
) -> (Result<Outcome, Abort>, Vec<Device>, Vec<Reason>) {
    let lied = lying::play(&params(true, 4, count as u32, 0.0, delta, 20), count, tamper);
    assert_eq!(lied.exact, lied.result.is_ok());
    (lied.result, lied.devices, lied.refusals.into_iter().map(|refusal| refusal.reason).collect())
}

#[test]
fn a_wrong_share_is_left_out_and_reported() {
    let (outcome, devices, _) = play(0.25, 10, |i, phase, mut message| {
        if let (0, Phase::Unmask, Some(Step::Unmask(signed))) = (i, phase, &mut message.step) {
            resign::<proto::UnmaskShares>(0, signed, label::SIG_UNMASK, |unmask| {
                unmask.shares.iter_mut().for_each(|share| share.value[0] ^= 1);
            });
        }
        Some(message)
    });
    let outcome = outcome.unwrap();
    assert!(outcome.reports.iter().any(|report| report.what == Fault::WrongShare && report.by == devices[0].id()));
}

/// A complete graph of ten with threshold 6, of whom two may lie. In the last phase the first `vanished` send nothing, the next
/// `liars` release wrong shares of client 9, and that one is there or not.
fn wrong_shares_of_nine(vanished: usize, liars: usize, nine_answers: bool) -> lying::Lied {
    lying::play(&params(true, 4, 10, 0.2, 0.25, 20), 10, |i, phase, mut message| {
        if phase == Phase::Unmask && (i < vanished || i == 9 && !nine_answers) {
            return None;
        }
        if let (true, Phase::Unmask, Some(Step::Unmask(signed))) = (i < vanished + liars, phase, &mut message.step) {
            resign::<proto::UnmaskShares>(i, signed, label::SIG_UNMASK, |unmask| {
                let share = unmask.shares.iter_mut().find(|share| share.of == 9).unwrap();
                // Far from each other: small differences can cancel out in the secret.
                share.value[..31]
                    .iter_mut()
                    .enumerate()
                    .for_each(|(n, byte)| *byte ^= (i * 29 + n * (2 * i + 7)) as u8);
            });
        }
        Some(message)
    })
}

#[test]
fn wrong_shares_are_left_out_as_long_as_the_threshold_of_right_ones_is_left() {
    // Nine shares, of which three may be wrong.
    for (vanished, liars, answers) in
        [(0, 1, false), (0, 2, false), (0, 3, false), (1, 2, false), (2, 1, false), (0, 3, true), (2, 1, true)]
    {
        let lied = wrong_shares_of_nine(vanished, liars, answers);
        assert!(lied.exact);
        let outcome = lied.result.unwrap();
        assert_eq!(outcome.misdealt, []);
        let by: Vec<_> = outcome.reports.iter().map(|report| (report.about, report.by, report.what)).collect();
        let liars = vanished..vanished + liars;
        let expected = liars.map(|i| (lied.devices[9].id(), lied.devices[i].id(), Fault::WrongShare));
        assert_eq!(by, expected.collect::<Vec<_>>());
    }
}

#[test]
fn holders_that_lie_are_named_and_get_no_dealer_suspected() {
    for (vanished, liars) in [(0, 4), (1, 3), (2, 2), (3, 1), (0, 9)] {
        let lied = wrong_shares_of_nine(vanished, liars, false);
        let client = lied.devices[9].id();
        let lost = Lost::TooFewShares { client, have: 9 - vanished - liars, need: 6 };
        let abort = lied.result.unwrap_err();
        let liar = |i: usize| Report { about: client, by: lied.devices[i].id(), what: Fault::WrongShare };
        let reports: Vec<Report> = (vanished..vanished + liars).map(liar).collect();
        assert_eq!((abort.suspects(), &abort), (vec![], &Abort::Lost { lost: vec![lost], reports: reports.clone() }));
        // Where it is there and gives the secret itself, there is a sum.
        let lied = wrong_shares_of_nine(vanished, liars, true);
        assert!(lied.exact && lied.refusals.is_empty());
        let outcome = lied.result.unwrap();
        assert_eq!((outcome.survivors.len(), outcome.suspects(), outcome.misdealt), (10, vec![], vec![]));
        assert_eq!(outcome.reports, reports);
    }
}

#[test]
fn liars_that_answer_early_have_nobody_suspected_whom_later_answers_clear() {
    // Two of ten lie about everybody, one more than is assumed. With the six that follow them there would be a sum, from what those
    // give themselves; but of their shares five are right, and six are with one more.
    let lied = lying::play_seeing(&params(true, 4, 10, 0.1, 0.25, 20), 10, true, |i, _, phase, mut message| {
        if let (0 | 1, Phase::Unmask, Some(Step::Unmask(signed))) = (i, phase, &mut message.step) {
            resign::<proto::UnmaskShares>(i, signed, label::SIG_UNMASK, |unmask| {
                unmask.shares.iter_mut().for_each(|share| share.value[..31].fill(7 + i as u8));
            });
        }
        Some(message)
    });
    assert!(lied.exact);
    let outcome = lied.result.unwrap();
    assert_eq!((outcome.suspects(), outcome.misdealt), (vec![], vec![]));
    let answered = lied.devices.iter().filter(|device| device.session.as_ref().is_some_and(Session::is_done)).count();
    assert_eq!(answered, 9);
    let liars = [0, 1].map(|i| lied.devices[i].id());
    assert!(outcome.reports.iter().all(|report| report.what == Fault::WrongShare && liars.contains(&report.by)));
}

#[test]
fn a_dealer_of_unreadable_shares_that_answers_first_is_suspected() {
    let lied = lying::play_seeing(&params(true, 3, 5, 0.0, 0.25, 20), 5, true, |i, _, _, mut message| {
        if let (0, Some(Step::ShareKeys(shares))) = (i, &mut message.step) {
            resign_shares(0, shares, |message| message.sealed[0] ^= 1);
        }
        Some(message)
    });
    assert!(lied.exact);
    assert_eq!(lied.result.unwrap().suspects(), [lied.devices[0].id()]);
}

#[test]
fn a_dealer_of_unreadable_or_wrong_shares_that_stays_ends_no_round_in_any_graph() {
    for (n_min, count, gamma, delta) in [(4, 10, 0.0, 0.25), (30, 40, 0.05, 0.05)] {
        for wrong in [false, true] {
            let params = params(true, n_min, count, gamma, delta, 20);
            let lied = lying::play(&params, count as usize, |i, _, mut message| {
                if let (2, Some(Step::ShareKeys(shares))) = (i, &mut message.step) {
                    resign_shares(2, shares, |message| match wrong {
                        true => message.self_mask_commitment[0] ^= 1,
                        false => message.sealed[0] ^= 1,
                    });
                }
                Some(message)
            });
            let outcome = lied.result.unwrap();
            assert!(lied.exact && outcome.survivors.len() == count as usize, "{outcome:?}");
            assert_eq!(outcome.suspects(), [lied.devices[2].id()]);
        }
    }
}

#[test]
fn a_self_mask_secret_other_than_the_advertised_one_is_refused() {
    for change in [
        (|unmask| unmask.self_mask_secret[0] ^= 1) as fn(&mut proto::UnmaskShares),
        |unmask| unmask.self_mask_secret = vec![0xff; 32],
        |unmask| unmask.self_mask_secret.clear(),
    ] {
        let lied = lying::play(&params(true, 4, 10, 0.2, 0.25, 20), 10, |i, phase, mut message| {
            if let (0, Phase::Unmask, Some(Step::Unmask(signed))) = (i, phase, &mut message.step) {
                resign::<proto::UnmaskShares>(0, signed, label::SIG_UNMASK, change);
            }
            Some(message)
        });
        // The others have its shares.
        assert!(lied.exact && lied.result.unwrap().survivors.len() == 10);
        let reasons: Vec<Reason> = lied.refusals.into_iter().map(|refusal| refusal.reason).collect();
        assert!(matches!(reasons[..], [Reason::Shape { .. } | Reason::Signed(_)]), "{reasons:?}");
    }
}

#[test]
fn shares_of_the_other_secret_are_refused() {
    let (outcome, _, reasons) = play(0.25, 10, |i, phase, mut message| {
        if let (0, Phase::Unmask, Some(Step::Unmask(signed))) = (i, phase, &mut message.step) {
            resign::<proto::UnmaskShares>(0, signed, label::SIG_UNMASK, |unmask| {
                unmask.shares[0].kind = SecretKind::Mask as i32;
            });
        }
        Some(message)
    });
    assert!(outcome.is_ok());
    assert!(matches!(reasons[..], [Reason::Shape { .. }]), "{reasons:?}");
}

#[test]
fn a_wrong_mask_ciphertext_of_a_vanished_client_ends_the_round_with_its_name() {
    let liar = 3;
    let (outcome, devices, _) = play(0.25, 10, |i, phase, mut message| {
        if i == liar && phase >= Phase::Mask {
            return None;
        }
        if let (true, Some(Step::ShareKeys(shares))) = (i == liar, &mut message.step) {
            resign_shares(liar, shares, |message| message.mask_ct.iter_mut().for_each(|byte| *byte ^= 1));
        }
        Some(message)
    });
    let lost = Lost::WrongCiphertext { client: devices[liar].id() };
    assert_eq!(outcome.unwrap_err(), Abort::Lost { lost: vec![lost], reports: vec![] });
}

#[test]
fn unreadable_shares_are_reported_and_the_sum_is_exact() {
    let liar = 2;
    let (outcome, devices, _) = play(0.25, 10, |i, _, mut message| {
        if i != liar {
            return Some(message);
        }
        if let Some(Step::ShareKeys(shares)) = &mut message.step {
            resign_shares(liar, shares, |message| message.sealed[0] ^= u8::from(message.to == 0));
        }
        Some(message)
    });
    let outcome = outcome.unwrap();
    let about_liar = |report: &Report| report.what == Fault::UnreadableShares && report.about == devices[liar].id();
    assert!(outcome.reports.iter().any(about_liar), "{:?}", outcome.reports);
}

#[test]
fn an_advert_with_a_neighbours_key_is_refused() {
    let mut stolen = None;
    let (outcome, _, reasons) = play(0.25, 8, |i, _, mut message| {
        if let Some(Step::Advert(signed)) = &mut message.step {
            let advert = proto::Advert::decode(signed.payload.as_slice()).unwrap();
            match (i, &stolen) {
                (0, _) => stolen = Some(advert.mask_ek),
                (1, Some(key)) => {
                    resign::<proto::Advert>(1, signed, label::SIG_ADVERT, |advert| advert.channel_ek = key.clone());
                }
                _ => {}
            }
        }
        Some(message)
    });
    assert_eq!(outcome.unwrap().survivors.len(), 7);
    assert_eq!(reasons, [Reason::KeysRepeat]);
}
