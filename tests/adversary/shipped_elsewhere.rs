//! Mistakes that other secure-aggregation code has shipped with, each as a test that fails if it is made here.

use std::collections::BTreeSet;

use prost::Message;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use unisono_crypto::aead;
use unisono_crypto::kdf::{derive_secret, label};
use unisono_crypto::kem::{DecapsulationKey, EncapsulationKey};
use unisono_crypto::prg::{self, Seed, Sign};
use unisono_crypto::ring::{Modulus, RingVector};
use unisono_crypto::secret::Secret32;
use unisono_protocol::client::ClientError;
use unisono_protocol::cohort::CohortError;
use unisono_protocol::encoding::{Contribution, EncodingError, Quantiser, Rounding};
use unisono_protocol::params::ParamsError;
use unisono_protocol::proto::{
    self, ClientMessage, RoundParams, ServerMessage, client_message::Step, server_message::View,
};
use unisono_protocol::roster::Roster;
use unisono_protocol::server::{Fault, Phase};

use crate::coordinator::{Forged, members};
use crate::derivation;
use crate::harness::{Released, Stage, restart, saved, six};
use crate::lying::{play, resign_shares};
use crate::world::{CAST, Device, open};

fn stream(secret: [u8; 32], len: usize) -> Vec<u32> {
    let mut words = vec![0u32; len];
    prg::apply(&Seed::from_secret(&Secret32::from_bytes(secret)), 0, Sign::Add, &mut words).unwrap();
    words
}

#[test]
fn a_mask_seed_folded_to_32_28_or_16_bits() {
    // Each of the 256 bits of a seed counts: flipping any one gives another stream, all 257 different in their first words.
    let mut seen = BTreeSet::from([stream([0x5A; 32], 4)]);
    for bit in 0..256 {
        let mut secret = [0x5A; 32];
        secret[bit / 8] ^= 1 << (bit % 8);
        assert!(seen.insert(stream(secret, 4)), "bit {bit} of a seed does not count");
    }
    // And 2^17 seeds that agree in their first 28 bytes give 2^17 streams: no fold to 16 bits in between.
    let streams: BTreeSet<Vec<u32>> = (0..1u32 << 17)
        .map(|i| {
            let mut secret = [0; 32];
            secret[28..].copy_from_slice(&i.to_le_bytes());
            stream(secret, 2)
        })
        .collect();
    assert_eq!(streams.len(), 1 << 17);
}

#[test]
fn a_generator_that_is_not_cryptographic() {
    // The stream is ChaCha20 with 20 rounds, by an implementation that is not ours, in the order of section 5.
    let key = derive_secret(label::PRG, &[7; 32], &[]);
    let mut reference = ChaCha20Rng::from_seed(*key.expose());
    let words: Vec<u32> = (0..1024).map(|_| reference.next_u32()).collect();
    let ours = stream([7; 32], 1024);
    for (i, &word) in ours.iter().enumerate() {
        let (group, within) = (i / 256, i % 256);
        let (w, block) = (within / 16, within % 16);
        assert_eq!(word, words[(group * 16 + block) * 16 + w], "word {i}");
    }
}

#[test]
fn a_mask_that_misses_some_residues() {
    // Every residue modulo 2^b occurs, the largest and the top bit among them, at widths on both sides of an element's size.
    for bits in [1, 8, 13, 16, 17] {
        let residues = 1usize << bits;
        // So many uniform draws miss any of them with a probability of e^-20.
        let draws = (residues as f64 * ((residues as f64).ln() + 20.0)).ceil() as usize;
        let mut vector = RingVector::zeros(Modulus::new(bits).unwrap(), draws);
        vector.apply_masks(&[(Seed::from_secret(&Secret32::from_bytes([bits as u8; 32])), Sign::Add)]).unwrap();
        let mut seen = vec![false; residues];
        vector.to_u64().into_iter().for_each(|x| seen[x as usize] = true);
        let missing = seen.iter().filter(|seen| !**seen).count();
        assert_eq!(missing, 0, "residues of 2^{bits} that never occur");
    }
    // Wider ones: both halves of a word vary, and no bit is stuck.
    for bits in [33, 48, 63, 64] {
        let mut vector = RingVector::zeros(Modulus::new(bits).unwrap(), 4096);
        vector.apply_masks(&[(Seed::from_secret(&Secret32::from_bytes([1; 32])), Sign::Subtract)]).unwrap();
        let values = vector.to_u64();
        let (or, and) = values.iter().fold((0, u64::MAX), |(or, and), x| (or | x, and & x));
        assert_eq!((or, and), (u64::MAX >> (64 - bits), 0), "{bits} bits");
        assert_eq!(values.iter().collect::<BTreeSet<_>>().len(), 4096);
    }
}

