//! The way of each device to the coordinator, which can be cut: a TCP proxy for each of them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

/// What the way does with bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Open,
    /// Connections are closed, and new ones too.
    Cut,
    /// The same, with a reset.
    Reset,
    /// Nothing moves; nobody is told.
    Stalled,
}

/// One device's way.
pub struct Path {
    pub port: u16,
    way: watch::Sender<Way>,
}

impl Path {
    /// A proxy to `coordinator`, whose connections come from `source`.
    pub async fn open(coordinator: SocketAddr, source: IpAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (way, receiver) = watch::channel(Way::Open);
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                };
                tokio::spawn(serve(stream, coordinator, source, receiver.clone()));
            }
        });
        Self { port, way }
    }

    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
    }
}

async fn serve(device: TcpStream, coordinator: SocketAddr, source: IpAddr, mut way: watch::Receiver<Way>) {
    if way.wait_for(|way| *way != Way::Stalled).await.is_err() {
        return;
    }
    if *way.borrow_and_update() != Way::Open {
        let _ = device.set_zero_linger();
        return;
    }
    let socket = TcpSocket::new_v4().unwrap();
    if socket.bind((source, 0).into()).is_err() {
        return;
    }
    // While the coordinator is down, the device's connection is closed.
    let Ok(service) = socket.connect(coordinator).await else { return };
    let _ = (device.set_nodelay(true), service.set_nodelay(true));
    let cut = {
        let mut way = way.clone();
        async move { way.wait_for(|way| matches!(way, Way::Cut | Way::Reset)).await.is_ok_and(|way| *way == Way::Reset) }
    };
    let (mut device, mut service) = (device, service);
    let reset = {
        let ((from_device, to_device), (from_service, to_service)) = (device.split(), service.split());
        tokio::select! {
            reset = cut => reset,
            () = relay(from_device, to_service, way.clone()) => false,
            () = relay(from_service, to_device, way.clone()) => false,
        }
    };
    if reset {
        let _ = (device.set_zero_linger(), service.set_zero_linger());
    }
}

async fn relay(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut way: watch::Receiver<Way>) {
    let mut bytes = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        if way.wait_for(|way| *way != Way::Stalled).await.is_err() || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
