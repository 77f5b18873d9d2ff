//! The seed corpus: inputs that take every target through what real rounds and releases do. Deterministic, so that the
//! committed files can be compared with what this makes (`tests/fuzz_corpus.rs`).

use prost::Message;
use unisono_crypto::aead;
use unisono_crypto::kdf::label;
use unisono_crypto::kem::{DecapsulationKey, EncapsulationKey};
use unisono_crypto::secret::Secret32;
use unisono_crypto::shamir::{self, SecretScalar};
use unisono_crypto::sign::{Level, SigningKey};
use unisono_protocol::keyfile::{self, DeviceKeys, Role};
use unisono_protocol::proto::{self, ServerMessage, client_message::Step, server_message::View};
use unisono_protocol::roster::{HeadTerms, Roster};
use unisono_protocol::server::Phase;
use unisono_release::proto::SignedGrant;
use unisono_wire::model::Model;
use unisono_wire::proto as wire;
use unisono_wire::proto::poll_response::Answer;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::client::{self, RECORDINGS, Recording};
use super::files::VAULT;
use super::world::{self, CAST, Device, NOW};
use super::{handlers, release, roster, stored};

/// One seed: its target, a name, its bytes.
pub type Seed = (&'static str, String, Vec<u8>);

/// Inputs by name.
type Named = Vec<(String, Vec<u8>)>;
/// A reader of `files` that tells how an input ends: its number, what tells it, its seeds, whose names end in it.
pub type Reader = (u8, fn(&[u8]) -> String, fn() -> Named);

/// All such readers.
pub const OUTCOMES: &[Reader] = &[
    (10, release::sealed_outcome, release::sealed_seeds),
    (11, release::grant_outcome, release::grant_seeds),
    (12, roster::leaves_outcome, roster::leaves_seeds),
    (13, roster::proof_outcome, roster::proof_seeds),
    (14, roster::epochs_outcome, roster::epochs_seeds),
    (18, stored::events_outcome, stored::events_seeds),
];

/// All seeds.
pub fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    decoders(&mut seeds);
    files(&mut seeds);
    service(&mut seeds);
    outcomes(&mut seeds);
    client_sequences(&mut seeds);
    sparse_sequences(&mut seeds);
    server_sequences(&mut seeds);
    seeds
}

fn chosen(target: &'static str, which: u8, name: &str, bytes: &[u8]) -> Seed {
    (target, format!("{which:02}-{name}"), [&[which], bytes].concat())
}

/// Device 0 at each of its steps in a recorded round: the state, then the view that it goes on with.
fn walk(recording: &Recording, mut step: impl FnMut(&Device, Option<&ServerMessage>)) {
    let mut device = Device::new(0, &recording.server, 11);
    device.join(recording.server.offer()).expect("an honest offer");
    for view in (1..Phase::ALL.len()).filter_map(|phase| recording.shown(true, phase, 0)) {
        step(&device, Some(view));
        device.receive(view).expect("an honest view");
    }
    step(&device, None);
}

/// Of a message that is carried as bytes: its decoder has seeds of its own.
fn shorten(bytes: &mut Vec<u8>) {
    bytes.truncate(40);
}