#[test]
fn a_sampler_that_rejects_nine_of_ten_draws() {
    // One element takes one draw: element i of the stream is element i of the mask, so that any place can be computed alone.
    let seed = Seed::from_secret(&Secret32::from_bytes([2; 32]));
    let (mut whole, mut modulus) = (vec![0u16; 5000], RingVector::zeros(Modulus::new(13).unwrap(), 5000));
    prg::apply(&seed, 0, Sign::Add, &mut whole).unwrap();
    modulus.apply_masks(&[(seed.clone(), Sign::Add)]).unwrap();
    for i in [0usize, 1, 511, 512, 4999] {
        let mut one = [0u16];
        prg::apply(&seed, i as u64, Sign::Add, &mut one).unwrap();
        assert_eq!(one[0], whole[i]);
        assert_eq!(modulus.get(i), Some(u64::from(whole[i]) & 0x1FFF));
    }
}

#[test]
fn lists_of_survivors_and_of_drop_outs_that_overlap() {
    // There is one list, with a bit for each client: nobody can be on both. Whatever it says, each neighbour's share goes out
    // once, of one kind.
    let mut stage = Stage::at(Phase::Share, &six(), 6);
    stage.step(&[]);
    stage.close();
    stage.step(&[4]);
    stage.close();
    stage.step(&[4]);
    stage.close();
    let threshold = 4;
    for i in [0, 1, 2, 3, 5] {
        let view = stage.certificate_view(i);
        stage.show(i, View::Certificate(view)).unwrap();
    }
    let released = stage.outbox.released();
    for (of, Released { of_self, of_mask, own }) in &released {
        let expected = if *of == 4 { (0, 5, false) } else { (4, 0, true) };
        assert_eq!((of_self.len(), of_mask.len(), *own), expected, "client {of}");
    }
    assert!(!stage.outbox.opens_an_input(threshold));
    stage.completes(&[4], 5);
}

#[test]
fn threshold_and_cohort_chosen_by_the_server_alone() {
    // A threshold of 1 would let one colluder open an input; a cohort of one would be the input.
    let mut stage = Stage::at(Phase::Share, &six(), 6);
    let params = stage.server().params().clone();
    let all = members(&stage.devices);
    let view = Forged::new(&params, &all, |cohort| cohort.threshold = 1).view(0);
    let topology = CohortError::Topology { got: "(5, 1, None, 6, 4)".into(), expected: "(5, 4, None, 6, 4)".into() };
    assert_eq!(stage.refuses(0, View::Cohort(view)), topology.into());
    let view = Forged::new(&params, &all, |cohort| cohort.n = 1).view(0);
    assert_eq!(stage.refuses(0, View::Cohort(view)), CohortError::Size { n: 1, min: 4, max: 6 }.into());
    stage.completes(&[], 6);
    let server = open(&RoundParams { n_min: 3, ..six() });
    let mut device = Device::new(0, &server, 1);
    device.trust.policy.n_min = 4;
    let Err(ClientError::Policy(refusal)) = device.join(server.offer()) else { panic!("joined") };
    assert_eq!(refusal.setting, "n_min");
}

#[test]
fn a_drop_out_in_the_first_phases_that_breaks_its_neighbours_round() {
    for phase in [Phase::Advertise, Phase::Share, Phase::Mask] {
        let lied = play(&six(), 6, |i, now, message| (i != 3 || now < phase).then_some(message));
        assert!(lied.exact && lied.result.unwrap().survivors.len() == 5, "{phase}");
    }
}

/// What device 0 sent a cheat.
struct Received {
    /// The cheat's own channel key.
    key: DecapsulationKey,
    message: proto::NeighbourShares,
    cohort: Vec<u8>,
    /// Device 0's advert.
    from: proto::Advert,
}

