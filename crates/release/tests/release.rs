//! A release opens for the device that has its grant, and every way of cheating is its own error.

use std::collections::BTreeMap;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use unisono_crypto::kem::DecapsulationKey;
use unisono_crypto::secret::Secret32;
use unisono_crypto::sign::{Level, SigningKey};
use unisono_release::proto::{PayloadType, ReleaseHeader, SignedGrant};
use unisono_release::{
    CHUNK_LEN, ContentKey, Header, KeyEncryptionKey, OpenPolicy, Part, Recipient, Release, ReleaseError, VersionRecord,
    grant, open, open_grant, seal,
};

const NOW: u64 = 1_800_000_000;

#[derive(Default)]
struct Versions(BTreeMap<String, u64>);

impl VersionRecord for Versions {
    fn highest(&self, model_id: &str) -> Result<u64, ReleaseError> {
        Ok(self.0.get(model_id).copied().unwrap_or(0))
    }

    fn see(&mut self, model_id: &str, version: u64) -> Result<(), ReleaseError> {
        self.0.insert(model_id.into(), version);
        Ok(())
    }
}

struct World {
    publisher: SigningKey,
    key: ContentKey,
    device: DecapsulationKey,
    rng: ChaCha20Rng,
}

impl World {
    fn new() -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(4);
        Self {
            publisher: SigningKey::generate(Level::L65, &mut rng),
            key: ContentKey::random(&mut rng),
            device: DecapsulationKey::generate(&mut rng),
            rng,
        }
    }

    fn fields(version: u64) -> ReleaseHeader {
        ReleaseHeader {
            model_id: "digits".into(),
            version,
            created_at: NOW,
            not_after: NOW + 100,
            payload_type: PayloadType::Safetensors as i32,
            key_id: "default".into(),
            key_version: 1,
            roster_epoch: 5,
            ..ReleaseHeader::default()
        }
    }

    fn seal(&mut self, version: u64, payload: &[u8]) -> (Vec<u8>, Header) {
        seal(Self::fields(version), payload, &self.key, &self.publisher, &mut self.rng).unwrap()
    }

    fn policy(&self) -> OpenPolicy {
        OpenPolicy {
            publishers: vec![self.publisher.verifying_key()],
            model_id: Some("digits".into()),
            min_roster_epoch: 5,
            max_payload: 1 << 30,
        }
    }

    fn open(&self, file: &[u8]) -> Result<Vec<u8>, ReleaseError> {
        open(&Release::parse(file)?, &self.key, &self.policy(), &mut Versions::default(), NOW).map(|p| p.to_vec())
    }

    fn grant(&mut self, header: &Header) -> SignedGrant {
        let recipient = Recipient { client_id: [1; 16], key: self.device.encapsulation_key(), roster_epoch: 5 };
        grant(header, &self.key, &recipient, &self.publisher, &mut self.rng).unwrap()
    }
}

#[test]
fn a_payload_of_any_length_opens_as_it_was_sealed() {
    let mut world = World::new();
    for len in [0, 1, CHUNK_LEN - 1, CHUNK_LEN, CHUNK_LEN + 1, 3 * CHUNK_LEN] {
        let payload: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
        let (file, header) = world.seal(1, &payload);
        assert_eq!(header.fields.payload_length, len as u64);
        assert_eq!(world.open(&file).unwrap(), payload, "{len} bytes");
    }
}

#[test]
fn a_granted_device_opens_and_nobody_else() {
    let mut world = World::new();
    let (file, header) = world.seal(1, b"weights");
    let signed = world.grant(&header);
    let issuers = [world.publisher.verifying_key()];
    let key = open_grant(&signed, &header, [1; 16], &world.device, &issuers, 5).unwrap();
    let release = Release::parse(&file).unwrap();
    let opened = open(&release, &key, &world.policy(), &mut Versions::default(), NOW).unwrap();
    assert_eq!(opened.as_slice(), b"weights");

    let stranger = DecapsulationKey::generate(&mut world.rng);
    let error = |result: Result<ContentKey, ReleaseError>| result.err().unwrap();
    let attempt = |id, key: &DecapsulationKey, header: &Header, epoch| {
        error(open_grant(&signed, header, id, key, &issuers, epoch))
    };
    assert_eq!(attempt([2; 16], &world.device, &header, 5), ReleaseError::GrantOfAnotherDevice);
    assert_eq!(attempt([1; 16], &stranger, &header, 5), ReleaseError::GrantOfAnotherKey);
    assert!(matches!(
        attempt([1; 16], &world.device, &header, 6),
        ReleaseError::OlderRoster { got: 5, minimum: 6, .. }
    ));
    let forged = SigningKey::generate(Level::L65, &mut world.rng).verifying_key();
    let by_stranger = open_grant(&signed, &header, [1; 16], &world.device, &[forged], 5);
    assert_eq!(error(by_stranger), ReleaseError::GrantSignature);
    let (_, other) = world.seal(1, b"weights");
    let other_release = open_grant(&signed, &other, [1; 16], &world.device, &issuers, 5);
    assert_eq!(error(other_release), ReleaseError::GrantOfAnotherRelease);
}

#[test]
fn every_changed_byte_is_noticed() {
    let mut world = World::new();
    let (file, _) = world.seal(1, &[7; 100]);
    for at in 0..file.len() {
        let mut changed = file.clone();
        changed[at] ^= 1;
        assert!(world.open(&changed).is_err(), "byte {at}");
    }
}

