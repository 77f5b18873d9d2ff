//! What an operator asks of a running coordinator: one JSON line each way over a Unix socket in the state folder, which only its owner
//! may open. A command is a [`Request`]; another one is another variant of it.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore, oneshot};

use crate::{Shared, Stage};

/// Name of the socket in the state folder.
pub const SOCKET: &str = "admin.sock";
/// Longest request in bytes.
const MAX_REQUEST: u64 = 64 << 10;
/// A request that is not whole after so long, or a command that has not been carried out, is given up.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Most requests at a time.
const MAX_CALLS: usize = 8;
/// Highest number to which rounds can be moved: numbers are stored with 63 bits.
const MAX_ROUND: u64 = 1 << 62;

/// A command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What the coordinator does now.
    Status,
    /// Ends the round at hand without a sum; the next one is opened.
    AbortRound {
        /// Name of the task; absent: the coordinator's only one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        task: Option<String>,
    },
    /// Ends the round at hand without a sum, and goes on with this number.
    SkipToRound {
        /// Name of the task; absent: the coordinator's only one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        task: Option<String>,
        /// Number of the next round, above the one at hand.
        round: u64,
    },
}

/// What comes back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// It was done, or this is the answer.
    Done(serde_json::Value),
    /// It was not, and why.
    Refused(String),
}

/// Why a command could not be given.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The socket.
    #[error("{}: {source}; is a coordinator running with this state_dir, and does this user own it?", .path.display())]
    Socket {
        /// Where it was looked for.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The answer is none.
    #[error("the coordinator's answer can't be read: {0}")]
    Answer(String),
    /// The coordinator refuses.
    #[error("{0}")]
    Refused(String),
}

/// Gives a command to the coordinator with this state folder, and returns its answer.
///
/// # Errors
/// [`AdminError`].
pub async fn call(state_dir: &Path, request: &Request) -> Result<serde_json::Value, AdminError> {
    let path = state_dir.join(SOCKET);
    let error = |source| AdminError::Socket { path: path.clone(), source };
    let line = async {
        let mut stream = UnixStream::connect(&path).await?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).await?;
        Ok(answer)
    };
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer came");
    let answer = tokio::time::timeout(TIMEOUT + Duration::from_secs(5), line).await.map_err(late);
    let answer = answer.and_then(|answer: io::Result<String>| answer).map_err(error)?;
    match serde_json::from_str(&answer).map_err(|e| AdminError::Answer(e.to_string()))? {
        Response::Done(value) => Ok(value),
        Response::Refused(why) => Err(AdminError::Refused(why)),
    }
}

/// An order to the training loop.
pub(crate) enum What {
    /// Ends the round at hand.
    Abort,
    /// Ends the round at hand, and goes on with this number.
    SkipTo(u64),
}

/// An order, and where its answer goes.
pub(crate) struct Order {
    pub what: What,
    reply: oneshot::Sender<Result<String, String>>,
}

impl Order {
    /// Says what came of it.
    pub fn done(self, result: Result<String, String>) {
        // Whoever asked may have gone.
        let _ = self.reply.send(result);
    }
}

/// Orders that wait for the training loop.
#[derive(Default)]
pub(crate) struct Orders {
    queue: Mutex<Vec<Order>>,
    /// There is one.
    pub given: Notify,
}

impl Orders {
    /// The next one whose sender still waits.
    pub fn take(&self) -> Option<Order> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.retain(|order| !order.reply.is_closed());
        (!queue.is_empty()).then(|| queue.remove(0))
    }

    async fn give(&self, what: What) -> Result<String, String> {
        let (reply, answer) = oneshot::channel();
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push(Order { what, reply });
        self.given.notify_one();
        match tokio::time::timeout(TIMEOUT, answer).await {
            Ok(Ok(result)) => result,
            _ => Err("the training loop did not take the order in time; see the log".into()),
        }
    }
}

