//! Sealed models of several chunks, and grants, each opened under a policy and with a record that the input chooses, after edits
//! that it chooses too. The files are made here: an input is a few bytes.
//!
//! Nothing opens but what was sealed, in memory as from disk to disk, and only where policy and record allow it.

use std::io::Cursor;
use std::sync::LazyLock;

use arbitrary::{Result as Drawn, Unstructured};
use prost::Message;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use unisono_crypto::kdf::{Hasher, hash, label};
use unisono_crypto::kem::DecapsulationKey;
use unisono_crypto::sign::{Level, SigningKey, VerifyingKey};
use unisono_release::proto::{Grant, PayloadType, ReleaseHeader, SealedKind, SignedGrant};
use unisono_release::{
    CHUNK_LEN, ContentKey, FUTURE_ALLOWANCE, Header, Issuer, Issuers, MAGIC, OpenPolicy, Recipient, Release,
    ReleaseError, Seen, Signers, Token, VersionRecord, grant, open, open_grant, open_to, seal,
};

use super::tamper::Tamper;
use super::world::NOW;

/// Bytes of a chunk with its tag.
const SEALED_CHUNK: usize = CHUNK_LEN + 16;
/// Bytes before the header.
const PROLOGUE: usize = MAGIC.len() + 4;
/// Epoch of the roster that all headers name.
pub const EPOCH: u64 = 7;

/// A sealed model, its header, and what is in it.
pub struct Sealed {
    file: Vec<u8>,
    header: Header,
    payload: Vec<u8>,
}

/// A grant and what it was made for.
struct Granted {
    signed: SignedGrant,
    /// Number of the file.
    which: usize,
    by_token: bool,
    epoch: u64,
}

/// Sealed models, and everybody's keys.
pub struct Library {
    publisher: SigningKey,
    coordinator: SigningKey,
    token: Token,
    key: ContentKey,
    other_key: ContentKey,
    device: DecapsulationKey,
    other_device: DecapsulationKey,
    /// See the constants.
    pub files: Vec<Sealed>,
    grants: Vec<Granted>,
}

// Places in `Library::files`.
/// Version 3, three chunks, after `EXACT`.
pub const LONG: u8 = 0;
/// Version 2, two full chunks, after nothing.
pub const EXACT: u8 = 1;
/// Another version 3, after `EXACT`.
pub const OTHER: u8 = 2;
/// Version 4, after `OTHER`.
pub const FORKED: u8 = 3;
/// Version 3 of another model, of no bytes.
pub const EMPTY: u8 = 4;
/// A base model of two chunks, signed by the coordinator.
pub const BASE: u8 = 5;
/// A base model that nobody has signed.
pub const UNSIGNED: u8 = 6;

/// The device that the grants are for.
const DEVICE: [u8; 16] = [4; 16];