#[test]
fn truncation_reordering_and_exchanged_parts_are_told_apart() {
    let mut world = World::new();
    let (file, header) = world.seal(1, &vec![7; 3 * CHUNK_LEN]);
    let (other, other_header) = world.seal(2, &vec![8; 3 * CHUNK_LEN]);
    let body = file.len() - (3 * (CHUNK_LEN + 16) + 64 + Level::L65.signature_len());
    assert!(matches!(
        world.open(&file[..file.len() - 1]),
        Err(ReleaseError::Truncated { part: Part::SignatureBlock, missing: 1 })
    ));
    assert!(matches!(world.open(&file[..body + 5]), Err(ReleaseError::Truncated { part: Part::Body, .. })));
    assert!(matches!(world.open(&file[..30]), Err(ReleaseError::Truncated { part: Part::Header, .. })));
    assert!(matches!(world.open(&file[..9]), Err(ReleaseError::Truncated { part: Part::Prologue, .. })));
    assert_eq!(world.open(b"PK\x03\x04"), Err(ReleaseError::NotARelease));
    assert_eq!(world.open(&[file.as_slice(), &[0]].concat()), Err(ReleaseError::TrailingBytes));

    let chunk = CHUNK_LEN + 16;
    let mut moved = file.clone();
    moved[body..body + 2 * chunk].rotate_left(chunk);
    assert_eq!(world.open(&moved), Err(ReleaseError::BodyChanged));
    let mut foreign = file.clone();
    foreign[body..body + chunk].copy_from_slice(&other[body..body + chunk]);
    assert_eq!(world.open(&foreign), Err(ReleaseError::BodyChanged));
    assert_eq!((header.fields.salt.len(), other_header.fields.salt.len()), (32, 32));
    let mut exchanged = other.clone();
    exchanged[body..].copy_from_slice(&file[body..]);
    assert_eq!(world.open(&exchanged), Err(ReleaseError::HeaderOfAnotherRelease));
}

#[test]
fn policy_refusals_name_the_limit() {
    let mut world = World::new();
    let (file, _) = world.seal(3, b"weights");
    let release = Release::parse(&file).unwrap();
    let attempt = |policy: OpenPolicy, versions: &mut Versions, now| {
        open(&release, &world.key, &policy, versions, now).map(|_| ()).unwrap_err()
    };
    let none = &mut Versions::default();
    let policy = world.policy();
    assert_eq!(
        attempt(policy.clone(), none, NOW + 101),
        ReleaseError::Expired { not_after: NOW + 100, now: NOW + 101 }
    );
    let other = OpenPolicy { model_id: Some("faces".into()), ..policy.clone() };
    assert!(matches!(attempt(other, none, NOW), ReleaseError::WrongModel { .. }));
    let small = OpenPolicy { max_payload: 6, ..policy.clone() };
    assert_eq!(attempt(small, none, NOW), ReleaseError::PayloadTooLarge { length: 7, limit: 6 });
    let newer = OpenPolicy { min_roster_epoch: 6, ..policy.clone() };
    assert!(matches!(attempt(newer, none, NOW), ReleaseError::OlderRoster { what: "release", got: 5, minimum: 6 }));
    assert_eq!(attempt(OpenPolicy { publishers: vec![], ..policy.clone() }, none, NOW), ReleaseError::OtherPublisher);
    assert!(none.0.is_empty(), "a refused release does not count as seen");

    let mut versions = Versions(BTreeMap::from([("digits".into(), 4)]));
    assert!(matches!(
        attempt(policy.clone(), &mut versions, NOW),
        ReleaseError::OlderVersion { got: 3, minimum: 4, .. }
    ));
    let mut same = Versions(BTreeMap::from([("digits".into(), 3)]));
    assert!(open(&release, &world.key, &policy, &mut same, NOW).is_ok());
    let other_key = ContentKey::random(&mut world.rng);
    let wrong = open(&release, &other_key, &policy, &mut same, NOW).map(|_| ());
    assert_eq!(wrong, Err(ReleaseError::WrongContentKey));
}

#[test]
fn a_wrapped_key_opens_only_for_its_release_under_its_key() {
    let mut world = World::new();
    let (_, header) = world.seal(1, b"weights");
    let kek = KeyEncryptionKey::from_secret(Secret32::from_bytes([9; 32]));
    let wrapped = kek.wrap(&world.key, &header.hash).unwrap();
    let key = kek.unwrap(&wrapped, &header.hash).unwrap();
    let recipient = Recipient { client_id: [1; 16], key: world.device.encapsulation_key(), roster_epoch: 5 };
    assert!(grant(&header, &key, &recipient, &world.publisher, &mut world.rng).is_ok());
    assert_eq!(kek.unwrap(&wrapped, &[0; 32]).err(), Some(ReleaseError::WrappedKey));
    let other = KeyEncryptionKey::from_secret(Secret32::from_bytes([8; 32]));
    assert_eq!(other.unwrap(&wrapped, &header.hash).err(), Some(ReleaseError::WrappedKey));
}

#[test]
fn a_header_out_of_range_is_refused_when_it_is_sealed() {
    let mut world = World::new();
    let bad = [
        ReleaseHeader { version: 0, ..World::fields(1) },
        ReleaseHeader { model_id: "two words".into(), ..World::fields(1) },
        ReleaseHeader { not_after: NOW - 1, ..World::fields(1) },
        ReleaseHeader { previous: vec![1], ..World::fields(1) },
        ReleaseHeader { payload_type: 9, ..World::fields(1) },
    ];
    for fields in bad {
        assert!(seal(fields, b"", &world.key, &world.publisher, &mut world.rng).is_err());
    }
    let identity = SigningKey::generate(Level::L44, &mut world.rng);
    let result = seal(World::fields(1), b"", &world.key, &identity, &mut world.rng);
    assert_eq!(result.map(|_| ()), Err(ReleaseError::PublisherKey));
}
