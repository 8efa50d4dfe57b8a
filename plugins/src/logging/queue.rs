//! A bounded queue whose entries are sent in batches by a task of their own: a slow sink costs entries, never requests.

use async_trait::async_trait;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Deserialize;
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::{sync::Notify, time::Instant};
use weir_config::{Diagnostic, Node};
use weir_gateway::metrics::Metrics;

/// How entries wait and are sent.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QueueConfig {
    /// Entries sent at once, at most. Default: 1; for `opentelemetry` 200.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_batch_size: Option<usize>,
    /// Seconds that an entry waits for others to be sent with. Default: 1; for `opentelemetry` 3.
    #[schemars(range(min = 0, max = 3600))]
    pub max_coalescing_delay: Option<f64>,
    /// Entries that may wait; the oldest are dropped beyond it. Default: 10000.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_entries: Option<usize>,
    /// Bytes that may wait; the oldest are dropped beyond it. Default: no limit.
    #[schemars(range(min = 1))]
    pub max_bytes: Option<usize>,
    /// Seconds before the first retry, doubled with each. Default: 0.01.
    #[schemars(range(min = 0.001, max = 1_000_000))]
    pub initial_retry_delay: Option<f64>,
    /// Longest time between two tries, in seconds. Default: 60.
    #[schemars(range(min = 0.001, max = 1_000_000))]
    pub max_retry_delay: Option<f64>,
    /// Seconds after which a batch is given up. Default: 60.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_retry_time: Option<f64>,
    /// Batches sent at the same time: always one, whatever is said here (Kong: 1, or -1 for no limit).
    pub concurrency_limit: Option<i8>,
}

/// Checked limits.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Limits {
    pub batch: usize,
    pub delay: Duration,
    pub entries: usize,
    pub bytes: usize,
    pub first_retry: Duration,
    pub longest_retry: Duration,
    pub retry_time: Duration,
}

impl QueueConfig {
    /// The limits, with a plugin's defaults for batch and delay (seconds).
    pub fn limits(&self, batch: usize, delay: f64) -> Limits {
        let seconds = |given: Option<f64>, default: f64| Duration::try_from_secs_f64(given.unwrap_or(default)).unwrap_or(Duration::ZERO);
        Limits {
            batch: self.max_batch_size.unwrap_or(batch).max(1),
            delay: seconds(self.max_coalescing_delay, delay),
            entries: self.max_entries.unwrap_or(10_000).max(1),
            bytes: self.max_bytes.unwrap_or(usize::MAX),
            first_retry: seconds(self.initial_retry_delay, 0.01),
            longest_retry: seconds(self.max_retry_delay, 60.0),
            retry_time: seconds(self.max_retry_time, 60.0),
        }
    }

    /// What is accepted for Kong's sake.
    pub fn warnings(at: &Node) -> Vec<Diagnostic> {
        let queue = at.get("queue");
        let unlimited = queue.filter(|q| q.get("concurrency_limit").and_then(Node::text).is_some_and(|t| t != "1"));
        unlimited.map(|q| crate::doubtful(q, "concurrency_limit", "batches are sent one after the other")).into_iter().collect()
    }
}

/// Where batches go.
#[async_trait]
pub(crate) trait Sink: Send + 'static {
    /// Sends a batch. Called again with the same batch after an error.
    ///
    /// Errors: why it did not arrive, without secrets.
    async fn send(&mut self, batch: &[String]) -> Result<(), String>;
}

/// The queue. Its task begins with the first entry and ends, after what waits was tried once more, when the queue is dropped.
pub(crate) struct Queue {
    shared: Arc<Shared>,
    sink: Mutex<Option<Box<dyn Sink>>>,
}

struct Shared {
    name: &'static str,
    limits: Limits,
    waiting: Mutex<Waiting>,
    wake: Notify,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Waiting {
    entries: VecDeque<String>,
    bytes: usize,
    closed: bool,
}

impl Queue {
    /// A queue of the plugin `name`.
    pub fn new(name: &'static str, limits: Limits, metrics: &Arc<Metrics>, sink: impl Sink) -> Queue {
        let shared = Shared { name, limits, waiting: Mutex::default(), wake: Notify::new(), metrics: metrics.clone() };
        Queue { shared: Arc::new(shared), sink: Mutex::new(Some(Box::new(sink))) }
    }

