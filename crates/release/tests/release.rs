//! A release opens for the device that has its grant, and every way of cheating is its own error.

use std::collections::BTreeMap;

use prost::Message;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use unisono_crypto::kdf::label;
use unisono_crypto::kem::DecapsulationKey;
use unisono_crypto::secret::Secret32;
use unisono_crypto::sign::{Level, SigningKey, VerifyingKey};
use unisono_release::proto::{PayloadType, ReleaseHeader, SealedKind, SignedGrant};
use unisono_release::{
    CHUNK_LEN, ContentKey, Header, Issuer, Issuers, KeyEncryptionKey, OpenPolicy, Part, Recipient, Release,
    ReleaseError, Seen, Signers, Token, VersionRecord, grant, open, open_grant, open_to, seal,
};

const NOW: u64 = 1_800_000_000;

#[derive(Default)]
struct Versions {
    newest: BTreeMap<String, Seen>,
    time: u64,
}

impl VersionRecord for Versions {
    fn newest(&self, model_id: &str) -> Result<Option<Seen>, ReleaseError> {
        Ok(self.newest.get(model_id).copied())
    }

    fn latest_time(&self) -> Result<u64, ReleaseError> {
        Ok(self.time)
    }

    fn see(&mut self, model_id: &str, release: Seen, now: u64) -> Result<(), ReleaseError> {
        self.newest.insert(model_id.into(), release);
        self.time = self.time.max(now);
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
        seal(Self::fields(version), payload, &self.key, Some(&self.publisher), &mut self.rng).unwrap()
    }

    fn policy(&self) -> OpenPolicy {
        let publishers = vec![self.publisher.verifying_key()];
        let policy = OpenPolicy::release(publishers, 1 << 30);
        OpenPolicy { model_id: Some("digits".into()), min_roster_epoch: 5, ..policy }
    }

    fn open(&self, file: &[u8]) -> Result<Vec<u8>, ReleaseError> {
        open(&Release::parse(file)?, &self.key, &self.policy(), &mut Versions::default(), NOW).map(|p| p.to_vec())
    }

