//! What a masked upload shows of its input: nothing that these tests can see, and they see masks that are broken.
//!
//! Two devices of a real round mask an input of zeros and one chosen to show through; each upload, and the two together,
//! stand tests whose result is a number of standard deviations. Seeds are fixed, so the numbers are too. Beyond
//! [`LIMIT`] a test rejects: by chance once in a billion.

#[allow(dead_code)] // made for another test, which uses all of it
#[path = "../crates/protocol/tests/rounds/world.rs"]
mod world;

use std::collections::BTreeSet;

use unisono_crypto::prg::{self, Seed, Sign};
use unisono_crypto::ring::{Modulus, RingVector};
use unisono_crypto::secret::Secret32;
use unisono_protocol::server::{Closed, Phase};

use world::{Device, NOW, open, params};

/// Standard deviations.
const LIMIT: f64 = 6.0;
/// Elements of an upload.
const LEN: usize = 4_000_000;

/// A test's name and result.
type Score = (String, f64);

/// Statistic of a chi-square test, as standard deviations from its mean.
fn chi_square(counts: &[u64], expected: &[f64]) -> f64 {
    let sum: f64 = counts.iter().zip(expected).map(|(&n, e)| (n as f64 - e).powi(2) / e).sum();
    let freedom = counts.len() as f64 - 1.0;
    (sum - freedom) / (2.0 * freedom).sqrt()
}

fn buckets(values: &[u64], shift: u32, width: u32) -> Vec<u64> {
    let mut counts = vec![0; 1 << width];
    values.iter().for_each(|value| counts[(value >> shift) as usize & ((1 << width) - 1)] += 1);
    counts
}

/// Values that never occur among `n` draws. A single one moves chi-square by 4 standard deviations only, where there are 500
/// draws for each of 8,192 values. With so many draws each missing one is as unlikely as [`LIMIT`] is.
fn missing(counts: &[u64], n: f64) -> f64 {
    let cells = counts.len() as f64;
    assert!(n >= cells * (cells.ln() + 20.0), "all of {cells} values occur in {n} draws, but for once in a billion");
    LIMIT * counts.iter().filter(|count| **count == 0).count() as f64
}

/// Windows of bits whose values are counted: all of a narrow element, ends and middle of a wide one.
fn windows(bits: u32) -> Vec<(u32, u32)> {
    if bits <= 13 { vec![(0, bits)] } else { vec![(0, 12), ((bits - 12) / 2, 12), (bits - 12, 12)] }
}

/// Tests of one upload: are its elements uniform, its bits balanced, and neighbours unrelated?
fn uniform(values: &[u64], bits: u32) -> Vec<Score> {
    let n = values.len() as f64;
    let mut scores = Vec::new();
    for (shift, width) in windows(bits) {
        let name = format!("bits {shift}..{}", shift + width);
        let counts = buckets(values, shift, width);
        let cells = f64::from(1 << width);
        scores.push((format!("values of {name} that never occur"), missing(&counts, n)));
        scores.push((name, chi_square(&counts, &vec![n / cells; 1 << width])));
    }
    for bit in 0..bits {
        let ones = values.iter().filter(|value| *value >> bit & 1 == 1).count() as f64;
        scores.push((format!("bit {bit}"), (ones - n / 2.0) / (n / 4.0).sqrt()));
    }
    // Lags of one, of a register, of a group of 16 blocks at each width, and of a chunk of masking.
    let middle = (bits as f64 - 1.0).exp2();
    let variance = (2.0 * bits as f64).exp2() / 12.0;
    for lag in [1, 2, 16, 32, 128, 256, 512, 8192] {
        let products = values.iter().zip(&values[lag..]).map(|(&a, &b)| (a as f64 - middle) * (b as f64 - middle));
        let sum: f64 = products.sum();
        scores.push((format!("lag {lag}"), sum / variance / (n - lag as f64).sqrt()));
    }
    scores
}

/// Tests of two uploads: do they come from one distribution, and does the second follow its input?
fn alike(zero: &[u64], chosen: &[u64], input: &[u64], bits: u32) -> Vec<Score> {
    let mut scores = Vec::new();
    for (shift, width) in windows(bits) {
        let (a, b) = (buckets(zero, shift, width), buckets(chosen, shift, width));
        let sum: f64 = a.iter().zip(&b).map(|(&a, &b)| (a as f64 - b as f64).powi(2) / ((a + b) as f64).max(1.0)).sum();
        let freedom = f64::from(1 << width) - 1.0;
        scores.push((format!("two samples, bits {shift}.."), (sum - freedom) / (2.0 * freedom).sqrt()));
    }
    let n = input.len() as f64;
    for bit in 0..bits {
        let equal = input.iter().zip(chosen).filter(|(x, y)| (*x ^ *y) >> bit & 1 == 0).count() as f64;
        scores.push((format!("input bit {bit}"), (equal - n / 2.0) / (n / 4.0).sqrt()));
    }
    scores
}

fn worst(scores: &[Score]) -> &Score {
    scores.iter().max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())).unwrap()
}

/// An input that would show through: runs of zeros, of ones, of a counter and of single bits.
fn chosen_input(modulus: Modulus, len: usize) -> Vec<u64> {
    let value = |i: usize| match i / 1000 % 4 {
        0 => 0,
        1 => modulus.mask(),
        2 => i as u64 & modulus.mask(),
        _ => 1 << (i as u32 % modulus.bits()),
    };
    (0..len).map(value).collect()
}

