//! What happens to rosters that are large, damaged, overwritten, or read while calls are served.

use std::path::Path;

use prost::Message;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use tempfile::TempDir;
use unisono_crypto::kdf::label;
use unisono_crypto::merkle::Tree;
use unisono_crypto::sign::{Level, SigningKey};
use unisono_protocol::proto::RosterLeaf;
use unisono_protocol::roster::HeadTerms;
use unisono_protocol::{ClientId, RoundId};

use super::*;

struct World {
    folder: TempDir,
    store: Store,
    keys: RoundKeys,
    registrar: SigningKey,
    identity: Vec<u8>,
}

fn client(i: u32) -> ClientId {
    ClientId((u128::from(i) << 64).to_be_bytes())
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let rng = &mut ChaCha8Rng::seed_from_u64(1);
        let registrar = SigningKey::generate(Level::L65, rng);
        let roster = folder.path().join("roster.bin");
        let keys = RoundKeys {
            registrar: registrar.verifying_key(),
            signing_key: SigningKey::generate(Level::L65, rng),
            roster,
        };
        let identity = SigningKey::generate(Level::L44, rng).verifying_key().as_bytes().to_vec();
        let store = Store::open(&folder.path().join("state")).await.unwrap();
        Self { folder, store, keys, registrar, identity }
    }

    fn leaf(&self, i: u32) -> RosterLeaf {
        RosterLeaf {
            client_id: client(i).to_vec(),
            identity_key: self.identity.clone(),
            release_key_hash: vec![i as u8; 32],
            not_before: 0,
            not_after: u64::MAX,
            attributes: Vec::new(),
        }
    }

    /// The bytes of a roster with that many devices.
    fn file(&self, epoch: u64, count: u32) -> Vec<u8> {
        let leaves = (0..count).map(|i| self.leaf(i)).collect();
        let coordinator = [self.keys.signing_key.verifying_key()];
        Roster::publish(leaves, HeadTerms::new(epoch, 0), &coordinator, &[], &self.registrar)
            .unwrap()
            .to_bytes()
            .unwrap()
    }

    /// Publishes it as the registrar does: the file is replaced.
    fn publish(&self, epoch: u64, count: u32) {
        let new = self.folder.path().join("new");
        std::fs::write(&new, self.file(epoch, count)).unwrap();
        std::fs::rename(new, &self.keys.roster).unwrap();
    }

    async fn rosters(&self) -> Rosters {
        Rosters::open(&self.store, Some(&self.keys)).await.unwrap()
    }

    async fn newest(&self, rosters: &Rosters) -> Arc<Roster> {
        rosters.newest(&self.store, &self.keys).await.unwrap()
    }

    fn rosters_folder(&self) -> PathBuf {
        let above = self.folder.path().join("state/blobs/rosters");
        files(&above).first().map(|name| above.join(name)).unwrap()
    }
}