static LIBRARY: LazyLock<Library> = LazyLock::new(|| {
    let mut rng = ChaCha8Rng::seed_from_u64(22);
    let [publisher, coordinator] = [(); 2].map(|()| SigningKey::generate(Level::L65, &mut rng));
    let [key, other_key] = [(); 2].map(|()| ContentKey::random(&mut rng));
    let [device, other_device] = [(); 2].map(|()| DecapsulationKey::generate(&mut rng));
    let token = Token::from_text("00112233445566778899aabbccddeeff").expect("a token");
    let mut files: Vec<Sealed> = Vec::new();
    let mut add = |model_id: &str, version, previous: Option<u8>, length: usize, signer: Option<&SigningKey>| {
        let base = model_id == "test";
        let fields = ReleaseHeader {
            model_id: model_id.into(),
            version,
            previous: previous.map_or_else(Vec::new, |which| files[usize::from(which)].header.hash.to_vec()),
            created_at: NOW,
            not_after: NOW + 100,
            payload_type: PayloadType::Safetensors as i32,
            key_id: "default".into(),
            key_version: 1,
            roster_epoch: EPOCH,
            kind: if base { SealedKind::BaseModel } else { SealedKind::Release } as i32,
            ..ReleaseHeader::default()
        };
        let payload: Vec<u8> = (0..length).map(|i| (i * 7 + i / CHUNK_LEN + files.len()) as u8).collect();
        let (file, header) = seal(fields, &payload, &key, signer, &mut rng).expect("good fields");
        files.push(Sealed { file, header, payload });
    };
    // `EXACT` comes first for its hash, and changes its place with `LONG`.
    add("digits", 2, None, 2 * CHUNK_LEN, Some(&publisher));
    add("digits", 3, Some(0), 2 * CHUNK_LEN + 1000, Some(&publisher));
    add("digits", 3, Some(0), 100, Some(&publisher));
    add("digits", 4, Some(OTHER), 100, Some(&publisher));
    add("letters", 3, None, 0, Some(&publisher));
    add("test", 0, None, CHUNK_LEN + 1, Some(&coordinator));
    add("test", 1, None, 100, None);
    files.swap(usize::from(LONG), usize::from(EXACT));
    let mut grants = Vec::new();
    for (which, issuer, epoch) in [
        (LONG, Issuer::Key(&publisher), EPOCH),
        (BASE, Issuer::Key(&coordinator), EPOCH + 1),
        (UNSIGNED, Issuer::Token(&token), 0),
    ] {
        let which = usize::from(which);
        let recipient = Recipient { client_id: DEVICE, key: device.encapsulation_key(), roster_epoch: epoch };
        let signed = grant(&files[which].header, &key, &recipient, issuer, &mut rng).expect("the header's own key");
        grants.push(Granted { signed, which, by_token: matches!(issuer, Issuer::Token(_)), epoch });
    }
    Library { publisher, coordinator, token, key, other_key, device, other_device, files, grants }
});

/// What a device has opened, and what it opens now.
#[derive(Debug, Clone, Default, PartialEq)]
struct Record {
    newest: Option<(String, Seen)>,
    latest: u64,
    noted: Vec<(String, Seen, u64)>,
}

impl VersionRecord for Record {
    fn newest(&self, model_id: &str) -> Result<Option<Seen>, ReleaseError> {
        Ok(self.newest.as_ref().filter(|(known, _)| known == model_id).map(|(_, seen)| *seen))
    }

    fn latest_time(&self) -> Result<u64, ReleaseError> {
        Ok(self.latest)
    }

    fn see(&mut self, model_id: &str, release: Seen, now: u64) -> Result<(), ReleaseError> {
        self.noted.push((model_id.into(), release, now));
        Ok(())
    }
}

/// The parts of a file, edited.
struct Edited {
    header: Vec<u8>,
    body: Vec<u8>,
    block: Vec<u8>,
}

impl Edited {
    fn of(sealed: &Sealed) -> Self {
        let length = u32::from_le_bytes(sealed.file[MAGIC.len()..PROLOGUE].try_into().expect("four bytes")) as usize;
        let (header, rest) = sealed.file[PROLOGUE..].split_at(length);
        let chunks = sealed.payload.len().div_ceil(CHUNK_LEN).max(1);
        let (body, block) = rest.split_at(sealed.payload.len() + 16 * chunks);
        Self { header: header.to_vec(), body: body.to_vec(), block: block.to_vec() }
    }

    fn chunk(&self, number: u8) -> std::ops::Range<usize> {
        let count = self.body.len().div_ceil(SEALED_CHUNK).max(1);
        let start = usize::from(number) % count * SEALED_CHUNK;
        start..self.body.len().min(start + SEALED_CHUNK)
    }

    /// Signs header and chunks as they are now.
    fn sign(&mut self, key: &SigningKey) {
        let body = Hasher::new(label::RELEASE_BODY).update(&self.body).finalize();
        let hashes = [hash(label::RELEASE_HEADER, &[&self.header]), body].concat();
        let signature = key.sign(label::SIG_RELEASE, &hashes);
        self.block = [hashes, signature].concat();
    }

