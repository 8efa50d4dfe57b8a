//! An issuer's public keys (JWK Set, RFC 7517), fetched and kept.
//!
//! ```text
//! token ─► keys at hand? ─no─► fetch and wait ─► none: 503
//!              │ yes
//!              ├─ its kid is there ─► verify
//!              └─ it is not ─► fetch and wait, at most once in `every` ─► still not there: 401
//! in the background: fetch again each `refresh`; when that fails the old keys stay, for a day at most
//! ```

use super::{
    keys::{Alg, Jwk},
    token::Token,
};
use bytes::Bytes;
use http::{HeaderValue, Request, Uri, header};
use parking_lot::Mutex;
use serde_json::Value;
use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{task::AbortHandle, time::Instant};
use weir_gateway::client::OwnClient;

/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer that is read.
const LONGEST: usize = 512 * 1024;
/// Most keys of a set that are used.
const MOST_KEYS: usize = 100;
/// How long keys are used that can not be fetched again.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// Where keys come from and how often.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    /// The set itself; `None`: the issuer's discovery document names it.
    pub(crate) jwks_uri: Option<String>,
    /// The issuer.
    pub(crate) issuer: Option<String>,
    /// Between two fetches in the background.
    pub(crate) refresh: Duration,
    /// Between two fetches that tokens cause.
    pub(crate) every: Duration,
}

/// The key sets in use, by their source: they outlive a reload that leaves the source as it was, and no longer.
#[derive(Default)]
pub(crate) struct KeySets(Mutex<HashMap<Source, Weak<KeySet>>>);

impl KeySets {
    pub(crate) fn of(&self, source: Source, client: &OwnClient) -> Arc<KeySet> {
        let mut all = self.0.lock();
        all.retain(|_, set| set.strong_count() > 0);
        if let Some(set) = all.get(&source).and_then(Weak::upgrade) {
            return set;
        }
        let set = Arc::new(KeySet {
            source: source.clone(),
            client: client.clone(),
            keys: Mutex::default(),
            fetching: tokio::sync::Mutex::default(),
            refresher: Mutex::default(),
        });
        all.insert(source, Arc::downgrade(&set));
        set
    }
}

/// Why a token is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bad {
    /// No key of the set is for it.
    Unknown,
    /// Its signature is not that of its key.
    Signature,
    /// There are no keys and none could be fetched.
    Away,
}

/// One key set.
pub(crate) struct KeySet {
    source: Source,
    client: OwnClient,
    keys: Mutex<Option<Arc<Keys>>>,
    /// One fetch at a time; when the last one was over.
    fetching: tokio::sync::Mutex<Option<Instant>>,
    refresher: Mutex<Option<AbortHandle>>,
}

struct Keys {
    list: Vec<Jwk>,
    at: Instant,
}

impl Keys {
    /// A token without `kid` may be of any key.
    fn check(&self, token: &Token<'_>) -> Result<(), Bad> {
        let kid = token.header.get("kid").and_then(Value::as_str);
        let mut bad = Bad::Unknown;
        for jwk in self.list.iter().filter(|jwk| kid.is_none() || jwk.kid.as_deref() == kid) {
            let Some(key) = jwk.key(token.alg) else { continue };
            if key.verifies(token.message.as_bytes(), &token.signature) {
                return Ok(());
            }
            if kid.is_some() {
                bad = Bad::Signature;
            }
        }
        Err(bad)
    }
}

impl KeySet {
    /// Looks at the signature, if need be after a fetch.
    pub(crate) async fn verify(self: &Arc<Self>, token: &Token<'_>) -> Result<(), Bad> {
        if matches!(token.alg, Alg::HS256 | Alg::HS384 | Alg::HS512) {
            return Err(Bad::Unknown);
        }
        let seen = self.current();
        match seen.as_ref().map(|keys| keys.check(token)) {
            Some(Err(Bad::Unknown)) | None => {}
            Some(decided) => return decided,
        }
        // In a task of its own: a client that leaves does not undo the fetch for the others.
        let set = self.clone();
        let fetched = tokio::spawn(async move { set.fetch(seen.as_ref(), set.source.every).await }).await;
        match fetched.ok().and_then(|()| self.current()) {
            Some(keys) => keys.check(token),
            None => Err(Bad::Away),
        }
    }

