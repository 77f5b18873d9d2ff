//! What is read from files: a device's saved state and record, releases, grants, wrapped keys, models, rosters, and what a coordinator
//! stores; and the service's messages.
//! The first byte chooses a reader; the rest is its input.
//!
//! Behind a signature, the changed content is signed again, so that what comes after the signature is reached too.

use std::sync::LazyLock;

use prost::Message;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use unisono_crypto::kdf::{Hasher, label};
use unisono_crypto::kem::DecapsulationKey;
use unisono_crypto::secret::Secret32;
use unisono_crypto::sign::{Level, SigningKey};
use unisono_protocol::client::Session;
use unisono_protocol::proto::server_message::View;
use unisono_release::proto::{Grant, PayloadType, Provenance, ReleaseHeader, SealedKind, SignedGrant};
use unisono_release::{
    ContentKey, Header, Issuer, Issuers, KeyEncryptionKey, MAGIC, OpenPolicy, Recipient, Release, ReleaseError, Seen,
    VersionRecord, grant, open, open_grant, seal,
};
use unisono_wire::model::Model;
use unisono_wire::proto as wire;

use super::client::RECORDINGS;
use super::world::{Device, NOW};
use super::{release, roster, stored};

/// The readers in the order of the first byte. New ones are appended: seeds count on the order.
pub const READERS: &[fn(&[u8])] = &[
    |bytes| saved(0, bytes),
    |bytes| saved(1, bytes),
    signed_release,
    resealed_release,
    header,
    signed_grant,
    resealed_grant,
    |bytes| drop(VAULT.kek.unwrap(bytes, &VAULT.header.hash)),
    model,
    service,
    release::open_sealed,
    release::open_granted,
    roster::check_leaves,
    roster::check_proof,
    roster::check_epochs,
    stored::configuration,
    stored::record,
    stored::tally,
    stored::events,
];

/// Runs one input.
pub fn run(data: &[u8]) {
    if let Some((&which, bytes)) = data.split_first() {
        READERS[which as usize % READERS.len()](bytes);
    }
}

/// One release and everybody's keys.
pub struct Vault {
    /// Signs releases and grants.
    pub publisher: SigningKey,
    /// The release's content key.
    pub key: ContentKey,
    /// Wraps it.
    pub kek: KeyEncryptionKey,
    /// A device's release key.
    pub device: DecapsulationKey,
    /// The sealed file.
    pub file: Vec<u8>,
    /// Its header.
    pub header: Header,
    /// The device's grant.
    pub grant: SignedGrant,
}

/// A release of three chunks' worth of nothing would be a large seed: this one is short.
pub static VAULT: LazyLock<Vault> = LazyLock::new(|| {
    let mut rng = ChaCha8Rng::seed_from_u64(21);
    let publisher = SigningKey::generate(Level::L65, &mut rng);
    let (key, device) = (ContentKey::random(&mut rng), DecapsulationKey::generate(&mut rng));
    let fields = ReleaseHeader {
        model_id: "digits".into(),
        version: 3,
        created_at: NOW,
        not_after: NOW + 100,
        payload_type: PayloadType::Safetensors as i32,
        key_id: "default".into(),
        key_version: 1,
        roster_epoch: 7,
        provenance: Some(Provenance {
            task: "test".into(),
            round_id: vec![1; 32],
            clients: 5,
            drop_outs: 1,
            mode: unisono_release::proto::ProvenanceMode::Malicious as i32,
        }),
        ..ReleaseHeader::default()
    };
    let (file, header) = seal(fields, b"a model", &key, Some(&publisher), &mut rng).expect("good fields");
    let recipient = Recipient { client_id: [4; 16], key: device.encapsulation_key(), roster_epoch: 7 };
    let grant = grant(&header, &key, &recipient, Issuer::Key(&publisher), &mut rng).expect("the header's own key");
    let kek = KeyEncryptionKey::from_secret(Secret32::from_bytes([6; 32]));
    Vault { publisher, key, kek, device, file, header, grant }
});

struct NoRecord;

impl VersionRecord for NoRecord {
    fn newest(&self, _: &str) -> Result<Option<Seen>, ReleaseError> {
        Ok(None)
    }

    fn latest_time(&self) -> Result<u64, ReleaseError> {
        Ok(0)
    }

    fn see(&mut self, _: &str, _: Seen, _: u64) -> Result<(), ReleaseError> {
        Ok(())
    }
}

/// A saved session is resumed and, if it can be, shown everything that the round had to show.
fn saved(which: usize, bytes: &[u8]) {
    let home = &RECORDINGS[which];
    let mut device = Device::new(0, &home.server, 1);
    let resume = |bytes: &[u8]| Session::resume(bytes, home.server.offer(), device.identity.clone(), &device.trust);
    let Ok(resumed) = resume(bytes) else { return };
    let written = resumed.save().expect("a session that was resumed is saved");
    assert!(resume(&written).is_ok());
    device.session = Some(resumed);
    let views = home.views[0].iter().flatten().flatten();
    for view in views.filter(|view| !matches!(view.view, None | Some(View::Cohort(_)))) {
        let _ = device.receive(view);
    }
}

