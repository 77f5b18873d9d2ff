//! Every derivation of a round as docs/protocol.md words it, from the labelled functions alone: what the crate does inside is
//! compared with this.

use unisono_crypto::kdf::{Label, derive_bytes, derive_secret, hash, label};
use unisono_crypto::kem::{DecapsulationKey, EncapsulationKey};
use unisono_crypto::prg::{self, Seed, Sign};
use unisono_crypto::ring::{Modulus, RingVector};
use unisono_crypto::secret::Secret32;
use unisono_crypto::shamir::SecretScalar;

/// Section 3: the mask key pair's X-Wing seed.
pub fn mask_key_seed(mask_secret: &SecretScalar, round_id: &[u8]) -> Secret32 {
    derive_secret(label::MASK_KEY, mask_secret.to_secret().expose(), &[round_id])
}

/// Section 3: the commitment to `b_u`.
pub fn commitment(self_secret: &SecretScalar, round_id: &[u8], client_id: &[u8]) -> [u8; 32] {
    hash(label::SELF_MASK_COMMITMENT, &[self_secret.to_secret().expose(), round_id, client_id])
}

/// Section 4: coins of `mask_ct`.
pub fn mask_coins(mask_secret: &SecretScalar, cohort_id: &[u8], to: u32, mask_ek: &[u8]) -> [u8; 64] {
    *derive_bytes(label::MASK_COINS, mask_secret.to_secret().expose(), &[cohort_id, &to.to_le_bytes(), mask_ek])
}

/// The bitmap of a set: one bit a member by index, least significant first.
pub fn bitmap(members: &[bool]) -> Vec<u8> {
    let byte = |bits: &[bool]| bits.iter().enumerate().map(|(i, &member)| u8::from(member) << i).sum();
    members.chunks(8).map(byte).collect()
}

/// Section 5: `H(U1)`, from the bitmap.
pub fn sharers_hash(bitmap: &[u8]) -> [u8; 32] {
    hash(label::SHARERS, &[bitmap])
}

/// Section 6: `H(U2)`, from the bitmap.
pub fn survivors_hash(bitmap: &[u8]) -> [u8; 32] {
    hash(label::SURVIVORS, &[bitmap])
}

/// Section 5: `s_uv`, for the encapsulator first.
pub fn pair_secret(
    shared: &Secret32,
    (cohort_id, sharers): (&[u8], &[u8; 32]),
    ends: [(u32, &[u8]); 2],
    mask_ct: &[u8],
) -> Secret32 {
    let [(u, u_ek), (v, v_ek)] = ends;
    let context: [&[u8]; 7] = [cohort_id, sharers, &u.to_le_bytes(), &v.to_le_bytes(), u_ek, v_ek, mask_ct];
    derive_secret(label::PAIR_MASK, shared.expose(), &context)
}

/// Section 5: the secret of `PRG(b_u, H(U1))`.
pub fn self_mask_seed(self_secret: &SecretScalar, cohort_id: &[u8], sharers: &[u8; 32]) -> Secret32 {
    derive_secret(label::SELF_MASK, self_secret.to_secret().expose(), &[cohort_id, sharers])
}

/// Section 3: indices in the order of their hashes, under the label of the ring or of the committee.
fn permutation(label: Label, cohort_id: &[u8], n: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n).collect();
    order.sort_by_key(|i| hash(label, &[cohort_id, &i.to_le_bytes()]));
    order
}

/// Section 3: the client at each place of the ring.
pub fn ring(cohort_id: &[u8], n: u32) -> Vec<u32> {
    permutation(label::GRAPH_SEED, cohort_id, n)
}

/// Section 3: the committee of `size` members, ascending.
pub fn committee(cohort_id: &[u8], n: u32, size: u32) -> Vec<u32> {
    let mut first = permutation(label::COMMITTEE_SEED, cohort_id, n)[..size as usize].to_vec();
    first.sort_unstable();
    first
}

/// Section 6: the 100 bytes that a member of the committee signs.
pub fn endorsement(cohort_id: &[u8; 32], sharers: &[u8; 32], survivors: &[u8; 32], count: u32) -> [u8; 100] {
    let mut bytes = [0; 100];
    bytes[..32].copy_from_slice(cohort_id);
    bytes[32..64].copy_from_slice(sharers);
    bytes[64..96].copy_from_slice(survivors);
    bytes[96..].copy_from_slice(&count.to_le_bytes());
    bytes
}

/// One end of a channel: index, client id, channel key.
#[derive(Clone, Copy)]
pub struct End<'a>(pub u32, pub &'a [u8], pub &'a [u8]);

/// Section 4: the AEAD key of the shares.
pub fn share_key(secret: &Secret32, cohort_id: &[u8], from: End, to: End) -> Secret32 {
    let (from_index, to_index) = (from.0.to_le_bytes(), to.0.to_le_bytes());
    derive_secret(label::SHARE_KEY, secret.expose(), &[cohort_id, &from_index, &to_index, from.1, to.1, from.2, to.2])
}

