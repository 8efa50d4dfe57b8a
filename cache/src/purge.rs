//! Removal: here, in the store, and in every other instance by message.

use crate::{Engine, memory::StoredKey, tier::FILLS};
use serde::{Deserialize, Serialize};
use std::{
    sync::{
        Arc, Weak,
        atomic::Ordering::Relaxed,
    },
    time::Duration,
};
use weir_store::Message;

/// Channel that tells of removals.
const PURGE: &str = "purge";
/// Pause before a subscription that ended is asked for again.
const AGAIN: Duration = Duration::from_millis(500);

/// A message on [`PURGE`]. An instance that does not know `op` forgets everything: better too much than too little.
#[derive(Debug, Serialize, Deserialize)]
struct Removal {
    from: u64,
    #[serde(flatten)]
    what: What,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum What {
    Key { epoch: String, key: String },
}

impl Engine {
    /// Removes all that is stored under a primary key: every variant, here, in the store, and in every other instance. A fill of this
    /// key that is under way goes on for those who wait, but its response is not kept. Whether something was there.
    ///
    /// While the store is away, the other instances learn nothing: their entries live until their time is over, or until the store is back
    /// and its gap makes them forget.
    pub async fn purge_key(&self, epoch: &str, key: &str) -> bool {
        let here = self.forget(epoch, key);
        let stored = StoredKey::primary(&epoch.into(), key);
        let deleted = self.store.blobs.delete(&[stored.store_key("cache")]).await;
        if let Err(error) = &deleted {
            self.stats.store_errors.fetch_add(1, Relaxed);
            tracing::warn!(%error, "purge did not reach the store");
        }
        // A fill may have read the old entry back between the two removals.
        self.forget(epoch, key);
        let removal = Removal { from: self.id, what: What::Key { epoch: epoch.into(), key: key.into() } };
        match serde_json::to_vec(&removal) {
            Ok(payload) => {
                if let Err(error) = self.store.bus.publish(PURGE, payload.into()).await {
                    self.stats.store_errors.fetch_add(1, Relaxed);
                    tracing::warn!(%error, "purge did not reach the other instances");
                }
            }
            Err(error) => tracing::error!(%error, "purge message could not be written"),
        }
        here || deleted.is_ok_and(|count| count > 0)
    }

    /// After an unsafe method succeeded on the key's URL, or named it in `Location` or `Content-Location` (RFC 9111 section 4.4): as
    /// [`Engine::purge_key`].
    pub async fn invalidate(&self, epoch: &str, key: &str) -> bool {
        self.purge_key(epoch, key).await
    }

    /// Removes a primary key from this process. Its variants can not be found without it, and are pushed out in time.
    fn forget(&self, epoch: &str, key: &str) -> bool {
        self.flights.purge(epoch, key);
        self.memory.remove(epoch, key, crate::serve::AUTHORIZED);
        let there = self.memory.remove(epoch, key, "");
        if there {
            self.stats.purged.fetch_add(1, Relaxed);
        }
        there
    }

    fn distrust(&self) {
        self.memory.clear();
        self.stats.distrusted.fetch_add(1, Relaxed);
    }

    fn removal(&self, payload: &[u8]) {
        match serde_json::from_slice::<Removal>(payload) {
            Ok(removal) if removal.from == self.id => {}
            Ok(Removal { what: What::Key { epoch, key }, .. }) => {
                self.forget(&epoch, &key);
            }
            Err(error) => {
                tracing::warn!(%error, "purge message of an unknown kind: memory tier emptied");
                self.distrust();
            }
        }
    }

    fn message(&self, channel: &str, message: Message) {
        match (channel, message) {
            (FILLS, Message::Data(payload)) => self.fill_ended(&payload),
            (FILLS, Message::Gap) => self.wake_all(),
            (_, Message::Data(payload)) => self.removal(&payload),
            // A purge may be among what was lost.
            (_, Message::Gap) => self.distrust(),
        }
    }

    /// Listens for fills and removals of the other instances, until the engine is dropped. Call it inside a tokio runtime; calling it again
    /// does nothing. Without it fills are noticed by polling, and purges by other instances not before an entry's time is over.
    pub fn start(self: &Arc<Self>) {
        if self.started.swap(true, Relaxed) {
            return;
        }
        for channel in [FILLS, PURGE] {
            tokio::spawn(listen(Arc::downgrade(self), channel));
        }
    }
}

async fn listen(engine: Weak<Engine>, channel: &'static str) {
    let Some(mut open) = engine.upgrade().map(|engine| engine.open.subscribe()) else { return };
    loop {
        let Some(bus) = engine.upgrade().map(|engine| engine.store.bus.clone()) else { return };
        let subscribed = bus.subscribe(channel).await;
        drop(bus);
        if let Ok(mut subscription) = subscribed {
            loop {
                let message = tokio::select! {
                    message = subscription.messages.recv() => message,
                    _ = open.changed() => return,
                };
                let (Some(message), Some(engine)) = (message, engine.upgrade()) else { break };
                engine.message(channel, message);
            }
            if let Some(engine) = engine.upgrade() {
                engine.message(channel, Message::Gap);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            _ = open.changed() => return,
        }
    }
}
