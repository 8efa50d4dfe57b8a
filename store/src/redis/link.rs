//! The way to Redis: a shared connection that a task keeps up (and one for each thread that has its tasks to itself, see [`own`]), and around every call a deadline, the breaker and the sums.
//!
//! A task of ours keeps the connection rather than the library's connection manager, for three reasons: the manager's attempts move only while
//! a caller waits for them, they end after a set number, and it does not know sentinels.

pub(super) use super::connect::Conn;
use super::breaker::{Breaker, Pass};
use super::own;
use super::reads::{self, Missed};
use super::connect::{Connector, describe, is_corrupt, is_readonly};
use super::url::Kind;
use bytes::Bytes;
use crate::{StoreError, StoreOptions, StoreResult, StoreTotals};
use parking_lot::Mutex;
use redis::{FromRedisValue, RedisError, RedisResult, Value};
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;

const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(1);
/// How often an idle or failing link is pinged.
const PING_EVERY: Duration = Duration::from_secs(1);

/// The delays between attempts to connect: doubling, with jitter, so that many instances do not come back at one moment.
pub(super) struct Backoff(Duration);

impl Backoff {
    pub(super) fn new() -> Backoff {
        Backoff(FIRST_DELAY)
    }

    pub(super) fn next(&mut self) -> Duration {
        let delay = self.0.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.0 = (self.0 * 2).min(LONGEST_DELAY);
        delay
    }
}

/// Where the connection stands.
#[derive(Clone)]
pub(super) enum State {
    /// The first attempt since the start or since the loss is under way: calls wait for it, within their deadline.
    Connecting,
    /// Connected; the number tells one connection from the next.
    Up(u64, Conn),
    /// An attempt failed; more are made. Calls fail at once.
    Down(String),
}

/// See the module.
pub(super) struct Link {
    pub(super) connector: Arc<Connector>,
    pub(super) options: StoreOptions,
    state: watch::Sender<State>,
    breaker: Breaker,
    calls: AtomicU64,
    failures: AtomicU64,
    /// Why the last call was not answered.
    reason: Mutex<Option<String>>,
    /// Whether `reason` holds one; spares the good calls the lock.
    unhealthy: AtomicBool,
    /// Calls that were let through, to see whether the link is idle.
    tried: AtomicU64,
}

enum Failure {
    Down(String),
    Redis(u64, RedisError),
    Late,
}

impl Link {
    /// Starts the task that connects, and waits for the end of its first attempt, be it good or bad.
    pub(super) async fn start(connector: Connector, options: StoreOptions) -> Arc<Link> {
        let (state, mut seen) = watch::channel(State::Connecting);
        let link = Arc::new(Link {
            breaker: Breaker::new(options.breaker_failures, options.breaker_open),
            connector: Arc::new(connector),
            options,
            state,
            calls: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            reason: Mutex::new(Some("not connected yet".into())),
            unhealthy: AtomicBool::new(true),
            tried: AtomicU64::new(0),
        });
        tokio::spawn(keep_up(Arc::downgrade(&link), link.state.subscribe()));
        // The attempt has a limit of its own; if the sender is gone, so is the link.
        let _ = seen.wait_for(|s| !matches!(s, State::Connecting)).await;
        if matches!(&*seen.borrow(), State::Up(..)) {
            link.ping().await;
        }
        link
    }

    /// Makes one call: counted, within the deadline, through the breaker. The answer is read as a `T` only here: one that can not be read
    /// is no fault of the connection.
    pub(super) async fn call<T: FromRedisValue, F: Future<Output = RedisResult<Value>>>(&self, run: impl FnOnce(Conn) -> F) -> StoreResult<T> {
        let read = |answer| redis::from_redis_value(answer).map_err(|_| StoreError::Corrupt("the answer has another shape than this version's".into()));
        self.counted(async { self.guarded(self.timed(run)).await.and_then(read) }).await
    }

    /// Reads the value under a key, over a connection that is for that alone where the thread has one.
    pub(super) async fn get(&self, key: String) -> StoreResult<Option<Bytes>> {
        let own = match &*self.state.borrow() {
            State::Up(number, Conn::Server(_)) => reads::connection(&self.connector, *number).map(|reads| (*number, reads)),
            _ => None,
        };
        let Some((number, reads)) = own else {
            return self.call(|mut conn| async move { redis::cmd("GET").arg(key).query_async(&mut conn).await }).await;
        };
        let read = async {
            reads.get(&key).await.map_err(|missed| match missed {
                Missed::Late => Failure::Late,
                Missed::Redis(error) => Failure::Redis(number, error),
            })
        };
        self.counted(self.guarded(read)).await
    }

    async fn counted<T>(&self, call: impl Future<Output = StoreResult<T>>) -> StoreResult<T> {
        self.calls.fetch_add(1, Relaxed);
        let outcome = call.await;
        if outcome.is_err() {
            self.failures.fetch_add(1, Relaxed);
        }
        outcome
    }

    /// A call over the connection for all calls, within the deadline.
    async fn timed<F: Future<Output = RedisResult<Value>>>(&self, run: impl FnOnce(Conn) -> F) -> Result<Value, Failure> {
        let call = async {
            let (number, conn) = self.connection().await.map_err(Failure::Down)?;
            run(conn).await.map_err(|error| Failure::Redis(number, error))
        };
        tokio::time::timeout(self.options.deadline, call).await.unwrap_or(Err(Failure::Late))
    }