    fn edit(&mut self, u: &mut Unstructured<'_>) -> Drawn<()> {
        match u.arbitrary::<u8>()? % 8 {
            0 => {
                let part = match u.arbitrary::<u8>()? % 3 {
                    0 => &mut self.header,
                    1 => &mut self.body,
                    _ => &mut self.block,
                };
                let at = place(u)?;
                if !part.is_empty() {
                    let at = at % part.len();
                    part[at] ^= u.arbitrary::<u8>()?;
                }
            }
            1 => {
                let at = place(u)? % (self.body.len() + 1);
                self.body.truncate(at);
            }
            2 => {
                let at = place(u)? % (self.body.len() + 1);
                self.body.insert(at, u.arbitrary()?);
            }
            3 => {
                let (a, b) = (self.chunk(u.arbitrary()?), self.chunk(u.arbitrary()?));
                let (one, two) = (self.body[a.clone()].to_vec(), self.body[b.clone()].to_vec());
                // From the end, so that the earlier place stays where it is.
                if a.start > b.start {
                    self.body.splice(a, two);
                    self.body.splice(b, one);
                } else if a.start < b.start {
                    self.body.splice(b, one);
                    self.body.splice(a, two);
                }
            }
            4 => {
                let chunk = self.chunk(u.arbitrary()?);
                self.body.drain(chunk);
            }
            5 => self.header = Self::of(file(u.arbitrary()?)).header,
            6 => self.block = Self::of(file(u.arbitrary()?)).block,
            _ => {
                let by = if u.arbitrary::<u8>()?.is_multiple_of(2) { &LIBRARY.publisher } else { &LIBRARY.coordinator };
                self.sign(by);
            }
        }
        Ok(())
    }

    fn to_file(&self) -> Vec<u8> {
        let length = (self.header.len() as u32).to_le_bytes();
        [MAGIC.as_slice(), &length, &self.header, &self.body, &self.block].concat()
    }
}

fn file(which: u8) -> &'static Sealed {
    &LIBRARY.files[usize::from(which) % LIBRARY.files.len()]
}

/// A place in a file: three bytes.
fn place(u: &mut Unstructured<'_>) -> Drawn<usize> {
    let [a, b, c] = u.arbitrary::<[u8; 3]>()?;
    Ok(usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16)
}

fn time(u: &mut Unstructured<'_>) -> Drawn<u64> {
    Ok((NOW + 50).saturating_add_signed(i64::from(u.arbitrary::<i8>()?) * 10))
}

/// What the device asks of a file: signers, kind, model, version, epoch, length, a byte each. Zeros ask for a release of whatever
/// model by the publisher.
fn policy(of: &Header, u: &mut Unstructured<'_>) -> Drawn<OpenPolicy> {
    let library = &*LIBRARY;
    let key = |key: &SigningKey| key.verifying_key();
    let signers = match u.arbitrary::<u8>()? % 4 {
        0 => Signers::Keys(vec![key(&library.publisher)]),
        1 => Signers::Keys(vec![key(&library.coordinator)]),
        2 => Signers::Keys(vec![key(&library.coordinator), key(&library.publisher)]),
        _ => Signers::Granted,
    };
    let release = u.arbitrary::<u8>()?.is_multiple_of(2);
    let kind = if release { SealedKind::Release } else { SealedKind::BaseModel };
    let model_id = match u.arbitrary::<u8>()? % 3 {
        0 => None,
        1 => Some(of.fields.model_id.clone()),
        _ => Some("another".into()),
    };
    let version = match u.arbitrary::<u8>()? % 3 {
        0 => None,
        1 => Some(of.fields.version),
        _ => Some(of.fields.version + 1),
    };
    let min_roster_epoch = u.arbitrary::<u8>()?.into();
    let max_payload = match u.arbitrary::<u8>()? % 3 {
        0 => 1 << 30,
        1 => of.fields.payload_length,
        _ => of.fields.payload_length.saturating_sub(1),
    };
    Ok(OpenPolicy { signers, kind, model_id, version, min_roster_epoch, max_payload })
}