    fn grant(&mut self, header: &Header) -> SignedGrant {
        let recipient = Recipient { client_id: [1; 16], key: self.device.encapsulation_key(), roster_epoch: 5 };
        grant(header, &self.key, &recipient, Issuer::Key(&self.publisher), &mut self.rng).unwrap()
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
    let key = open_grant(&signed, &header, [1; 16], &world.device, Issuers::Keys(&issuers), 5).unwrap();
    let release = Release::parse(&file).unwrap();
    let opened = open(&release, &key, &world.policy(), &mut Versions::default(), NOW).unwrap();
    assert_eq!(opened.as_slice(), b"weights");

    let stranger = DecapsulationKey::generate(&mut world.rng);
    let error = |result: Result<ContentKey, ReleaseError>| result.err().unwrap();
    let attempt = |id, key: &DecapsulationKey, header: &Header, epoch| {
        error(open_grant(&signed, header, id, key, Issuers::Keys(&issuers), epoch))
    };
    assert_eq!(attempt([2; 16], &world.device, &header, 5), ReleaseError::GrantOfAnotherDevice);
    assert_eq!(attempt([1; 16], &stranger, &header, 5), ReleaseError::GrantOfAnotherKey);
    assert!(matches!(
        attempt([1; 16], &world.device, &header, 6),
        ReleaseError::OlderRoster { got: 5, minimum: 6, .. }
    ));
    let forged = SigningKey::generate(Level::L65, &mut world.rng).verifying_key();
    let by_stranger = open_grant(&signed, &header, [1; 16], &world.device, Issuers::Keys(&[forged]), 5);
    assert_eq!(error(by_stranger), ReleaseError::GrantSignature);
    let (_, other) = world.seal(1, b"weights");
    let other_release = open_grant(&signed, &other, [1; 16], &world.device, Issuers::Keys(&issuers), 5);
    assert_eq!(error(other_release), ReleaseError::GrantOfAnotherRelease);
}

#[test]
fn what_a_reader_does_not_know_is_not_overlooked_though_it_is_signed() {
    let mut world = World::new();
    let (_, header) = world.seal(1, b"weights");
    let signed = world.grant(&header);
    let issuers = [world.publisher.verifying_key()];
    let attempt = |payload: Vec<u8>, key: &SigningKey, issuers: &[VerifyingKey]| {
        let signed = SignedGrant { signature: key.sign(label::SIG_GRANT, &payload), payload };
        open_grant(&signed, &header, [1; 16], &world.device, Issuers::Keys(issuers), 5).err()
    };
    assert_eq!(attempt(signed.payload.clone(), &world.publisher, &issuers), None);
    // Another field; the suite once more; a length in two bytes where one is enough.
    let mut padded = signed.payload.clone();
    padded.splice(3..4, [0xa0, 0]);
    for payload in [[&signed.payload[..], &[0x78, 1]].concat(), [&signed.payload[..], &[8, 1]].concat(), padded] {
        let refused = attempt(payload, &world.publisher, &issuers);
        assert!(
            matches!(refused, Some(ReleaseError::GrantMalformed { ref why }) if why.contains("canonical")),
            "{refused:?}"
        );
    }
    let bytes = header.fields.encode_to_vec();
    assert_eq!(Header::from_bytes(&bytes), Ok(header.clone()));
    let refused = Header::from_bytes(&[&bytes[..], &[0xf8, 1, 1]].concat());
    assert!(matches!(refused, Err(ReleaseError::HeaderMalformed { field: "encoding", .. })), "{refused:?}");
    // A key of a device's level issues nothing, and is nobody's who may.
    let small = SigningKey::generate(Level::L44, &mut ChaCha20Rng::seed_from_u64(5));
    assert_eq!(attempt(signed.payload.clone(), &small, &[small.verifying_key()]), Some(ReleaseError::GrantSignature));
    let recipient = Recipient { client_id: [1; 16], key: world.device.encapsulation_key(), roster_epoch: 5 };
    let refused = grant(&header, &world.key, &recipient, Issuer::Key(&small), &mut world.rng);
    assert_eq!(refused, Err(ReleaseError::PublisherKey));
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
    assert_eq!(
        attempt(OpenPolicy { signers: Signers::Keys(vec![]), ..policy.clone() }, none, NOW),
        ReleaseError::OtherPublisher
    );
    assert!(none.newest.is_empty(), "a refused release does not count as seen");

    let seen = |version| {
        let newest = BTreeMap::from([("digits".into(), Seen { version, header_hash: None })]);
        Versions { newest, time: 0 }
    };
    let mut versions = seen(4);
    assert!(matches!(
        attempt(policy.clone(), &mut versions, NOW),
        ReleaseError::OlderVersion { got: 3, minimum: 4, .. }
    ));
    let mut same = seen(3);
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
    assert!(grant(&header, &key, &recipient, Issuer::Key(&world.publisher), &mut world.rng).is_ok());
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
        assert!(seal(fields, b"", &world.key, Some(&world.publisher), &mut world.rng).is_err());
    }
    let identity = SigningKey::generate(Level::L44, &mut world.rng);
    let result = seal(World::fields(1), b"", &world.key, Some(&identity), &mut world.rng);
    assert_eq!(result.map(|_| ()), Err(ReleaseError::PublisherKey));
}

#[test]
fn two_releases_of_one_version_and_a_broken_chain_are_refused() {
    let mut world = World::new();
    let mut record = Versions::default();
    let chained = |world: &mut World, version, previous: &[u8]| {
        let fields = ReleaseHeader { previous: previous.to_vec(), ..World::fields(version) };
        seal(fields, b"weights", &world.key, Some(&world.publisher), &mut world.rng).unwrap()
    };
    let mut attempt = |world: &World, file: &[u8]| {
        open(&Release::parse(file).unwrap(), &world.key, &world.policy(), &mut record, NOW).map(|_| ())
    };
    let (first, first_header) = chained(&mut world, 1, &[]);
    let (twin, _) = chained(&mut world, 1, &[]);
    assert_eq!(attempt(&world, &first), Ok(()));
    assert_eq!(attempt(&world, &first), Ok(()), "the same again");
    let model_id = || "digits".to_owned();
    let other = ReleaseError::AnotherOfThisVersion { model_id: model_id(), version: 1 };
    assert_eq!(attempt(&world, &twin), Err(other));
    for previous in [&[][..], &[9; 32]] {
        let (foreign, _) = chained(&mut world, 2, previous);
        let broken = ReleaseError::BrokenChain { model_id: model_id(), version: 2 };
        assert_eq!(attempt(&world, &foreign), Err(broken), "{previous:?}");
    }
    let (second, _) = chained(&mut world, 2, &first_header.hash);
    assert_eq!(attempt(&world, &second), Ok(()));
    // Of the versions in between it knows nothing.
    let (fourth, _) = chained(&mut world, 4, &[7; 32]);
    assert_eq!(attempt(&world, &fourth), Ok(()));
    assert!(matches!(attempt(&world, &second), Err(ReleaseError::OlderVersion { got: 2, minimum: 4, .. })));
}

