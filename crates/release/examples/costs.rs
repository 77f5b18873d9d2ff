//! What sealing, granting and opening cost: `cargo run --release -p unisono-release --example costs -- 300` (MB). Each line is a
//! process of its own, so that its largest memory is that of the operation.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use unisono_crypto::kem::DecapsulationKey;
use unisono_crypto::sign::{Level, SigningKey};
use unisono_release::proto::{PayloadType, ReleaseHeader};
use unisono_release::{
    ContentKey, Issuer, Issuers, OpenPolicy, Recipient, Release, ReleaseError, Seen, VersionRecord, grant, open,
    open_grant, open_to, seal,
};

#[derive(Default)]
struct Versions(BTreeMap<String, Seen>);

impl VersionRecord for Versions {
    fn newest(&self, model_id: &str) -> Result<Option<Seen>, ReleaseError> {
        Ok(self.0.get(model_id).copied())
    }

    fn latest_time(&self) -> Result<u64, ReleaseError> {
        Ok(0)
    }

    fn see(&mut self, model_id: &str, release: Seen, _: u64) -> Result<(), ReleaseError> {
        self.0.insert(model_id.into(), release);
        Ok(())
    }
}

/// Largest resident memory of this process, in MB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or(0) / 1000
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let Some(what) = arguments.get(2) else {
        let folder = std::env::temp_dir().join(format!("unisono-costs-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let megabytes = arguments.get(1).map_or("300", String::as_str);
        for what in ["seal", "grant", "open", "open_to"] {
            Command::new(&arguments[0]).args([megabytes, what]).arg(&folder).status()?;
        }
        return Ok(std::fs::remove_dir_all(&folder)?);
    };
    run(arguments[1].parse()?, what, Path::new(&arguments[3]))
}

fn run(megabytes: usize, what: &str, folder: &Path) -> Result<(), Box<dyn Error>> {
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let publisher = SigningKey::generate(Level::L65, &mut rng);
    let (key, device) = (ContentKey::random(&mut rng), DecapsulationKey::generate(&mut rng));
    let (path, publishers) = (folder.join("model.usr"), vec![publisher.verifying_key()]);
    let policy = OpenPolicy::release(publishers.clone(), u64::MAX);
    let fields = ReleaseHeader {
        model_id: "costs".into(),
        version: 1,
        not_after: u64::MAX,
        payload_type: PayloadType::Safetensors as i32,
        key_id: "default".into(),
        ..ReleaseHeader::default()
    };
    let (began, mut count, mut record) = (Instant::now(), 1, Versions::default());
    match what {
        "seal" => {
            let mut payload = vec![0; megabytes * 1_000_000];
            rng.fill_bytes(&mut payload);
            let began = Instant::now();
            let (file, _) = seal(fields, &payload, &key, Some(&publisher), &mut rng)?;
            println!("seal {megabytes} MB: {:.2} s, {} MB", began.elapsed().as_secs_f64(), peak());
            return Ok(std::fs::write(path, file)?);
        }
        "grant" => {
            count = 200;
            let (_, header) = seal(fields, b"", &key, Some(&publisher), &mut rng)?;
            let recipient = Recipient { client_id: [1; 16], key: device.encapsulation_key(), roster_epoch: 1 };
            let (began, issuer) = (Instant::now(), Issuer::Key(&publisher));
            for _ in 0..count {
                grant(&header, &key, &recipient, issuer, &mut rng)?;
            }
            println!("grant: {:.3} ms", began.elapsed().as_secs_f64() * 1e3 / f64::from(count));
            let signed = grant(&header, &key, &recipient, issuer, &mut rng)?;
            let began = Instant::now();
            for _ in 0..count {
                open_grant(&signed, &header, [1; 16], &device, Issuers::Keys(&publishers), 0)?;
            }
            println!("open a grant: {:.3} ms", began.elapsed().as_secs_f64() * 1e3 / f64::from(count));
            let identity = SigningKey::generate(Level::L44, &mut rng);
            let label = unisono_crypto::kdf::label::SIG_CLIENT_REQUEST;
            let (verifying, signature) = (identity.verifying_key(), identity.sign(label, b"request"));
            let began = Instant::now();
            for _ in 0..count {
                verifying.verify(label, b"request", &signature)?;
            }
            println!("verify a request: {:.3} ms", began.elapsed().as_secs_f64() * 1e3 / f64::from(count));
            return Ok(());
        }
        "open" => {
            let file = std::fs::read(&path)?;
            open(&Release::parse(&file)?, &key, &policy, &mut record, 1)?;
        }
        _ => {
            let mut out = BufWriter::new(File::create(folder.join("model"))?);
            open_to(&mut File::open(&path)?, &key, &policy, &mut record, 1, &mut out)?;
            out.flush()?;
        }
    }
    let seconds = began.elapsed().as_secs_f64() / f64::from(count);
    println!("{what} {megabytes} MB: {seconds:.2} s, {} MB", peak());
    Ok(())
}