/// File, policy, record, times and key, a byte each of them or of their parts, then the edits. `None` for an input that ends in
/// the middle.
fn opened(bytes: &[u8]) -> Drawn<Result<(), ReleaseError>> {
    let mut u = Unstructured::new(bytes);
    let (library, sealed) = (&*LIBRARY, file(u.arbitrary()?));
    let policy = policy(&sealed.header, &mut u)?;
    let newest = match u.arbitrary::<u8>()? {
        0 => None,
        which => {
            let header = &file((which & 0x7f).wrapping_sub(1)).header;
            let header_hash = (which < 0x80).then_some(header.hash);
            Some((header.fields.model_id.clone(), Seen { version: header.fields.version, header_hash }))
        }
    };
    // Zero: never.
    let latest = match u.arbitrary::<i8>()? {
        0 => 0,
        step => (NOW + 50).saturating_add_signed(i64::from(step) * 10),
    };
    let now = time(&mut u)?;
    let key = if u.arbitrary::<u8>()?.is_multiple_of(2) { &library.key } else { &library.other_key };
    let mut edited = Edited::of(sealed);
    for _ in 0..8 {
        if u.is_empty() {
            break;
        }
        edited.edit(&mut u)?;
    }
    let file = edited.to_file();

    let record = Record { newest, latest, noted: Vec::new() };
    let (mut in_memory, mut from_disk) = (record.clone(), record.clone());
    let at_once = Release::parse(&file).and_then(|release| {
        let payload = open(&release, key, &policy, &mut in_memory, now)?;
        Ok((release.header, payload))
    });
    let mut written = Vec::new();
    let streamed = open_to(&mut Cursor::new(&file), key, &policy, &mut from_disk, now, &mut written);
    assert_eq!(in_memory, from_disk, "the two ways note the same");
    match (at_once, streamed) {
        (Ok((header, payload)), Ok(same)) => {
            assert!(header.hash == same.hash && *payload == written, "the two ways open the same");
            judge(&header, &payload, &policy, &record, &in_memory, now);
            Ok(Ok(()))
        }
        (Err(one), Err(two)) => {
            assert_eq!(one, two, "the two ways refuse for the same reason");
            assert!(in_memory.noted.is_empty(), "what is refused is not noted");
            Ok(Err(one))
        }
        (one, two) => panic!("{:?} in memory, {:?} from disk", one.map(drop), two.map(drop)),
    }
}

/// Something was opened: it was sealed so, and policy and record allow it.
fn judge(header: &Header, payload: &[u8], policy: &OpenPolicy, before: &Record, after: &Record, now: u64) {
    let library = &*LIBRARY;
    let genuine = library.files.iter().find(|sealed| sealed.header.hash == header.hash);
    let genuine = genuine.expect("what opens has a header that was sealed");
    assert!(genuine.payload == payload, "what opens is what was sealed");
    let (fields, now) = (&header.fields, now.max(before.latest));
    let publisher = |key: &VerifyingKey| unisono_release::publisher_id(key).as_slice() == fields.publisher_id;
    assert!(
        matches!(&policy.signers, Signers::Granted)
            || matches!(&policy.signers, Signers::Keys(keys) if keys.iter().any(publisher))
    );
    assert_eq!(fields.kind(), policy.kind);
    assert!(policy.model_id.as_ref().is_none_or(|id| *id == fields.model_id));
    assert!(policy.version.is_none_or(|version| version == fields.version));
    assert!(fields.roster_epoch >= policy.min_roster_epoch && fields.payload_length <= policy.max_payload);
    assert!(now <= fields.not_after && fields.created_at <= now + FUTURE_ALLOWANCE);
    let mut noted = Vec::new();
    if policy.kind == SealedKind::Release {
        if let Some((_, seen)) = before.newest.as_ref().filter(|(id, _)| *id == fields.model_id) {
            assert!(fields.version >= seen.version, "never back");
            let same = seen.header_hash.is_none_or(|known| known == header.hash);
            assert!(fields.version > seen.version || same, "one release of a version");
            let next = seen.header_hash.is_none_or(|known| known.as_slice() == fields.previous);
            assert!(fields.version != seen.version + 1 || next, "the next one follows");
        }
        let seen = Seen { version: fields.version, header_hash: Some(header.hash) };
        noted.push((fields.model_id.clone(), seen, now));
    }
    assert_eq!(after.noted, noted);
}