fn files(folder: &Path) -> Vec<String> {
    let found = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = found.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Changes one byte of a file, in place.
fn damage(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// Where the leaf of a device is in a file: at its client id.
fn place(file: &[u8], i: u32) -> usize {
    file.windows(16).position(|bytes| bytes == client(i).to_vec()).unwrap()
}

#[tokio::test]
async fn proofs_out_of_files_are_those_of_a_tree_in_memory() {
    let world = World::new().await;
    const COUNT: u32 = 20_000;
    world.publish(1, COUNT);
    let roster = world.newest(&world.rosters().await).await;
    let leaves: Vec<_> = (0..COUNT).map(|i| world.leaf(i).encode_to_vec()).collect();
    let tree = Tree::new(label::TREE_ROSTER, &leaves);
    for i in (0..COUNT).step_by(997).chain([COUNT - 2, COUNT - 1]) {
        let (leaf, proof) = roster.entry(client(i)).unwrap().unwrap();
        assert_eq!((leaf.client_id, proof.index, &proof.leaf), (client(i), u64::from(i), &leaves[i as usize]));
        let path: Vec<Vec<u8>> = tree.path(i as usize).unwrap().iter().map(|hash| hash.to_vec()).collect();
        assert_eq!(proof.path, path);
        assert_eq!(roster.head().check_leaf(&proof, 5).unwrap(), leaf);
        assert!(roster.contains(client(i)));
    }
    assert!(!roster.contains(client(COUNT)) && roster.entry(client(COUNT)).unwrap().is_none());
    // The index takes room, and has no name.
    assert_eq!(files(&world.rosters_folder()), ["1.bin"]);
}

#[tokio::test]
async fn calls_are_answered_while_a_roster_is_read() {
    let world = World::new().await;
    world.publish(1, 3);
    let rosters = world.rosters().await;
    world.newest(&rosters).await;
    world.publish(2, 4);
    // As long as it is read.
    let reads = rosters.loader.lock().await;
    assert_eq!(rosters.in_force().unwrap().head().epoch, 1);
    let began = Instant::now();
    assert_eq!(rosters.newest_soon(&world.keys).await.unwrap().head().epoch, 1);
    assert!((MOST_PATIENCE..2 * MOST_PATIENCE).contains(&began.elapsed()), "{:?}", began.elapsed());
    drop(reads);
    // A call that needs the newest has it as soon as it was read.
    let ask = async {
        assert_eq!(rosters.newest_soon(&world.keys).await.unwrap().head().epoch, 2);
        world.publish(3, 5);
        assert!(rosters.newest_soon(&world.keys).await.unwrap().contains(client(4)));
    };
    tokio::select! {
        () = rosters.watch(&world.store, &world.keys) => {}
        () = ask => {}
    }
}

#[tokio::test]
async fn a_file_that_is_overwritten_changes_nothing_that_was_verified() {
    let world = World::new().await;
    world.publish(1, 50);
    let rosters = world.rosters().await;
    let before = world.newest(&rosters).await;
    let good = std::fs::read(&world.keys.roster).unwrap();
    let at = place(&good, 7);
    for (what, bytes) in [
        ("a changed leaf", [&good[..at], &[0xff; 8], &good[at + 8..]].concat()),
        ("a file that was cut off", good[..at].to_vec()),
        ("an empty file", Vec::new()),
    ] {
        // In place, as `cp` does.
        std::fs::write(&world.keys.roster, bytes).unwrap();
        let roster = world.newest(&rosters).await;
        assert_eq!(roster.head().epoch, 1, "{what}");
        assert!((0..50).all(|i| roster.entry(client(i)).unwrap().is_some()), "{what}");
        assert!((0..50).all(|i| before.entry(client(i)).unwrap().is_some()), "{what}");
    }
    // After a restart, too. Whoever overwrites it with the next one has that.
    let again = world.rosters().await;
    assert!(again.in_force().unwrap().entry(client(7)).unwrap().is_some());
    std::fs::write(&world.keys.roster, world.file(2, 51)).unwrap();
    assert!(world.newest(&again).await.contains(client(50)));
}

#[tokio::test]
async fn a_damaged_copy_is_found_when_it_is_read_and_made_anew() {
    let world = World::new().await;
    world.publish(1, 50);
    let rosters = world.rosters().await;
    let roster = world.newest(&rosters).await;
    let copy = world.rosters_folder().join("1.bin");
    damage(&copy, place(&std::fs::read(&copy).unwrap(), 7) + 100);
    let error = roster.entry(client(7)).unwrap_err();
    assert!(matches!(&error, RosterError::Unreadable(why) if why.contains("not the one that was verified")), "{error}");
    assert!(roster.entry(client(8)).unwrap().is_some(), "others go on");
    rosters.doubt();
    assert!(world.newest(&rosters).await.entry(client(7)).unwrap().is_some());

    // A restart finds it before it is used; without the registrar's file there is none then.
    for cut in [false, true] {
        let bytes = std::fs::read(&copy).unwrap();
        let at = place(&bytes, 9);
        if cut {
            std::fs::write(&copy, &bytes[..at]).unwrap()
        } else {
            damage(&copy, at + 100)
        }
        let error = world.store.open_roster(&world.keys.registrar, 1).await.err().unwrap();
        assert!(matches!(&error, StoreError::Damaged(why) if why.contains("epoch 1")) && !error.may_pass(), "{error}");
        let rosters = world.rosters().await;
        assert!(rosters.in_force().is_none());
        assert!(world.newest(&rosters).await.entry(client(9)).unwrap().is_some());
    }
}

#[tokio::test]
async fn rosters_of_earlier_epochs_go_and_rounds_that_have_them_keep_them() {
    let world = World::new().await;
    let rosters = world.rosters().await;
    let mut kept = Vec::new();
    for epoch in 1..=3u64 {
        world.publish(epoch, 2000);
        kept.push(world.newest(&rosters).await);
        for i in 0..10 {
            let number = epoch * 10 + i;
            world.store.insert_round(RoundId([number as u8; 32]), "task", number, b"parameters").await.unwrap();
            world.store.abort_round(RoundId([number as u8; 32]), "enough").await.unwrap();
        }
    }
    assert_eq!(files(&world.rosters_folder()), ["1.bin", "2.bin", "3.bin"], "one an epoch, however many rounds");
    let bytes =
        |name: &str| std::fs::metadata(world.folder.path().join("state").join(name)).map_or(0, |data| data.len());
    assert!(bytes("coordinator.sqlite") + bytes("coordinator.sqlite-wal") < 1 << 20);
    // What a kill left of a copy is no roster, and is replaced by the next one.
    std::fs::write(world.rosters_folder().join("roster.bin#1"), b"half").unwrap();
    world.store.forget_rosters_before(&world.keys.registrar, 3).await.unwrap();
    assert!(world.store.open_roster(&world.keys.registrar, 2).await.unwrap().is_none());
    assert!(kept[0].entry(client(1999)).unwrap().is_some());
    world.publish(4, 3);
    world.newest(&rosters).await;
    assert_eq!(files(&world.rosters_folder()), ["3.bin", "4.bin"]);
    assert_eq!(world.store.roster_epoch(&world.keys.registrar).await.unwrap(), 4);
}

#[tokio::test]
async fn a_storage_error_is_tried_again_only_where_it_may_pass() {
    let world = World::new().await;
    world.publish(1, 3);
    let rosters = world.rosters().await;
    world.newest(&rosters).await;
    let error = |kind: std::io::ErrorKind| {
        RosterRefused::Store(StoreError::File { path: "roster.bin".into(), source: kind.into() })
    };
    let stamp = stamp(&world.keys);
    let mut loader = rosters.loader.lock().await;
    for seconds in [1, 2, 4] {
        rosters.refuse(&mut loader, error(std::io::ErrorKind::StorageFull), stamp).unwrap();
        assert_eq!((loader.stamp, loader.again.unwrap().1.as_secs()), (None, seconds));
    }
    drop(loader);
    // Not before the pause is over.
    world.publish(2, 3);
    assert_eq!(world.newest(&rosters).await.head().epoch, 1);
    rosters.loader.lock().await.again = None;
    assert_eq!(world.newest(&rosters).await.head().epoch, 2);

    // A file stands where the folder has to be: not tried again before the roster's file is another one.
    let folder = world.rosters_folder();
    std::fs::rename(&folder, world.folder.path().join("aside")).unwrap();
    std::fs::write(&folder, b"").unwrap();
    world.publish(3, 3);
    assert_eq!(world.newest(&rosters).await.head().epoch, 2);
    let loader = rosters.loader.lock().await;
    assert_eq!((loader.stamp, loader.again), (Some(super::stamp(&world.keys)), None));
}