fn decoders(seeds: &mut Vec<Seed>) {
    let mut add = |which: u8, name: &str, bytes: &[u8]| seeds.push(chosen("decoders", which, name, bytes));
    // The semi-honest round, whose messages have no signatures of 2.5 kB.
    let recording = &RECORDINGS[1];
    let offer = recording.server.offer();
    add(6, "offer", &offer.encode_to_vec());
    let malicious = RECORDINGS[0].server.offer();
    let params = &malicious.params.as_ref().expect("parameters").payload;
    add(0, "signed", &malicious.params.as_ref().expect("parameters").encode_to_vec());
    add(1, "params", params);
    add(21, "params-checked", params);
    add(21, "params-semi-honest", &offer.params.as_ref().expect("parameters").payload);
    walk(recording, |device, view| {
        let message = device.message().expect("a step");
        match message.step.as_ref().expect("a step") {
            Step::Advert(signed) => {
                add(7, "advert", &signed.payload);
                add(23, "advert-checked", &signed.payload);
            }
            Step::ShareKeys(shares) => {
                add(12, "shares-root", &shares.root.as_ref().expect("a root").payload);
                add(10, "neighbour-shares", &shares.messages[0]);
                let mut short = shares.clone();
                short.messages.iter_mut().for_each(shorten);
                add(13, "share-keys", &short.encode_to_vec());
            }
            Step::Upload(signed) => {
                add(15, "upload-header", &signed.payload);
                let packed = device.upload().expect("a masked vector");
                add(31, "packed", &[&[13, 21], packed.as_slice()].concat());
            }
            Step::Endorsement(_) => unreachable!("a semi-honest round has no committee"),
            Step::Unmask(signed) => {
                add(18, "unmask", &signed.payload);
                add(19, "client-message", &message.encode_to_vec());
            }
        }
        match view.and_then(|view| view.view.as_ref()) {
            Some(View::Cohort(view)) => {
                add(9, "cohort-view", &view.encode_to_vec());
                add(8, "cohort", &view.cohort.as_ref().expect("a cohort").payload);
                add(22, "cohort-checked", &view.cohort.as_ref().expect("a cohort").payload);
            }
            Some(View::Masking(view)) => {
                let mut short = view.clone();
                short.deliveries.iter_mut().for_each(|delivery| shorten(&mut delivery.message));
                add(14, "masking-view", &short.encode_to_vec());
            }
            Some(View::Survivors(_)) => add(20, "server-message", &view.expect("a view").encode_to_vec()),
            _ => {}
        }
    });
    // That of a sparse graph, which has leaves; what is carried as bytes is cut, here too.
    let Some(View::Certificate(view)) = RECORDINGS[4].shown(false, 4, 0).and_then(|view| view.view.as_ref()) else {
        panic!("the certificate comes last")
    };
    let mut certificate = view.clone();
    certificate.endorsements.truncate(2);
    for endorsement in &mut certificate.endorsements {
        shorten(&mut endorsement.signature);
        endorsement.roster.iter_mut().for_each(|proof| shorten(&mut proof.leaf));
    }
    add(16, "endorsement", &certificate.endorsements[0].encode_to_vec());
    add(17, "certificate", &certificate.encode_to_vec());
    let pair = proto::SharePair { from: 1, to: 2, self_mask_share: vec![1; 32], mask_share: vec![2; 32] };
    add(11, "share-pair", &pair.encode_to_vec());

    let file = CAST.roster.to_bytes().expect("in memory");
    let mut short = proto::RosterFile::decode(file.as_slice()).expect("a roster");
    add(3, "roster-head", &short.head.as_ref().expect("a head").payload);
    add(2, "leaf", &short.leaves[0]);
    add(24, "leaf-checked", &short.leaves[0]);
    short.leaves.truncate(2);
    add(4, "roster", &short.encode_to_vec());
    add(26, "roster-of-two", &short.encode_to_vec());
    let first = &CAST.identities[0];
    let mut proof = CAST.roster.proof(first.client_id).expect("in memory").expect("an enrolled device");
    shorten(&mut proof.leaf);
    add(5, "roster-proof", &proof.encode_to_vec());
    // One leaf and no keys in the head: the registrar's signature alone has 3.4 kB.
    let leaves = vec![world::leaf(first, NOW + 1000)];
    let small = Roster::publish(leaves, HeadTerms::new(7, NOW), &[], &[], &CAST.registrar).expect("one leaf");
    add(25, "roster-checked", &small.to_bytes().expect("in memory"));

    let mut rng = ChaCha8Rng::seed_from_u64(31);
    let keys = DeviceKeys::generate(&mut rng);
    add(27, "device-keys", keys.to_text().as_bytes());
    add(28, "enrolment", keys.enrolment().to_text().as_bytes());
    let key = SigningKey::generate(Level::L65, &mut rng);
    add(29, "public-key", keyfile::verifying_key_to_text(Role::Publisher, &key.verifying_key()).as_bytes());
    add(29, "secret-key", keyfile::signing_key_to_text(Role::Registrar, &key).as_bytes());
    add(29, "kek", keyfile::key_encryption_key_to_text(&Secret32::from_bytes([2; 32])).as_bytes());
    add(30, "bitmap", &[11, 0xff, 0x07]);
    let secret = SecretScalar::random(&mut rng);
    let shares = shamir::split(&secret, 3, &[1, 2, 3, 4, 5], &mut rng).expect("a threshold");
    let shares: Vec<u8> =
        shares.iter().flat_map(|share| [&[share.abscissa() as u8], share.value_bytes().as_slice()].concat()).collect();
    add(32, "shares", &[&[3], shares.as_slice()].concat());
    add(33, "merkle", &[&[2, 1, 1], [5; 32].as_slice(), b"leaf"].concat());
    let kem = DecapsulationKey::from_seed(&Secret32::from_bytes([9; 32])).encapsulation_key();
    add(34, "kem-key", kem.as_bytes());
    let (ct, _) = EncapsulationKey::encapsulate_with_coins(&kem, &[1; 64]);
    add(35, "kem-ciphertext", &ct);
    let identity = &CAST.identities[0].signing_key;
    add(36, "verifying-key", identity.verifying_key().as_bytes());
    add(37, "signature", &identity.sign(label::SIG_ADVERT, b"message"));
    let sealed = aead::seal(&Secret32::from_bytes([3; 32]), b"data", b"text").expect("a short text");
    add(38, "sealed", &sealed);
    add(39, "client-id", b"00112233445566778899aabbccddeeff");
    let model = proto::BaseModel { task: "test".into(), version: 1, hash: vec![0; 32] };
    add(40, "base-model", &model.encode_to_vec());
}

