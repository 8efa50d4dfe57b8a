//! Messages over Redis' pub/sub: one dedicated connection for all channels of this store, kept up by a task.

use super::ledger::Waiters;
use super::link::{Backoff, Link, State};
use super::url::Kind;
use crate::fanout::Fanout;
use crate::{Bus, StoreResult, Subscription};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use redis::aio::{PubSub, PubSubSink};
use redis::{Msg, RedisResult};
use std::collections::HashSet;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// How often the connection is pinged, and subscriptions are compared with what is wanted.
const CARE_EVERY: Duration = Duration::from_secs(1);
/// Subscriptions that may wait for the task.
const QUEUE: usize = 64;

/// A channel that is wanted now, and who waits until it is subscribed.
struct Wanted {
    channel: String,
    confirm: oneshot::Sender<()>,
}

/// The channel in Redis on which ends of ledger entries are told, and who waits for them.
pub(super) struct Ends {
    pub(super) channel: String,
    pub(super) waiters: Arc<Waiters>,
}

/// The Redis [`Bus`].
pub(super) struct RedisBus {
    link: Arc<Link>,
    fanout: Arc<Fanout>,
    wanted: mpsc::Sender<Wanted>,
}

impl RedisBus {
    /// Starts the task. It ends when the bus is dropped.
    pub(super) fn start(link: Arc<Link>, ends: Ends) -> RedisBus {
        let fanout = Arc::new(Fanout::default());
        let (wanted, queue) = mpsc::channel(QUEUE);
        let task = Task {
            link: Arc::downgrade(&link),
            fanout: fanout.clone(),
            ends,
            queue,
            waiting: Vec::new(),
            lossy: false,
            followed: link.watch(),
            active: HashSet::new(),
        };
        tokio::spawn(task.run());
        RedisBus { link, fanout, wanted }
    }

    /// The channel in Redis. Pub/sub knows no databases: two stores that share a server but not a database must not hear each other.
    fn channel(&self, channel: &str) -> String {
        format!("{}bus:{}:{channel}", self.link.options.prefix, self.link.connector.target.db)
    }
}

#[async_trait]
impl Bus for RedisBus {
    async fn publish(&self, channel: &str, payload: Bytes) -> StoreResult<()> {
        let channel = self.channel(channel);
        self.link.call(|mut conn| async move { redis::cmd("PUBLISH").arg(channel).arg(&payload[..]).query_async(&mut conn).await }).await
    }

    async fn subscribe(&self, channel: &str) -> StoreResult<Subscription> {
        let channel = self.channel(channel);
        let subscription = self.fanout.subscribe(&channel);
        let (confirm, confirmed) = oneshot::channel();
        let asked = async {
            if self.wanted.send(Wanted { channel, confirm }).await.is_ok() {
                let _ = confirmed.await;
            }
        };
        // Not confirmed in time: messages begin later, and the task puts a gap before them.
        let _ = tokio::time::timeout(self.link.options.deadline, asked).await;
        Ok(subscription)
    }
}

struct Task {
    link: Weak<Link>,
    fanout: Arc<Fanout>,
    ends: Ends,
    queue: mpsc::Receiver<Wanted>,
    /// Who waits for the next connection.
    waiting: Vec<Wanted>,
    /// Whether subscribers may have lost messages that were published before the next connection.
    lossy: bool,
    followed: watch::Receiver<State>,
    /// Channels subscribed on the connection that is up now.
    active: HashSet<String>,
}

/// The bus was dropped.
struct Closed;

impl Task {
    async fn run(mut self) -> Result<(), Closed> {
        let mut backoff = Backoff::new();
        loop {
            let (connector, limit) = {
                let link = self.link.upgrade().ok_or(Closed)?;
                (link.connector.clone(), link.options.connect_timeout)
            };
            // Looked at before connecting: a change of the master meanwhile makes for one more round, none is missed.
            let master = number(&self.followed.borrow_and_update());
            let follow = matches!(connector.target.kind, Kind::Sentinel { .. });
            match self.until(connector.connect_pubsub()).await? {
                Ok(pubsub) => {
                    backoff = Backoff::new();
                    self.serve(pubsub, limit, follow.then_some(master)).await?;
                    self.active.clear();
                    self.lossy = true;
                }
                Err(reason) => tracing::debug!(reason, "store bus"),
            }
            self.until(tokio::time::sleep(backoff.next())).await?;
        }
    }

