//! The mask PRG's output is fixed: a backend or a rewrite that changes one bit of it fails here.
//!
//! `tests/vectors/prg.json` is rewritten with `UNISONO_WRITE_VECTORS=1 cargo test -p unisono-crypto --test prg_vectors`.

use serde_json::{Value, json};
use unisono_crypto::prg::{self, Seed, Sign};
use unisono_crypto::secret::Secret32;

fn stream(seed: u8, width: u64, offset: u64) -> Vec<u64> {
    let seed = Seed::from_secret(&Secret32::from_bytes([seed; 32]));
    const LEN: usize = 700;
    match width {
        16 => {
            let mut acc = [0u16; LEN];
            prg::apply(&seed, offset, Sign::Add, &mut acc).unwrap();
            acc.map(u64::from).to_vec()
        }
        32 => {
            let mut acc = [0u32; LEN];
            prg::apply(&seed, offset, Sign::Add, &mut acc).unwrap();
            acc.map(u64::from).to_vec()
        }
        _ => {
            let mut acc = [0u64; LEN];
            prg::apply(&seed, offset, Sign::Add, &mut acc).unwrap();
            acc.to_vec()
        }
    }
}

#[test]
fn the_stream_is_the_one_in_the_vectors() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/prg.json");
    let mut computed = Vec::new();
    for seed in [0u8, 1, 255] {
        for width in [16u64, 32, 64] {
            for offset in [0u64, 1, 513, 1 << 32] {
                let values = stream(seed, width, offset);
                let first: Vec<String> = values[..4].iter().map(|v| format!("{v:x}")).collect();
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                let digest = blake3::hash(&bytes).to_hex().to_string();
                computed.push(json!({
                    "seed_byte": seed, "width": width, "offset": offset, "first": first, "blake3_of_700_as_u64_le": digest,
                }));
            }
        }
    }
    let computed = Value::Array(computed);
    if std::env::var_os("UNISONO_WRITE_VECTORS").is_some() {
        std::fs::write(path, serde_json::to_string_pretty(&computed).unwrap() + "\n").unwrap();
    }
    let stored: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(computed, stored);
}
