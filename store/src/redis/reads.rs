//! Values, read over a connection that belongs to one thread and does nothing else.
//!
//! Nearly all that a cache asks of its store is `GET`, and most of what such a call cost was the client library's: its queue, its parser for all
//! that Redis may say, its copies. Here a call appends its command to what the connection will send next, and waits; one task sends what has come
//! together in one write, and cuts the answers out of what it reads, in the order of the calls, without copying them.

use super::connect::{Connector, describe};
use super::own::{self, Own};
use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use redis::{ConnectionAddr, RedisError};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};
use tokio_util::io::poll_read_buf;

/// Space that a read finds: room for several pages.
const READ: usize = 64 * 1024;
/// The longest value that Redis can be told to hold.
const LONGEST: usize = 512 << 20;
/// The longest line of an answer: a length, or an error.
const LINE: usize = 16 * 1024;

thread_local!(static OWN: RefCell<Vec<Own<Reads>>> = const { RefCell::new(Vec::new()) });

/// Why a value was not read.
#[derive(Debug)]
pub(super) enum Missed {
    /// No answer within the deadline.
    Late,
    /// Redis refused, or the connection is gone.
    Redis(RedisError),
}

impl From<io::Error> for Missed {
    fn from(error: io::Error) -> Missed {
        Missed::Redis(error.into())
    }
}

type Answer = Result<Option<Bytes>, Missed>;

/// A call that was sent, or will be.
struct Call {
    since: Instant,
    /// `None`: it was late, and its answer will be dropped.
    caller: Option<oneshot::Sender<Answer>>,
}

#[derive(Default)]
struct State {
    /// Commands that were not sent yet.
    out: Vec<u8>,
    calls: VecDeque<Call>,
    /// Of the task that sends and reads.
    driver: Option<Waker>,
    /// The connection is gone.
    over: bool,
}

#[derive(Default)]
struct Shared(Mutex<State>);

impl Drop for Shared {
    /// Nobody will call any more: the task ends.
    fn drop(&mut self) {
        if let Some(driver) = self.0.get_mut().driver.take() {
            driver.wake();
        }
    }
}

/// A connection for reading values. Cheap to clone.
#[derive(Clone)]
pub(super) struct Reads(Arc<Shared>);

/// This thread's connection, if it is open and the target is one to which there are such; else one is opened for the calls to come. `number`: of
/// the link's shared connection, beside which it lives.
pub(super) fn connection(connector: &Arc<Connector>, number: u64) -> Option<Reads> {
    let known = own::find(&OWN, connector, number, |connector| async move { connector.connect_reads().await })?;
    if known.0.0.lock().over {
        // The next call opens another.
        own::forget(&OWN, connector);
        return None;
    }
    Some(known)
}

impl Reads {
    /// Takes over a stream on which everything before the first command was said. `deadline`: of a call.
    fn over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, deadline: Duration) -> Reads {
        let shared = Arc::<Shared>::default();
        let mut driver = Driver { stream, deadline, shared: Arc::downgrade(&shared), sending: Vec::new(), sent: 0, received: BytesMut::new(), clock: None };
        tokio::spawn(poll_fn(move |cx| driver.poll(cx)));
        Reads(shared)
    }

    /// The value under a key.
    ///
    /// Errors: [`Missed`].
    pub(super) async fn get(&self, key: &str) -> Answer {
        let (caller, answer) = oneshot::channel();
        let driver = {
            let mut state = self.0.0.lock();
            if state.over {
                return Err(gone().into());
            }
            write_get(&mut state.out, key);
            state.calls.push_back(Call { since: Instant::now(), caller: Some(caller) });
            state.driver.take()
        };
        if let Some(driver) = driver {
            driver.wake();
        }
        answer.await.unwrap_or_else(|_| Err(gone().into()))
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the connection is gone")
}

/// The task at a connection.
struct Driver<S> {
    stream: S,
    deadline: Duration,
    shared: Weak<Shared>,
    sending: Vec<u8>,
    sent: usize,
    received: BytesMut,
    /// When the oldest call will be late. Looked at, and set anew, only when it is over.
    clock: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    /// Ready when there is nothing more to do.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(shared) = self.shared.upgrade() else { return Poll::Ready(()) };
        let failed = match self.work(&shared, cx) {
            Ok(()) => return Poll::Pending,
            Err(error) => error,
        };
        let mut state = shared.0.lock();
        state.over = true;
        for call in state.calls.drain(..) {
            if let Some(caller) = call.caller {
                let _ = caller.send(Err(io::Error::new(failed.kind(), failed.to_string()).into()));
            }
        }
        Poll::Ready(())
    }

    fn work(&mut self, shared: &Shared, cx: &mut Context<'_>) -> io::Result<()> {
        loop {
            if self.received.capacity() - self.received.len() < READ / 4 {
                self.received.reserve(READ);
            }
            match poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.received)? {
                Poll::Ready(0) => return Err(gone()),
                Poll::Ready(_) => self.hand_out(shared)?,
                Poll::Pending => break,
            }
        }
        loop {
            if self.sent == self.sending.len() {
                self.sending.clear();
                self.sent = 0;
                let mut state = shared.0.lock();
                std::mem::swap(&mut state.out, &mut self.sending);
                if self.sending.is_empty() {
                    if !state.driver.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                        state.driver = Some(cx.waker().clone());
                    }
                    break;
                }
            }
            let Poll::Ready(count) = Pin::new(&mut self.stream).poll_write(cx, &self.sending[self.sent..])? else { break };
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.sent += count;
        }
        self.watch_the_clock(shared, cx);
        Ok(())
    }

    /// Gives the answers that are complete to their callers.
    fn hand_out(&mut self, shared: &Shared) -> io::Result<()> {
        while let Some(answer) = cut(&mut self.received)? {
            // Nobody asked.
            let call = shared.0.lock().calls.pop_front().ok_or(io::ErrorKind::InvalidData)?;
            if let Some(caller) = call.caller {
                let _ = caller.send(answer);
            }
        }
        Ok(())
    }

    fn watch_the_clock(&mut self, shared: &Shared, cx: &mut Context<'_>) {
        loop {
            if let Some(clock) = &mut self.clock
                && clock.as_mut().poll(cx).is_pending()
            {
                return;
            }
            let now = Instant::now();
            let mut state = shared.0.lock();
            let waiting = state.calls.iter_mut().filter(|call| call.caller.is_some());
            let mut next = None;
            for call in waiting {
                let end = call.since + self.deadline;
                if end > now {
                    next = Some(end);
                    break;
                }
                if let Some(caller) = call.caller.take() {
                    let _ = caller.send(Err(Missed::Late));
                }
            }
            drop(state);
            match (next, &mut self.clock) {
                (Some(end), Some(clock)) => clock.as_mut().reset(end),
                (Some(end), clock) => *clock = Some(Box::pin(tokio::time::sleep_until(end))),
                (None, clock) => {
                    *clock = None;
                    return;
                }
            }
        }
    }
}

