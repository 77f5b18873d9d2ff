//! `unisono registrar` as one runs it: by many at once, killed at any moment, with files that are none, on a log that was changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde_json::Value;
use tempfile::TempDir;
use unisono::protocol::keyfile::{self, DeviceKeys, Enrolment, Role};
use unisono::protocol::roster::Roster;
use unisono::registrar::{Registrar, Terms};

struct World {
    folder: TempDir,
}

/// Public keys of so many devices, the same each time.
fn device_keys(count: usize) -> Vec<DeviceKeys> {
    let mut rng = ChaCha8Rng::seed_from_u64(17);
    (0..count).map(|_| DeviceKeys::generate(&mut rng)).collect()
}

fn devices(count: usize) -> Vec<Enrolment> {
    device_keys(count).iter().map(DeviceKeys::enrolment).collect()
}

impl World {
    fn new() -> Self {
        let world = Self { folder: tempfile::tempdir().unwrap() };
        world.succeed(&["registrar", "init", "registrar"]);
        world.succeed(&["keys", "coordinator", "coordinator.key"]);
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unisono"));
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).spawn().unwrap()
    }

    fn succeed(&self, arguments: &[&str]) -> String {
        finished(self.start(arguments))
    }

    /// The message of a command that must be refused.
    fn refused(&self, arguments: &[&str]) -> String {
        let Output { status, stderr, .. } = self.command(arguments).output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(1), "{arguments:?}: {stderr}");
        stderr
    }

    /// Writes public files `N.pub`; returns their names.
    fn write(&self, devices: &[Enrolment]) -> Vec<String> {
        let write = |(i, device): (usize, &Enrolment)| {
            let name = format!("{i}.pub");
            fs::write(self.path(&name), device.to_text()).unwrap();
            name
        };
        devices.iter().enumerate().map(write).collect()
    }

    fn write_table(&self, name: &str, devices: &[Enrolment]) {
        let mut text = String::from("client_id,identity_key,release_key,signature,attribute.site\n");
        for device in devices {
            text += &format!("{},{},berlin\n", device.client_id(), row(device));
        }
        fs::write(self.path(name), text).unwrap();
    }

    fn publish(&self, out: &str) -> Child {
        self.start(&publish(out))
    }

    fn list(&self) -> Value {
        serde_json::from_str(&self.succeed(&["registrar", "list", "registrar", "--json"])).unwrap()
    }

    fn enrolled(&self) -> usize {
        self.list()["devices"].as_array().unwrap().len()
    }

    fn audit(&self) -> Value {
        serde_json::from_str(&self.succeed(&["registrar", "audit", "registrar", "--json"])).unwrap()
    }

    fn roster(&self, name: &str) -> Option<Roster> {
        let text = fs::read_to_string(self.path("registrar/registrar.pub")).unwrap();
        let key = keyfile::verifying_key_from_text(Role::Registrar, &text).unwrap();
        Some(Roster::from_bytes(&fs::read(self.path(name)).ok()?, &key).unwrap())
    }

    fn database(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.path("registrar/registrar.sqlite")).unwrap()
    }
}

fn publish(out: &str) -> [&str; 7] {
    ["registrar", "publish", "registrar", "--coordinator", "coordinator.key.pub", "--out", out]
}

const INLINE: &str = "client_id,identity_key,release_key,signature\n";

fn row(device: &Enrolment) -> String {
    let fields = [device.identity_key().as_bytes(), device.release_key().as_bytes(), device.signature()];
    fields.map(hex::encode).join(",")
}

