//! Messages from one sender to the subscribers of this process. Both back ends use it: for the embedded store it is the whole bus,
//! for Redis the last step after the one pub/sub connection.

use crate::{Message, Subscription};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashMap;
use tokio::sync::mpsc;

/// Messages that may wait in one subscription before the subscriber counts as too slow.
const QUEUE: usize = 1024;

struct Listener {
    queue: mpsc::Sender<Message>,
    /// Whether the message queued last is a gap.
    gap_last: bool,
}

impl Listener {
    /// Queues data, or a gap when only one place is left: that place is kept for the gap, so that a subscriber that was too slow
    /// learns of it even if nothing is published any more. All sends happen under the map's lock: `capacity` can only grow meanwhile.
    fn send(&mut self, payload: &Bytes) {
        if self.queue.capacity() > 1 {
            self.gap_last = self.queue.try_send(Message::Data(payload.clone())).is_err();
        } else {
            self.gap();
        }
    }

    fn gap(&mut self) {
        // The last one queued is the last one received: while anything waits, that gap still does, and a second says no more. Once it was
        // received, it says nothing about what is lost from now on.
        let waits = self.gap_last && self.queue.capacity() < self.queue.max_capacity();
        if !waits {
            // Fails only for a subscriber that has gone, which is forgotten at the next occasion.
            let _ = self.queue.try_send(Message::Gap);
            self.gap_last = true;
        }
    }
}

/// The subscribers of this process, by channel.
#[derive(Default)]
pub(crate) struct Fanout {
    channels: Mutex<HashMap<String, Vec<Listener>>>,
}

impl Fanout {
    /// Adds a subscriber.
    pub(crate) fn subscribe(&self, channel: &str) -> Subscription {
        let (queue, messages) = mpsc::channel(QUEUE);
        let mut channels = self.channels.lock();
        let listeners = channels.entry(channel.to_owned()).or_default();
        listeners.retain(|l| !l.queue.is_closed());
        listeners.push(Listener { queue, gap_last: false });
        Subscription { messages }
    }

    /// Hands `payload` to all subscribers of `channel`.
    pub(crate) fn publish(&self, channel: &str, payload: &Bytes) {
        let mut channels = self.channels.lock();
        let Some(listeners) = channels.get_mut(channel) else { return };
        listeners.retain_mut(|l| {
            l.send(payload);
            !l.queue.is_closed()
        });
        if listeners.is_empty() {
            channels.remove(channel);
        }
    }

    /// Tells all subscribers of all channels that messages may have been lost.
    pub(crate) fn gap_all(&self) {
        for listener in self.channels.lock().values_mut().flatten() {
            listener.gap();
        }
    }

    /// Tells the subscribers of one channel that messages may have been lost.
    pub(crate) fn gap(&self, channel: &str) {
        for listener in self.channels.lock().get_mut(channel).into_iter().flatten() {
            listener.gap();
        }
    }

    /// The channels that have a subscriber, after those that have gone are forgotten.
    pub(crate) fn channels(&self) -> Vec<String> {
        let mut channels = self.channels.lock();
        channels.retain(|_, listeners| {
            listeners.retain(|l| !l.queue.is_closed());
            !listeners.is_empty()
        });
        channels.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_subscriber_learns_of_its_loss_without_a_further_message() {
        let fanout = Fanout::default();
        let mut slow = fanout.subscribe("c");
        for n in 0..QUEUE + 50 {
            fanout.publish("c", &Bytes::from(n.to_string()));
        }
        let mut got = Vec::new();
        while let Ok(message) = slow.messages.try_recv() {
            got.push(message);
        }
        assert_eq!(got.len(), QUEUE);
        assert_eq!(got[0], Message::Data(Bytes::from_static(b"0")));
        assert_eq!(got[QUEUE - 2], Message::Data(Bytes::from((QUEUE - 2).to_string())));
        assert_eq!(got[QUEUE - 1], Message::Gap);
        fanout.publish("c", &Bytes::from_static(b"after"));
        assert_eq!(slow.messages.try_recv().ok(), Some(Message::Data(Bytes::from_static(b"after"))));
    }

    #[test]
    fn a_second_loss_is_told_once_the_first_was_received() {
        let fanout = Fanout::default();
        let mut subscriber = fanout.subscribe("c");
        fanout.gap("c");
        fanout.gap("c");
        assert_eq!(subscriber.messages.try_recv().ok(), Some(Message::Gap));
        assert!(subscriber.messages.try_recv().is_err(), "two that wait are one");
        fanout.gap_all();
        assert_eq!(subscriber.messages.try_recv().ok(), Some(Message::Gap));
    }

    #[test]
    fn who_has_gone_is_forgotten() {
        let fanout = Fanout::default();
        let gone = fanout.subscribe("c");
        let _stays = fanout.subscribe("d");
        drop(gone);
        assert_eq!(fanout.channels(), ["d"]);
    }
}