/// The uploads of devices 0 and 1 of a real round, whose inputs are zeros and the chosen ones.
fn uploads(modulus_bits: u32, len: usize) -> (Vec<u64>, Vec<u64>, Vec<u64>) {
    let mut wire = params(false, 3, 5, 0.0, 0.25, len as u64 - 1);
    wire.modulus_bits = modulus_bits;
    wire.chunk_elements = 1 << 20;
    let mut server = open(&wire);
    let modulus = server.params().modulus;
    let chosen = chosen_input(modulus, len);
    let mut devices: Vec<Device> = (0..5).map(|i| Device::new(i, &server, 7)).collect();
    devices[0].input = RingVector::zeros(modulus, len);
    devices[1].input = RingVector::from_u64(modulus, &chosen).unwrap();
    devices[2..].iter_mut().for_each(|device| device.input = RingVector::zeros(modulus, 0));
    loop {
        for (i, device) in devices.iter_mut().enumerate() {
            match server.view(device.id()) {
                Some(view) if server.phase() < Phase::Mask || i < 2 => device.receive(&view).unwrap(),
                Some(_) => {}
                None => device.join(server.offer()).unwrap(),
            }
        }
        if server.phase() == Phase::Mask {
            let values =
                |device: &Device| RingVector::unpack(modulus, len, &device.upload().unwrap()).unwrap().to_u64();
            return (values(&devices[0]), values(&devices[1]), chosen);
        }
        for device in &devices {
            server.absorb(device.message().unwrap(), NOW).unwrap();
        }
        let Ok(Closed::Next(next)) = server.close() else { panic!("the round goes on") };
        server = *next;
    }
}

#[test]
fn uploads_of_zeros_and_of_a_chosen_input_can_not_be_told_apart() {
    for bits in [13, 32] {
        let (zero, chosen, input) = uploads(bits, LEN);
        let scores = [uniform(&zero, bits), uniform(&chosen, bits), alike(&zero, &chosen, &input, bits)].concat();
        let (name, score) = worst(&scores);
        assert!(score.abs() < LIMIT, "{bits} bits: {name} is off by {score:.1} standard deviations");
    }
}

/// Zeros and the chosen input under masks that a broken generator would give, in 13 bits.
fn masked_by(broken: impl Fn(u64, usize) -> u64) -> Vec<Score> {
    const BITS: u32 = 13;
    let modulus = Modulus::new(BITS).unwrap();
    let mask = |byte: u8| {
        let mut words = vec![0u32; LEN];
        prg::apply(&Seed::from_secret(&Secret32::from_bytes([byte; 32])), 0, Sign::Add, &mut words).unwrap();
        words
    };
    let upload = |byte, input: &[u64]| -> Vec<u64> {
        let add = |(i, (word, x)): (usize, (u32, &u64))| (x + broken(word.into(), i)) & modulus.mask();
        mask(byte).into_iter().zip(input).enumerate().map(add).collect()
    };
    let input = chosen_input(modulus, LEN);
    let (zero, chosen) = (upload(1, &vec![0; LEN]), upload(2, &input));
    [uniform(&zero, BITS), uniform(&chosen, BITS), alike(&zero, &chosen, &input, BITS)].concat()
}

#[test]
fn the_tests_notice_masks_that_are_broken_and_pass_one_that_is_not() {
    let rejects = |scores: Vec<Score>| worst(&scores).1.abs() >= LIMIT;
    assert!(!rejects(masked_by(|word, _| word)));
    assert!(rejects(masked_by(|word, _| word % 8189)), "residues 8189 to 8191 never occur");
    assert!(rejects(masked_by(|word, _| word % 8192 - u64::from(word % 8192 == 8191))), "8190 in place of 8191");
    assert!(rejects(masked_by(|word, _| word % 8191)), "8191 never occurs, and all others alike");
    assert!(
        rejects(masked_by(|word, _| word & !u64::from(word >> 16 & 0xff == 0))),
        "the low bit is 0 once more in 512"
    );
    assert!(rejects(masked_by(|word, i| if i % 1024 == 0 { 0 } else { word })), "one element in 1,024 has no mask");
    assert!(rejects(masked_by(|word, _| word & 0xfff)), "the upper bit has no mask");
    let periodic = {
        let mut words = vec![0u32; 512];
        prg::apply(&Seed::from_secret(&Secret32::from_bytes([3; 32])), 0, Sign::Add, &mut words).unwrap();
        move |_: u64, i: usize| words[i % 512].into()
    };
    assert!(rejects(masked_by(periodic)), "the block counter stands still");
}

/// Masks made from seeds that are cut to `bits`; how many of them begin alike.
fn collisions(bits: u32, masks: u64) -> usize {
    let mut seen = BTreeSet::new();
    let repeats = |&i: &u64| {
        let full = unisono_crypto::kdf::hash(unisono_crypto::kdf::label::SELF_MASK, &[&i.to_le_bytes()]);
        let mut secret = [0; 32];
        let kept = bits as usize / 8;
        secret[..kept].copy_from_slice(&full[..kept]);
        let mut first = [0u64; 2];
        prg::apply(&Seed::from_secret(&Secret32::from_bytes(secret)), 0, Sign::Add, &mut first).unwrap();
        !seen.insert(first)
    };
    (0..masks).filter(repeats).count()
}

#[test]
fn masks_do_not_repeat_and_those_of_a_seed_cut_to_16_bits_do() {
    // Uniform elements do not show a small seed: only its masks come again, here about 30 of 2,000.
    assert_eq!(collisions(256, 2000), 0);
    assert!(collisions(16, 2000) > 10);
    // The same of real rounds: no two uploads of zeros, by anybody in any round, begin alike.
    let mut firsts = BTreeSet::new();
    for round in 0..40 {
        let (zero, chosen, _) = uploads(32, 8 + round);
        assert!(firsts.insert(zero[..4].to_vec()) && firsts.insert(chosen[..4].to_vec()));
    }
}