/// Section 4: the commitment to the share of a secret that `from` dealt `to`; `kind` is 1 for `b`, 2 for `m`.
pub fn share_commitment(share: &[u8], cohort_id: &[u8], from: u32, to: u32, kind: u8) -> Vec<u8> {
    let parts = [share, cohort_id, &from.to_le_bytes(), &to.to_le_bytes(), &[kind]];
    hash(label::SHARE_COMMITMENT, &parts)[..16].to_vec()
}

/// Section 5: the ChaCha20 key of a mask.
pub fn prg_key(secret: &Secret32) -> Secret32 {
    derive_secret(label::PRG, secret.expose(), &[])
}

/// The first `len` elements of a mask modulo 2^b.
pub fn mask(secret: &Secret32, modulus: Modulus, len: usize) -> Vec<u64> {
    let seed = Seed::from_secret(secret);
    let wide: Vec<u64> = match modulus.bits() {
        ..=16 => stream::<u16>(&seed, len).into_iter().map(u64::from).collect(),
        17..=32 => stream::<u32>(&seed, len).into_iter().map(u64::from).collect(),
        _ => stream::<u64>(&seed, len),
    };
    wide.into_iter().map(|x| x & modulus.mask()).collect()
}

fn stream<T: prg::StreamElement + Default>(seed: &Seed, len: usize) -> Vec<T> {
    let mut out = vec![T::default(); len];
    prg::apply(seed, 0, Sign::Add, &mut out).unwrap();
    out
}

/// Adds `sign * mask`, element by element.
pub fn add(values: &mut [u64], mask: &[u64], plus: bool, modulus: Modulus) {
    for (x, m) in values.iter_mut().zip(mask) {
        *x = if plus { x.wrapping_add(*m) } else { x.wrapping_sub(*m) } & modulus.mask();
    }
}

/// Section 7: an update turned by the rotation of a round, by the definition of the transform.
pub fn rotate(round_id: &[u8; 32], update: &[f32]) -> Vec<f32> {
    let d = update.len();
    let window = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096].into_iter().rfind(|b| *b <= d).unwrap();
    let m = d.div_ceil(window);
    let mut values: Vec<f32> = (0..m).flat_map(|class| update.iter().skip(class).step_by(m)).copied().collect();
    let signs = stream::<u64>(&Seed::from_secret(&derive_secret(label::ROTATION, round_id, &[])), 64 * m);
    for w in 0..m {
        // All but the last begin at a multiple of the window.
        let start = (w * window).min(d - window);
        let turned = |j: usize| {
            let negative = signs[64 * w + j / 64] >> (j % 64) & 1 == 1;
            f64::from(values[start + j]) * if negative { -1.0 } else { 1.0 }
        };
        let turned: Vec<f64> = (0..window).map(turned).collect();
        let hadamard = |i: usize, j: usize| if (i & j).count_ones() % 2 == 1 { -1.0 } else { 1.0 };
        for i in 0..window {
            let sum: f64 = (0..window).map(|j| hadamard(i, j) * turned[j]).sum();
            values[start + i] = (sum / (window as f64).sqrt()) as f32;
        }
    }
    values
}

/// Packs after section 5: `b` bits an element, least significant bit first.
pub fn pack(values: &[u64], bits: u32) -> Vec<u8> {
    let bit = |i: usize| values[i / bits as usize] >> (i % bits as usize) & 1;
    let count = values.len() * bits as usize;
    (0..count.div_ceil(8))
        .map(|byte| (0..8).filter(|j| 8 * byte + j < count).map(|j| (bit(8 * byte + j) as u8) << j).sum())
        .collect()
}

/// Both ways to the secret in a mask ciphertext, which must be one.
pub fn either_end(
    encapsulator: &SecretScalar,
    other: &SecretScalar,
    (cohort_id, round_id, to): (&[u8], &[u8], u32),
    mask_ek: &[u8],
    mask_ct: &[u8],
) -> Secret32 {
    let coins = mask_coins(encapsulator, cohort_id, to, mask_ek);
    let (ct, one) = EncapsulationKey::from_bytes(mask_ek).unwrap().encapsulate_with_coins(&coins);
    assert_eq!(ct, mask_ct, "the coins give the ciphertext that was sent");
    let two = DecapsulationKey::from_seed(&mask_key_seed(other, round_id)).decapsulate(mask_ct).unwrap();
    assert!(one.ct_eq(&two), "both ends have one secret");
    one
}

/// The packed vector's elements.
pub fn unpack(bytes: &[u8], modulus: Modulus, len: usize) -> Vec<u64> {
    RingVector::unpack(modulus, len, bytes).unwrap().to_u64()
}
