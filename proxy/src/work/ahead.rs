//! What has arrived of an answer while its client was still busy with the piece before: a service is done with its answer although the
//! client takes it slowly. A client that keeps up never comes here.

use crate::downstream::{ClientError, Downstream};
use bytes::Bytes;
use std::{
    collections::VecDeque,
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};
use weir_cache::{BodyReader, FetchError};

/// What a piece counts beside its bytes: tiny ones are not for nothing.
const PIECE: usize = 256;

/// Bounds, in bytes, and what all answers have waiting together.
#[derive(Clone, Copy)]
pub struct Room<'a> {
    /// Of this answer; 0: nothing is taken ahead.
    pub own: usize,
    /// Of all.
    pub all: usize,
    /// What waits now, of all.
    pub waiting: &'a AtomicUsize,
}

/// The pieces that wait, in order.
pub(super) struct Ahead<'a> {
    room: Room<'a>,
    pieces: VecDeque<Result<Option<Bytes>, FetchError>>,
    held: usize,
    /// The end, or an error, is among the pieces: nothing follows.
    over: bool,
}

fn weight(piece: &Result<Option<Bytes>, FetchError>) -> usize {
    piece.as_ref().ok().and_then(Option::as_ref).map_or(0, |piece| piece.len() + PIECE)
}

impl<'a> Ahead<'a> {
    pub(super) fn new(room: Room<'a>) -> Ahead<'a> {
        Ahead { room, pieces: VecDeque::new(), held: 0, over: false }
    }

    /// The first piece that waits.
    pub(super) fn next(&mut self) -> Option<Result<Option<Bytes>, FetchError>> {
        let piece = self.pieces.pop_front()?;
        self.give_back(weight(&piece));
        Some(piece)
    }

    /// Writes a piece, and takes what comes of `body` in the meantime, as far as there is room.
    pub(super) async fn write<D: Downstream>(&mut self, down: &mut D, piece: Bytes, body: &mut dyn BodyReader) -> Result<(), ClientError> {
        let mut write = pin!(down.write(piece));
        while !self.over && self.held < self.room.own && self.room.waiting.load(Relaxed) < self.room.all {
            let arrived = tokio::select! {
                biased;
                written = &mut write => return written,
                arrived = body.chunk() => arrived,
            };
            let weight = weight(&arrived);
            self.held += weight;
            self.room.waiting.fetch_add(weight, Relaxed);
            self.over = !matches!(arrived, Ok(Some(_)));
            self.pieces.push_back(arrived);
        }
        write.await
    }

    fn give_back(&mut self, weight: usize) {
        if weight > 0 {
            self.held -= weight;
            self.room.waiting.fetch_sub(weight, Relaxed);
        }
    }
}

impl Drop for Ahead<'_> {
    fn drop(&mut self) {
        self.give_back(self.held);
    }
}