    /// Drives `work`, and collects who wants to subscribe meanwhile.
    async fn until<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Closed> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                wanted = self.queue.recv() => self.waiting.push(wanted.ok_or(Closed)?),
            }
            // Who gave up waiting is subscribed all the same, with a gap first; the place in the list is not needed for that.
            let before = self.waiting.len();
            self.waiting.retain(|w| !w.confirm.is_closed());
            self.lossy |= self.waiting.len() < before;
        }
    }

    /// Serves one connection until it is lost. `master` is the link's connection at the time, if it must be followed.
    async fn serve(&mut self, pubsub: PubSub, limit: Duration, master: Option<Option<u64>>) -> Result<(), Closed> {
        let (mut sink, mut stream) = pubsub.split();
        if !self.adjust(&mut sink, limit).await {
            return Ok(());
        }
        if std::mem::take(&mut self.lossy) {
            self.fanout.gap_all();
        }
        for wanted in std::mem::take(&mut self.waiting) {
            if !self.want(&mut sink, limit, wanted).await {
                return Ok(());
            }
        }
        let mut care = tokio::time::interval(CARE_EVERY);
        care.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = stream.next() => match message {
                    Some(message) => self.dispatch(&message),
                    None => return Ok(()),
                },
                wanted = self.queue.recv() => {
                    if !self.want(&mut sink, limit, wanted.ok_or(Closed)?).await {
                        return Ok(());
                    }
                }
                changed = self.followed.changed() => {
                    changed.map_err(|_| Closed)?;
                    let now = number(&self.followed.borrow_and_update());
                    if master.is_some_and(|then| now.is_some() && then != now) {
                        return Ok(());
                    }
                }
                _ = care.tick() => {
                    if !self.adjust(&mut sink, limit).await || !within(limit, sink.ping::<redis::Value>()).await {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn dispatch(&self, message: &Msg) {
        let channel = message.get_channel_name();
        if channel == self.ends.channel {
            self.ends.waiters.ended(message.get_payload_bytes());
        } else {
            self.fanout.publish(channel, &Bytes::copy_from_slice(message.get_payload_bytes()));
        }
    }

    /// Subscribes one channel at once and says so; with a gap if the subscriber did not wait so long. `false`: the connection is lost.
    async fn want(&mut self, sink: &mut PubSubSink, limit: Duration, wanted: Wanted) -> bool {
        if !self.active.contains(&wanted.channel) {
            if !within(limit, sink.subscribe(&wanted.channel)).await {
                return false;
            }
            self.active.insert(wanted.channel.clone());
        }
        if wanted.confirm.send(()).is_err() {
            self.fanout.gap(&wanted.channel);
        }
        true
    }

    /// Makes the connection's subscriptions what the subscribers of this process want now. `false`: the connection is lost.
    async fn adjust(&mut self, sink: &mut PubSubSink, limit: Duration) -> bool {
        let mut wanted: HashSet<String> = self.fanout.channels().into_iter().collect();
        wanted.insert(self.ends.channel.clone());
        let missing: Vec<String> = wanted.difference(&self.active).cloned().collect();
        let unwanted: Vec<String> = self.active.difference(&wanted).cloned().collect();
        if !missing.is_empty() {
            if !within(limit, sink.subscribe(&missing)).await {
                return false;
            }
            let first = self.active.is_empty();
            for channel in missing {
                // A channel that was subscribed without word of its wish: the subscriber gave up before the queue had room.
                if !first {
                    self.fanout.gap(&channel);
                }
                self.active.insert(channel);
            }
        }
        if !unwanted.is_empty() {
            if !within(limit, sink.unsubscribe(&unwanted)).await {
                return false;
            }
            for channel in &unwanted {
                self.active.remove(channel);
            }
        }
        true
    }
}

fn number(state: &State) -> Option<u64> {
    match state {
        State::Up(number, _) => Some(*number),
        _ => None,
    }
}

/// Whether `work` succeeded within `limit`.
async fn within<T>(limit: Duration, work: impl Future<Output = RedisResult<T>>) -> bool {
    matches!(tokio::time::timeout(limit, work).await, Ok(Ok(_)))
}
