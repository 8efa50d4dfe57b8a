//! `tcp-log`: an entry for each request, sent over a TCP connection.

use crate::{
    Configured, Live,
    logging::{
        self, CustomField,
        queue::{Limits, Queue, Sink},
    },
    doubtful, wrong,
};
use async_trait::async_trait;
use rustls_pki_types::ServerName;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::ring},
};
use weir_config::{Diagnostic, Node};
use weir_gateway::{BuildEnv, Phases, Plugin, RequestContext};

/// Sends a line of JSON (ended by CR LF) for each request over TCP, in the form of `http-log`. Lines are sent in the background over one connection;
/// up to 10000 wait, and the oldest are dropped beyond it. What can not be sent is tried again for a minute. With TLS, the server's certificate is verified against
/// the system's roots (Kong does not verify it).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name or address of the server.
    #[schemars(length(min = 1))]
    pub host: String,
    /// Its port.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// Time to connect, and to send, in milliseconds.
    #[serde(default = "ten_seconds")]
    #[schemars(range(min = 1, max = 2_147_483_646))]
    pub timeout: u64,
    /// How long an idle connection is used again, in milliseconds.
    #[serde(default = "minute")]
    #[schemars(range(min = 0, max = 2_147_483_646))]
    pub keepalive: u64,
    /// Speak TLS.
    #[serde(default)]
    pub tls: bool,
    /// Name that the server's certificate must be for. Default: `host`.
    pub tls_sni: Option<String>,
    /// Fields of the entry (`a.b` for nested ones) that get a constant or, with `return nil`, are left out. See `http-log`.
    #[serde(default)]
    pub custom_fields_by_lua: BTreeMap<String, String>,
}

fn ten_seconds() -> u64 {
    10_000
}

fn minute() -> u64 {
    60_000
}

impl Configured for Config {
    const NAME: &'static str = "tcp-log";
    const PRIORITY: i32 = 7;
    const EXAMPLE: &'static str = "host: 127.0.0.1
port: 5000
timeout: 2000
";

    type Ready = Ready;

    fn ready(self, at: &Node) -> Result<Ready, Vec<Diagnostic>> {
        let custom = logging::custom_fields(at, &self.custom_fields_by_lua)?;
        let tls = match (self.tls, self.tls_sni) {
            (false, _) => None,
            (true, sni) => {
                let key = if sni.is_some() { "tls_sni" } else { "host" };
                let name = sni.unwrap_or_else(|| self.host.clone());
                Some(ServerName::try_from(name).map_err(|_| vec![wrong(at, key, "this is not a host name")])?)
            }
        };
        let [timeout, keepalive] = [self.timeout, self.keepalive].map(Duration::from_millis);
        Ok(Ready { sink: TcpSink { host: self.host, port: self.port, timeout, keepalive, tls, connector: None, wire: None }, custom })
    }

    fn warnings(at: &Node) -> Vec<Diagnostic> {
        let tls = at.get("tls").and_then(Node::text).as_deref() == Some("true");
        let named = at.get("tls_sni").is_some_and(|name| !name.is_null());
        if named && !tls { vec![doubtful(at, "tls_sni", "`tls_sni` without `tls: true` has no effect")] } else { vec![] }
    }

    fn build(ready: Ready, env: &BuildEnv<'_>, _: &Live) -> Arc<dyn Plugin> {
        Arc::new(TcpLog { custom: ready.custom, queue: Queue::new(Config::NAME, LINES, &env.environment.metrics, ready.sink) })
    }
}

/// Lines that are there are sent together, without waiting for more.
const LINES: Limits = Limits {
    batch: 1000,
    delay: Duration::ZERO,
    entries: 10_000,
    bytes: usize::MAX,
    first_retry: Duration::from_millis(100),
    longest_retry: Duration::from_secs(10),
    retry_time: Duration::from_secs(60),
};

/// The configuration, checked.
pub struct Ready {
    sink: TcpSink,
    custom: Vec<CustomField>,
}

struct TcpLog {
    custom: Vec<CustomField>,
    queue: Queue,
}

impl Plugin for TcpLog {
    fn phases(&self) -> Phases {
        Phases::LOG
    }

    fn wants_log_view(&self) -> bool {
        true
    }