fn files(seeds: &mut Vec<Seed>) {
    let mut add = |which: u8, name: &str, bytes: &[u8]| seeds.push(chosen("files", which, name, bytes));
    for which in 0..2 {
        walk(&RECORDINGS[which], |device, _| {
            let name = match device.message().and_then(|message| message.step.as_ref()).expect("a step") {
                Step::Advert(_) => "advertised",
                Step::ShareKeys(_) => "shared",
                Step::Upload(_) => "masked",
                Step::Endorsement(_) => "confirmed",
                Step::Unmask(_) => "done",
            };
            // A saved session of malicious mode holds four keys of 1.3 kB and a signature; one of them is enough.
            if which == 1 || name == "confirmed" {
                add(which as u8, name, &client::save(device).expect("a state"));
            }
        });
    }
    let vault = &*VAULT;
    add(2, "release", &vault.file);
    let prologue = unisono_release::MAGIC.len() + 4;
    let length = u32::from_le_bytes(vault.file[prologue - 4..prologue].try_into().expect("four bytes")) as usize;
    let header = &vault.file[prologue..prologue + length];
    let body = &vault.file[prologue + length..vault.file.len() - 64 - Level::L65.signature_len()];
    add(3, "resealed", &[&(length as u16).to_le_bytes(), header, body].concat());
    add(4, "header", header);
    add(5, "grant", &vault.grant.encode_to_vec());
    add(6, "resealed-grant", &vault.grant.payload);
    add(7, "wrapped-key", &vault.kek.wrap(&vault.key, &vault.header.hash).expect("32 bytes"));
    let model = Model::new([("b", vec![2], vec![5.0, 6.0]), ("a", vec![2, 2], vec![1.0, 2.0, 3.0, 4.0])]);
    add(8, "model", &model.expect("a model").to_safetensors().expect("a model"));
}

/// Seeds whose names tell how they end, and what is stored.
fn outcomes(seeds: &mut Vec<Seed>) {
    let texts = stored::CONFIGURATIONS.map(|(name, text)| (15, name, text.as_bytes().to_vec())).into_iter();
    let records = stored::records().into_iter().map(|(name, bytes)| (16, name, bytes));
    let tallies = stored::tallies().into_iter().map(|(name, bytes)| (17, name, bytes));
    let stored = texts.chain(records).chain(tallies);
    seeds.extend(stored.map(|(which, name, bytes)| chosen("files", which, name, &bytes)));
    seeds.extend(handlers::seeds().into_iter().map(|(name, bytes)| ("handlers", name, bytes)));
    for &(which, _, made) in OUTCOMES {
        seeds.extend(made().into_iter().map(|(name, bytes)| chosen("files", which, &name, &bytes)));
    }
}

