//! Every decoder of messages, rosters, keys and packed vectors. The first byte chooses one; the rest is its input.
//!
//! What is accepted must be written back to bytes that are accepted again and give the same value; where an encoding is
//! canonical, to the same bytes.

use prost::Message;
use unisono_crypto::aead;
use unisono_crypto::kdf::label;
use unisono_crypto::kem::{DecapsulationKey, EncapsulationKey};
use unisono_crypto::merkle;
use unisono_crypto::ring::{Modulus, RingVector};
use unisono_crypto::secret::Secret32;
use unisono_crypto::shamir::{self, SecretScalar, Share};
use unisono_crypto::sign::VerifyingKey;
use unisono_protocol::cohort::{Advert, Cohort};
use unisono_protocol::keyfile::{self, DeviceKeys, Enrolment, Role};
use unisono_protocol::params::RoundParams;
use unisono_protocol::proto;
use unisono_protocol::roster::{Leaf, Roster};
use unisono_protocol::{ClientId, CohortId, RoundId, bitmap, signed};

use super::client::RECORDINGS;
use super::world::{CAST, NOW};

/// Decodes, encodes, and decodes again.
fn message<M: Message + Default>(bytes: &[u8]) {
    if let Ok(message) = M::decode(bytes) {
        let once = message.encode_to_vec();
        let twice = M::decode(once.as_slice()).expect("an encoding is decoded").encode_to_vec();
        assert_eq!(once, twice);
    }
}

macro_rules! decoders {
    ($($function:expr),* $(,)?) => {
        /// The decoders in the order of the first byte.
        pub const DECODERS: &[fn(&[u8])] = &[$($function),*];
    };
}

// New ones are appended: seeds count on the order.
decoders![
    message::<proto::Signed>,
    message::<proto::RoundParams>,
    message::<proto::RosterLeaf>,
    message::<proto::RosterHead>,
    message::<proto::RosterFile>,
    message::<proto::RosterProof>,
    message::<proto::RoundOffer>,
    message::<proto::Advert>,
    message::<proto::Cohort>,
    message::<proto::CohortView>,
    message::<proto::NeighbourShares>,
    message::<proto::SharePair>,
    message::<proto::SharesRoot>,
    message::<proto::ShareKeys>,
    message::<proto::MaskingView>,
    message::<proto::UploadHeader>,
    message::<proto::Endorsement>,
    message::<proto::Certificate>,
    message::<proto::UnmaskShares>,
    message::<proto::ClientMessage>,
    message::<proto::ServerMessage>,
    round_params,
    cohort,
    advert,
    leaf,
    roster,
    resealed_roster,
    device_keys,
    enrolment,
    long_term_keys,
    bitmaps,
    packed,
    shares,
    merkle_path,
    kem_key,
    kem_ciphertext,
    verifying_key,
    signature,
    sealed,
    identifiers,
    message::<proto::BaseModel>,
];

/// Runs one input.
pub fn run(data: &[u8]) {
    if let Some((&which, bytes)) = data.split_first() {
        DECODERS[which as usize % DECODERS.len()](bytes);
    }
}

fn round_params(bytes: &[u8]) {
    if let Ok(params) = RoundParams::from_payload(bytes) {
        assert!(params.packed_len() > 0 && params.chunks() > 0 && params.chunk_len() > 0);
        assert!(params.topology(params.wire.n_min).is_ok() && params.topology(params.wire.n_max).is_ok());
    }
}

fn cohort(bytes: &[u8]) {
    for recording in RECORDINGS.iter() {
        if let Ok(cohort) = Cohort::from_payload(bytes, recording.server.params()) {
            assert!(cohort.threshold() >= 2 && cohort.graph.neighbours(0).len() >= cohort.threshold());
            let (committee, quorum) = (cohort.graph.committee().len(), cohort.graph.quorum());
            // Two quorums have an honest member in common, even if one of the committee is not.
            assert!(committee == 0 && quorum == 0 || 2 * quorum > committee + 1 && quorum <= committee);
        }
    }
}

fn advert(bytes: &[u8]) {
    let _ = Advert::from_payload(bytes, RECORDINGS[0].server.params().round_id);
}

