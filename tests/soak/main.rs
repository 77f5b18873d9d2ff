//! The real program as processes, killed and cut off at random under a flood of junk from a second process: every sum stays exact, and
//! no device is lost. docs/testing.md has what is done, what is checked, and how to run it for an hour.

mod disk;
mod faults;
mod fleet;
mod flood;
mod log;
mod network;
mod office;
mod process;
mod report;
mod service;
mod sums;
mod world;

use std::path::PathBuf;

const TEST: &str = "kills_cuts_and_a_full_disk_under_a_flood";

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
fn kills_cuts_and_a_full_disk_under_a_flood() {
    let seconds = variable("UNISONO_SOAK_SECONDS").unwrap_or(50);
    let disk = std::env::var_os(disk::DISK).or_else(|| std::env::var_os("UNISONO_SMALL_DISK")).map(PathBuf::from);
    if disk.is_none() {
        // For what is stored in each round.
        let mib = 32 + seconds / 30;
        if let Some(status) = disk::in_namespace(TEST, mib) {
            assert!(status.success(), "the soak failed: its words are above");
            return;
        }
        println!("no file system of its own can be mounted here: the disk is not filled");
    }
    let seed = variable("UNISONO_SOAK_SEED").unwrap_or_else(rand::random);
    let run = faults::Run { seed, seconds, disk };
    println!("{run:?}");
    run.play();
}

#[test]
#[ignore = "the second process of the soak"]
fn flood() {
    if let Ok(target) = std::env::var(flood::TARGET) {
        flood::run(target.parse().unwrap());
    }
}
