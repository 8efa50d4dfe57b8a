//! Connections to the three topologies.

use super::url::{Credentials, Kind, Target, tcp};
use crate::StoreOptions;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{AsyncConnectionConfig, Client, Cmd, ErrorKind, Pipeline, RedisError, RedisFuture, RedisResult, ServerErrorKind, TlsMode, Value};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// A connection that many callers share at a time. Cheap to clone.
#[derive(Clone)]
pub(super) enum Conn {
    /// To one server: standalone, or the master that the sentinels named.
    Server(MultiplexedConnection),
    /// To all nodes; finds the node for a key by itself.
    Cluster(ClusterConnection),
}

impl ConnectionLike for Conn {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Conn::Server(c) => c.req_packed_command(cmd),
            Conn::Cluster(c) => c.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(&'a mut self, pipeline: &'a Pipeline, offset: usize, count: usize) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Conn::Server(c) => c.req_packed_commands(pipeline, offset, count),
            Conn::Cluster(c) => c.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Conn::Server(c) => c.get_db(),
            Conn::Cluster(c) => c.get_db(),
        }
    }
}

/// Commands that may wait in a connection's queue before a caller has to.
const QUEUE: usize = 1024;

/// Makes connections to one target.
pub(super) struct Connector {
    pub(super) target: Target,
    timeout: Duration,
    pub(super) deadline: Duration,
    /// Attempts made: each begins with another of the hosts, for one that swallows packets must not hold up all.
    attempts: AtomicUsize,
}

impl Connector {
    pub(super) fn new(target: Target, options: &StoreOptions) -> Connector {
        if target.tls {
            // The client library takes the process's TLS provider and panics without one. An error says that there is one already.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        Connector { target, timeout: options.connect_timeout, deadline: options.deadline, attempts: AtomicUsize::new(0) }
    }

    /// One attempt; ends within the connect timeout, times two with sentinels (they and then the master).
    ///
    /// Errors: why not, without secrets.
    pub(super) async fn connect(&self) -> Result<Conn, String> {
        let limit = self.limit();
        match tokio::time::timeout(limit, self.attempt()).await {
            Ok(Ok(conn)) => Ok(conn),
            Ok(Err(error)) => Err(format!("connecting failed: {}", describe(&error))),
            Err(_) => Err(format!("no connection within {limit:?}")),
        }
    }

    /// A connection for pub/sub: to the server, to the master, or to any node of the cluster.
    pub(super) async fn connect_pubsub(&self) -> Result<redis::aio::PubSub, String> {
        let limit = self.limit();
        let attempt = async { self.server().await?.get_async_pubsub().await };
        match tokio::time::timeout(limit, attempt).await {
            Ok(Ok(pubsub)) => Ok(pubsub),
            Ok(Err(error)) => Err(format!("connecting failed: {}", describe(&error))),
            Err(_) => Err(format!("no connection within {limit:?}")),
        }
    }

    pub(super) fn limit(&self) -> Duration {
        self.timeout * if matches!(self.target.kind, Kind::Sentinel { .. }) { 2 } else { 1 }
    }

    async fn attempt(&self) -> RedisResult<Conn> {
        if self.target.kind == Kind::Cluster {
            let mut nodes = self.target.connections()?;
            let count = nodes.len();
            nodes.rotate_left(self.next(count));
            // Our own deadline ends a call; the library's limits are there for what it does in the background.
            let builder = ClusterClientBuilder::new(nodes)
                .connection_timeout(self.timeout)
                .response_timeout(self.deadline.max(self.timeout))
                .retries(3)
                .min_retry_wait(10)
                .max_retry_wait(100)
                .tcp_settings(tcp());
            return Ok(Conn::Cluster(builder.build()?.get_async_connection().await?));
        }
        // No time limits of the library: ours hold.
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None).set_pipeline_buffer_size(QUEUE);
        Ok(Conn::Server(self.server().await?.get_multiplexed_async_connection_with_config(&config).await?))
    }

    /// The server to speak to now.
    pub(super) async fn server(&self) -> RedisResult<Client> {
        let Kind::Sentinel { master } = &self.target.kind else {
            let mut hosts = self.target.connections()?;
            let next = self.next(hosts.len());
            return Client::open(hosts.swap_remove(next));
        };
        let mut sentinels = self.target.addresses();
        let count = sentinels.len();
        sentinels.rotate_left(self.next(count));
        let mut builder = SentinelClientBuilder::new(sentinels, master, SentinelServerType::Master)?
            .set_client_to_redis_tcp_settings(tcp())
            .set_client_to_sentinel_tcp_settings(tcp())
            .set_client_to_redis_db(self.target.db);
        if self.target.tls {
            builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure).set_client_to_sentinel_tls_mode(TlsMode::Secure);
        }
        let Credentials { user, password } = &self.target.redis;
        if let Some(user) = user {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = password {
            builder = builder.set_client_to_redis_password(password);
        }
        let Credentials { user, password } = &self.target.sentinel;
        if let Some(user) = user {
            builder = builder.set_client_to_sentinel_username(user);
        }
        if let Some(password) = password {
            builder = builder.set_client_to_sentinel_password(password);
        }
        // Made anew each time: nothing that an earlier answer said is kept.
        builder.build()?.async_get_client().await
    }

    fn next(&self, count: usize) -> usize {
        self.attempts.fetch_add(1, Relaxed) % count.max(1)
    }
}

/// The server's code for the error, as in `WRONGTYPE`: of the first command that failed, if there were several.
fn code(error: &RedisError) -> Option<String> {
    let first = |error: &RedisError| error.clone().into_server_errors()?.first().map(|(_, e)| e.code().to_owned());
    error.code().map(str::to_owned).or_else(|| first(error))
}

/// The error without what the server wrote: Redis quotes arguments of commands that it does not know, and `AUTH` can be one.
pub(super) fn describe(error: &RedisError) -> String {
    match (error.kind(), code(error)) {
        (ErrorKind::Io, _) => error.to_string(),
        (ErrorKind::AuthenticationFailed, _) => "authentication failed".into(),
        (_, Some(code)) => format!("Redis refused: {code}"),
        _ => error.category().to_owned(),
    }
}

/// Whether the server is a replica, so that another must be asked for. Old servers wrap the answer when it comes from a script.
pub(super) fn is_readonly(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly) || error.detail().is_some_and(|d| d.contains("READONLY"))
}

/// Whether Redis did answer, but with something that no later attempt would mend.
pub(super) fn is_corrupt(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::UnexpectedReturnType | ErrorKind::Client | ErrorKind::Server(ServerErrorKind::CrossSlot) => true,
        // A plain ERR: wrong arguments or a failed script. `READONLY` may hide in it.
        ErrorKind::Server(ServerErrorKind::ResponseError) => !is_readonly(error),
        ErrorKind::Extension => code(error).is_some_and(|c| c == "WRONGTYPE"),
        _ => false,
    }
}
