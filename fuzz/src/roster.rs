//! Rosters of several leaves: their files and proofs, changed and signed again, and rounds under heads of other epochs than the
//! device has seen.

use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use prost::Message;
use unisono_crypto::kdf::label;
use unisono_crypto::merkle;
use unisono_protocol::client::{ClientError, Session};
use unisono_protocol::policy::ParticipationRecord;
use unisono_protocol::proto::{self, RosterProof};
use unisono_protocol::roster::{self, Leaf, Roster};
use unisono_protocol::{ClientId, signed};

use super::client::RECORDINGS;
use super::tamper::Tamper;
use super::world::{CAST, Device, NOW};

/// Leaves of the tree: neither one nor a power of two, so that nodes are promoted.
const SIZE: u64 = 5;
/// Time at which the leaves end.
const END: u64 = NOW + 1000;

/// The first leaves of everybody's roster, and a roster of them.
struct Small {
    leaves: Vec<Vec<u8>>,
    roster: Roster,
    proofs: Vec<RosterProof>,
}

static SMALL: LazyLock<Small> = LazyLock::new(|| {
    let clients = || CAST.identities.iter().take(SIZE as usize).map(|identity| identity.client_id);
    let proof = |roster: &Roster, client| roster.proof(client).expect("in memory").expect("a leaf");
    let leaves: Vec<Vec<u8>> = clients().map(|client| proof(&CAST.roster, client).leaf).collect();
    let roster = read(&leaves, merkle::Tree::new(label::TREE_ROSTER, &leaves).root(), SIZE).expect("a roster");
    let proofs = clients().map(|client| proof(&roster, client)).collect();
    Small { leaves, roster, proofs }
});

/// Reads a file of these leaves, under a head with this root and size that the registrar signs.
fn read(leaves: &[Vec<u8>], root: [u8; 32], size: u64) -> std::result::Result<Roster, roster::RosterError> {
    let head = proto::RosterHead { epoch: 7, root: root.to_vec(), size, issued_at: NOW, ..Default::default() };
    let head = signed::sign(&head, label::SIG_ROSTER, Some(&CAST.registrar));
    let mut file = Vec::new();
    roster::append_head(&head, &mut file);
    leaves.iter().for_each(|leaf| roster::append_leaf(leaf, &mut file));
    Roster::from_bytes(&file, &CAST.registrar.verifying_key())
}

/// The leaves are left out, doubled, exchanged and changed; the head's size or root may be a lie.
fn leaves(bytes: &[u8]) -> Result<bool> {
    let mut u = Unstructured::new(bytes);
    let lie = u.arbitrary::<u8>()?;
    let mut leaves = SMALL.leaves.clone();
    let mut tampered = false;
    for _ in 0..8 {
        if u.is_empty() || leaves.is_empty() {
            break;
        }
        let op = u.arbitrary::<u8>()? % 4;
        let (a, b) = (usize::from(u.arbitrary::<u8>()?) % leaves.len(), u.arbitrary::<u8>()?);
        let b = usize::from(b) % leaves.len();
        match op {
            0 => drop(leaves.remove(a)),
            1 => leaves.insert(b, leaves[a].clone()),
            2 => leaves.swap(a, b),
            _ => {
                let before = leaves[a].clone();
                u.arbitrary::<Tamper>()?.apply(&mut leaves[a]);
                tampered |= before != leaves[a];
            }
        }
    }
    let mut root = merkle::Tree::new(label::TREE_ROSTER, &leaves).root();
    let mut size = leaves.len() as u64;
    match lie {
        1 => size += 1,
        2 => size = size.saturating_sub(1),
        3 => root[0] ^= 1,
        _ => {}
    }
    let honest = !(1..=3).contains(&lie) || lie == 2 && leaves.is_empty();
    let ids = |leaf: &Vec<u8>| proto::RosterLeaf::decode(leaf.as_slice()).map(|leaf| leaf.client_id);
    let Ok(roster) = read(&leaves, root, size) else {
        let ordered = leaves.is_sorted_by(|a, b| ids(a).ok() < ids(b).ok());
        assert!(tampered || !honest || !ordered, "a good roster is refused");
        return Ok(false);
    };
    assert!(honest, "a head that does not fit is refused");
    assert_eq!(roster.clients().len(), leaves.len());
    assert!(roster.clients().is_sorted_by(|a, b| a.0 < b.0), "each client once, in order");
    for (client, leaf) in roster.clients().iter().zip(&leaves) {
        // Its identity key may be none.
        let Ok(entry) = roster.entry(*client) else { continue };
        let (parsed, proof) = entry.expect("a leaf has a proof");
        assert!(proof.leaf == *leaf && parsed.client_id == *client);
        assert_eq!(roster.head().check_leaf(&proof, parsed.not_before).is_ok(), parsed.not_before <= parsed.not_after);
    }
    Ok(true)
}