fn leaf(bytes: &[u8]) {
    if let Ok(leaf) = Leaf::from_bytes(bytes) {
        let valid = leaf.check_validity(NOW).is_ok();
        assert_eq!(valid, (leaf.not_before..=leaf.not_after).contains(&NOW));
    }
}

fn check_roster(bytes: &[u8]) {
    let Ok(roster) = Roster::from_bytes(bytes, &CAST.registrar.verifying_key()) else { return };
    let again = Roster::from_bytes(&roster.to_bytes().expect("in memory"), &CAST.registrar.verifying_key())
        .expect("a written roster");
    assert_eq!(again.head(), roster.head());
    assert_eq!(roster.clients().len() as u64, roster.head().size);
    for &client in roster.clients().iter().take(4) {
        // Its identity key may be none.
        let Ok(entry) = roster.entry(client) else { continue };
        let (leaf, proof) = entry.expect("a leaf has a proof");
        assert!(roster.head().check_leaf(&proof, leaf.not_before).is_ok() || leaf.not_after < leaf.not_before);
    }
}

fn roster(bytes: &[u8]) {
    check_roster(bytes);
}

/// The same leaves under a head that the registrar signs, so that what comes after the signature is reached.
fn resealed_roster(bytes: &[u8]) {
    let Ok(mut file) = proto::RosterFile::decode(bytes) else { return };
    let head = file.head.as_ref().and_then(|head| proto::RosterHead::decode(head.payload.as_slice()).ok());
    let mut head = head.unwrap_or_default();
    head.root = merkle::Tree::new(label::TREE_ROSTER, &file.leaves).root().to_vec();
    head.size = file.leaves.len() as u64;
    file.head = Some(signed::sign(&head, label::SIG_ROSTER, Some(&CAST.registrar)));
    check_roster(&file.encode_to_vec());
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

fn device_keys(bytes: &[u8]) {
    if let Ok(keys) = DeviceKeys::from_text(text(bytes)) {
        let written = keys.to_text();
        assert_eq!(*DeviceKeys::from_text(&written).expect("written keys").to_text(), *written);
    }
}

fn enrolment(bytes: &[u8]) {
    if let Ok(enrolment) = Enrolment::from_text(text(bytes)) {
        assert_eq!(Enrolment::from_text(&enrolment.to_text()), Ok(enrolment));
    }
}

fn long_term_keys(bytes: &[u8]) {
    let text = text(bytes);
    for role in [Role::Registrar, Role::Coordinator, Role::Publisher] {
        if let Ok(key) = keyfile::verifying_key_from_text(role, text) {
            let written = keyfile::verifying_key_to_text(role, &key);
            assert_eq!(keyfile::verifying_key_from_text(role, &written), Ok(key));
        }
        if let Ok(key) = keyfile::signing_key_from_text(role, text) {
            let written = keyfile::signing_key_to_text(role, &key);
            let again = keyfile::signing_key_from_text(role, &written).expect("a written key");
            assert!(again.seed().ct_eq(key.seed()));
        }
    }
    if let Ok(key) = keyfile::key_encryption_key_from_text(text) {
        let again = keyfile::key_encryption_key_from_text(&keyfile::key_encryption_key_to_text(&key));
        assert!(again.expect("a written key").ct_eq(&key));
    }
}

fn bitmaps(bytes: &[u8]) {
    let Some((&n, bytes)) = bytes.split_first() else { return };
    if let Ok(members) = bitmap::from_bytes(bytes, n.into()) {
        assert_eq!(members.len(), usize::from(n));
        assert_eq!(bitmap::to_bytes(&members), bytes);
    }
}

fn packed(bytes: &[u8]) {
    let [bits, len, bytes @ ..] = bytes else { return };
    let Ok(modulus) = Modulus::new(u32::from(*bits)) else { return };
    let len = usize::from(*len);
    if let Ok(vector) = RingVector::unpack(modulus, len, bytes) {
        assert_eq!(vector.pack(), bytes);
        let values = vector.to_u64();
        assert!(values.len() == len && values.iter().all(|&value| value <= modulus.mask()));
        let mut sum = RingVector::from_u64(modulus, &values).expect("values in range");
        sum.add_packed(bytes).expect("the same bytes");
        assert!(sum.to_u64().iter().zip(&values).all(|(sum, x)| *sum == x.wrapping_add(*x) & modulus.mask()));
    }
}

/// Threshold, then shares of a byte for the abscissa and 32 for the value.
fn shares(bytes: &[u8]) {
    let Some((&threshold, bytes)) = bytes.split_first() else { return };
    let (elements, _) = bytes.as_chunks::<33>();
    let share = |element: &[u8; 33]| {
        let value: [u8; 32] = element[1..].try_into().ok()?;
        Share::from_bytes(element[0].into(), &value).ok()
    };
    let shares: Vec<Share> = elements.iter().take(12).filter_map(share).collect();
    if let Ok(Some(decoded)) = shamir::decode(&shares, usize::from(threshold % 16)) {
        let surplus = shares.len() - usize::from(threshold % 16);
        assert!(decoded.wrong.len() <= surplus / 2, "more wrong shares than can be told from right ones");
    }
    let at: Vec<u32> = shares.iter().map(Share::abscissa).collect();
    if let Ok(interpolator) = shamir::Interpolator::new(&at) {
        let secret = interpolator.reconstruct(&shares).expect("its own abscissas").to_secret();
        assert!(SecretScalar::from_canonical(secret.expose()).is_ok());
    }
}

/// Size, index, number of hashes, the hashes, then the leaf.
fn merkle_path(bytes: &[u8]) {
    let [size, index, count, rest @ ..] = bytes else { return };
    let Some((path, leaf)) = rest.split_at_checked(32 * usize::from(count % 10)) else { return };
    let root = merkle::Tree::new(label::TREE_ROSTER, [leaf]).root();
    let verified =
        merkle::verify(label::TREE_ROSTER, &root, (*size).into(), (*index).into(), leaf, path.as_chunks::<32>().0);
    assert_eq!(verified.is_ok(), *size == 1 && *index == 0 && path.is_empty(), "a path to a root of one leaf");
}

fn kem_key(bytes: &[u8]) {
    if let Ok(key) = EncapsulationKey::from_bytes(bytes) {
        assert_eq!(key.as_bytes(), bytes);
        let (one, secret) = key.encapsulate_with_coins(&[7; 64]);
        let (two, again) = key.encapsulate_with_coins(&[7; 64]);
        assert!(one == two && secret.ct_eq(&again));
    }
}

fn kem_ciphertext(bytes: &[u8]) {
    let key = DecapsulationKey::from_seed(&Secret32::from_bytes([9; 32]));
    if let Ok(secret) = key.decapsulate(bytes) {
        assert!(key.decapsulate(bytes).expect("the same bytes").ct_eq(&secret), "implicit rejection is deterministic");
    }
}

fn verifying_key(bytes: &[u8]) {
    if let Ok(key) = VerifyingKey::from_bytes(bytes) {
        assert_eq!(key.as_bytes(), bytes);
        let nothing = vec![0; key.level().signature_len()];
        assert!(key.verify(label::SIG_ADVERT, b"message", &nothing).is_err());
    }
}

/// A signature over a fixed message; only the one that the key makes verifies. (A hedged one would, too: it takes the key.)
fn signature(bytes: &[u8]) {
    let key = &CAST.identities[0].signing_key;
    if key.verifying_key().verify(label::SIG_ADVERT, b"message", bytes).is_ok() {
        assert_eq!(key.sign(label::SIG_ADVERT, b"message"), bytes);
    }
}

fn sealed(bytes: &[u8]) {
    let key = Secret32::from_bytes([3; 32]);
    if let Ok(plaintext) = aead::open(&key, b"data", bytes) {
        assert_eq!(aead::seal(&key, b"data", &plaintext).expect("a short plaintext"), bytes);
    }
}

fn identifiers(bytes: &[u8]) {
    let text = text(bytes);
    if let Ok(id) = text.parse::<ClientId>() {
        assert_eq!(id.to_string(), text.to_ascii_lowercase());
    }
    let _ = (text.parse::<RoundId>(), text.parse::<CohortId>());
}