/// Opens the socket. One that a killed process left is replaced: the state folder's lock is held.
///
/// # Errors
/// As of the operating system.
pub(crate) fn listen(state_dir: &Path) -> io::Result<UnixListener> {
    // Made where nobody else can reach it, until its permissions are right.
    let private = state_dir.join(".admin");
    let _ = std::fs::remove_dir_all(&private);
    std::fs::DirBuilder::new().mode(0o700).create(&private)?;
    let hidden = private.join("s");
    let listener = UnixListener::bind(&hidden)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&hidden, state_dir.join(SOCKET))?;
    let _ = std::fs::remove_dir(&private);
    Ok(listener)
}

/// Answers requests as long as it is polled.
pub(crate) async fn serve(shared: Arc<Shared>, listener: UnixListener) {
    let places = Arc::new(Semaphore::new(MAX_CALLS));
    while let Ok(place) = places.clone().acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection on the admin socket; trying again");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = answer(&shared, stream).await {
                tracing::info!(%error, "a request on the admin socket was not answered");
            }
        });
    }
}

async fn answer(shared: &Shared, stream: UnixStream) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = Vec::new();
    let mut read = BufReader::new(read.take(MAX_REQUEST));
    tokio::time::timeout(TIMEOUT, read.read_until(b'\n', &mut line)).await??;
    let response = match serde_json::from_slice::<Request>(&line) {
        Ok(request) => {
            tracing::info!(?request, "admin");
            carry_out(shared, request).await.map_or_else(Response::Refused, Response::Done)
        }
        Err(error) => Response::Refused(format!("the request can't be read: {error}")),
    };
    let mut bytes = serde_json::to_vec(&response)?;
    bytes.push(b'\n');
    write.write_all(&bytes).await
}

async fn carry_out(shared: &Shared, request: Request) -> Result<serde_json::Value, String> {
    let own = &shared.config.task.name;
    let check = |task: Option<String>| match task {
        Some(task) if task != *own => Err(format!("this coordinator runs task {own:?}, not {task:?}")),
        _ => Ok(()),
    };
    let what = match request {
        Request::Status => return Ok(status(shared).await),
        Request::AbortRound { task } => check(task).map(|()| What::Abort)?,
        Request::SkipToRound { task, round } => {
            check(task)?;
            if round > MAX_ROUND {
                return Err(format!("round {round} is above {MAX_ROUND}, the highest number that can be set"));
            }
            What::SkipTo(round)
        }
    };
    if matches!(&*shared.stage.lock().await, Stage::Finished) {
        return Err("the task is finished: there is no round".into());
    }
    shared.orders.give(what).await.map(serde_json::Value::String)
}

async fn status(shared: &Shared) -> serde_json::Value {
    let mut status = serde_json::json!({ "task": shared.config.task.name });
    let devices = shared.asked.count();
    let (stage, more) = match &*shared.stage.lock().await {
        Stage::Starting => ("starting", serde_json::json!({})),
        Stage::Idle => ("between-rounds", serde_json::json!({})),
        Stage::Finished => ("finished", serde_json::json!({})),
        Stage::Failed(failed) => ("failed", serde_json::json!({ "reason": failed.reason })),
        Stage::Running(active) => {
            let (server, progress) = (active.server(), active.server().progress());
            let more = serde_json::json!({
                "round": active.number,
                "round_id": active.round_id.to_string(),
                "phase": server.phase().name(),
                "answered": progress.answered,
                "expected": progress.expected,
                "n_min": server.params().wire.n_min,
                "seconds_left": active.remaining(server.phase()).as_secs_f64().round(),
            });
            ("running", more)
        }
    };
    status["state"] = stage.into();
    if let serde_json::Value::Object(more) = more {
        more.into_iter().for_each(|(name, value)| status[name] = value);
    }
    status["devices_waiting"] = devices.waiting.into();
    status["devices_ahead"] = devices.ahead.into();
    status["highest_round_of_a_device"] = devices.highest.into();
    status
}