/// A cheat has a channel key of its own, with which it can look at what a neighbour sends it as no honest device does.
fn received_by_a_cheat() -> Received {
    let key = DecapsulationKey::from_seed(&Secret32::from_bytes([4; 32]));
    let mut stage = Stage::at(Phase::Share, &six(), 6);
    let mut all = members(&stage.devices);
    let mut advert = proto::Advert::decode(all[5].advert.payload.as_slice()).unwrap();
    advert.channel_ek = key.encapsulation_key().as_bytes().to_vec();
    all[5].advert = unisono_protocol::signed::sign(&advert, label::SIG_ADVERT, Some(&CAST.identities[5].signing_key));
    let params = stage.server().params().clone();
    let from = proto::Advert::decode(all[0].advert.payload.as_slice()).unwrap();
    let view = Forged::new(&params, &all, |_| {}).view(0);
    stage.show(0, View::Cohort(view)).unwrap();
    let Some(Step::ShareKeys(shares)) = &stage.devices[0].message().unwrap().step else { panic!("no shares") };
    let root = proto::SharesRoot::decode(shares.root.as_ref().unwrap().payload.as_slice()).unwrap();
    let message = proto::NeighbourShares::decode(shares.messages[4].as_slice()).unwrap();
    assert_eq!((message.from, message.to), (0, 5));
    Received { key, message, cohort: root.cohort_id, from }
}

#[test]
fn raw_key_agreement_output_used_as_a_key() {
    let Received { key, message, cohort, from } = received_by_a_cheat();
    let secret = key.decapsulate(&message.channel_ct).unwrap();
    assert!(aead::open(&secret, &cohort, &message.sealed).is_err(), "the AEAD key is the KEM's secret itself");
    // The key is what section 4 derives from it; and the round is in the associated data too.
    let own = key.encapsulation_key();
    let sender = derivation::End(0, &from.client_id, &from.channel_ek);
    let recipient = derivation::End(5, &CAST.identities[5].client_id.0, own.as_bytes());
    let derived = derivation::share_key(&secret, &cohort, sender, recipient);
    assert!(aead::open(&derived, &cohort, &message.sealed).is_ok());
    for other in [&[][..], &[0; 32], &cohort[..31]] {
        assert!(aead::open(&derived, other, &message.sealed).is_err(), "associated data without the round");
    }
    // X25519 with a point of small order gives zero for everybody; the hybrid's secret is none the less unknown and fresh.
    let mut bytes = key.encapsulation_key().as_bytes().to_vec();
    bytes[1184..].fill(0);
    let small = EncapsulationKey::from_bytes(&bytes).unwrap();
    let (_, one) = small.encapsulate_with_coins(&[1; 64]);
    let (_, two) = small.encapsulate_with_coins(&[2; 64]);
    assert!(!one.ct_eq(&two) && !one.ct_eq(&Secret32::from_bytes([0; 32])));
}

#[test]
fn an_aead_tag_that_is_ignored() {
    // The last 16 bytes of what device 2 seals for device 0 are wrong, the ciphertext is right: device 0 takes nothing from it.
    for byte in [0, 7, 15] {
        let lied = play(&six(), 6, |i, _, mut message| {
            if let (2, Some(Step::ShareKeys(shares))) = (i, &mut message.step) {
                resign_shares(2, shares, |to| {
                    let tag = to.sealed.len() - 16;
                    to.sealed[tag + byte] ^= u8::from(to.to == 0);
                });
            }
            Some(message)
        });
        assert!(lied.exact);
        let outcome = lied.result.unwrap();
        let [report] = outcome.reports[..] else { panic!("{outcome:?}") };
        assert_eq!(
            (report.about, report.by, report.what),
            (lied.devices[2].id(), lied.devices[0].id(), Fault::UnreadableShares)
        );
    }
}