    async fn guarded<T>(&self, call: impl Future<Output = Result<T, Failure>>) -> StoreResult<T> {
        let Some(pass) = self.breaker.enter() else {
            let reason = self.reason.lock().clone();
            return Err(StoreError::Away(format!("breaker open after: {}", reason.as_deref().unwrap_or("failures"))));
        };
        self.tried.fetch_add(1, Relaxed);
        match call.await {
            Ok(value) => {
                self.answered(pass);
                Ok(value)
            }
            Err(Failure::Redis(_, error)) if is_corrupt(&error) => {
                self.answered(pass);
                Err(StoreError::Corrupt(describe(&error)))
            }
            Err(Failure::Redis(number, error)) => {
                let reason = describe(&error);
                // A cluster connection mends itself node by node; giving it up for one node would hurt the others.
                let useless = self.connector.target.kind != Kind::Cluster && (error.is_unrecoverable_error() || is_readonly(&error));
                if self.failed(pass, &reason) || useless {
                    self.give_up(number);
                }
                Err(StoreError::Away(reason))
            }
            Err(Failure::Down(reason)) => {
                self.failed(pass, &reason);
                Err(StoreError::Away(reason))
            }
            Err(Failure::Late) => {
                let late = StoreError::Late(self.options.deadline);
                // Late again and again: the connection itself may be dead without a sign of it.
                if self.failed(pass, &late.to_string())
                    && let Some(number) = self.number()
                {
                    self.give_up(number);
                }
                Err(late)
            }
        }
    }

    /// The connection, waited for if the first attempt is under way.
    async fn connection(&self) -> Result<(u64, Conn), String> {
        if let State::Up(number, conn) = &*self.state.borrow() {
            return Ok((*number, own::connection(&self.connector, *number, conn).unwrap_or_else(|| conn.clone())));
        }
        let mut seen = self.state.subscribe();
        match seen.wait_for(|s| !matches!(s, State::Connecting)).await.as_deref() {
            Ok(State::Up(number, conn)) => Ok((*number, conn.clone())),
            Ok(State::Down(reason)) => Err(reason.clone()),
            _ => Err("closing".into()),
        }
    }

    fn number(&self) -> Option<u64> {
        match &*self.state.borrow() {
            State::Up(number, _) => Some(*number),
            _ => None,
        }
    }

    /// Drops the connection, if it is still this one; the task makes another.
    fn give_up(&self, number: u64) {
        self.state.send_if_modified(|state| {
            let ours = matches!(state, State::Up(now, _) if *now == number);
            if ours {
                *state = State::Connecting;
            }
            ours
        });
    }

    fn answered(&self, pass: Pass<'_>) {
        if pass.answered() && self.unhealthy.swap(false, Relaxed) {
            *self.reason.lock() = None;
            tracing::info!(store = %self.connector.target.address(), "store answers again");
        }
    }

    /// Notes the failure. Whether the breaker is open by it.
    fn failed(&self, pass: Pass<'_>, reason: &str) -> bool {
        *self.reason.lock() = Some(reason.to_owned());
        if !self.unhealthy.swap(true, Relaxed) {
            tracing::warn!(store = %self.connector.target.address(), reason, "store gives no answer");
        }
        pass.failed()
    }

    /// `Ok` when the last call that was let through was answered.
    pub(super) fn check(&self) -> Result<(), String> {
        if !self.unhealthy.load(Relaxed) {
            return Ok(());
        }
        self.reason.lock().clone().map_or(Ok(()), Err)
    }

    /// The sums; pings of our own are not in them.
    pub(super) fn totals(&self) -> StoreTotals {
        StoreTotals { calls: self.calls.load(Relaxed), failures: self.failures.load(Relaxed), breaker_opened: self.breaker.opened() }
    }

    /// Changes of the connection, for who must follow it.
    pub(super) fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    async fn ping(&self) {
        // The outcome is in the health.
        let _ = self.guarded(self.timed(|mut conn| async move { redis::cmd("PING").query_async(&mut conn).await })).await;
    }
}

/// Connects whenever there is no connection, and pings when nobody else calls or when calls fail. Ends with the link.
async fn keep_up(link: Weak<Link>, mut seen: watch::Receiver<State>) {
    let mut number = 0;
    loop {
        let mut backoff = Backoff::new();
        loop {
            let Some(link) = link.upgrade() else { return };
            match link.connector.connect().await {
                Ok(conn) => {
                    number += 1;
                    link.state.send_replace(State::Up(number, conn));
                    break;
                }
                Err(reason) => {
                    if link.unhealthy.load(Relaxed) {
                        *link.reason.lock() = Some(reason.clone());
                    }
                    tracing::debug!(store = %link.connector.target.address(), reason, "store connection");
                    link.state.send_replace(State::Down(reason));
                    drop(link);
                    tokio::time::sleep(backoff.next()).await;
                }
            }
        }
        if !watch_over(&link, &mut seen).await {
            return;
        }
    }
}

/// Returns when the connection was given up; `false` when the link is gone.
async fn watch_over(link: &Weak<Link>, seen: &mut watch::Receiver<State>) -> bool {
    let mut tried = None;
    loop {
        if !matches!(&*seen.borrow_and_update(), State::Up(..)) {
            return true;
        }
        {
            let Some(link) = link.upgrade() else { return false };
            let now = link.tried.load(Relaxed);
            if link.unhealthy.load(Relaxed) || tried == Some(now) {
                // A connection that another call gives up meanwhile must not keep us here.
                tokio::select! {
                    () = link.ping() => {}
                    changed = seen.changed() => {
                        if changed.is_err() {
                            return false;
                        }
                        continue;
                    }
                }
            }
            tried = Some(link.tried.load(Relaxed));
        }
        tokio::select! {
            changed = seen.changed() => if changed.is_err() { return false },
            () = tokio::time::sleep(PING_EVERY) => {}
        }
    }
}