/// Each message of the service, behind the byte that chooses it. What is signed is but bytes here, and short.
fn service(seeds: &mut Vec<Seed>) {
    let mut add = |which: u8, name: &str, message: &[u8]| {
        seeds.push(chosen("files", 9, name, &[&[which], message].concat()));
    };
    let (round_id, client_id, hash) = (vec![1; 32], vec![2; 16], vec![3; 32]);
    let request = wire::GetRoundRequest { task: "test".into(), after_round: 1, wait_ms: 20_000, ..Default::default() };
    add(0, "get-round-request", &request.encode_to_vec());
    let open = wire::GetRoundResponse {
        state: wire::get_round_response::State::Open as i32,
        offer: Some(RECORDINGS[1].server.offer().clone()),
        ..wire::GetRoundResponse::default()
    };
    add(1, "get-round-response", &open.encode_to_vec());
    let poll = wire::PollRequest {
        round_id: round_id.clone(),
        client_id: client_id.clone(),
        phase: wire::RoundPhase::Mask as i32,
        wait_ms: 20_000,
    };
    add(2, "poll-request", &poll.encode_to_vec());
    add(9, "poll-request-phase", &poll.encode_to_vec());
    // The last view of a semi-honest round: who survived.
    let view = RECORDINGS[1].shown(true, 3, 0).expect("a view");
    for (name, answer) in [
        ("view", Answer::View(view.clone())),
        ("waiting", Answer::Waiting(wire::Waiting { reason: "later".into() })),
        ("ended", Answer::Ended(wire::Ended { reason: "over".into(), gave_sum: true })),
    ] {
        add(3, &format!("poll-response-{name}"), &wire::PollResponse { answer: Some(answer) }.encode_to_vec());
    }
    let status = wire::UploadStatusRequest { round_id: round_id.clone(), client_id: client_id.clone() };
    add(4, "upload-status-request", &status.encode_to_vec());
    let chunk = wire::UploadChunk {
        round_id,
        client_id: client_id.clone(),
        upload_hash: hash.clone(),
        index: 4,
        data: vec![5; 40],
    };
    add(5, "upload-chunk", &chunk.encode_to_vec());
    add(
        6,
        "get-model-request",
        &wire::GetModelRequest { task: "test".into(), version: 1, ..Default::default() }.encode_to_vec(),
    );
    let body = wire::GrantRequestBody { client_id, header_hash: hash, release_key: vec![6; 40], requested_at: NOW };
    let signed = proto::Signed { payload: body.encode_to_vec(), signature: vec![7; 40] };
    add(7, "grant-request", &wire::GrantRequest { request: Some(signed.clone()) }.encode_to_vec());
    let grant = SignedGrant { payload: vec![8; 40], signature: vec![9; 40] };
    let response = wire::GrantResponse { grant: Some(grant), roster_head: Some(signed) };
    add(8, "grant-response", &response.encode_to_vec());
    add(9, "grant-request-body", &body.encode_to_vec());
    add(10, "submit-response", &wire::SubmitResponse { repeat: true }.encode_to_vec());
    add(11, "upload-status", &wire::UploadStatusResponse { chunks: 5, complete: true }.encode_to_vec());
    add(
        12,
        "get-release-request",
        &wire::GetReleaseRequest { model_id: "digits".into(), ..Default::default() }.encode_to_vec(),
    );
    add(13, "file-chunk", &wire::FileChunk { data: chunk.data }.encode_to_vec());
    add(14, "task-finished", &wire::TaskFinished { task: "test".into(), round: 3 }.encode_to_vec());
}

// What the client target does next.
const JOIN: u8 = 0;
const VIEW: u8 = 1;
const FORGED: u8 = 2;
const RESTART: u8 = 3;
const SET_BACK: u8 = 4;
const RECORD_BACK: u8 = 5;
const LATER: u8 = 6;

