//! A file system without room, for real. It needs one to itself, so it runs on request alone: docs/testing.md has the commands.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;
use unisono::client::{Event, Summary};
use unisono::coordinator::{Coordinator, Event as Happened};
use unisono::protocol::server::Phase;

use crate::deployed::{all, builder, constant, deployment};

/// Takes all the room that is left; gives it back when dropped.
struct Filler(PathBuf);

impl Filler {
    fn new(folder: &std::path::Path) -> Self {
        let path = folder.join("filler");
        let mut file = File::create(&path).unwrap();
        loop {
            match file.write_all(&[7; 4096]) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Self(path),
                Err(error) => panic!("{error}"),
            }
        }
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a small file system to itself, named by UNISONO_SMALL_DISK"]
async fn a_disk_without_room_in_any_phase() {
    let disk =
        std::env::var_os("UNISONO_SMALL_DISK").expect("UNISONO_SMALL_DISK names an empty file system of 8 to 64 MiB");
    let disk = PathBuf::from(disk);
    // One round for each phase, and one in which the model can't be stored.
    let rounds = Phase::ALL.len() as u64 + 1;
    let mut deployment = deployment(rounds);
    deployment.config.state_dir = disk.join("coordinator");
    let filler = Filler::new(&disk);
    let error =
        Coordinator::start(deployment.config.clone()).await.err().expect("it starts without room for its state");
    println!("at the start: {error}");
    drop(filler);
    let mut coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    let (told, mut refused) = mpsc::unbounded_channel();
    let mut set = tokio::task::JoinSet::new();
    for i in 0..5 {
        let told = told.clone();
        let observe = move |event: &Event<'_>| {
            if let Event::Retrying { error, .. } = event {
                let _ = told.send(error.to_string());
            }
        };
        let mut client = builder(&deployment, &endpoint, i).on_event(observe).build(constant(i)).unwrap();
        set.spawn(async move { client.run().await });
    }
    let (mut round, mut filled, mut refusals) = (1, 0, vec![0; Phase::ALL.len() + 1]);
    while round <= rounds {
        let happened = tokio::time::timeout(Duration::from_secs(60), events.recv()).await.unwrap().unwrap();
        // Round r is without room in its phase r; the last one when its sum is there.
        let now = match happened {
            Happened::RoundOpened { .. } => 1,
            Happened::PhaseClosed { phase, .. } => Phase::ALL.iter().position(|p| *p == phase).unwrap() as u64 + 2,
            Happened::RoundFinished(result) => {
                assert_eq!((result.round, result.outcome.survivors.len()), (round, 5));
                assert!((result.aggregate.mean[0] - 0.03).abs() < 1e-3);
                round += 1;
                continue;
            }
            Happened::RoundAborted { reason, .. } => panic!("round {round} was aborted: {reason}"),
            _ => continue,
        };
        if now == round && filled < round {
            filled = round;
            while refused.try_recv().is_ok() {}
            let filler = Filler::new(&disk);
            tokio::time::sleep(Duration::from_secs(2)).await;
            drop(filler);
            while let Ok(error) = refused.try_recv() {
                // The latter while the coordinator reads its state again, after it could not store the end of a phase.
                assert!(error.contains("can't store this now") || error.contains("is starting"), "{error}");
                refusals[round as usize - 1] += 1;
            }
        }
    }
    println!("refused in each phase, and when the sum was there: {refusals:?}");
    assert!(refusals.iter().sum::<u32>() > 0);
    coordinator.trained().await.unwrap();
    assert_eq!(all(set).await, vec![Summary { completed: rounds, missed: 0, declined: 0 }; 5]);
    coordinator.stop().await;
}