    fn log(&self, cx: &RequestContext) {
        self.queue.push(Value::Object(logging::entry(cx, &self.custom)).to_string());
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

struct Wire {
    stream: Box<dyn Stream>,
    used: Instant,
}

struct TcpSink {
    host: String,
    port: u16,
    timeout: Duration,
    keepalive: Duration,
    tls: Option<ServerName<'static>>,
    connector: Option<TlsConnector>,
    wire: Option<Wire>,
}

#[async_trait]
impl Sink for TcpSink {
    async fn send(&mut self, batch: &[String]) -> Result<(), String> {
        let text: String = batch.iter().flat_map(|line| [line.as_str(), "\r\n"]).collect();
        let wire = self.wire.take().filter(|wire| wire.used.elapsed() < self.keepalive);
        let open = match wire {
            Some(mut wire) => is_open(&mut wire.stream).await.then_some(wire),
            None => None,
        };
        let mut wire = match open {
            Some(wire) => wire,
            None => self.connect().await.map_err(|e| format!("{}:{}: {e}", self.host, self.port))?,
        };
        let sent = async {
            wire.stream.write_all(text.as_bytes()).await?;
            wire.stream.flush().await
        };
        match timeout(self.timeout, sent).await {
            Ok(Ok(())) => {
                wire.used = Instant::now();
                self.wire = Some(wire);
                Ok(())
            }
            Ok(Err(error)) => Err(format!("{}:{}: {error}", self.host, self.port)),
            Err(_) => Err(format!("{}:{} does not take what is sent", self.host, self.port)),
        }
    }
}

/// A server that has closed is noticed before the next lines are lost on it.
async fn is_open(stream: &mut Box<dyn Stream>) -> bool {
    let mut byte = [0; 64];
    tokio::select! {
        biased;
        read = stream.read(&mut byte) => matches!(read, Ok(n) if n > 0),
        () = std::future::ready(()) => true,
    }
}

impl TcpSink {
    async fn connect(&mut self) -> Result<Wire, String> {
        let connector = match (&self.tls, &self.connector) {
            (Some(_), None) => {
                self.connector = Some(tls_connector()?);
                self.connector.clone()
            }
            (_, made) => made.clone(),
        };
        let work = async {
            let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|e| e.to_string())?;
            let stream: Box<dyn Stream> = match (&self.tls, connector) {
                (Some(name), Some(connector)) => Box::new(connector.connect(name.clone(), stream).await.map_err(|e| e.to_string())?),
                _ => Box::new(stream),
            };
            Ok(Wire { stream, used: Instant::now() })
        };
        timeout(self.timeout, work).await.unwrap_or_else(|_| Err("no connection in time".into()))
    }
}

fn tls_connector() -> Result<TlsConnector, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions().map_err(|e| e.to_string())?;
    Ok(TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth())))
}

#[cfg(test)]
mod tests {
    use crate::testing::{Rig, errors, get};
    use tokio::{
        io::{AsyncBufReadExt, BufReader},
        net::TcpListener,
    };

    fn rig(port: u16, more: &str) -> Rig {
        Rig::new(&[("tcp-log", &format!("{{host: 127.0.0.1, port: {port}{more}}}"))])
    }

    async fn uri(stream: &mut BufReader<tokio::net::TcpStream>) -> String {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let line = line.strip_suffix("\r\n").expect("CR LF");
        serde_json::from_str::<serde_json::Value>(line).unwrap()["request"]["uri"].as_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn a_line_for_each_request_over_one_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let rig = rig(listener.local_addr().unwrap().port(), "");
        rig.run(get("/1")).await;
        let mut stream = BufReader::new(listener.accept().await.unwrap().0);
        assert_eq!(uri(&mut stream).await, "/1");
        rig.run(get("/2")).await;
        assert_eq!(uri(&mut stream).await, "/2");
    }

    #[tokio::test]
    async fn a_server_that_closed_or_was_away_gets_the_line_on_a_new_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let rig = rig(listener.local_addr().unwrap().port(), "");
        rig.run(get("/1")).await;
        let mut stream = BufReader::new(listener.accept().await.unwrap().0);
        assert_eq!(uri(&mut stream).await, "/1");
        while rig.outcome("tcp-log", "sent") < 1 {
            tokio::task::yield_now().await;
        }
        drop(stream);
        // The close must have arrived; nothing tells when.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        rig.run(get("/2")).await;
        let mut stream = BufReader::new(listener.accept().await.unwrap().0);
        assert_eq!(uri(&mut stream).await, "/2");
    }

    #[tokio::test]
    async fn an_idle_connection_is_not_used_for_ever() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let rig = rig(listener.local_addr().unwrap().port(), ", keepalive: 0");
        for path in ["/1", "/2"] {
            rig.run(get(path)).await;
            let mut stream = BufReader::new(listener.accept().await.unwrap().0);
            assert_eq!(uri(&mut stream).await, path);
        }
    }

    #[tokio::test]
    async fn tls_begins_with_a_hello_for_the_right_name() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let rig = rig(listener.local_addr().unwrap().port(), ", tls: true, tls_sni: logs.example");
        rig.run(get("/1")).await;
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut hello = vec![0; 4096];
        let length = tokio::io::AsyncReadExt::read(&mut stream, &mut hello).await.unwrap();
        assert_eq!(hello[0], 22, "a TLS handshake record");
        assert!(hello[..length].windows(12).any(|w| w == b"logs.example"));
    }

    #[test]
    fn mistakes() {
        for (config, message) in [
            ("{}", "host"),
            ("{host: x, port: 0}", "port"),
            ("{host: x, port: 70000}", "port"),
            ("{host: x, port: 1, tls_sni: y}", "without `tls: true`"),
            ("{host: x, port: 1, tls: true, tls_sni: 'a b'}", "not a host name"),
            ("{host: x, port: 1, tls: true, timeout: 0}", "timeout"),
        ] {
            let found = errors("tcp-log", config);
            assert!(found.iter().any(|e| e.to_string().contains(message)), "{config}: {found:?}");
        }
    }
}