fn write_get(out: &mut Vec<u8>, key: &str) {
    out.extend_from_slice(b"*2\r\n$3\r\nGET\r\n$");
    out.extend_from_slice(itoa::Buffer::new().format(key.len()).as_bytes());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Cuts the first answer to a `GET` off; `None`: it is not complete.
///
/// Errors: something else stands there.
fn cut(received: &mut BytesMut) -> io::Result<Option<Answer>> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "an answer to GET has another form");
    let Some(kind) = received.first() else { return Ok(None) };
    let Some(end) = received.iter().take(LINE).position(|byte| *byte == b'\n') else {
        return if received.len() < LINE { Ok(None) } else { Err(malformed()) };
    };
    let line = received.get(1..end).and_then(|line| line.strip_suffix(b"\r")).ok_or_else(malformed)?;
    match kind {
        b'$' if line == b"-1" => {
            received.advance(end + 1);
            Ok(Some(Ok(None)))
        }
        b'$' => {
            let digits = line.iter().all(u8::is_ascii_digit);
            let length = std::str::from_utf8(line).ok().filter(|_| digits).and_then(|text| text.parse::<usize>().ok()).filter(|length| *length <= LONGEST).ok_or_else(malformed)?;
            let whole = end + 1 + length + 2;
            if received.len() < whole {
                received.reserve(whole - received.len());
                return Ok(None);
            }
            if &received[whole - 2..whole] != b"\r\n" {
                return Err(malformed());
            }
            received.advance(end + 1);
            let value = received.split_to(length).freeze();
            received.advance(2);
            Ok(Some(Ok(Some(value))))
        }
        b'-' => {
            let error = received.split_to(end + 1);
            let error = redis::parse_redis_value(&error).and_then(redis::Value::extract_error).err().ok_or_else(malformed)?;
            Ok(Some(Err(Missed::Redis(error))))
        }
        _ => Err(malformed()),
    }
}

impl Connector {
    /// A connection for reading values. `None`: there is none to such a target: to a cluster, whose keys lie on many servers, or by TLS.
    ///
    /// Errors: why not, without secrets.
    async fn connect_reads(&self) -> Result<Option<Reads>, String> {
        match tokio::time::timeout(self.limit(), self.attempt_reads()).await {
            Ok(connected) => connected,
            Err(_) => Err("no connection in time".into()),
        }
    }

    async fn attempt_reads(&self) -> Result<Option<Reads>, String> {
        let told = |error: RedisError| describe(&error);
        let server = self.server().await.map_err(told)?;
        let info = server.get_connection_info();
        let ConnectionAddr::Tcp(host, port) = info.addr() else { return Ok(None) };
        let mut stream = TcpStream::connect((host.as_str(), *port)).await.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let settings = info.redis_settings();
        if let Some(password) = settings.password() {
            let mut auth = redis::cmd("AUTH");
            if let Some(user) = settings.username() {
                auth.arg(user);
            }
            say(&mut stream, auth.arg(password)).await?;
        }
        if settings.db() != 0 {
            say(&mut stream, redis::cmd("SELECT").arg(settings.db())).await?;
        }
        Ok(Some(Reads::over(stream, self.deadline)))
    }
}

/// Says something that is answered with `+OK`.
async fn say(stream: &mut TcpStream, command: &redis::Cmd) -> Result<(), String> {
    let exchange = async {
        stream.write_all(&command.get_packed_command()).await?;
        let mut line = Vec::new();
        while !line.ends_with(b"\n") && line.len() < LINE {
            line.push(stream.read_u8().await?);
        }
        Ok::<_, io::Error>(line)
    };
    let line = exchange.await.map_err(|error| error.to_string())?;
    match redis::parse_redis_value(&line).and_then(redis::Value::extract_error) {
        Ok(_) => Ok(()),
        Err(error) => Err(describe(&error)),
    }
}

#[cfg(test)]
mod tests;
