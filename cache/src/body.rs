//! One body, many readers: the fill pushes pieces, every reader gets all of them from the first, sharing the bytes.
//!
//! ```text
//! keeping ──over max_size──► passing on: pieces that all readers have are dropped, the fill waits for the slowest,
//!    │                          │        no new reader, nothing is stored
//!    └────── finish(Ok | Err) ──┘
//! ```

use crate::{BodyReader, FetchError};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, OnceLock},
};
use tokio::sync::Notify;

/// Bytes that may lie between the fill and the slowest reader once the body is only passed on.
const WINDOW: u64 = 256 * 1024;

#[derive(Default)]
struct State {
    pieces: VecDeque<Bytes>,
    /// Pieces dropped from the front.
    dropped: usize,
    /// Bytes in `pieces`.
    held: u64,
    /// Bytes pushed.
    total: u64,
    /// Next piece of each reader.
    readers: HashMap<u64, usize>,
    next_reader: u64,
    passing_on: bool,
    end: Option<Result<(), FetchError>>,
}

impl State {
    fn trim(&mut self) {
        if !self.passing_on {
            return;
        }
        let slowest = self.readers.values().copied().min().unwrap_or(usize::MAX);
        while self.dropped < slowest
            && let Some(piece) = self.pieces.pop_front()
        {
            self.dropped += 1;
            self.held -= piece.len() as u64;
        }
    }
}

/// What became of a piece.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// Kept.
    Kept,
    /// The body is now too large to be kept, from this piece on.
    TooLarge,
    /// Passed on.
    PassedOn,
}

/// The shared body of a fill.
#[derive(Default)]
pub(crate) struct Body {
    state: Mutex<State>,
    grown: Notify,
    drained: Notify,
    refused: OnceLock<&'static str>,
}

impl Body {
    /// Notes why it will not be kept after all. Before [`Body::finish`], so that every reader can know at the end.
    pub(crate) fn refuse(&self, reason: &'static str) {
        let _ = self.refused.set(reason);
    }

    /// Adds a reader that begins at the first byte; `None` if that byte is gone.
    pub(crate) fn reader(self: &Arc<Self>) -> Option<Reader> {
        let mut state = self.state.lock();
        if state.passing_on {
            return None;
        }
        let id = state.next_reader;
        state.next_reader += 1;
        state.readers.insert(id, 0);
        Some(Reader { body: self.clone(), id, at: 0 })
    }

    /// Adds a piece.
    pub(crate) fn push(&self, piece: Bytes, max_size: u64) -> Pushed {
        let mut state = self.state.lock();
        state.total += piece.len() as u64;
        state.held += piece.len() as u64;
        state.pieces.push_back(piece);
        let pushed = if state.passing_on {
            Pushed::PassedOn
        } else if state.total > max_size {
            state.passing_on = true;
            Pushed::TooLarge
        } else {
            Pushed::Kept
        };
        state.trim();
        drop(state);
        self.grown.notify_waiters();
        pushed
    }

    /// Waits until the slowest reader has caught up far enough. `false`: nobody reads any more.
    pub(crate) async fn room(&self) -> bool {
        loop {
            let drained = self.drained.notified();
            tokio::pin!(drained);
            drained.as_mut().enable();
            {
                let state = self.state.lock();
                if state.readers.is_empty() {
                    return false;
                }
                if state.held <= WINDOW {
                    return true;
                }
            }
            drained.await;
        }
    }

    /// Bytes so far.
    pub(crate) fn total(&self) -> u64 {
        self.state.lock().total
    }

    /// All pieces, if they are still there.
    pub(crate) fn pieces(&self) -> Option<Vec<Bytes>> {
        let state = self.state.lock();
        (!state.passing_on).then(|| state.pieces.iter().cloned().collect())
    }

    /// Ends the body; readers get what they have not yet read, then the end.
    pub(crate) fn finish(&self, end: Result<(), FetchError>) {
        self.state.lock().end.get_or_insert(end);
        self.grown.notify_waiters();
    }
}

/// One reader's place.
pub(crate) struct Reader {
    body: Arc<Body>,
    id: u64,
    at: usize,
}

