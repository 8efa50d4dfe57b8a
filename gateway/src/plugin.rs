//! What a plugin is, and how the register makes one from its configuration.

use crate::{Environment, Reply, RequestContext, RouteRuntime, ServiceRuntime, sight::Sight};
use async_trait::async_trait;
use bytes::Bytes;
use http::{Uri, request, response};
use std::{collections::HashMap, ops::BitOr, sync::Arc};
use weir_cache::Purge;
use weir_config::{Diagnostic, PluginCatalog, PluginEntry};

/// The steps in which a plugin takes part. The chain calls these and no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phases(u16);

impl Phases {
    /// [`Plugin::request`]. With [`Phases::REQUEST_WAIT`] too: that one is called where this one answers [`Flow::Wait`].
    pub const REQUEST: Phases = Phases(1);
    /// [`Plugin::request_wait`].
    pub const REQUEST_WAIT: Phases = Phases(2);
    /// [`Plugin::to_upstream`].
    pub const TO_UPSTREAM: Phases = Phases(4);
    /// [`Plugin::from_upstream`].
    pub const FROM_UPSTREAM: Phases = Phases(8);
    /// [`Plugin::response`].
    pub const RESPONSE: Phases = Phases(16);
    /// [`Plugin::body`].
    pub const BODY: Phases = Phases(32);
    /// [`Plugin::end`].
    pub const END: Phases = Phases(64);
    /// [`Plugin::log`].
    pub const LOG: Phases = Phases(128);
    /// [`Plugin::holds`].
    pub const HOLDS: Phases = Phases(256);

    /// Whether all of `other` are in `self`.
    pub const fn has(self, other: Phases) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Phases {
    type Output = Phases;
    fn bitor(self, other: Phases) -> Phases {
        Phases(self.0 | other.0)
    }
}

/// What a request step decides.
pub enum Flow {
    /// On to the next plugin.
    Continue,
    /// Answer now. The reply still walks the response steps of the whole chain.
    Reply(Reply),
    /// Ask [`Plugin::request_wait`]: what is at hand does not decide it. Only from [`Plugin::request`] of a plugin that has both phases.
    Wait,
}

/// How an exchange ended, for [`Plugin::end`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The whole answer passed through [`Plugin::body`]; it may not have reached the client yet.
    Complete,
    /// The upstream's answer was cut short, or never began after the request (or part of it) was sent.
    Broken,
    /// Nothing was sent to an upstream.
    NotSent,
}

/// Asked once for a request, when a connection to the service is open and nothing was sent on it yet: the last moment at which nothing has
/// taken effect. Set as [`RequestContext::before_send`].
#[async_trait]
pub trait BeforeSend: Send + Sync {
    /// Errors: do not send; answer this.
    async fn before_send(&self) -> Result<(), Reply>;
}

/// A plugin with its configuration, shared by all requests of its scope.
///
/// ```text
/// request ─► request_wait ─► (cache) ─► to_upstream ─► before_send ─► upstream ─► from_upstream ─► (cache) ─► response ─► body* ─► end ─► log
///    └── a Reply from either jumps to `response` ─────────────────────────────────────────────────────────────►┘
/// ```
/// `request*` and `to_upstream` run in the chain's order, the others in reverse.
#[async_trait]
pub trait Plugin: Send + Sync + 'static {
    /// The steps that this instance takes part in.
    fn phases(&self) -> Phases;

    /// Which fields of a request its steps look at, set or remove. One that names them takes from the rest of the message no more than method
    /// and target, changes of the context only what concerns the caller, and its `to_upstream` may be run once more. A chain of such plugins
    /// costs less. Fields by which the gateway tells a service of the request (`Host`, `Via`, `X-Forwarded-*`, …) can not be named.
    fn sees_of_request(&self) -> Sight {
        Sight::All
    }

    /// Which fields of an answer its steps look at, set or remove. One that names them takes from the rest of the answer no more than the status
    /// and sets neither cookies nor hidden fields in these steps.
    fn sees_of_answer(&self) -> Sight {
        Sight::All
    }

    /// How much of the request body this plugin needs to see before its request step, in bytes; the pipeline puts it into
    /// [`RequestContext::body`]. A longer body is cut off there (and still forwarded whole).
    fn reads_body(&self) -> Option<usize> {
        None
    }

    /// A step that never waits.
    fn request(&self, _cx: &mut RequestContext, _req: &mut request::Parts) -> Flow {
        Flow::Continue
    }

    /// A step that may wait for a store or a service.
    async fn request_wait(&self, _cx: &mut RequestContext, _req: &mut request::Parts) -> Flow {
        Flow::Continue
    }

    /// Last change of the request towards the upstream. For a cache fill it sees the fill's request.
    fn to_upstream(&self, _cx: &mut RequestContext, _req: &mut request::Parts) {}

    /// First sight of the upstream's answer; what this leaves is what is cached.
    fn from_upstream(&self, _cx: &mut RequestContext, _res: &mut response::Parts) {}

    /// Change of the answer for this client; also runs for replies made here.
    fn response(&self, _cx: &mut RequestContext, _res: &mut response::Parts) {}

    /// Whether [`Plugin::body`] may change the body's length. A plugin that only looks says no, and the answer keeps its
    /// `Content-Length`.
    fn changes_body(&self) -> bool {
        true
    }

    /// A piece of the answer's body on its way to the client; `last` comes once, perhaps with no bytes.
    fn body(&self, _cx: &mut RequestContext, _chunk: &mut Bytes, _last: bool) {}

    /// The exchange is over, but the client has not seen its last byte: the moment to make a result durable.
    async fn end(&self, _cx: &mut RequestContext, _ending: Ending) {}

    /// For plugins that cache: what they hold of a GET for this address that comes by this route. An unsafe request that succeeds outdates it
    /// (RFC 9111 section 4.4), by whichever route that one came. `host`: the client's.
    fn holds(&self, _route: &RouteRuntime, _host: &str, _uri: &Uri) -> Option<Purge> {
        None
    }

    /// Whether [`Plugin::log`] needs [`RequestContext::log_view`].
    fn wants_log_view(&self) -> bool {
        false
    }

    /// After everything, off the client's time.
    fn log(&self, _cx: &RequestContext) {}
}

/// What a plugin may hold on to when it is made.
pub struct BuildEnv<'a> {
    /// Store, cache engine, HTTP client, metrics: everything that outlives a configuration.
    pub environment: &'a Arc<Environment>,
    /// Names the scope (`route:home`, `service:bff`, `global`, `consumer:x`), unique within the configuration and the same after a reload;
    /// keys of counters begin with it.
    pub scope: String,
    /// All services of the configuration, by name.
    pub services: &'a HashMap<String, Arc<ServiceRuntime>>,
    /// All consumers of the configuration, for authentication.
    pub consumers: &'a Arc<Vec<Arc<crate::Consumer>>>,
}

/// The register of plugins.
pub trait Register: PluginCatalog + Send + Sync {
    /// Decodes the entry's configuration and makes the plugin.
    ///
    /// Errors: every mistake in the configuration, with its place.
    fn build(&self, entry: &PluginEntry, env: &BuildEnv<'_>) -> Result<Arc<dyn Plugin>, Vec<Diagnostic>>;

    /// Place in the chain: higher runs earlier. Kong's plugins have Kong's numbers.
    fn priority(&self, name: &str) -> i32;
}
