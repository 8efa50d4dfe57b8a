//! A small client for the tests: one request on one connection, and the raw bytes where HTTP is broken on purpose.
#![allow(dead_code)] // each test binary uses its own part

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use upstream_stubs::{Kind, Options, Running, start};

/// Nothing here takes that long unless it hangs.
pub const GIVE_UP: Duration = Duration::from_secs(30);

pub async fn stub(kind: Kind) -> Running {
    stub_with(kind, Options::default()).await
}

pub async fn stub_with(kind: Kind, options: Options) -> Running {
    start(kind, SocketAddr::from(([127, 0, 0, 1], 0)), options)
        .await
        .expect("the stub starts")
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// Whole, or what came before the connection broke.
    pub body: Bytes,
    /// Whether the body came to its proper end.
    pub whole: bool,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {:?}", self.body))
    }
}

pub async fn try_send(
    stub: &Running,
    request: Request<Full<Bytes>>,
) -> Result<Answer, hyper::Error> {
    let stream = TcpStream::connect(stub.addr()).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let response = tokio::time::timeout(GIVE_UP, sender.send_request(request))
        .await
        .expect("an answer")?;
    Ok(read(response).await)
}

pub async fn read(response: Response<hyper::body::Incoming>) -> Answer {
    let (parts, mut incoming) = response.into_parts();
    let (mut body, mut whole) = (Vec::new(), true);
    while let Some(frame) = tokio::time::timeout(GIVE_UP, incoming.frame())
        .await
        .expect("a body")
    {
        match frame {
            Ok(frame) => body.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Err(_) => {
                whole = false;
                break;
            }
        }
    }
    Answer {
        status: parts.status,
        headers: parts.headers,
        body: body.into(),
        whole,
    }
}

pub fn request(
    method: &str,
    stub: &Running,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Request<Full<Bytes>> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", stub.addr().to_string());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request
        .body(Full::new(Bytes::from(body.to_owned())))
        .unwrap()
}

pub async fn send(
    method: &str,
    stub: &Running,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    try_send(stub, request(method, stub, path, headers, body))
        .await
        .expect("an HTTP answer")
}

pub async fn get(stub: &Running, path: &str, headers: &[(&str, &str)]) -> Answer {
    send("GET", stub, path, headers, "").await
}

pub async fn post_json(
    stub: &Running,
    path: &str,
    headers: &[(&str, &str)],
    body: Value,
) -> Answer {
    let mut all = vec![("content-type", "application/json")];
    all.extend_from_slice(headers);
    send("POST", stub, path, &all, &body.to_string()).await
}

/// Sends bytes as they are and reads until the other side closes; `Err` with what came before it for a reset.
pub async fn raw(stub: &Running, bytes: &str) -> Result<Vec<u8>, std::io::Error> {
    let mut stream = TcpStream::connect(stub.addr()).await?;
    stream.write_all(bytes.as_bytes()).await?;
    let mut got = Vec::new();
    tokio::time::timeout(GIVE_UP, stream.read_to_end(&mut got))
        .await
        .expect("the end of the connection")?;
    Ok(got)
}