#[test]
fn a_clock_that_is_set_back_undoes_no_expiry_and_the_future_is_refused() {
    let mut world = World::new();
    let mut record = Versions::default();
    let (file, _) = world.seal(1, b"weights");
    let later =
        ReleaseHeader { created_at: NOW + 90, not_after: NOW + 1000, model_id: "other".into(), ..World::fields(1) };
    let (other, _) = seal(later, b"weights", &world.key, Some(&world.publisher), &mut world.rng).unwrap();
    let any = OpenPolicy { model_id: None, ..world.policy() };
    let mut attempt =
        |file: &[u8], now| open(&Release::parse(file).unwrap(), &world.key, &any, &mut record, now).map(|_| ());
    assert_eq!(attempt(&file, NOW - 301), Err(ReleaseError::FromTheFuture { created_at: NOW, now: NOW - 301 }));
    assert_eq!(attempt(&file, NOW - 300), Ok(()));
    assert_eq!(attempt(&other, NOW + 200), Ok(()));
    let expired = ReleaseError::Expired { not_after: NOW + 100, now: NOW + 200 };
    assert_eq!(attempt(&file, NOW), Err(expired), "it was later when the other one was opened");
}

#[test]
fn a_base_model_and_a_release_do_not_pass_for_each_other() {
    let mut world = World::new();
    let fields =
        |version| ReleaseHeader { kind: SealedKind::BaseModel as i32, not_after: u64::MAX, ..World::fields(version) };
    let (base, _) = seal(fields(0), b"weights", &world.key, Some(&world.publisher), &mut world.rng).unwrap();
    let (release, _) = world.seal(1, b"weights");
    let wanted = OpenPolicy { kind: SealedKind::BaseModel, version: Some(0), min_roster_epoch: 0, ..world.policy() };
    let attempt = |file: &[u8], policy: &OpenPolicy| {
        open(&Release::parse(file).unwrap(), &world.key, policy, &mut Versions::default(), NOW).map(|p| p.to_vec())
    };
    assert_eq!(attempt(&base, &wanted).unwrap(), b"weights");
    assert_eq!(attempt(&release, &wanted), Err(ReleaseError::WrongKind { got: 0, expected: 1 }));
    assert_eq!(attempt(&base, &world.policy()), Err(ReleaseError::WrongKind { got: 1, expected: 0 }));
    let next = OpenPolicy { version: Some(1), ..wanted.clone() };
    assert_eq!(attempt(&base, &next), Err(ReleaseError::WrongVersion { got: 0, expected: 1 }));
    // Unsigned, it passes only where the grant vouches for it; a release is never unsigned.
    let (unsigned, header) = seal(fields(0), b"weights", &world.key, None, &mut world.rng).unwrap();
    assert_eq!(header.file_len(), unsigned.len() as u64);
    assert_eq!(attempt(&unsigned, &wanted), Err(ReleaseError::OtherPublisher));
    let granted = OpenPolicy { signers: Signers::Granted, ..wanted };
    assert_eq!(attempt(&unsigned, &granted).unwrap(), b"weights");
    let mut changed = unsigned.clone();
    for at in 0..unsigned.len() {
        changed[at] ^= 1;
        let parsed = Release::parse(&changed);
        let opened = parsed.and_then(|file| open(&file, &world.key, &granted, &mut Versions::default(), NOW));
        assert!(opened.is_err(), "byte {at}");
        changed[at] ^= 1;
    }
    assert!(seal(World::fields(1), b"weights", &world.key, None, &mut world.rng).is_err());
}

#[test]
fn a_grant_by_the_token_opens_with_that_token_alone() {
    let mut world = World::new();
    let (_, header) = world.seal(1, b"weights");
    let token = |digit: &str| Token::from_text(&format!("{}{digit}", "0123456789abcdef0123456789abcde")).unwrap();
    let recipient = Recipient { client_id: [1; 16], key: world.device.encapsulation_key(), roster_epoch: 0 };
    let signed = grant(&header, &world.key, &recipient, Issuer::Token(&token("f")), &mut world.rng).unwrap();
    let attempt = |token: &Token| open_grant(&signed, &header, [1; 16], &world.device, Issuers::Token(token), 0).err();
    assert_eq!(attempt(&token("f")), None);
    assert_eq!(attempt(&token("e")), Some(ReleaseError::GrantSignature));
    let keys = [world.publisher.verifying_key()];
    let by_key = open_grant(&signed, &header, [1; 16], &world.device, Issuers::Keys(&keys), 0).err();
    assert_eq!(by_key, Some(ReleaseError::GrantSignature));
}