    fn current(&self) -> Option<Arc<Keys>> {
        self.keys.lock().clone().filter(|keys| keys.at.elapsed() < KEPT)
    }

    /// Fetches, unless others brought newer keys than `seen` in the meantime or the last fetch is less than `every` ago.
    async fn fetch(self: &Arc<Self>, seen: Option<&Arc<Keys>>, every: Duration) {
        let mut last = self.fetching.lock().await;
        let newer = match (seen, self.current()) {
            (Some(seen), Some(now)) => !Arc::ptr_eq(seen, &now),
            (None, now) => now.is_some(),
            (Some(_), None) => false,
        };
        if newer || last.is_some_and(|at| at.elapsed() < every) {
            return;
        }
        match self.download().await {
            Ok(list) => *self.keys.lock() = Some(Arc::new(Keys { list, at: Instant::now() })),
            Err(why) => {
                let place = self.source.jwks_uri.as_ref().or(self.source.issuer.as_ref());
                tracing::warn!(from = place, why, "a key set could not be fetched");
            }
        }
        *last = Some(Instant::now());
        self.keep_fresh();
    }

    /// Starts the fetches in the background, once.
    fn keep_fresh(self: &Arc<Self>) {
        let mut refresher = self.refresher.lock();
        if refresher.is_some() {
            return;
        }
        let (set, pause, every) = (Arc::downgrade(self), self.source.refresh, self.source.every);
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(pause).await;
                let Some(set) = set.upgrade() else { return };
                let seen = set.current();
                set.fetch(seen.as_ref(), every.min(pause / 2)).await;
            }
        });
        *refresher = Some(task.abort_handle());
    }

    async fn download(&self) -> Result<Vec<Jwk>, String> {
        let uri = match (&self.source.jwks_uri, &self.source.issuer) {
            (Some(uri), _) => uri.clone(),
            (None, Some(issuer)) => self.discover(issuer).await?,
            (None, None) => return Err("there is no address".into()),
        };
        let set = self.get(&uri).await?;
        let keys = set.get("keys").and_then(Value::as_array).ok_or("the answer has no `keys`")?;
        Ok(keys.iter().take(MOST_KEYS).filter_map(|jwk| Jwk::read(jwk.as_object()?)).collect())
    }

    /// OpenID Connect Discovery 1.0 section 4.
    async fn discover(&self, issuer: &str) -> Result<String, String> {
        let document = self.get(&format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'))).await?;
        // Section 4.3: one issuer must not speak for another.
        if document.get("issuer").and_then(Value::as_str) != Some(issuer) {
            return Err("the discovery document is of another issuer".into());
        }
        let uri = document.get("jwks_uri").and_then(Value::as_str).ok_or("the discovery document has no `jwks_uri`")?;
        if issuer.starts_with("https:") && !uri.starts_with("https:") {
            return Err("the `jwks_uri` of an issuer with https must be https too".into());
        }
        Ok(uri.to_owned())
    }

    async fn get(&self, uri: &str) -> Result<Value, String> {
        let uri: Uri = uri.parse().map_err(|_| format!("`{uri}` is not a URL"))?;
        let mut request = Request::new(Bytes::new());
        *request.uri_mut() = uri;
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let answer = self.client.call(request, TIMEOUT, LONGEST).await.map_err(|e| e.to_string())?;
        match answer.status().as_u16() {
            200 => serde_json::from_slice(answer.body()).map_err(|_| "the answer is not JSON".into()),
            status => Err(format!("the answer has status {status}")),
        }
    }
}

impl Drop for KeySet {
    fn drop(&mut self) {
        if let Some(refresher) = self.refresher.lock().take() {
            refresher.abort();
        }
    }
}