#[test]
fn associated_data_without_the_round() {
    // A cheat keeps what it sealed for device 0 in one cohort and sends it in another: ciphertext, sender, recipient and the
    // recipient's keys are the same; the cohort is not, and nothing opens.
    let seven = RoundParams { n_max: 7, ..six() };
    let mut stage = Stage::at(Phase::Share, &seven, 7);
    let params = stage.server().params().clone();
    let other = Forged::new(&params, &members(&stage.devices)[..6], |_| {});
    // Device 2 colludes: it runs in both cohorts, from a state kept aside.
    let before = saved(&stage.devices[2]);
    let record = stage.devices[2].record.clone();
    stage.devices[2].receive(&ServerMessage { view: Some(View::Cohort(other.view(2))) }).unwrap();
    let Some(Step::ShareKeys(kept)) = &stage.devices[2].message().unwrap().step else { panic!("no shares") };
    let kept = proto::NeighbourShares::decode(kept.messages[0].as_slice()).unwrap();
    assert_eq!((kept.from, kept.to), (2, 0));
    restart(&mut stage, 2, &before);
    stage.devices[2].record = record;

    for i in 0..7 {
        let view = stage.cohort_view(i);
        stage.show(i, View::Cohort(view)).unwrap();
        let mut message = stage.devices[i].message().unwrap().clone();
        if let (2, Some(Step::ShareKeys(shares))) = (i, &mut message.step) {
            resign_shares(2, shares, |to| {
                if to.to == 0 {
                    (to.channel_ct, to.sealed) = (kept.channel_ct.clone(), kept.sealed.clone());
                }
            });
        }
        stage.server_mut().absorb(&message, crate::world::NOW).unwrap();
    }
    stage.close();
    let outcome = {
        let mut stage = stage;
        for _ in 0..2 {
            stage.step(&[2]);
            stage.close();
        }
        stage.completes(&[2], 6)
    };
    let unreadable = outcome.reports.iter().find(|report| report.what == Fault::UnreadableShares).unwrap();
    assert_eq!((unreadable.about.0[0], unreadable.by.0[0]), (2, 0));
}

#[test]
fn counts_and_metrics_sent_in_the_clear() {
    // Two devices that differ in weight and metrics alone send messages of the same sizes, and none holds the numbers.
    let quantiser = proto::Quantiser {
        max_weight: 20_000.0,
        metrics: vec![proto::MetricBound { lower: 0.0, upper: 1e6 }],
        ..six().quantiser.unwrap()
    };
    let params = RoundParams { quantiser: Some(quantiser), ..six() };
    let (weight, loss) = (12_345.0f32, 987_654.3f32);
    let sent = |weight: f32, loss: f32| -> Vec<Vec<u8>> {
        let server = open(&params);
        let round = server.params().clone();
        let mut stage = Stage::of(server, Phase::Advertise, 6);
        let contribution = Contribution { update: &[0.5; 20], metrics: &[loss], weight };
        let rng = &mut ChaCha20Rng::seed_from_u64(5);
        stage.devices[0].input = round.quantiser.encode(contribution, 20, round.modulus, rng).unwrap();
        let mut messages = Vec::new();
        for _ in Phase::ALL {
            stage.step(&[]);
            messages.push(stage.devices[0].message().unwrap().encode_to_vec());
            messages.extend(stage.devices[0].upload());
            stage.close();
        }
        messages
    };
    let (one, other) = (sent(weight, loss), sent(1.0, 0.0));
    assert_eq!(one.len(), 6);
    assert_eq!(one.iter().map(Vec::len).collect::<Vec<_>>(), other.iter().map(Vec::len).collect::<Vec<_>>());
    let varint = |mut x: u64| {
        let mut bytes = Vec::new();
        while x >= 128 {
            bytes.push(x as u8 | 128);
            x >>= 7;
        }
        bytes.push(x as u8);
        bytes
    };
    let patterns: [Vec<u8>; 5] = [
        weight.to_le_bytes().into(),
        f64::from(weight).to_le_bytes().into(),
        loss.to_le_bytes().into(),
        f64::from(loss).to_le_bytes().into(),
        [vec![0x08], varint(12_345)].concat(),
    ];
    for (message, pattern) in one.iter().flat_map(|message| patterns.iter().map(move |pattern| (message, pattern))) {
        // Four bytes occur by chance once in 2^32 places; the seeds are fixed, and here they do not.
        assert!(!message.windows(pattern.len()).any(|window| window == pattern), "{pattern:?} is readable");
    }
}

