//! The KEM is X-Wing: the vectors of draft-connolly-cfrg-xwing-kem, and the `x-wing` crate on random seeds, coins and
//! ciphertexts.

use proptest::prelude::*;
use serde_json::Value;
use unisono_crypto::kem::{CT_LEN, DecapsulationKey, EncapsulationKey};
use unisono_crypto::secret::Secret32;
use x_wing::{Decapsulate, Decapsulator, KeyExport};

fn key(seed: [u8; 32]) -> DecapsulationKey {
    DecapsulationKey::from_seed(&Secret32::from_bytes(seed))
}

#[test]
fn keys_ciphertexts_and_secrets_are_those_of_the_drafts_vectors() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/xwing.json");
    let vectors: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(!vectors.is_empty());
    for vector in vectors {
        let field = |name: &str| hex::decode(vector[name].as_str().unwrap()).unwrap();
        let key = key(field("sk").try_into().unwrap());
        assert_eq!(key.encapsulation_key().as_bytes(), field("pk"));
        let public = EncapsulationKey::from_bytes(&field("pk")).unwrap();
        let (ct, secret) = public.encapsulate_with_coins(&field("eseed").try_into().unwrap());
        assert_eq!(ct, field("ct"));
        assert_eq!(secret.expose().as_slice(), field("ss"));
        assert!(key.decapsulate(&ct).unwrap().ct_eq(&secret));
    }
}

proptest! {
    #[test]
    fn the_x_wing_crate_gives_the_same_bytes_also_for_broken_ciphertexts(
        seed: [u8; 32], coins in proptest::collection::vec(any::<u8>(), 64), at in 0..CT_LEN, flip: u8,
    ) {
        let (ours, theirs) = (key(seed), x_wing::DecapsulationKey::from(seed));
        prop_assert!(ours.encapsulation_key().as_bytes() == theirs.encapsulation_key().to_bytes().as_slice());
        let coins: [u8; 64] = coins.try_into().unwrap();
        let (ct, secret) = ours.encapsulation_key().encapsulate_with_coins(&coins);
        let (their_ct, their_secret) = theirs.encapsulation_key().encapsulate_deterministic(&coins.into());
        prop_assert_eq!(ct.as_slice(), their_ct.as_slice());
        prop_assert_eq!(secret.expose().as_slice(), their_secret.as_slice());
        let mut broken = ct;
        broken[at] ^= flip;
        let theirs = theirs.decapsulate(&x_wing::Ciphertext::try_from(broken.as_slice()).unwrap());
        prop_assert!(ours.decapsulate(&broken).unwrap().expose().as_slice() == theirs.as_slice());
    }
}