#[test]
fn a_header_is_found_in_the_first_bytes_of_a_file() {
    let mut world = World::new();
    let (file, header) = world.seal(1, b"weights");
    assert_eq!(header.file_len(), file.len() as u64);
    let found: Vec<usize> = (0..file.len()).filter(|&len| Header::of_file(&file[..len]).unwrap().is_some()).collect();
    assert_eq!(found.len(), file.len() - found[0], "from its last byte on");
    assert_eq!(Header::of_file(&file).unwrap().unwrap().hash, header.hash);
    assert_eq!(Header::of_file(b"UNIX").err(), Some(ReleaseError::NotARelease));
    let long = [b"UNISONO1".as_slice(), &u32::MAX.to_le_bytes()].concat();
    assert!(matches!(Header::of_file(&long), Err(ReleaseError::HeaderTooLong { .. })));
}

#[test]
fn a_file_opens_into_another_one_as_in_memory_and_is_refused_alike() {
    let mut world = World::new();
    let stream = |world: &World, file: &[u8]| {
        let (mut out, mut record) = (Vec::new(), Versions::default());
        let mut from = std::io::Cursor::new(file);
        open_to(&mut from, &world.key, &world.policy(), &mut record, NOW, &mut out).map(|header| {
            assert_eq!(record.newest["digits"].header_hash, Some(header.hash));
            out.clone()
        })
    };
    for len in [0, 1, CHUNK_LEN - 1, CHUNK_LEN, CHUNK_LEN + 1, 3 * CHUNK_LEN] {
        let payload: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
        let (file, _) = world.seal(1, &payload);
        assert_eq!(stream(&world, &file).unwrap(), payload, "{len} bytes");
    }
    let (file, header) = world.seal(1, &[7; 100]);
    for at in 0..file.len() {
        let mut changed = file.clone();
        changed[at] ^= 1;
        assert_eq!(stream(&world, &changed).err(), world.open(&changed).err(), "byte {at}");
        let (cut, as_in_memory) = (stream(&world, &file[..at]).err(), world.open(&file[..at]).err());
        assert_eq!(cut, as_in_memory, "cut at {at}");
    }
    assert_eq!(stream(&world, &[file.as_slice(), &[0]].concat()).err(), Some(ReleaseError::TrailingBytes));
    // Nothing is written before the signature was verified.
    let mut out = Vec::new();
    let mut forged = file.clone();
    *forged.last_mut().unwrap() ^= 1;
    let mut from = std::io::Cursor::new(forged.as_slice());
    let result = open_to(&mut from, &world.key, &world.policy(), &mut Versions::default(), NOW, &mut out);
    assert!(result.is_err() && out.is_empty() && header.fields.payload_length == 100);
}

/// A file that is exchanged between the two passes.
struct Exchanged<'a> {
    files: [std::io::Cursor<&'a [u8]>; 2],
    seeks: usize,
}

impl std::io::Read for Exchanged<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.files[usize::from(self.seeks > 2)].read(buffer)
    }
}

impl std::io::Seek for Exchanged<'_> {
    fn seek(&mut self, to: std::io::SeekFrom) -> std::io::Result<u64> {
        self.seeks += 1;
        self.files[usize::from(self.seeks > 2)].seek(to)
    }
}

#[test]
fn a_file_that_is_exchanged_while_it_is_opened_is_noticed() {
    let mut world = World::new();
    let (file, _) = world.seal(1, &vec![7; 2 * CHUNK_LEN]);
    let (other, _) = world.seal(1, &vec![8; 2 * CHUNK_LEN]);
    let attempt = |second: &[u8]| {
        let mut from = Exchanged { files: [&file, second].map(std::io::Cursor::new), seeks: 0 };
        let mut record = Versions::default();
        let result = open_to(&mut from, &world.key, &world.policy(), &mut record, NOW, &mut Vec::new());
        assert_eq!((from.seeks, record.newest.is_empty()), (3, result.is_err()));
        result.map(drop)
    };
    assert_eq!(attempt(&file), Ok(()));
    assert_eq!(attempt(&other), Err(ReleaseError::Chunk { index: 0 }));
}
