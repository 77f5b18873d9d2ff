//! A process with a log file: killed when dropped, looked at from outside.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

pub struct Process {
    child: Child,
    log: PathBuf,
    /// Bytes of the log when it started.
    pub log_from: u64,
}

/// What a process holds now.
#[derive(Debug, Clone, Copy, Default)]
pub struct Held {
    /// Resident memory in KiB.
    pub rss_kib: u64,
    /// Open file descriptors.
    pub files: u64,
}

impl Process {
    /// Starts `command`; what it prints is appended to `log`.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let out = File::options().create(true).append(true).open(log).unwrap();
        let log_from = length(log);
        let error = out.try_clone().unwrap();
        let child = command.stdin(Stdio::null()).stdout(out).stderr(error).spawn().unwrap();
        Self { child, log: log.into(), log_from }
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        // One that has ended by itself is noticed by who looks at it next.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Bytes that it has printed.
    pub fn printed(&self) -> u64 {
        length(&self.log) - self.log_from
    }

    /// `None` when it has just ended.
    pub fn held(&self) -> Option<Held> {
        let folder = PathBuf::from(format!("/proc/{}", self.child.id()));
        let status = std::fs::read_to_string(folder.join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let rss_kib = line.trim().trim_end_matches(" kB").parse().ok()?;
        let files = std::fs::read_dir(folder.join("fd")).ok()?.count() as u64;
        Some(Held { rss_kib, files })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |data| data.len())
}

/// The last lines of a log, for whoever looks for the cause.
pub fn tail(path: &Path) -> String {
    const MOST: u64 = 6_000;
    let mut text = Vec::new();
    if let Ok(mut file) = File::open(path) {
        let _ = file.seek(SeekFrom::Start(length(path).saturating_sub(MOST)));
        let _ = file.read_to_end(&mut text);
    }
    format!("--- the end of {}\n{}", path.display(), String::from_utf8_lossy(&text))
}