/// Grant, header, device, key, issuers, oldest epoch, who signs anew, a byte each; then a change of payload and signature each.
fn granted(bytes: &[u8]) -> Drawn<Result<(), ReleaseError>> {
    let mut u = Unstructured::new(bytes);
    let library = &*LIBRARY;
    let genuine = &library.grants[usize::from(u.arbitrary::<u8>()?) % library.grants.len()];
    let header = &file(u.arbitrary()?).header;
    let own_id = u.arbitrary::<u8>()?.is_multiple_of(2);
    let own_key = u.arbitrary::<u8>()?.is_multiple_of(2);
    let keys = [library.publisher.verifying_key(), library.coordinator.verifying_key()];
    let issuers = match u.arbitrary::<u8>()? % 3 {
        0 => Issuers::Keys(&keys),
        1 => Issuers::Keys(&keys[..1]),
        _ => Issuers::Token(&library.token),
    };
    let min_epoch = u64::from(u.arbitrary::<u8>()?);
    let again = u.arbitrary::<u8>()? % 3;
    let mut signed = genuine.signed.clone();
    u.arbitrary::<Tamper>()?.apply(&mut signed.payload);
    match again {
        0 => {}
        1 => signed.signature = library.publisher.sign(label::SIG_GRANT, &signed.payload),
        _ => signed.signature = library.token.prove(label::MAC_GRANT, &signed.payload),
    }
    u.arbitrary::<Tamper>()?.apply(&mut signed.signature);
    let id = if own_id { DEVICE } else { [5; 16] };
    let key = if own_key { &library.device } else { &library.other_device };
    let content = match open_grant(&signed, header, id, key, issuers, min_epoch) {
        Ok(content) => content,
        Err(error) => return Ok(Err(error)),
    };
    assert!(own_id && own_key && header.hash == library.files[genuine.which].header.hash);
    assert!(genuine.epoch >= min_epoch);
    assert_eq!(Grant::decode(signed.payload.as_slice()), Grant::decode(genuine.signed.payload.as_slice()));
    let by_token = matches!(issuers, Issuers::Token(_));
    assert!(if again == 0 { by_token == genuine.by_token } else { by_token == (again == 2) }, "a grant of nobody's");
    // The key is the header's: anything else can't be granted.
    let recipient = Recipient { client_id: id, key: key.encapsulation_key(), roster_epoch: 0 };
    let mut rng = ChaCha8Rng::seed_from_u64(23);
    grant(header, &content, &recipient, Issuer::Token(&library.token), &mut rng).expect("the header's own key");
    Ok(Ok(()))
}

/// How an input of [`open_sealed`] ends: the error's name, or `Opened`.
pub fn sealed_outcome(bytes: &[u8]) -> String {
    name(opened(bytes))
}

/// The same of an input of [`open_granted`].
pub fn grant_outcome(bytes: &[u8]) -> String {
    name(granted(bytes))
}

fn name(outcome: Drawn<Result<(), ReleaseError>>) -> String {
    match outcome {
        Ok(Ok(())) => "Opened".into(),
        Ok(Err(error)) => {
            format!("{error:?}").split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
        }
        Err(_) => "TooShort".into(),
    }
}

/// A reader of [`super::files`].
pub fn open_sealed(bytes: &[u8]) {
    let _ = opened(bytes);
}

/// Another one.
pub fn open_granted(bytes: &[u8]) {
    let _ = granted(bytes);
}