#[test]
fn an_overflow_that_only_warns() {
    // Refused before the round by both sides, and once more when a sum is read.
    let narrow = RoundParams { modulus_bits: 10, ..six() };
    let error = unisono_protocol::params::RoundParams::from_payload(&narrow.encode_to_vec()).unwrap_err();
    assert!(matches!(&error, ParamsError::Field { field: "modulus_bits", got, .. } if got == "10"), "{error}");
    let mut offer = open(&six()).offer().clone();
    offer.params = Some(unisono_protocol::signed::sign(&narrow, label::SIG_ROUND_PARAMS, Some(&CAST.coordinator)));
    let mut device = Device::new(0, &open(&six()), 1);
    assert_eq!(device.join(&offer), Err(error.into()));
    assert!(device.message().is_none());
    let quantiser = open(&six()).params().quantiser.clone();
    let sum = RingVector::zeros(Modulus::new(13).unwrap(), 21);
    let overflow = EncodingError::Overflow { clients: 64, bits: 8, needed: 14, modulus_bits: 13 };
    assert_eq!(quantiser.decode(&sum, 20, 64), Err(overflow));
}

#[test]
fn a_default_clip_that_silently_changes_results() {
    // There is no default: a message or a file without a clip is refused by name.
    let unset = proto::Quantiser { clip: 0.0, ..six().quantiser.unwrap() };
    let params = RoundParams { quantiser: Some(unset), ..six() };
    let error = unisono_protocol::params::RoundParams::from_payload(&params.encode_to_vec()).unwrap_err();
    let setting = EncodingError::Setting { setting: "clip", got: "0".into(), allowed: "a finite number above 0" };
    assert_eq!(error, ParamsError::Encoding(setting));
    let missing = toml::from_str::<unisono::coordinator::config::Quantiser>("bits = 16\nmax_weight = 1.0").unwrap_err();
    assert!(missing.to_string().contains("missing field `clip`"), "{missing}");
    // And what is inside the clip is not touched, at the bound neither.
    let quantiser = Quantiser {
        bits: 16,
        clip: 3.0,
        clips: Vec::new(),
        l2_clip: None,
        max_weight: 1.0,
        rounding: Rounding::Deterministic,
        metric_bounds: Vec::new(),
        privacy: None,
        rotation: None,
    };
    let update = [3.0f32, -3.0, 2.9, 0.0];
    let contribution = Contribution { update: &update, metrics: &[], weight: 1.0 };
    let modulus = Modulus::new(16).unwrap();
    let sum = quantiser.encode(contribution, 4, modulus, &mut ChaCha20Rng::seed_from_u64(1)).unwrap();
    let aggregate = quantiser.decode(&sum, 4, 1).unwrap();
    for (mean, value) in aggregate.mean.iter().zip(update) {
        assert!(f64::from((mean - value).abs()) <= aggregate.error_bound, "{mean} for {value}");
    }
}

#[test]
fn code_execution_by_deserialising_a_peers_bytes() {
    // A pickle that would run a command is no model; it is told from one by its first bytes, and nothing is evaluated.
    let pickle = b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94.";
    let zipped = b"PK\x03\x04\x14\x00\x00\x00\x08\x00archive/data.pkl";
    for bytes in [pickle.as_slice(), zipped] {
        let error = unisono::wire::model::Model::from_safetensors(bytes).unwrap_err();
        assert!(matches!(error, unisono::wire::model::ModelError::Format(_)), "{error}");
    }
    // Every decoder of a peer's bytes gives a value or an error for arbitrary ones.
    let mut rng = ChaCha20Rng::seed_from_u64(6);
    let registrar = CAST.registrar.verifying_key();
    for len in (0..400).chain([5000, 70_000]) {
        let mut bytes = vec![0; len];
        rng.fill_bytes(&mut bytes);
        let _ = ClientMessage::decode(bytes.as_slice());
        let _ = ServerMessage::decode(bytes.as_slice());
        let _ = unisono_protocol::params::RoundParams::from_payload(&bytes);
        assert!(Roster::from_bytes(&bytes, &registrar).is_err());
        assert!(unisono::wire::model::Model::from_safetensors(&bytes).is_err());
        assert!(EncapsulationKey::from_bytes(&bytes).is_err());
    }
}