fn finished(child: Child) -> String {
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

#[test]
fn twenty_enrolments_at_a_time_are_all_stored() {
    let world = World::new();
    let names = world.write(&devices(20));
    let children: Vec<_> = names.iter().map(|name| world.start(&["registrar", "enrol", "registrar", name])).collect();
    children.into_iter().for_each(|child| drop(finished(child)));
    assert_eq!(world.enrolled(), 20);
    assert_eq!(world.audit()["events"], 20);
}

#[test]
fn a_revocation_beside_enrolments_is_not_lost() {
    let world = World::new();
    let devices = devices(21);
    let names = world.write(&devices);
    world.succeed(&["registrar", "enrol", "registrar", &names[0]]);
    let children: Vec<_> = (0..20)
        .map(|i| match i {
            7 => world.start(&["registrar", "revoke", "registrar", &devices[0].client_id().to_string()]),
            _ => world.start(&["registrar", "enrol", "registrar", &names[i + 1]]),
        })
        .collect();
    children.into_iter().for_each(|child| drop(finished(child)));
    let list = world.list();
    let revoked: Vec<_> =
        list["devices"].as_array().unwrap().iter().filter(|device| !device["revoked_at"].is_null()).collect();
    assert_eq!(revoked.len(), 1);
    assert_eq!(revoked[0]["client_id"], devices[0].client_id().to_string());
    assert_eq!(world.enrolled(), 20);
}

#[test]
fn publications_at_a_time_have_an_epoch_each_and_the_newest_stays_in_the_file() {
    let world = World::new();
    let names = world.write(&devices(1));
    world.succeed(&["registrar", "enrol", "registrar", &names[0]]);
    let own: Vec<String> = (0..6).map(|i| format!("roster-{i}.bin")).collect();
    let children: Vec<_> =
        own.iter().map(|out| world.publish(out)).chain((0..6).map(|_| world.publish("one.bin"))).collect();
    children.into_iter().for_each(|child| drop(finished(child)));
    let mut epochs: BTreeSet<u64> = own.iter().map(|out| world.roster(out).unwrap().head().epoch).collect();
    assert_eq!(epochs.len(), 6, "{epochs:?}");
    let newest = world.roster("one.bin").unwrap().head().epoch;
    assert!(epochs.insert(newest));
    // Six were written there, one after the other.
    let others = (1..=12).filter(|epoch| !epochs.contains(epoch));
    assert!(others.max().unwrap_or(0) < newest);
    assert_eq!(world.audit()["epoch"], 12);
}

#[test]
fn what_is_killed_has_happened_wholly_or_not_at_all() {
    let world = World::new();
    let devices = devices(1200);
    world.write_table("all.csv", &devices);
    let enrol = ["registrar", "enrol", "registrar", "--csv", "all.csv"];
    let began = Instant::now();
    world.succeed(&["registrar", "enrol", "registrar", "--csv", "all.csv"]);
    let takes = began.elapsed();
    // The folder as it was, again and again.
    let fresh = World::new();
    fs::copy(world.path("all.csv"), fresh.path("all.csv")).unwrap();
    for part in [5, 20, 40, 60, 80, 90, 95, 100] {
        let mut child = fresh.start(&enrol);
        std::thread::sleep(takes * part / 100);
        child.kill().unwrap();
        child.wait().unwrap();
        let there = fresh.enrolled();
        assert!(there == 0 || there == 1200, "{there} after {part} %");
        fresh.audit();
    }
    // The same command again does what is left.
    fresh.succeed(&enrol);
    assert_eq!(fresh.enrolled(), 1200);
    let again: Value = serde_json::from_str(&fresh.succeed(&[&enrol[..], &["--json"]].concat())).unwrap();
    assert_eq!(again, serde_json::json!({ "enrolled": 0, "renewed": 0, "skipped": 1200 }));
    assert_eq!(fresh.audit()["events"], 1200);

    // Publications are killed too: the file is a whole roster, and never an older one than before.
    let began = Instant::now();
    finished(fresh.publish("roster.bin"));
    let takes = began.elapsed();
    let mut last = 1;
    let mut heads: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for part in (10..=120).step_by(10) {
        let mut child = fresh.publish("roster.bin");
        std::thread::sleep(takes * part / 100);
        child.kill().unwrap();
        child.wait().unwrap();
        let roster = fresh.roster("roster.bin").unwrap();
        assert!(roster.head().epoch >= last, "{} after {last}", roster.head().epoch);
        last = roster.head().epoch;
        let payload = roster.signed_head().payload.clone();
        assert_eq!(heads.entry(last).or_insert_with(|| payload.clone()), &payload, "two rosters of epoch {last}");
        fresh.audit();
    }
    finished(fresh.publish("roster.bin"));
    assert_eq!(fresh.audit()["undelivered"], Value::Null);
    assert_eq!(fresh.audit()["epoch"], fresh.roster("roster.bin").unwrap().head().epoch);
    assert_eq!(fresh.roster("roster.bin").unwrap().head().size, 1200);
    assert!(!fresh.path(".roster.bin.unfinished").exists());
}

#[test]
fn a_roster_that_was_signed_and_not_written_is_written_by_the_next_call() {
    let world = World::new();
    let names = world.write(&devices(3));
    world.succeed(&["registrar", "enrol", "registrar", &names[0]]);
    // The file can't be written after the roster was signed.
    fs::create_dir(world.path("roster.bin")).unwrap();
    fs::write(world.path("roster.bin/in-the-way"), "").unwrap();
    assert!(world.refused(&publish("roster.bin")).contains("roster.bin"));
    assert_eq!(world.audit()["undelivered"], 1);
    fs::remove_dir_all(world.path("roster.bin")).unwrap();
    let written = finished(world.publish("roster.bin"));
    assert!(written.contains("roster of epoch 1 with 1 devices"), "{written}");
    assert_eq!(world.roster("roster.bin").unwrap().head().epoch, 1);
    assert_eq!(world.audit()["undelivered"], Value::Null);

    // When something has changed since, it is the next epoch.
    fs::create_dir(world.path("other.bin")).unwrap();
    fs::write(world.path("other.bin/in-the-way"), "").unwrap();
    world.refused(&publish("other.bin"));
    world.succeed(&["registrar", "enrol", "registrar", &names[1]]);
    finished(world.publish("roster.bin"));
    let roster = world.roster("roster.bin").unwrap();
    assert_eq!((roster.head().epoch, roster.head().size), (3, 2));
}

#[test]
fn a_batch_with_a_fault_is_refused_whole_with_its_place() {
    let world = World::new();
    let devices = devices(4);
    let names = world.write(&devices);
    world.succeed(&["keys", "publisher", "foreign.key"]);
    let enrol = |more: &[&str]| world.refused(&[&["registrar", "enrol", "registrar"], more].concat());
    let told = enrol(&[&names[0], "foreign.key.pub", &names[1]]);
    assert!(told.contains("foreign.key.pub") && told.contains("publisher public key"), "{told}");
    assert!(told.contains("unisono client keys") && told.contains("nothing of this batch"), "{told}");
    let told = enrol(&[&names[0], &names[1], &names[0]]);
    assert!(told.contains("0.pub") && told.contains("stands in 0.pub already"), "{told}");
    assert!(enrol(&[&names[0], "none.pub"]).contains("none.pub: No such file"));
    fs::write(world.path("large.pub"), vec![b'a'; 100_000]).unwrap();
    assert!(enrol(&[&names[0], "large.pub"]).contains("65536 bytes"));

    let table = |text: &str| {
        fs::write(world.path("t.csv"), text).unwrap();
        enrol(&[&names[3], "--csv", "t.csv"])
    };
    let told = table("file,site\n0.pub,x\n");
    assert!(told.contains("t.csv, line 1: unknown column \"site\"") && told.contains("attribute.NAME"), "{told}");
    assert!(table("file,file\n0.pub,1.pub\n").contains("line 1: the column \"file\" is there twice"));
    assert!(table("").contains("the table is empty"));
    assert!(table("file\n0.pub\n\"1.pub\n").contains("t.csv, line 3: the quote of field 1 does not end"));
    assert!(table("client_id,release_key\n").contains("line 1: the columns don't say"));
    assert!(table("file\n0.pub\n\n1.pub,x\n").contains("t.csv, line 4: 2 fields instead of the 1"));
    assert!(table("file\n0.pub\nnone.pub\n").contains("t.csv, line 3: none.pub: No such file"));
    assert!(table("file\n0.pub\nforeign.key.pub\n").contains("t.csv, line 3: this is not a device public key"));
    let told = table("file\n0.pub\n1.pub\n0.pub\n");
    assert!(told.contains("t.csv, line 4: client") && told.contains("stands in t.csv, line 2 already"), "{told}");
    assert!(table("file\n3.pub\n").contains("stands in 3.pub already"));
    let inline = format!("{INLINE}{},{}\n12,34,56,78\n", devices[0].client_id(), row(&devices[0]));
    assert!(table(&inline).contains("t.csv, line 3: client_id is not 16 bytes"));
    // Its own keys under another's name, and a file in which a digit was changed.
    let forged = format!("{INLINE}{},{}\n", devices[1].client_id(), row(&devices[0]));
    assert!(table(&forged).contains("t.csv, line 2: the device public key is not signed by its own identity key"));
    let mut changed = devices[0].to_text().trim_end().to_owned();
    let last = changed.pop().unwrap();
    changed.push(if last == '0' { '1' } else { '0' });
    fs::write(world.path("changed.pub"), changed).unwrap();
    let told = enrol(&["changed.pub"]);
    assert!(told.contains("changed.pub: the device public key is not signed by its own identity key"), "{told}");
    let long = format!("file\n0.pub\n{}\n", "x".repeat(70_000));
    assert!(table(&long).contains("t.csv, line 3: longer than 65536 bytes"));
    assert!(table(&format!("file,attribute.a\n0.pub,{}\n", "y".repeat(300))).contains("line 2: attribute \"a\""));
    let mut bytes = b"file\n0.pub\n".to_vec();
    bytes.extend([0xff, 0xfe, b'\n']);
    fs::write(world.path("t.csv"), bytes).unwrap();
    assert!(enrol(&["--csv", "t.csv"]).contains("line 3: no UTF-8 text"));
    assert_eq!(world.enrolled(), 0, "each of them was refused whole");

    // The same without faults.
    fs::write(world.path("t.csv"), "file,attribute.site\n0.pub,berlin\n1.pub,\n").unwrap();
    world.succeed(&["registrar", "enrol", "registrar", &names[3], "--csv", "t.csv", "--attribute", "kind=phone"]);
    let list = world.list();
    let sites: Vec<_> =
        list["devices"].as_array().unwrap().iter().filter_map(|it| it["attributes"].get("site")).collect();
    assert_eq!((world.enrolled(), sites), (3, vec![&Value::from("berlin")]));
}

#[test]
fn a_changed_log_is_found_and_nothing_is_published_from_it() {
    let changes = [
        ("UPDATE events SET body = zeroblob(length(body)) WHERE seq = 2", "event 2"),
        ("UPDATE events SET at = at + 1 WHERE seq = 3", "event 3"),
        ("DELETE FROM events WHERE seq = 2", "event 2"),
        ("UPDATE events SET seq = 9 WHERE seq = 4", "event 4"),
        ("UPDATE devices SET revoked_at = NULL", "what the log does not say"),
        ("UPDATE devices SET not_after = not_after + 1", "what the log does not say"),
        ("DELETE FROM devices WHERE revoked_at IS NULL", "the table has 1 devices, and the log 3"),
        ("UPDATE epochs SET epoch = 7", "the table of epochs"),
    ];
    let world = World::new();
    let devices = devices(3);
    let names = world.write(&devices);
    world.succeed(&["registrar", "enrol", "registrar", &names[0], &names[1], &names[2]]);
    world.succeed(&["registrar", "revoke", "registrar", &devices[1].client_id().to_string()]);
    finished(world.publish("roster.bin"));
    let audit = world.audit();
    assert_eq!((&audit["events"], &audit["devices"], &audit["revoked"]), (&5.into(), &2.into(), &1.into()));
    let noted = audit["log"].as_str().unwrap().to_owned();
    world.succeed(&["registrar", "audit", "registrar", "--head", &noted]);

    let good = fs::read(world.path("registrar/registrar.sqlite")).unwrap();
    for (change, told) in changes {
        // The database refuses to change its log; whoever can write the file can take that away.
        let database = world.database();
        if change.contains("events") {
            assert!(database.execute_batch(change).unwrap_err().to_string().contains("only appended"));
            database.execute_batch("DROP TRIGGER events_stay; DROP TRIGGER events_are_final").unwrap();
        }
        database.execute_batch(change).unwrap();
        drop(database);
        let message = world.refused(&["registrar", "audit", "registrar"]);
        assert!(message.contains(told) && message.contains("restore"), "{change}: {message}");
        let message = world.refused(&publish("new.bin"));
        assert!(message.contains(told), "{change}: {message}");
        assert!(!world.path("new.bin").exists());
        fs::write(world.path("registrar/registrar.sqlite"), &good).unwrap();
    }
    // The table of keys is for `enrol`; `audit` checks it too.
    world.database().execute_batch("DELETE FROM keys").unwrap();
    assert!(world.refused(&["registrar", "audit", "registrar"]).contains("table of keys"));
    fs::write(world.path("registrar/registrar.sqlite"), &good).unwrap();

    // A log that is cut off verifies by itself, and lacks the head that was noted.
    world.database()
        .execute_batch("DROP TRIGGER events_stay; DELETE FROM events WHERE seq >= 4; DELETE FROM epochs; UPDATE devices SET revoked_at = NULL")
        .unwrap();
    world.succeed(&["registrar", "audit", "registrar"]);
    let message = world.refused(&["registrar", "audit", "registrar", "--head", &noted]);
    assert!(message.contains("does not have the noted head"), "{message}");
    // And its next epoch is one that was published already.
    let message = world.refused(&publish("roster.bin"));
    assert!(message.contains("has epoch 1") && message.contains("--after-epoch 1"), "{message}");
    world.succeed(&[&publish("roster.bin")[..], &["--after-epoch", "1"]].concat());
    assert_eq!(world.roster("roster.bin").unwrap().head().epoch, 2);
}

#[test]
fn a_renewal_keeps_its_keys_and_no_two_devices_share_one() {
    let world = World::new();
    let keys = device_keys(3);
    let [one, _, three]: [Enrolment; 3] = devices(3).try_into().unwrap();
    // The id of one device, the identity key of another one and the release key of a third, signed by the second.
    let mixed = |id: usize, identity: usize, release: usize| {
        let (signing_key, release_key) = (keys[identity].signing_key.clone(), keys[release].release_key.clone());
        DeviceKeys { client_id: keys[id].client_id, signing_key, release_key }.enrolment()
    };
    let enrol = ["registrar", "enrol", "registrar", "device.pub"];
    let write = |device: &Enrolment| fs::write(world.path("device.pub"), device.to_text()).unwrap();
    write(&one);
    world.succeed(&enrol);
    let other_keys = mixed(0, 1, 1);
    for (device, told) in [
        (&other_keys, "--replace-key"),
        (&mixed(1, 0, 1), "identity key of client"),
        (&mixed(1, 1, 0), "release key of client"),
    ] {
        write(device);
        let message = world.refused(&enrol);
        assert!(message.contains(told) && message.contains(&one.client_id().to_string()), "{message}");
    }
    // Not by renewing either; only by name.
    write(&other_keys);
    assert!(world.refused(&[&enrol[..], &["--renew"]].concat()).contains("--replace-key"));
    world.succeed(&[&enrol[..], &["--replace-key"]].concat());
    // The keys before stay its own, and a revoked device's are never used again.
    for of in [0, 1] {
        write(&mixed(2, of, of));
        assert!(world.refused(&enrol).contains("no two devices share a key"));
    }
    world.succeed(&["registrar", "revoke", "registrar", &one.client_id().to_string()]);
    write(&mixed(2, 0, 0));
    assert!(world.refused(&enrol).contains("no two devices share a key"));
    write(&one);
    assert!(world.refused(&enrol).contains("was revoked"));

    // A validity may be made longer before it ends; attributes change with it.
    write(&three);
    world.succeed(&enrol);
    let site = [&enrol[..], &["--attribute", "site=x", "--days", "700"]].concat();
    assert!(world.refused(&site).contains("--renew"));
    world.succeed(&[&site[..], &["--renew"]].concat());
    let list = world.list();
    let renewed = list["devices"].as_array().unwrap().iter().find(|it| it["revoked_at"].is_null()).unwrap();
    assert_eq!(renewed["attributes"]["site"], "x");
    assert!(renewed["not_after"].as_u64().unwrap() - renewed["not_before"].as_u64().unwrap() > 699 * 86_400);
    world.audit();
}

#[test]
fn a_roster_counts_for_as_long_as_its_publisher_says() {
    let world = World::new();
    let published = |more: &[&str]| -> Value {
        serde_json::from_str(&world.succeed(&[&publish("roster.bin")[..], &["--json"], more].concat())).unwrap()
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for (more, days) in [(&[][..], 365), (&["--days", "2"][..], 2)] {
        let told = published(more)["valid_until"].as_u64().unwrap();
        let head = world.roster("roster.bin").unwrap().head().clone();
        assert_eq!(head.valid_until, told);
        assert!((now..now + 60).contains(&(told - days * 86_400)), "{told}");
        assert!(head.check_validity(told).is_ok());
        let over = head.check_validity(told + 1).unwrap_err().to_string();
        assert!(over.contains("unisono registrar publish"), "{over}");
    }
    let text = world.succeed(&publish("roster.bin"));
    assert!(text.contains("it counts for 365 days"), "{text}");
    for days in ["0", "36501"] {
        assert!(world.refused(&[&publish("roster.bin")[..], &["--days", days]].concat()).contains("36500"));
    }
    world.audit();
}

#[test]
fn an_enrolment_is_valid_on_a_device_whose_clock_is_behind() {
    let world = World::new();
    let device = &devices(1)[0];
    let names = world.write(std::slice::from_ref(device));
    world.succeed(&["registrar", "enrol", "registrar", &names[0]]);
    finished(world.publish("roster.bin"));
    let roster = world.roster("roster.bin").unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    roster.leaf(device.client_id()).unwrap().unwrap().check_validity(now - 19).unwrap();
    roster.leaf(device.client_id()).unwrap().unwrap().check_validity(now - 240).unwrap();
}

#[cfg(unix)]
#[test]
fn the_folder_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let names = world.write(&devices(2));
    world.succeed(&["registrar", "enrol", "registrar", &names[0]]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let set = |name: &str, mode| fs::set_permissions(world.path(name), fs::Permissions::from_mode(mode)).unwrap();
    assert_eq!(mode(&world.path("registrar")), 0o700);
    for file in fs::read_dir(world.path("registrar")).unwrap() {
        let file = file.unwrap().path();
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    // A folder of an earlier version is closed; a key that others can read is refused.
    set("registrar", 0o755);
    world.succeed(&["registrar", "list", "registrar"]);
    assert_eq!(mode(&world.path("registrar")), 0o700);
    set("registrar/registrar.key", 0o640);
    let message = world.refused(&["registrar", "enrol", "registrar", &names[1]]);
    assert!(message.contains("registrar.key") && message.contains("chmod 600"), "{message}");
    set("registrar/registrar.key", 0o600);
    assert_eq!(world.enrolled(), 1);

    fs::create_dir(world.path("shared")).unwrap();
    fs::write(world.path("shared/file"), "").unwrap();
    set("shared", 0o755);
    assert!(world.refused(&["registrar", "init", "shared"]).contains("chmod 700"));
    // So are a device's keys.
    world.succeed(&["client", "keys", "device.key"]);
    let public = fs::read(world.path("device.key.pub")).unwrap();
    fs::write(world.path("device.key.pub"), "lost").unwrap();
    assert!(world.refused(&["client", "keys", "device.key"]).contains("never overwritten"));
    world.succeed(&["client", "keys", "device.key", "--public-only"]);
    assert_eq!(fs::read(world.path("device.key.pub")).unwrap(), public);
    assert_eq!(mode(&world.path("device.key")), 0o600);
    set("device.key", 0o644);
    let open =
        ["client", "open", "--coordinator", "http://127.0.0.1:1", "--keys", "device.key", "--state-dir", "state"];
    let message = world.refused(&[&open[..], &["--model", "m", "--out", "m.bin"]].concat());
    assert!(message.contains("device.key") && message.contains("chmod 600"), "{message}");
}

#[test]
fn a_folder_of_an_earlier_version_is_read_once() {
    let world = World::new();
    let devices = devices(3);
    let unsigned = |device: &Enrolment| device.to_text().lines().take(4).collect::<Vec<_>>().join("\n");
    let entry = |device: &Enrolment, revoked_at: Option<u64>| {
        serde_json::json!({
            "enrolment": unsigned(device), "not_before": 5, "not_after": 40_000_000_000u64,
            "attributes": { "site": "x" }, "revoked_at": revoked_at,
        })
    };
    let old = serde_json::json!({ "epoch": 8, "devices": {
        devices[0].client_id().to_string(): entry(&devices[0], None),
        devices[1].client_id().to_string(): entry(&devices[1], Some(7)),
    } });
    fs::write(world.path("registrar/registrar.json"), old.to_string()).unwrap();
    fs::remove_file(world.path("registrar/registrar.sqlite")).unwrap();
    // Several at a time.
    let names = world.write(&devices);
    let children: Vec<_> =
        (0..4).map(|_| world.start(&["registrar", "enrol", "registrar", &names[2], "--attribute", "site=y"])).collect();
    children.into_iter().for_each(|child| drop(finished(child)));
    let list = world.list();
    assert_eq!((list["epoch"].as_u64(), world.enrolled()), (Some(8), 3));
    assert!(world.refused(&["registrar", "enrol", "registrar", &names[1]]).contains("was revoked"));
    finished(world.publish("roster.bin"));
    let roster = world.roster("roster.bin").unwrap();
    assert_eq!((roster.head().epoch, roster.head().size), (9, 2));
    assert_eq!(roster.leaf(devices[0].client_id()).unwrap().unwrap().not_before, 5);
    assert!(
        !world.path("registrar/registrar.json").exists() && world.path("registrar/registrar.json.imported").exists()
    );
    world.audit();

    // A database that is lost is not made anew: its epochs would begin at 1.
    fs::remove_file(world.path("registrar/registrar.sqlite")).unwrap();
    let message = world.refused(&["registrar", "list", "registrar"]);
    assert!(message.contains("restore the folder"), "{message}");
}

#[test]
fn the_library_enrols_as_the_command_does() {
    let folder = tempfile::tempdir().unwrap();
    let mut registrar = Registrar::init(&folder.path().join("registrar")).unwrap();
    let candidates = devices(2)
        .into_iter()
        .map(|enrolment| Ok(unisono::registrar::Candidate { enrolment, attributes: BTreeMap::new(), at: None }));
    let done = registrar.enrol_all(candidates, 1000, Terms::default()).unwrap();
    assert_eq!((done.enrolled, registrar.devices().unwrap().len()), (2, 2));
}
