//! Requests, one line each.

use crate::{Answer, Broken, Connection, guarded};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::SocketAddr;
use tokio::{io::{AsyncRead, AsyncWrite}, net::TcpStream};

/// The `Host` of requests that name none.
pub const HOST: &str = "shop.test";

/// A listener of Weir, or of anything else that speaks HTTP.
#[derive(Debug, Clone, Copy)]
pub struct Door(pub SocketAddr);

impl Door {
    /// A request without body.
    pub fn ask(self, method: &str, target: &str) -> Ask {
        Ask { to: self.0, method: method.into(), target: target.into(), host: HOST.into(), headers: vec![], body: None }
    }

    /// A GET.
    pub fn get(self, target: &str) -> Ask {
        self.ask("GET", target)
    }

    /// A POST with this body.
    pub fn post(self, target: &str, kind: &str, body: impl Into<Bytes>) -> Ask {
        self.ask("POST", target).header("content-type", kind).body(body)
    }

    /// A POST of JSON.
    pub fn post_json(self, target: &str, body: &serde_json::Value) -> Ask {
        self.post(target, "application/json", body.to_string())
    }

    /// A connection for raw bytes.
    pub async fn connect(self) -> Connection {
        Connection::open(self.0).await
    }
}

/// A request to be sent.
#[derive(Debug, Clone)]
pub struct Ask {
    to: SocketAddr,
    method: String,
    target: String,
    host: String,
    headers: Vec<(String, String)>,
    body: Option<Bytes>,
}

impl Ask {
    /// Adds a field.
    pub fn header(mut self, name: &str, value: &str) -> Ask {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Adds fields.
    pub fn headers<'a>(mut self, fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> Ask {
        self.headers.extend(fields.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned())));
        self
    }

    /// Adds `Cookie`.
    pub fn cookie(self, name: &str, value: &str) -> Ask {
        self.header("cookie", &format!("{name}={value}"))
    }

    /// Adds `Authorization: Bearer`.
    pub fn bearer(self, token: &str) -> Ask {
        self.header("authorization", &format!("Bearer {token}"))
    }

    /// Names another host.
    pub fn host(mut self, host: &str) -> Ask {
        self.host = host.into();
        self
    }

    /// Gives it a body with `Content-Length`.
    pub fn body(mut self, body: impl Into<Bytes>) -> Ask {
        self.body = Some(body.into());
        self
    }

    /// Where it goes.
    pub(crate) fn to(&self) -> SocketAddr {
        self.to
    }

    /// The request as bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = format!("{} {} HTTP/1.1\r\nHost: {}\r\n", self.method, self.target, self.host).into_bytes();
        for (name, value) in &self.headers {
            out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        if let Some(body) = &self.body {
            out.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(self.body.as_deref().unwrap_or_default());
        out
    }

    /// Sends it on a connection of its own. Panics if there is no whole answer.
    pub async fn send(self) -> Answer {
        let said = format!("{} {}", self.method, self.target);
        self.attempt().await.unwrap_or_else(|why| panic!("{said}: {why}"))
    }

    /// Sends it on a connection of its own.
    ///
    /// Errors: there is no whole answer; a refused connection counts as [`Broken::Closed`].
    pub async fn attempt(self) -> Result<Answer, Broken> {
        let Ok(mut connection) = Connection::try_open(self.to).await else { return Err(Broken::Closed) };
        self.on(&mut connection).await
    }

    /// A connection to where it goes, for [`Ask::on`].
    pub async fn connect(&self) -> Connection {
        Connection::open(self.to).await
    }

    /// Sends it on this connection.
    ///
    /// Errors: there is no whole answer.
    pub async fn on(self, connection: &mut Connection) -> Result<Answer, Broken> {
        connection.send(self.bytes()).await;
        connection.answer(&self.method).await
    }

    /// Sends it over HTTP/2 with prior knowledge, on a connection of its own. Panics if there is no whole answer.
    pub async fn send_h2(self) -> Answer {
        let said = format!("HTTP/2 {} {}", self.method, self.target);
        guarded(&said, self.h2()).await.unwrap_or_else(|why| panic!("{said}: {why}"))
    }

    async fn h2(self) -> Result<Answer, hyper::Error> {
        let stream = TcpStream::connect(self.to).await.expect("a connection");
        self.h2_on(stream, "http").await
    }

    pub(crate) async fn h2_on(self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, scheme: &str) -> Result<Answer, hyper::Error> {
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        let running = tokio::spawn(connection);
        let uri = format!("{scheme}://{}{}", self.host, self.target);
        let mut request = http::Request::builder().method(self.method.as_str()).uri(uri);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let length = self.body.as_ref().map(Bytes::len);
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        let request = request.body(Full::new(self.body.unwrap_or_default())).expect("a request");
        let (parts, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        drop(sender);
        running.abort();
        let text = |v: &http::HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
        let headers = parts.headers.iter().map(|(n, v)| (n.to_string(), text(v))).collect();
        Ok(Answer { status: parts.status.as_u16(), headers, body })
    }
}