/// A proof of one of the leaves with another index, path or leaf, at some time.
fn proof(bytes: &[u8]) -> Result<std::result::Result<Leaf, roster::RosterError>> {
    let mut u = Unstructured::new(bytes);
    let small = &*SMALL;
    let which = usize::from(u.arbitrary::<u8>()?) % small.proofs.len();
    let now = END.saturating_add_signed(u.arbitrary::<i8>()?.into());
    let mut proof = small.proofs[which].clone();
    for _ in 0..4 {
        if u.is_empty() {
            break;
        }
        match u.arbitrary::<u8>()? % 6 {
            0 => proof.index = u.arbitrary::<u8>()?.into(),
            1 => {
                let at = usize::from(u.arbitrary::<u8>()?) % proof.path.len().max(1);
                let tamper = u.arbitrary::<Tamper>()?;
                proof.path.iter_mut().skip(at).take(1).for_each(|hash| tamper.apply(hash));
            }
            2 => drop(proof.path.pop()),
            3 => proof.path.push(vec![u.arbitrary()?; 32]),
            4 => proof.leaf.clone_from(&small.leaves[usize::from(u.arbitrary::<u8>()?) % small.leaves.len()]),
            _ => u.arbitrary::<Tamper>()?.apply(&mut proof.leaf),
        }
    }
    let checked = small.roster.head().check_leaf(&proof, now);
    let genuine = small.proofs.contains(&proof);
    assert_eq!(checked.is_ok(), genuine && now <= END, "only a leaf in its own place is one");
    if let Ok(leaf) = &checked {
        let client = ClientId([proof.index as u8; 16]);
        assert!(
            leaf.client_id == client
                && leaf.identity_key == CAST.identities[proof.index as usize].signing_key.verifying_key()
        );
    }
    Ok(checked)
}

/// An offer under a head of some epoch, whose parameters name another one perhaps, to a device that has seen a third and asks for
/// a fourth.
fn epochs(bytes: &[u8]) -> Result<std::result::Result<(), ClientError>> {
    let mut u = Unstructured::new(bytes);
    let [of_head, of_params, seen, least] = u.arbitrary::<[u8; 4]>()?.map(u64::from);
    let root_lie = u.arbitrary::<u8>()?;
    let recording = &RECORDINGS[0];
    let mut offer = recording.server.offer().clone();
    let genuine = proto::RosterHead::decode(CAST.roster.signed_head().payload.as_slice()).expect("a head");
    let mut head = proto::RosterHead { epoch: of_head, ..genuine };
    let mut params = recording.server.params().wire.clone();
    params.roster_epoch = of_params;
    params.roster_root.clone_from(&head.root);
    head.root[0] ^= root_lie;
    offer.roster_head = Some(signed::sign(&head, label::SIG_ROSTER, Some(&CAST.registrar)));
    offer.params = Some(signed::sign(&params, label::SIG_ROUND_PARAMS, Some(&CAST.coordinator)));
    let mut device = Device::new(0, &recording.server, 12);
    device.record.see_roster_epoch(seen).expect("in memory");
    device.trust.policy.min_roster_epoch = least;
    let joined = Session::join(
        &offer,
        device.identity.clone(),
        &device.trust,
        &mut device.record,
        NOW,
        &mut <rand_chacha::ChaCha8Rng as rand_chacha::rand_core::SeedableRng>::seed_from_u64(1),
    );
    let good = of_head == of_params && of_head >= seen.max(least) && root_lie == 0;
    assert_eq!(joined.is_ok(), good, "never under an older roster, or two");
    let noted = device.record.roster_epoch().expect("in memory");
    assert_eq!(noted, if good { of_head } else { seen }, "what is refused is not noted");
    Ok(joined.map(drop))
}