/// Seeds of [`open_sealed`] by name; behind the last dash, how they end.
pub fn sealed_seeds() -> Vec<(String, Vec<u8>)> {
    // A file, and what differs from the plainest case: place, byte.
    let case = |which: u8, set: &[(usize, u8)], edits: &[u8]| {
        let mut bytes = vec![0; 11];
        bytes[0] = which;
        set.iter().for_each(|&(at, byte)| bytes[at] = byte);
        [bytes, edits.to_vec()].concat()
    };
    const SIGNERS: usize = 1;
    const KIND: usize = 2;
    const MODEL: usize = 3;
    const VERSION: usize = 4;
    const MIN_EPOCH: usize = 5;
    const MOST: usize = 6;
    const SEEN: usize = 7;
    const LATEST: usize = 8;
    const TIME: usize = 9;
    const KEY: usize = 10;
    let seen = |which: u8| (SEEN, which + 1);
    let base = [(SIGNERS, 1), (KIND, 1)];
    let flip = |part: u8, at: u32| {
        let [a, b, c, _] = at.to_le_bytes();
        [0, part, a, b, c, 1]
    };
    let signed = |edit: &[u8]| [edit, &[7, 0]].concat();
    let cut = |edit: u8, at: u32| {
        let [a, b, c, _] = at.to_le_bytes();
        vec![edit, a, b, c]
    };
    let chunk = SEALED_CHUNK as u32;
    [
        ("three-chunks-Opened", case(LONG, &[seen(EXACT), (MODEL, 1), (VERSION, 1), (MOST, 1)], &[])),
        ("two-full-chunks-Opened", case(EXACT, &[], &[])),
        ("no-bytes-Opened", case(EMPTY, &[], &[])),
        ("again-Opened", case(LONG, &[seen(LONG)], &[])),
        ("after-an-unknown-hash-Opened", case(FORKED, &[(SEEN, 0x80 + LONG + 1)], &[])),
        ("versions-between-Opened", case(FORKED, &[seen(EXACT)], &[])),
        ("base-Opened", case(BASE, &base, &[])),
        ("base-unsigned-Opened", case(UNSIGNED, &[(SIGNERS, 3), (KIND, 1)], &[])),
        ("base-older-than-another-Opened", case(BASE, &[base[0], base[1], seen(UNSIGNED)], &[])),
        ("signed-again-Opened", case(LONG, &[], &[7, 0])),
        ("oldest-epoch-Opened", case(LONG, &[(MIN_EPOCH, EPOCH as u8)], &[])),
        ("last-second-Opened", case(LONG, &[(TIME, 5)], &[])),
        ("swapped-and-back-Opened", case(LONG, &[], &[3, 0, 1, 3, 1, 0])),
        ("model-WrongModel", case(LONG, &[(MODEL, 2)], &[])),
        ("base-WrongModel", case(BASE, &[base[0], base[1], (MODEL, 2)], &[])),
        ("version-WrongVersion", case(LONG, &[(VERSION, 2)], &[])),
        ("base-WrongVersion", case(BASE, &[base[0], base[1], (VERSION, 2)], &[])),
        ("base-WrongKind", case(BASE, &[(SIGNERS, 2)], &[])),
        ("release-WrongKind", case(LONG, &[(KIND, 1)], &[])),
        ("rolled-back-OlderVersion", case(EXACT, &[seen(LONG)], &[])),
        ("rolled-back-unknown-hash-OlderVersion", case(EXACT, &[(SEEN, 0x80 + LONG + 1)], &[])),
        ("two-releases-AnotherOfThisVersion", case(OTHER, &[seen(LONG)], &[])),
        ("forked-BrokenChain", case(FORKED, &[seen(LONG)], &[])),
        ("long-PayloadTooLarge", case(LONG, &[(MOST, 2)], &[])),
        ("base-PayloadTooLarge", case(BASE, &[base[0], base[1], (MOST, 2)], &[])),
        ("epoch-OlderRoster", case(LONG, &[(MIN_EPOCH, EPOCH as u8 + 1)], &[])),
        ("late-Expired", case(LONG, &[(TIME, 6)], &[])),
        ("clock-set-back-Expired", case(LONG, &[(LATEST, 6)], &[])),
        ("early-FromTheFuture", case(LONG, &[(TIME, -36i8 as u8)], &[])),
        ("key-WrongContentKey", case(LONG, &[(KEY, 1)], &[])),
        ("base-of-the-publisher-OtherPublisher", case(BASE, &[(KIND, 1)], &[])),
        ("unsigned-OtherPublisher", case(UNSIGNED, &base, &[])),
        ("second-chunk-BodyChanged", case(LONG, &[], &flip(1, chunk + 5))),
        ("swapped-BodyChanged", case(LONG, &[], &[3, 0, 1])),
        ("unsigned-BodyChanged", case(UNSIGNED, &[(SIGNERS, 3), (KIND, 1)], &flip(1, 5))),
        ("second-chunk-signed-Chunk", case(LONG, &[], &signed(&flip(1, chunk + 5)))),
        ("last-chunk-signed-Chunk", case(LONG, &[], &signed(&flip(1, 2 * chunk + 5)))),
        ("swapped-signed-Chunk", case(LONG, &[], &signed(&[3, 0, 1]))),
        ("base-swapped-signed-Chunk", case(EXACT, &[], &signed(&[3, 0, 1]))),
        ("of-the-same-length-signed-Chunk", case(OTHER, &[], &signed(&[5, FORKED]))),
        ("signature-Signature", case(LONG, &[], &flip(2, 100))),
        ("of-the-coordinator-Signature", case(LONG, &[], &[7, 1])),
        ("header-and-block-BodyChanged", case(OTHER, &[], &[5, FORKED, 6, FORKED])),
        ("header-HeaderOfAnotherRelease", case(OTHER, &[], &[5, FORKED])),
        ("cut-Truncated", case(LONG, &[], &cut(1, 2 * chunk))),
        ("without-a-chunk-signed-Truncated", case(LONG, &[], &signed(&[4, 1]))),
        ("longer-TrailingBytes", case(LONG, &[], &cut(2, chunk))),
        ("suite-UnsupportedSuite", case(LONG, &[], &signed(&flip(0, 1)))),
        ("header-HeaderMalformed", case(LONG, &[], &signed(&flip(0, 0)))),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into()
}

/// Seeds of [`open_granted`], in the same way.
pub fn grant_seeds() -> Vec<(String, Vec<u8>)> {
    let case = |set: &[(usize, u8)], tamper: &[u8]| {
        let mut bytes = vec![0; 7];
        set.iter().for_each(|&(at, byte)| bytes[at] = byte);
        [bytes, tamper.to_vec()].concat()
    };
    const WHICH: usize = 0;
    const HEADER: usize = 1;
    const ID: usize = 2;
    const KEY: usize = 3;
    const ISSUERS: usize = 4;
    const MIN_EPOCH: usize = 5;
    const AGAIN: usize = 6;
    // One bit of the payload, from its begin or its end.
    let length = LIBRARY.grants[0].signed.payload.len() as u16;
    let flip = |at: u16| {
        let [a, b] = at.to_le_bytes();
        [4, a, b, 1]
    };
    let by_token = [(WHICH, 2), (HEADER, UNSIGNED), (ISSUERS, 2)];
    [
        ("release-Opened", case(&[(MIN_EPOCH, EPOCH as u8)], &[])),
        ("base-Opened", case(&[(WHICH, 1), (HEADER, BASE), (MIN_EPOCH, EPOCH as u8 + 1)], &[])),
        ("token-Opened", case(&by_token, &[])),
        ("signed-again-Opened", case(&[(AGAIN, 1)], &[])),
        ("epoch-OlderRoster", case(&[(MIN_EPOCH, EPOCH as u8 + 1)], &[])),
        ("base-OlderRoster", case(&[(WHICH, 1), (HEADER, BASE), (MIN_EPOCH, EPOCH as u8 + 2)], &[])),
        ("release-GrantOfAnotherRelease", case(&[(HEADER, OTHER)], &[])),
        ("device-GrantOfAnotherDevice", case(&[(ID, 1)], &[])),
        ("key-GrantOfAnotherKey", case(&[(KEY, 1)], &[])),
        ("changed-GrantSignature", case(&[], &flip(3))),
        ("base-by-the-coordinator-GrantSignature", case(&[(WHICH, 1), (HEADER, BASE), (ISSUERS, 1)], &[])),
        ("of-no-token-GrantSignature", case(&[(ISSUERS, 2)], &[])),
        ("token-changed-GrantSignature", case(&by_token, &[0, 4, 3, 0, 1])),
        ("signed-GrantMalformed", case(&[(AGAIN, 1)], &flip(0))),
        ("signed-UnsupportedSuite", case(&[(AGAIN, 1)], &flip(1))),
        ("signed-GrantNotOpened", case(&[(AGAIN, 1)], &flip(length - 1))),
        ("token-GrantNotOpened", case(&[by_token[0], by_token[1], by_token[2], (AGAIN, 2)], &flip(400))),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into()
}
