//! Devices that stop, or have no update: nobody waits for them.

use super::*;

/// What a device does in its rounds.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Says no before it joins.
    Refuses,
    /// Says no when its keys are shared.
    Declines,
    /// Its trainer fails.
    Fails,
    /// Its trainer gives what can't be encoded.
    Breaks,
}

struct Unwilling(Kind);

impl Trainer for Unwilling {
    fn accepts(&mut self, params: &RoundParams) -> Result<bool, TrainError> {
        assert_eq!(params.wire.task, TASK);
        Ok(self.0 != Kind::Refuses)
    }

    fn train(&mut self, round: &TrainingRound) -> Result<Update, TrainError> {
        match self.0 {
            Kind::Refuses => panic!("a round that was not accepted"),
            Kind::Declines => Err(Declined("no new data".into()).into()),
            Kind::Fails => Err("the data are gone".into()),
            Kind::Breaks => {
                let update = vec![f32::NAN; round.model.values().len()];
                Ok(Update { update, weight: 1.0, metrics: vec![1.0, 0.5] })
            }
        }
    }
}

/// Phases that end by an answer of everybody, or in the time of a test not at all.
fn without_hurry(rounds: u64) -> Deployment {
    let mut deployment = deployment(rounds);
    let round = &mut deployment.config.round;
    (round.advertise_ms, round.share_ms, round.mask_ms) = (600_000, 600_000, 600_000);
    (round.confirm_ms, round.unmask_ms, round.straggler_grace_ms) = (600_000, 600_000, None);
    deployment
}

#[tokio::test(flavor = "multi_thread")]
async fn the_others_do_not_wait_for_a_device_without_an_update() {
    for kind in [Kind::Refuses, Kind::Declines, Kind::Fails, Kind::Breaks] {
        let deployment = without_hurry(1);
        let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
        let endpoint = format!("http://{}", coordinator.address());
        let mut events = coordinator.events();
        let set = devices(&deployment, &endpoint, 0..4);
        let mut unwilling = builder(&deployment, &endpoint, 4).build(Unwilling(kind)).unwrap();
        let unwilling = tokio::spawn(async move { unwilling.run().await });
        let round = tokio::time::timeout(Duration::from_secs(60), finished(&mut events)).await.expect("nobody waits");
        assert_eq!(round.outcome.survivors.len(), 4);
        assert_eq!(all(set).await, vec![Summary { completed: 1, missed: 0, declined: 0 }; 4]);
        let no = matches!(kind, Kind::Refuses | Kind::Declines);
        let (missed, declined) = (u64::from(!no), u64::from(no));
        assert_eq!(unwilling.await.unwrap().unwrap(), Summary { completed: 0, missed, declined });
        coordinator.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_ends_at_once_when_too_many_leave_it() {
    let deployment = without_hurry(1);
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    let mut events = coordinator.events();
    let mut set = devices(&deployment, &endpoint, 0..2);
    for i in 2..5 {
        let mut client = builder(&deployment, &endpoint, i).build(Unwilling(Kind::Declines)).unwrap();
        set.spawn(async move { client.run().await });
    }
    let aborted = tokio::time::timeout(Duration::from_secs(60), aborted(&mut events)).await.expect("nobody waits");
    assert_eq!(aborted.0, 1);
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_stopped_ends_its_round_and_joins_no_other() {
    let deployment = without_hurry(2);
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    let mut events = coordinator.events();
    let set = devices(&deployment, &endpoint, 0..4);
    let stop = Arc::new(tokio::sync::Notify::new());
    let (asked, told) = (stop.clone(), stop.clone());
    let observe = move |event: &Event<'_>| {
        if let Event::Trained { .. } = event {
            told.notify_one();
        }
    };
    let mut client = builder(&deployment, &endpoint, 4).on_event(observe).build(constant(4)).unwrap();
    let summary = client.run_until(async move { asked.notified().await }).await.unwrap();
    assert_eq!(summary, Summary { completed: 1, missed: 0, declined: 0 });
    assert_eq!(finished(&mut events).await.outcome.survivors.len(), 5);
    drop(set);
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_is_stopped_at_once_and_nobody_waits_for_it() {
    let deployment = without_hurry(1);
    let soon = || tokio::time::sleep(Duration::from_millis(300));
    // For a coordinator that is not there.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut client = builder(&deployment, &format!("http://{nobody}"), 4).build(constant(4)).unwrap();
    let stopped = tokio::time::timeout(Duration::from_secs(20), client.run_until(soon())).await;
    assert_eq!(stopped.expect("it is stopped").unwrap(), Summary::default());
    drop(client);
    // For a cohort, after its advert.
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    let mut events = coordinator.events();
    let mut client = builder(&deployment, &endpoint, 4).build(constant(4)).unwrap();
    let joined = async { while !matches!(events.recv().await, Ok(Happened::Progress { answered: 1, .. })) {} };
    let stopped = tokio::time::timeout(Duration::from_secs(20), client.run_until(joined)).await;
    assert_eq!(stopped.expect("it is stopped").unwrap(), Summary::default());
    let set = devices(&deployment, &endpoint, 0..4);
    let round = tokio::time::timeout(Duration::from_secs(60), finished(&mut events)).await.expect("nobody waits");
    assert_eq!(round.outcome.survivors.len(), 4);
    assert_eq!(all(set).await, vec![Summary { completed: 1, missed: 0, declined: 0 }; 4]);
    // A stopped client can be run again: the task is finished.
    assert_eq!(client.run().await.unwrap(), Summary::default());
    coordinator.stop().await;
}
