//! Every call on its way in and out: its place, the size and time of its messages, the bytes that it has in flight, and one line in the log
//! if it is refused.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use metrics::{counter, gauge};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::{Code, Status};
use unisono_wire::{FILE_CHUNK_LEN, REASON_KEY};

use crate::connections::{CallMark, Peer, SendMark};
use crate::gate::{Call, Caller, Gate, Held, later, limited};
use crate::sampled::REFUSALS;
use crate::service::refuse;

/// Messages up to this length are not counted among the bytes in flight: the number of calls bounds them.
const SMALL: usize = 16 << 10;
/// Bytes before each message: whether it is compressed, and its length.
const HEAD_LEN: usize = 5;

/// Lets calls through the gate.
#[derive(Clone)]
pub(crate) struct Calls(pub Arc<Gate>);

impl<S> tower::Layer<S> for Calls {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { inner, gate: self.0.clone() }
    }
}

/// See [`Calls`].
#[derive(Clone)]
pub(crate) struct Gated<S> {
    inner: S,
    gate: Arc<Gate>,
}

/// What a call holds as long as its answer is not sent.
struct Place {
    _permits: Vec<OwnedSemaphorePermit>,
    _mark: CallMark,
}

impl Drop for Place {
    fn drop(&mut self) {
        gauge!("unisono_calls").decrement(1.0);
    }
}

/// A place among a connection's large answers, as an answer's extension.
#[derive(Clone)]
pub(crate) struct AnswerPlace(pub Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl<S> tower::Service<Request<Body>> for Gated<S>
where
    S: tower::Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // An unknown path is not counted by name, so that nobody can fill the metrics.
        let path: String = request.uri().path().chars().take(64).collect();
        let call = Call::of(&path);
        let Some(peer) = request.extensions().get::<Peer>().cloned() else {
            return Box::pin(async { Ok(Status::internal("a call of no connection").into_http()) });
        };
        let forwarded = request.headers().get_all("x-forwarded-for").iter().next_back();
        let caller = Caller::new(peer, forwarded.and_then(|value| value.to_str().ok()));
        let mark = caller.peer.call();
        let permits = match self.gate.admit(&caller) {
            Ok(permits) => permits,
            Err(status) => {
                let response = status.into_http();
                tell(&caller, &path, &response);
                return Box::pin(async { Ok(response) });
            }
        };
        gauge!("unisono_calls").increment(1.0);
        let place = Place { _permits: permits, _mark: mark };
        request.extensions_mut().insert(caller.clone());
        let held = Arc::new(Mutex::new(Held::default()));
        let gate = self.gate.clone();
        let request = request.map(|body| {
            let body_ms = Duration::from_millis(gate.limits.body_ms);
            // Of a stream, the service waits for each message.
            let time = (call != Call::Upload).then(|| Box::pin(tokio::time::sleep_until(Instant::now() + body_ms)));
            let most = gate.message_len(call);
            Body::new(Receiving {
                body,
                caller: caller.clone(),
                gate,
                time,
                most,
                head: Head::default(),
                held: held.clone(),
                room: None,
                next: None,
            })
        });
        let (gate, response) = (self.gate.clone(), self.inner.call(request));
        Box::pin(async move {
            let response = response.await?;
            // The request was handled; what its message took is free.
            drop(held);
            tell(&caller, &path, &response);
            let ahead = if call == Call::Download { FILE_CHUNK_LEN + HEAD_LEN } else { 0 };
            let (mut parts, body) = response.into_parts();
            let answer = parts.extensions.remove::<AnswerPlace>();
            let answer = answer.and_then(|place| place.0.lock().unwrap_or_else(PoisonError::into_inner).take());
            let body = Sending { body, caller, gate, ahead, answer, held: None, room: None, next: None, _place: place };
            Ok(Response::from_parts(parts, Body::new(body)))
        })
    }
}

/// Counts and logs a call that ended in an error.
fn tell(caller: &Caller, path: &str, response: &Response<Body>) {
    let Some(status) = Status::from_header_map(response.headers()).filter(|status| status.code() != Code::Ok) else {
        return;
    };
    let code = format!("{:?}", status.code());
    let reason = status.metadata().get(REASON_KEY).and_then(|reason| reason.to_str().ok()).unwrap_or(&code).to_owned();
    counter!("unisono_call_errors_total", "code" => code).increment(1);
    let address = caller.address.unwrap_or(caller.peer.address().ip());
    if REFUSALS.admits(Some(address), &reason) {
        tracing::info!(peer = %address, path, reason, why = status.message(), "call refused");
    }
}

/// Where messages begin in a body.
#[derive(Default)]
struct Head {
    bytes: [u8; HEAD_LEN],
    have: usize,
    /// Bytes of the message at hand that are still to come.
    left: usize,
}

impl Head {
    /// Length of the longest message that begins in `data`.
    fn take(&mut self, mut data: &[u8]) -> usize {
        let mut longest = 0;
        while !data.is_empty() {
            let skip = self.left.min(data.len());
            self.left -= skip;
            data = &data[skip..];
            let more = (HEAD_LEN - self.have).min(data.len());
            self.bytes[self.have..self.have + more].copy_from_slice(&data[..more]);
            self.have += more;
            data = &data[more..];
            if self.have == HEAD_LEN {
                let [_, a, b, c, d] = self.bytes;
                (self.left, self.have) = (u32::from_be_bytes([a, b, c, d]) as usize, 0);
                longest = longest.max(self.left);
            }
        }
        longest
    }
}