fn check_release(file: &[u8]) {
    let Ok(release) = Release::parse(file) else { return };
    let publishers = vec![VAULT.publisher.verifying_key()];
    let verified = release.verify(&publishers).is_ok();
    let policy = OpenPolicy::release(publishers, 1 << 30);
    if let Ok(plaintext) = open(&release, &VAULT.key, &policy, &mut NoRecord, NOW) {
        assert!(verified, "an unverified release was opened");
        assert_eq!(plaintext.len() as u64, release.header.fields.payload_length);
    }
}

fn signed_release(bytes: &[u8]) {
    if let Ok(release) = Release::parse(bytes)
        && release.verify(&[VAULT.publisher.verifying_key()]).is_ok()
    {
        assert_eq!(bytes, VAULT.file, "only the release that was signed verifies");
    }
    check_release(bytes);
}

/// A length, a header and a body, put together and signed.
fn resealed_release(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return };
    let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
    let (header, body) = rest.split_at(length);
    let body_hash = Hasher::new(label::RELEASE_BODY).update(body).finalize();
    let header_hash = unisono_crypto::kdf::hash(label::RELEASE_HEADER, &[header]);
    let hashes = [header_hash, body_hash].concat();
    let signature = VAULT.publisher.sign(label::SIG_RELEASE, &hashes);
    let parts = [MAGIC.as_slice(), &(length as u32).to_le_bytes(), header, body, &hashes, &signature];
    check_release(&parts.concat());
}

fn header(bytes: &[u8]) {
    if let Ok(header) = Header::from_bytes(bytes) {
        let base = header.fields.kind() == SealedKind::BaseModel;
        assert!((base || header.fields.version > 0) && header.fields.created_at <= header.fields.not_after);
    }
}

fn check_grant(signed: &SignedGrant) -> bool {
    let issuers = [VAULT.publisher.verifying_key()];
    open_grant(signed, &VAULT.header, [4; 16], &VAULT.device, Issuers::Keys(&issuers), 0).is_ok()
}

fn signed_grant(bytes: &[u8]) {
    let Ok(signed) = SignedGrant::decode(bytes) else { return };
    assert!(!check_grant(&signed) || signed == VAULT.grant, "a grant that nobody issued was opened");
}

fn resealed_grant(bytes: &[u8]) {
    let signature = VAULT.publisher.sign(label::SIG_GRANT, bytes);
    if check_grant(&SignedGrant { payload: bytes.to_vec(), signature }) {
        let genuine = Grant::decode(VAULT.grant.payload.as_slice()).expect("a grant");
        assert_eq!(Grant::decode(bytes), Ok(genuine), "a changed grant was opened");
    }
}

fn model(bytes: &[u8]) {
    if let Ok(model) = Model::from_safetensors(bytes) {
        assert!(model.values().iter().all(|value| value.is_finite()));
        let written = model.to_safetensors().expect("a model is written");
        assert_eq!(Model::from_safetensors(&written), Ok(model));
    }
}

/// One message of the gRPC service, chosen by the first byte.
fn service(bytes: &[u8]) {
    fn message<M: Message + Default>(bytes: &[u8]) {
        if let Ok(message) = M::decode(bytes) {
            let once = message.encode_to_vec();
            assert_eq!(M::decode(once.as_slice()).expect("an encoding is decoded").encode_to_vec(), once);
        }
    }
    let Some((&which, bytes)) = bytes.split_first() else { return };
    // New ones are appended here too.
    match which % 15 {
        0 => message::<wire::GetRoundRequest>(bytes),
        1 => message::<wire::GetRoundResponse>(bytes),
        2 => message::<wire::PollRequest>(bytes),
        3 => message::<wire::PollResponse>(bytes),
        4 => message::<wire::UploadStatusRequest>(bytes),
        5 => message::<wire::UploadChunk>(bytes),
        6 => message::<wire::GetModelRequest>(bytes),
        7 => message::<wire::GrantRequest>(bytes),
        8 => message::<wire::GrantResponse>(bytes),
        9 => {
            if let Ok(request) = wire::PollRequest::decode(bytes) {
                let phase = request.phase().to_phase();
                assert_eq!(phase.map(wire::RoundPhase::from).unwrap_or_default(), request.phase());
            }
            message::<wire::GrantRequestBody>(bytes);
        }
        10 => message::<wire::SubmitResponse>(bytes),
        11 => message::<wire::UploadStatusResponse>(bytes),
        12 => message::<wire::GetReleaseRequest>(bytes),
        13 => message::<wire::FileChunk>(bytes),
        _ => message::<wire::TaskFinished>(bytes),
    }
}
