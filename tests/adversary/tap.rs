//! A wire between devices and the coordinator: everything that goes over it is recorded, and it can be cut.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

pub struct Tap {
    pub endpoint: String,
    /// All bytes, of all connections in both directions; each direction of a connection by itself.
    recorded: Arc<Mutex<Vec<Vec<u8>>>>,
    /// Bytes towards devices.
    pub down: Arc<AtomicU64>,
    /// When so many bytes have gone towards devices, the wire is cut, once; until then `u64::MAX`.
    cut_at: Arc<AtomicU64>,
    /// Told when it was cut.
    pub cut: Arc<Notify>,
    /// Counts how often all connections were closed.
    closed: watch::Sender<u64>,
    serving: JoinHandle<()>,
}

impl Tap {
    pub async fn start(coordinator: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let recorded: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let (down, cut_at) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(u64::MAX)));
        let cut = Arc::new(Notify::new());
        let closed = watch::Sender::new(0);
        let closing = closed.clone();
        let (tape, counted, limit, told) = (recorded.clone(), down.clone(), cut_at.clone(), cut.clone());
        let serving = tokio::spawn(async move {
            while let Ok((device, _)) = listener.accept().await {
                // While the coordinator is away, a device finds nobody.
                let Ok(coordinator) = TcpStream::connect(coordinator).await else { continue };
                let (from_device, to_device) = device.into_split();
                let (from_coordinator, to_coordinator) = coordinator.into_split();
                let up = copy(from_device, to_coordinator, tape.clone(), None);
                let down = copy(
                    from_coordinator,
                    to_device,
                    tape.clone(),
                    Some((counted.clone(), limit.clone(), told.clone())),
                );
                let mut closing = closing.subscribe();
                tokio::spawn(async move {
                    // When one direction is over, the connection is.
                    tokio::select! {
                        () = up => {}
                        () = down => {}
                        _ = closing.changed() => {}
                    }
                });
            }
        });
        Self { endpoint, recorded, down, cut_at, cut, closed, serving }
    }

    /// Cuts the wire when so many bytes have gone towards devices.
    pub fn cut_at(&self, bytes: u64) {
        self.cut_at.store(bytes, Ordering::SeqCst);
    }

    /// Closes all connections, as the end of the coordinator's process would.
    pub fn hang_up(&self) {
        self.closed.send_modify(|count| *count += 1);
    }

    /// Whether `needle` went over the wire; frames of HTTP/2 may begin and end anywhere, so it should be short.
    pub fn saw(&self, needle: &[u8]) -> bool {
        self.recorded.lock().unwrap().iter().any(|tape| contains(tape, needle))
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

pub fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

type Cut = (Arc<AtomicU64>, Arc<AtomicU64>, Arc<Notify>);

async fn copy(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    tapes: Arc<Mutex<Vec<Vec<u8>>>>,
    cut: Option<Cut>,
) {
    let index = {
        let mut tapes = tapes.lock().unwrap();
        tapes.push(Vec::new());
        tapes.len() - 1
    };
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        tapes.lock().unwrap()[index].extend_from_slice(&buffer[..read]);
        if let Some((counted, limit, told)) = &cut {
            let so_far = counted.fetch_add(read as u64, Ordering::SeqCst) + read as u64;
            let limit_now = limit.load(Ordering::SeqCst);
            if so_far >= limit_now
                && limit.compare_exchange(limit_now, u64::MAX, Ordering::SeqCst, Ordering::SeqCst).is_ok()
            {
                told.notify_one();
                return;
            }
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