/// Room that is waited for.
type Reserving = Pin<Box<dyn Future<Output = Result<Held, Status>> + Send>>;

fn reserving(gate: &Arc<Gate>, caller: &Caller, bytes: usize) -> Reserving {
    let (gate, caller) = (gate.clone(), caller.clone());
    Box::pin(async move { gate.reserve(&caller, bytes).await })
}

/// A request's body: no message is longer than this call's may be, there is room for it before it is read, and it comes in time.
struct Receiving {
    body: Body,
    caller: Caller,
    gate: Arc<Gate>,
    /// When a unary call's message has to be there.
    time: Option<Pin<Box<Sleep>>>,
    most: usize,
    head: Head,
    /// Room for the longest message so far; the call holds it as long as it is handled.
    held: Arc<Mutex<Held>>,
    room: Option<Reserving>,
    /// Read, and given on once there is room.
    next: Option<Frame<Bytes>>,
}

impl Receiving {
    fn late(&self) -> Status {
        if self.room.is_some() {
            return later("busy", Duration::from_secs(5), "the coordinator has no room for this message");
        }
        limited("body_stalled");
        let why = format!("the message did not come within {} ms", self.gate.limits.body_ms);
        refuse(Code::DeadlineExceeded, "body_stalled", &why)
    }
}

impl http_body::Body for Receiving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if let Some(time) = &mut this.time
            && time.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Some(Err(this.late())));
        }
        if this.next.is_none() {
            let frame = match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            let Some(data) = frame.data_ref() else { return Poll::Ready(Some(Ok(frame))) };
            let length = this.head.take(data);
            if length > this.most {
                limited("too_large");
                let why = format!("a message of {length} bytes: this call takes {} at most", this.most);
                return Poll::Ready(Some(Err(refuse(Code::OutOfRange, "too_large", &why))));
            }
            let held = this.held.lock().unwrap_or_else(PoisonError::into_inner).bytes;
            if length > SMALL && length > held {
                this.room = Some(reserving(&this.gate, &this.caller, length - held));
            }
            this.next = Some(frame);
        }
        if let Some(room) = &mut this.room {
            let reserved = ready!(room.as_mut().poll(context));
            this.room = None;
            match reserved {
                Ok(more) => this.held.lock().unwrap_or_else(PoisonError::into_inner).add(more),
                Err(status) => return Poll::Ready(Some(Err(status))),
            }
        }
        Poll::Ready(this.next.take().map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.next.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.next.is_some() { SizeHint::default() } else { self.body.size_hint() }
    }
}

/// Bytes that are sent, with their place among those in flight: it is free when they are on their way.
struct Sent {
    bytes: Bytes,
    _held: Held,
    _mark: SendMark,
    _answer: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// An answer's body: what is large has its room before it is given to be sent.
struct Sending {
    body: Body,
    caller: Caller,
    gate: Arc<Gate>,
    /// Room that is needed before the next message is made; 0: it is made first.
    ahead: usize,
    answer: Option<OwnedSemaphorePermit>,
    held: Option<Held>,
    room: Option<Reserving>,
    next: Option<Bytes>,
    _place: Place,
}

impl http_body::Body for Sending {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            if let Some(room) = &mut this.room {
                let reserved = ready!(room.as_mut().poll(context));
                this.room = None;
                match reserved {
                    Ok(held) => this.held = Some(held),
                    Err(status) => return Poll::Ready(Some(Err(status))),
                }
            }
            if let Some(bytes) = this.next.take() {
                let Some(held) = this.held.take() else {
                    this.room = Some(reserving(&this.gate, &this.caller, bytes.len()));
                    this.next = Some(bytes);
                    continue;
                };
                let (_mark, _answer) = (this.caller.peer.send(), this.answer.take());
                let sent = Bytes::from_owner(Sent { bytes, _held: held, _mark, _answer });
                return Poll::Ready(Some(Ok(Frame::data(sent))));
            }
            if this.ahead > 0 && this.held.is_none() {
                this.room = Some(reserving(&this.gate, &this.caller, this.ahead));
                continue;
            }
            match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) if bytes.len() > SMALL => {
                        // What is sent is as long as what is held: a buffer that it was cut from would be held, too.
                        this.next = Some(bytes);
                    }
                    Ok(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                other => return Poll::Ready(other),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.next.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.next.is_some() { SizeHint::default() } else { self.body.size_hint() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_heads_are_found_however_a_body_is_cut() {
        let mut body = Vec::new();
        for length in [3usize, 0, 700, 20_000, 1] {
            body.push(0);
            body.extend((length as u32).to_be_bytes());
            body.extend(vec![0xff; length]);
        }
        for cut in [1, 2, 3, 5, 7, 1000, 100_000] {
            let mut head = Head::default();
            let lengths: Vec<usize> =
                body.chunks(cut).map(|data| head.take(data)).filter(|&length| length > 0).collect();
            assert_eq!(lengths.iter().max(), Some(&20_000), "cut {cut}");
            assert_eq!((head.have, head.left), (0, 0), "cut {cut}");
        }
    }
}