    /// Adds an entry; never waits.
    pub fn push(&self, entry: String) {
        let dropped = {
            let mut waiting = self.shared.waiting.lock();
            let limits = &self.shared.limits;
            let mut dropped = 0;
            waiting.bytes += entry.len();
            waiting.entries.push_back(entry);
            while waiting.entries.len() > limits.entries || waiting.bytes > limits.bytes {
                let Some(oldest) = waiting.entries.pop_front() else { break };
                waiting.bytes -= oldest.len();
                dropped += 1;
            }
            dropped
        };
        for _ in 0..dropped {
            self.shared.metrics.plugin(self.shared.name, "dropped");
        }
        let mut sink = self.sink.lock();
        if sink.is_some()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
            && let Some(sink) = sink.take()
        {
            runtime.spawn(work(self.shared.clone(), sink));
        }
        self.shared.wake.notify_one();
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.shared.waiting.lock().closed = true;
        self.shared.wake.notify_one();
    }
}

async fn work(shared: Arc<Shared>, mut sink: Box<dyn Sink>) {
    while let Some(batch) = next(&shared).await {
        let begun = Instant::now();
        let mut pause = shared.limits.first_retry;
        loop {
            let Err(error) = sink.send(&batch).await else {
                batch.iter().for_each(|_| shared.metrics.plugin(shared.name, "sent"));
                break;
            };
            let late = begun.elapsed() + pause > shared.limits.retry_time;
            if late || shared.waiting.lock().closed {
                tracing::warn!(plugin = shared.name, %error, entries = batch.len(), "log entries are lost");
                batch.iter().for_each(|_| shared.metrics.plugin(shared.name, "lost"));
                break;
            }
            tracing::debug!(plugin = shared.name, %error, "a log batch will be sent again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(shared.limits.longest_retry);
        }
    }
}

/// The next batch; `None` when the queue is closed and empty.
async fn next(shared: &Shared) -> Option<Vec<String>> {
    let limits = &shared.limits;
    loop {
        {
            let waiting = shared.waiting.lock();
            if !waiting.entries.is_empty() {
                break;
            }
            if waiting.closed {
                return None;
            }
        }
        shared.wake.notified().await;
    }
    let due = tokio::time::sleep(limits.delay);
    tokio::pin!(due);
    loop {
        {
            let waiting = shared.waiting.lock();
            if waiting.entries.len() >= limits.batch || waiting.closed {
                break;
            }
        }
        tokio::select! {
            () = &mut due => break,
            () = shared.wake.notified() => {}
        }
    }
    let mut waiting = shared.waiting.lock();
    let count = waiting.entries.len().min(limits.batch);
    let batch: Vec<String> = waiting.entries.drain(..count).collect();
    waiting.bytes -= batch.iter().map(String::len).sum::<usize>();
    Some(batch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

    /// Tells what it was given; fails as often as `failures` says.
    struct Told {
        to: UnboundedSender<Vec<String>>,
        failures: usize,
    }

    #[async_trait]
    impl Sink for Told {
        async fn send(&mut self, batch: &[String]) -> Result<(), String> {
            let _ = self.to.send(batch.to_vec());
            self.failures = match self.failures {
                0 => return Ok(()),
                n => n - 1,
            };
            Err("away".into())
        }
    }

    fn queue(config: &QueueConfig, failures: usize) -> (Queue, UnboundedReceiver<Vec<String>>, Arc<Metrics>) {
        let (to, from) = unbounded_channel();
        let metrics = Arc::new(Metrics::new());
        (Queue::new("q", config.limits(1, 1.0), &metrics, Told { to, failures }), from, metrics)
    }

    fn push(queue: &Queue, texts: &[&str]) {
        texts.iter().for_each(|t| queue.push((*t).into()));
    }

    #[tokio::test(start_paused = true)]
    async fn by_default_each_entry_goes_alone_and_in_order() {
        let (queue, mut sent, _metrics) = queue(&QueueConfig::default(), 0);
        push(&queue, &["a", "b"]);
        assert_eq!((sent.recv().await.unwrap(), sent.recv().await.unwrap()), (vec!["a".to_owned()], vec!["b".to_owned()]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_leaves_when_it_is_full_or_its_time_is_over() {
        let config = QueueConfig { max_batch_size: Some(3), max_coalescing_delay: Some(2.0), ..QueueConfig::default() };
        let (queue, mut sent, _metrics) = queue(&config, 0);
        let begun = Instant::now();
        push(&queue, &["a", "b", "c", "d"]);
        assert_eq!(sent.recv().await.unwrap(), ["a", "b", "c"]);
        assert_eq!(begun.elapsed(), Duration::ZERO, "the clock stands still: a full batch did not wait");
        assert_eq!(sent.recv().await.unwrap(), ["d"]);
        assert!(begun.elapsed() >= Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_sent_again_until_its_time_is_over() {
        let config = QueueConfig { initial_retry_delay: Some(1.0), max_retry_time: Some(10.0), max_retry_delay: Some(2.0), ..QueueConfig::default() };
        let (queue, mut sent, _metrics) = queue(&config, 3);
        push(&queue, &["a"]);
        let begun = Instant::now();
        for _ in 0..4 {
            assert_eq!(sent.recv().await.unwrap(), ["a"]);
        }
        assert_eq!(begun.elapsed().as_secs(), 1 + 2 + 2, "a full batch leaves at once, and again after 1, 2 and again 2 seconds");
        let (queue, mut sent, metrics) = super::tests::queue(&config, usize::MAX);
        push(&queue, &["lost"]);
        for _ in 0..6 {
            assert_eq!(sent.recv().await.unwrap(), ["lost"]);
        }
        push(&queue, &["next"]);
        assert_eq!(sent.recv().await.unwrap(), ["next"]);
        drop(metrics);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_are_dropped_when_too_much_waits() {
        for config in [QueueConfig { max_entries: Some(2), ..QueueConfig::default() }, QueueConfig { max_bytes: Some(5), ..QueueConfig::default() }] {
            let (queue, mut sent, _metrics) = queue(&config, 0);
            push(&queue, &["aa", "bb", "cc"]);
            drop(queue);
            assert_eq!((sent.recv().await.unwrap(), sent.recv().await.unwrap()), (vec!["bb".to_owned()], vec!["cc".to_owned()]));
            assert_eq!(sent.recv().await, None, "the task ends with its queue");
        }
    }

    #[test]
    fn without_a_runtime_entries_wait() {
        let (queue, mut sent, _metrics) = queue(&QueueConfig::default(), 0);
        push(&queue, &["a"]);
        assert!(sent.try_recv().is_err());
    }
}
