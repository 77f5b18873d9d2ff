//! How long a phase stays open, and what ends it.

use std::time::Duration;

use metrics::{counter, gauge};
use unisono_protocol::server::{Phase, Progress, Server};

use crate::admin::{Order, What};
use crate::{Shared, Stage};

/// After a restart a phase stays open for at least so long, and grace for stragglers does not begin before: devices dial again after
/// pauses.
const RECONNECT: Duration = Duration::from_secs(15);
/// A phase that does not close says why at this interval.
const REPORT_EVERY: Duration = Duration::from_secs(60);
/// How long phase 0 stays open at least, unless it is set, where the roster has more devices than a cohort: slow ones are drawn, too.
const DRAW: Duration = Duration::from_secs(2);
/// How often a phase 0 whose time is over looks for devices that are ahead.
const LATE_TICK: Duration = Duration::from_secs(1);

/// How often a phase looks whether its roster is over.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What comes after waiting in a phase.
pub enum Next {
    /// The phase is closed.
    Close,
    /// The round ends without a sum.
    End { reason: String, code: &'static str, skip_to: Option<u64>, order: Option<Order> },
}

/// Waits until the phase may be closed: everybody has answered, its time is over, or the grace for stragglers is. Phase 0 also
/// waits for `n_min` clients, unless some are suspended: then the round ends, so that their time passes; and where more devices may come
/// than there is room for, it stays open so long that slow ones can be drawn. It ends as well when an
/// operator says so, and when as many devices as are needed are in later rounds already: this coordinator's state went back.
pub async fn wait(shared: &Shared) -> Next {
    let began = tokio::time::Instant::now();
    let (number, phase, remaining, back, drawn) = match &*shared.stage.lock().await {
        Stage::Running(active) => {
            let phase = active.server().phase();
            let limit =
                Duration::from_millis(phase.deadline_ms(&active.server().params().wire.deadlines.unwrap_or_default()));
            let back = active.interrupted.then(|| began + RECONNECT.min(limit));
            let remaining = active.remaining(phase);
            // Counted from the phase's beginning, also after a restart.
            let drawn = began + draw(shared, active.server()).min(limit).saturating_sub(limit - remaining);
            (active.number, phase, remaining, back.unwrap_or(began), drawn)
        }
        _ => return Next::Close,
    };
    gauge!("unisono_phase").set(f64::from(phase as u32));
    let grace = shared.config.round.straggler_grace_ms.map(Duration::from_millis);
    let mut deadline = (began + remaining).max(back);
    let (mut graced, mut report) = (false, began + REPORT_EVERY);
    loop {
        let now = tokio::time::Instant::now();
        let late = now >= deadline;
        let (accepted, given) = (shared.accepted.notified(), shared.orders.given.notified());
        if let Some(order) = shared.orders.take()
            && let Some(end) = ordered(order, number)
        {
            return end;
        }
        let devices = shared.asked.count();
        match &*shared.stage.lock().await {
            Stage::Running(active) => {
                let server = active.server();
                let (Progress { answered, expected, .. }, n_min) =
                    (server.progress(), server.params().wire.n_min as usize);
                gauge!("unisono_phase_answered").set(answered as f64);
                gauge!("unisono_phase_expected").set(expected as f64);
                gauge!("unisono_phase_late").set(f64::from(u8::from(late)));
                let enough = phase != Phase::Advertise || answered >= n_min;
                let ready = || now >= drawn && crate::in_place(|| server.ready());
                if (late && (enough || server.suspends())) || ready() {
                    return Next::Close;
                }
                if now >= report {
                    report = now + REPORT_EVERY;
                    let (waiting, ahead) = (devices.waiting, devices.ahead);
                    let open_for = began.elapsed().as_secs();
                    if ahead > 0 {
                        let highest = devices.highest;
                        tracing::warn!(
                            round = number,
                            ahead,
                            highest,
                            "devices are ahead: if this state went back, `unisono admin skip-to-round` mends it"
                        );
                    }
                    tracing::info!(round = number, %phase, answered, expected, n_min, late, open_for, waiting, ahead, "phase is open");
                }
                if late && let Some(end) = too_few_may_come(server) {
                    return end;
                }
                if late && let Some(end) = newer_roster(shared, server) {
                    return end;
                }
                if let Some(end) = roster_is_over(shared, server) {
                    return end;
                }
                if late && let Some(end) = jump(shared, number, n_min.saturating_sub(answered)) {
                    return end;
                }
                if let Some(grace) = grace.filter(|_| !graced && as_promised(server)) {
                    graced = true;
                    deadline = deadline.min((now.max(back) + grace).max(drawn));
                    continue;
                }
            }
            _ => return Next::Close,
        }
        let tick = match late {
            true => now + LATE_TICK,
            false if now < drawn => drawn,
            false => deadline,
        };
        tokio::select! {
            () = accepted => {}
            () = given => {}
            () = tokio::time::sleep_until(tick.min(report).min(now + LOOK_EVERY)) => {}
        }
    }
}

/// How long phase 0 stays open at least, from its beginning.
fn draw(shared: &Shared, server: &Server) -> Duration {
    if server.phase() != Phase::Advertise {
        return Duration::ZERO;
    }
    let crowded = server.fleet().is_some_and(|fleet| fleet > server.params().wire.n_max as usize);
    let unset = if crowded { DRAW } else { Duration::ZERO };
    shared.config.round.draw_ms.map_or(unset, Duration::from_millis)
}

/// What an operator's order makes of the round at hand; one that can't be carried out is answered here.
fn ordered(order: Order, number: u64) -> Option<Next> {
    let (reason, code, skip_to) = match order.what {
        What::Abort => ("an operator aborted it".to_owned(), "operator", None),
        What::SkipTo(to) if to > number => (format!("an operator skipped to round {to}"), "operator", Some(to)),
        What::SkipTo(to) => {
            order.done(Err(format!("round {to} is not above round {number}, which is at hand")));
            return None;
        }
    };
    Some(Next::End { reason, code, skip_to, order: Some(order) })
}

/// When phase 0 is over, and so many devices have declined that there can't be enough: they are asked again in the next round.
fn too_few_may_come(server: &Server) -> Option<Next> {
    let (fleet, n_min) = (server.fleet()?, server.params().wire.n_min as usize);
    let reason = || {
        format!("{fleet} devices may still be in it, and it needs {n_min}: the others have declined, or are suspended")
    };
    (server.phase() == Phase::Advertise && fleet < n_min).then(|| Next::End {
        reason: reason(),
        code: "declined",
        skip_to: None,
        order: None,
    })
}

/// When phase 0 is over, too few have come, and a newer roster is in force: who was enrolled since can't come to this round, and who has
/// seen the newer one takes no older one.
fn newer_roster(shared: &Shared, server: &Server) -> Option<Next> {
    let (epoch, newest) = (server.params().wire.roster_epoch, shared.rosters.in_force()?.head().epoch);
    let reason =
        || format!("too few came under the roster of epoch {epoch}, and one of epoch {newest} is in force now");
    (server.phase() == Phase::Advertise && newest > epoch).then(|| Next::End {
        reason: reason(),
        code: "roster",
        skip_to: None,
        order: None,
    })
}

/// When the roster ends before the cohort is closed: no device joins any more. The next round is not opened before there is a newer one.
fn roster_is_over(shared: &Shared, server: &Server) -> Option<Next> {
    let roster = shared.rosters.in_force().filter(|_| server.phase() == Phase::Advertise)?;
    let over = roster.head().check_validity(crate::now()).err()?;
    Some(Next::End { reason: over.to_string(), code: "roster", skip_to: None, order: None })
}

/// When phase 0 is over and `needed` devices are missing, while as many are in later rounds already: on with their number.
fn jump(shared: &Shared, number: u64, needed: usize) -> Option<Next> {
    let most = shared.config.task.max_round_jump;
    let to = shared.asked.jump(needed, most).filter(|&to| to > number)?;
    let devices = shared.asked.count();
    counter!("unisono_round_jumps_total").increment(1);
    let reason = format!(
        "{} devices are ahead of this coordinator, whose state went back (a restored backup?): on with round {to}",
        devices.ahead
    );
    tracing::error!(
        round = number,
        to,
        ahead = devices.ahead,
        highest = devices.highest,
        "the state went back; skipping rounds"
    );
    Some(Next::End { reason, code: "behind", skip_to: Some(to), order: None })
}

/// Whether as many clients have answered as the assumed drop-out fraction leaves of those who may.
fn as_promised(server: &Server) -> bool {
    // Fewer than the quorum are no use, and the quorum closes the phase.
    if server.phase() == Phase::Confirm {
        return false;
    }
    // Who leaves is among those who may drop out.
    let Progress { answered, expected, leaving } = server.progress();
    let promised = (1.0 - server.params().wire.delta) * (expected + leaving) as f64;
    answered as f64 + 1e-9 >= promised && answered >= server.params().wire.n_min as usize
}
