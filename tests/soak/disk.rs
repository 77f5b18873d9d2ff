//! A small file system for the coordinator's state, and what takes its room away.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// In the child: where its file system is.
pub const DISK: &str = "UNISONO_SOAK_DISK";

/// Runs this test once more in namespaces of its own, which need no privileges on most systems: there a file system in memory can be
/// mounted, and when the child ends all its processes do. `None` where the system does not allow that.
pub fn in_namespace(test: &str, mib: u64) -> Option<ExitStatus> {
    let folder = tempfile::tempdir().unwrap();
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["-Urm", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script]);
        command.arg(folder.path());
        command
    };
    let mount = format!("mount -t tmpfs -o size={mib}m tmpfs \"$0\"");
    let output = unshare(&mount).output();
    if !output.is_ok_and(|output| output.status.success()) {
        return None;
    }
    let mut command = unshare(&format!("{mount} && exec \"$@\""));
    command.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]);
    Some(command.env(DISK, folder.path()).status().unwrap())
}

/// Takes all room; gives it back when dropped.
pub struct Filler(PathBuf);

impl Filler {
    pub fn new(disk: &Path) -> Self {
        let path = disk.join("filler");
        let mut file = File::create(&path).unwrap();
        for step in [1 << 20, 4096, 1] {
            loop {
                match file.write(&vec![7; step]) {
                    Ok(1..) => {}
                    Ok(0) => break,
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        Self(path)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