#[async_trait]
impl BodyReader for Reader {
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        loop {
            let grown = self.body.grown.notified();
            tokio::pin!(grown);
            grown.as_mut().enable();
            {
                let mut state = self.body.state.lock();
                let index = self.at - state.dropped;
                if let Some(piece) = state.pieces.get(index).cloned() {
                    self.at += 1;
                    let at = self.at;
                    state.readers.insert(self.id, at);
                    if state.passing_on {
                        state.trim();
                        drop(state);
                        self.body.drained.notify_waiters();
                    }
                    return Ok(Some(piece));
                }
                match &state.end {
                    Some(Ok(())) => return Ok(None),
                    Some(Err(error)) => return Err(error.clone()),
                    None => {}
                }
            }
            grown.await;
        }
    }

    fn refused(&self) -> Option<&'static str> {
        self.body.refused.get().copied()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.body.state.lock();
        state.readers.remove(&self.id);
        state.trim();
        drop(state);
        self.body.drained.notify_waiters();
    }
}

/// A body that has no bytes: answers to HEAD.
pub(crate) struct Empty;

#[async_trait]
impl BodyReader for Empty {
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    async fn all(mut reader: Reader) -> Result<Vec<u8>, FetchError> {
        let mut out = Vec::new();
        while let Some(piece) = reader.chunk().await? {
            out.extend_from_slice(&piece);
        }
        Ok(out)
    }

    #[tokio::test]
    async fn late_readers_get_every_byte_too() {
        let body = Arc::new(Body::default());
        let early = tokio::spawn(all(body.reader().expect("open")));
        body.push(Bytes::from_static(b"one "), 100);
        let late = tokio::spawn(all(body.reader().expect("open")));
        tokio::task::yield_now().await;
        body.push(Bytes::from_static(b"two"), 100);
        body.finish(Ok(()));
        let after = all(body.reader().expect("open")).await;
        for got in [early.await.expect("task"), late.await.expect("task"), after] {
            assert_eq!(got.expect("whole"), b"one two");
        }
    }

    #[tokio::test]
    async fn a_body_cut_short_is_an_error_for_all() {
        let body = Arc::new(Body::default());
        let mut reader = body.reader().expect("open");
        body.push(Bytes::from_static(b"half"), 100);
        body.finish(Err(FetchError { kind: "truncated", reason: "cut".into(), status: http::StatusCode::BAD_GATEWAY }));
        assert_eq!(reader.chunk().await.expect("piece").as_deref(), Some(&b"half"[..]));
        assert_eq!(reader.chunk().await.expect_err("cut").kind, "truncated");
    }

    #[tokio::test(start_paused = true)]
    async fn over_the_limit_the_slowest_reader_sets_the_pace_and_memory_stays_bounded() {
        let body = Arc::new(Body::default());
        let fast = tokio::spawn(all(body.reader().expect("open")));
        let mut slow = body.reader().expect("open");
        let piece = Bytes::from(vec![7u8; 64 * 1024]);
        let fill = tokio::spawn({
            let body = body.clone();
            async move {
                let mut most = 0;
                for _ in 0..100 {
                    if body.push(piece.clone(), 100_000) != Pushed::Kept && !body.room().await {
                        return most;
                    }
                    most = most.max(body.state.lock().held);
                }
                body.finish(Ok(()));
                most
            }
        });
        let mut got = 0;
        while let Some(piece) = slow.chunk().await.expect("whole") {
            got += piece.len();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(got, 6_553_600);
        assert_eq!(fast.await.expect("task").expect("whole").len(), got);
        assert!(fill.await.expect("task") <= 100_000 + WINDOW + 65_536);
        assert!(body.reader().is_none(), "the first byte is gone");
    }

    #[tokio::test]
    async fn a_body_that_is_only_passed_on_ends_with_its_last_reader() {
        let body = Arc::new(Body::default());
        let reader = body.reader().expect("open");
        assert_eq!(body.push(Bytes::from(vec![0; 600_000]), 10), Pushed::TooLarge);
        let room = tokio::spawn({
            let body = body.clone();
            async move { body.room().await }
        });
        tokio::task::yield_now().await;
        drop(reader);
        assert!(!room.await.expect("task"));
    }
}