fn client_sequences(seeds: &mut Vec<Seed>) {
    let phases = |malicious: bool| if malicious { 1..5u8 } else { 1..4 };
    for (home, malicious) in [(0u8, true), (1, false)] {
        for vanishes in [0u8, 1] {
            let mut plain = vec![home, u8::from(!malicious), JOIN, home, 0];
            let mut restarts = plain.clone();
            for phase in phases(malicious) {
                plain.extend([VIEW, home, phase, 0, vanishes, 0]);
                restarts.extend([RESTART, VIEW, home, phase, 0, vanishes, 0, RESTART]);
            }
            seeds.push(("client", format!("round-{home}-{vanishes}"), plain));
            seeds.push(("client", format!("restarts-{home}-{vanishes}"), restarts));
        }
        // After each phase back to each state before it, and on once more, with other survivors where a view shows them.
        let mut set_back = vec![home, u8::from(!malicious), JOIN, home, 0];
        for phase in phases(malicious) {
            set_back.extend([VIEW, home, phase, 0, 0, 0]);
            for earlier in 0..phase {
                set_back.extend([SET_BACK, earlier]);
                (earlier + 1..=phase).for_each(|again| set_back.extend([VIEW, home, again, 0, 1, 0]));
                set_back.extend([JOIN, home, 0, SET_BACK, phase]);
            }
        }
        seeds.push(("client", format!("set-back-{home}"), set_back));
        // Another device's views, another round's, each phase twice, and forged ones before the real ones.
        let mut confused = vec![home, 0, JOIN, home, 0];
        let mut forged = confused.clone();
        for phase in phases(malicious) {
            confused.extend([VIEW, home, phase, 1, 0, 0, VIEW, home ^ 2, phase, 0, 0, 0]);
            confused.extend([VIEW, home, phase, 0, 0, 0, VIEW, home, phase, 0, 1, 0]);
            forged.extend([FORGED, home, phase, 0, 0, 1, 4, 3, 0, 8]);
            forged.extend([VIEW, home, phase, 0, 0, 0]);
        }
        seeds.push(("client", format!("confused-{home}"), confused));
        seeds.push(("client", format!("forged-{home}"), forged));
        // Changed parameters under the coordinator's own signature, then the true ones.
        let mut resigned = vec![home, 0];
        for at in [3, 20, 60, 90, 100] {
            resigned.extend([JOIN, 0x80 + home, 4, at, 0, 1, JOIN, home, 0, VIEW, home, 1, 0, 0, 0]);
        }
        seeds.push(("client", format!("resigned-{home}"), resigned));
        // In a cohort of the coordinator's own making, to its end.
        let mut first = vec![home, u8::from(!malicious), JOIN, home, 0, FORGED, home, 1, 0, 0, 9, 0];
        for phase in phases(malicious).skip(1) {
            first.extend([FORGED, home, phase, 0, 0, if phase == 3 { 0x1f } else { 0 }, 0]);
        }
        seeds.push(("client", format!("forged-and-accepted-{home}"), first));
        // The record set back at each phase, to each that it was, and on with what the session has; and a clock that runs on.
        let mut record_back = vec![home, u8::from(!malicious), JOIN, home, 0];
        let mut late = record_back.clone();
        for phase in phases(malicious) {
            record_back.extend([VIEW, home, phase, 0, 0, 0]);
            for earlier in 0..phase {
                record_back.extend([RECORD_BACK, earlier, VIEW, home, phase + 1, 0, 1, 0, RESTART, JOIN, home, 0]);
                record_back.extend([SET_BACK, phase, RECORD_BACK, phase]);
            }
            // A device keeps these secrets for a minute: the last step comes too late.
            late.extend([LATER, if phases(malicious).end == phase + 1 { 6 } else { 4 }, VIEW, home, phase, 0, 0, 0]);
        }
        seeds.push(("client", format!("record-back-{home}"), record_back));
        seeds.push(("client", format!("late-{home}"), late));
    }
    certificates(seeds);
}

/// A device that has masked, or endorsed, is shown certificates of the colluders' making: for the set that it was shown, for another
/// one, with changed hash, with a signer less, one twice, a wrong signature, a changed signer; then the real one; and once more.
fn certificates(seeds: &mut Vec<Seed>) {
    for home in [0u8, 4] {
        for endorses in [false, true] {
            let mut shown = vec![home, 0, JOIN, home, 0];
            let last = if endorses { 4 } else { 3 };
            (1..last).for_each(|phase| shown.extend([VIEW, home, phase, 0, 0, 0]));
            for which in [3, 4, 13, 6, 7] {
                // Of the first signer or of the whole, one bit of byte 1 or 2 is another.
                shown.extend([FORGED, home, 4, 0, 0, which, 4, 1 + which % 2, 0, 1]);
            }
            // Number 4 is not a survivor, then it is.
            shown.extend([FORGED, home, 4, 0, 0, 0, 4, 0, 0, 0x10]);
            shown.extend([VIEW, home, 4, 0, 0, 0, SET_BACK, last - 1, VIEW, home, 4, 0, 0, 0]);
            let name = if endorses { "endorsed" } else { "masked" };
            seeds.push(("client", format!("certificates-{name}-{home}"), shown));
        }
    }
}