fn name<T, E: std::fmt::Debug>(outcome: Result<std::result::Result<T, E>>) -> String {
    match outcome {
        Ok(Ok(_)) => "Accepted".into(),
        Ok(Err(error)) => format!("{error:?}").split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().into(),
        Err(_) => "TooShort".into(),
    }
}

/// How an input of [`check_leaves`] ends.
pub fn leaves_outcome(bytes: &[u8]) -> String {
    match leaves(bytes) {
        Ok(true) => "Accepted".into(),
        Ok(false) => "Refused".into(),
        Err(_) => "TooShort".into(),
    }
}

/// How an input of [`check_proof`] ends: the error's name, or `Accepted`.
pub fn proof_outcome(bytes: &[u8]) -> String {
    name(proof(bytes))
}

/// The same of an input of [`check_epochs`].
pub fn epochs_outcome(bytes: &[u8]) -> String {
    name(epochs(bytes))
}

/// A reader of [`super::files`].
pub fn check_leaves(bytes: &[u8]) {
    let _ = leaves(bytes);
}

/// Another one.
pub fn check_proof(bytes: &[u8]) {
    let _ = proof(bytes);
}

/// A third one.
pub fn check_epochs(bytes: &[u8]) {
    let _ = epochs(bytes);
}

/// Seeds of [`check_leaves`] by name; behind the last dash, how they end.
pub fn leaves_seeds() -> Vec<(String, Vec<u8>)> {
    let seeds: [(&str, &[u8]); 10] = [
        ("five-Accepted", &[0]),
        ("four-Accepted", &[0, 0, 2, 0]),
        ("none-Accepted", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("swapped-and-back-Accepted", &[0, 2, 0, 4, 2, 4, 0]),
        ("twice-Refused", &[0, 1, 1, 2]),
        ("swapped-Refused", &[0, 2, 0, 1]),
        ("cut-Refused", &[0, 3, 4, 0, 6, 9, 0]),
        ("one-more-Refused", &[1]),
        ("one-less-Refused", &[2]),
        ("root-Refused", &[3]),
    ];
    seeds.map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).into()
}

/// Seeds of [`check_proof`], in the same way.
pub fn proof_seeds() -> Vec<(String, Vec<u8>)> {
    let seeds: [(&str, &[u8]); 12] = [
        ("first-Accepted", &[0, 0]),
        ("promoted-Accepted", &[4, 0]),
        ("leaf-and-index-back-Accepted", &[1, 0, 0, 0, 0, 1]),
        ("late-Expired", &[1, 1]),
        ("index-NotInRoster", &[1, 0, 0, 0]),
        ("index-outside-NotInRoster", &[4, 0, 0, 5]),
        ("leaf-NotInRoster", &[1, 0, 4, 2]),
        ("shorter-NotInRoster", &[1, 0, 2]),
        ("longer-NotInRoster", &[4, 0, 3, 0]),
        ("path-NotInRoster", &[1, 0, 1, 1, 4, 0, 0, 1]),
        ("path-Signed", &[1, 0, 1, 1, 6, 9, 0]),
        ("leaf-Signed", &[1, 0, 5, 6, 9, 0]),
    ];
    seeds.map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).into()
}

/// Seeds of [`check_epochs`], in the same way.
pub fn epochs_seeds() -> Vec<(String, Vec<u8>)> {
    let seeds: [(&str, &[u8]); 7] = [
        ("same-Accepted", &[7, 7, 7, 7, 0]),
        ("newer-Accepted", &[8, 8, 7, 7, 0]),
        ("seen-StaleRoster", &[7, 7, 8, 0, 0]),
        ("policy-Policy", &[7, 7, 0, 8, 0]),
        ("head-OtherRoster", &[8, 7, 7, 0, 0]),
        ("params-OtherRoster", &[7, 8, 7, 0, 0]),
        ("root-OtherRoster", &[7, 7, 7, 0, 1]),
    ];
    seeds.map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).into()
}