/// The round of 33, whose graph is sparse: as it was, with forged views first, and with survivors that leave a window thin.
fn sparse_sequences(seeds: &mut Vec<Seed>) {
    const HOME: u8 = 4;
    let start = [HOME, 0, JOIN, HOME, 0];
    for vanishes in [0u8, 1] {
        let mut plain = start.to_vec();
        (1..5u8).for_each(|phase| plain.extend([VIEW, HOME, phase, 0, vanishes, 0]));
        seeds.push(("client", format!("round-{HOME}-{vanishes}"), plain));
    }
    let mut forged = start.to_vec();
    for phase in 1..5u8 {
        forged.extend([FORGED, HOME, phase, 0, 0, 1, 4, 3, 0, 8]);
        forged.extend([VIEW, HOME, phase, 0, 0, 0]);
    }
    seeds.push(("client", format!("forged-{HOME}"), forged));
    let (first, second) = thin(&RECORDINGS[usize::from(HOME)]);
    let mut thin = start.to_vec();
    (1..3u8).for_each(|phase| thin.extend([VIEW, HOME, phase, 0, 0, 0]));
    // To be endorsed, if this device is asked, and certified.
    thin.extend([FORGED, HOME, 3, 0, 0, first, 5, 1, 0, second]);
    for start in [0, 8, 16, 24] {
        thin.extend([FORGED, HOME, 4, 0, 0, 2 + 8 * start, 0]);
    }
    (3..5u8).for_each(|phase| thin.extend([VIEW, HOME, phase, 0, 0, 0]));
    seeds.push(("client", format!("thin-{HOME}"), thin));
}

/// The first two bytes of a set of survivors of which device 0 objects to nothing but a thin window of the ring.
fn thin(recording: &Recording) -> (u8, u8) {
    let (params, cohort) = (recording.server.params(), &recording.cohort);
    let neighbours = cohort.graph.neighbours(0);
    let objects_to_nothing_else = |bits: u16| {
        let survivors: Vec<bool> = (0..cohort.graph.n()).map(|i| i >= 16 || bits >> i & 1 == 1).collect();
        let have = |of: &mut dyn Iterator<Item = bool>| of.filter(|&survives| survives).count();
        survivors[0]
            && have(&mut survivors.iter().copied()) >= params.wire.n_min as usize
            && have(&mut neighbours.iter().map(|&v| survivors[v as usize])) >= cohort.threshold()
            && cohort.graph.thin_window(&survivors).is_some()
    };
    let bits = (0..=u16::MAX).find(|&bits| objects_to_nothing_else(bits)).expect("a set");
    (bits as u8, (bits >> 8) as u8)
}

fn server_sequences(seeds: &mut Vec<Seed>) {
    const ACT: u8 = 0;
    const LIE: u8 = 1;
    const UPLOAD: u8 = 2;
    const REPLAY: u8 = 3;
    const ASK: u8 = 4;
    const CLOSE: u8 = 5;
    let n = super::server::CLIENTS as u8;
    for (flags, mode) in [(4u8, "malicious"), (5, "semi-honest")] {
        let phases: &[Phase] =
            if flags & 3 == 0 { &Phase::ALL } else { &[Phase::Advertise, Phase::Share, Phase::Mask, Phase::Unmask] };
        // From which phase on the last device is gone, if at all.
        // In which phase who lies in which byte: of phase 1 also in what is sealed and in the mask ciphertext behind it, which
        // device 4 sends its first neighbour and device 1 does not.
        let lies = phases.iter().map(|&phase| (format!("lie-{phase}"), None, Some((phase, 1, 40u16))));
        let lies = lies.chain(
            [("sealed", 1, 1150), ("mask-ct", 4, 1300)]
                .map(|(what, who, at)| (format!("lie-share-{what}"), None, Some((Phase::Share, who, at)))),
        );
        let plain = [("all", None), ("late", Some(Phase::Mask)), ("early", Some(Phase::Share))];
        let plain = plain.map(|(name, gone)| (name.to_owned(), gone, None));
        for (name, gone, lies) in plain.into_iter().chain(lies) {
            // A quarter may drop out.
            let mut ops = vec![flags, 2];
            for &phase in phases {
                for i in (0..n).filter(|&i| i < n - 1 || gone.is_none_or(|gone| phase < gone)) {
                    if let Some((.., at)) = lies.filter(|&(when, who, _)| (when, who) == (phase, i)) {
                        let [low, high] = at.to_le_bytes();
                        ops.extend([LIE, i, 4, low, high, 1]);
                    } else {
                        ops.extend([ACT, i, 0]);
                    }
                    if phase == Phase::Mask {
                        ops.extend([UPLOAD, i, 0, 0]);
                    }
                }
                ops.extend([REPLAY, 0, 0, 0, ASK, 1, CLOSE]);
            }
            if name == "late" {
                let mut colluders = ops.clone();
                colluders[1] += 12;
                seeds.push(("server", format!("{mode}-colluders"), colluders));
            }
            seeds.push(("server", format!("{mode}-{name}"), ops));
        }
    }
}
