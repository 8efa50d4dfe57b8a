//! An HTTP/1.1 client on a raw socket. It writes any bytes, and reads answers strictly: what a lenient client would forgive is an error here.

use bytes::{Bytes, BytesMut};
use std::{fmt, net::SocketAddr};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

/// An answer, whole.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Names in lower case, values as text (other bytes as U+FFFD), in the order of arrival.
    pub headers: Vec<(String, String)>,
    /// The body, without its framing.
    pub body: Bytes,
}

impl Answer {
    /// The value of a field that must not come twice; `None` if it is missing.
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() <= 1, "`{name}` came {} times: {all:?}", all.len());
        all.first().copied()
    }

    /// The value of a field that must be there once.
    #[track_caller]
    pub fn must(&self, name: &str) -> &str {
        self.header(name).unwrap_or_else(|| panic!("no `{name}` in {self:#?}"))
    }

    /// Every value of a field.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }

    /// Whether a field is there.
    pub fn has(&self, name: &str) -> bool {
        !self.all(name).is_empty()
    }

    /// `X-Cache-Status`, or `-`.
    #[track_caller]
    pub fn verdict(&self) -> &str {
        self.header("x-cache-status").unwrap_or("-")
    }

    /// The `detail` of Weir's `Cache-Status`, or `-`.
    pub fn detail(&self) -> String {
        let last = self.all("cache-status").last().copied().unwrap_or("").to_owned();
        last.split("; ").find_map(|p| p.strip_prefix("detail=")).unwrap_or("-").to_owned()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("not JSON ({e}): {self:#?}"))
    }

    /// The value of a cookie that this answer sets.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        let cookies = self.all("set-cookie");
        cookies.into_iter().find_map(|c| c.strip_prefix(name)?.strip_prefix('=')).map(|rest| rest.split(';').next().unwrap_or(rest))
    }

    /// The answer, if its status is this.
    #[track_caller]
    pub fn expect(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "{:#?}\n{}", self.headers, self.text());
        self
    }
}

/// Why there is no whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// The connection ended before an answer began.
    Closed,
    /// It ended within the answer; the status and what came of the body.
    Truncated(Option<u16>, Bytes),
    /// The answer breaks a rule of HTTP/1.1.
    Malformed(String),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Closed => f.write_str("closed without an answer"),
            Broken::Truncated(status, body) => write!(f, "cut short (status {status:?}, {} bytes of body)", body.len()),
            Broken::Malformed(why) => write!(f, "malformed answer: {why}"),
        }
    }
}

/// What a connection is made of.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection.
pub struct Connection {
    stream: Box<dyn Stream>,
    received: BytesMut,
    /// The last chunk's line end is still to be read.
    owed: bool,
    trailers: Vec<String>,
}

impl Connection {
    /// Connects. Panics if nobody listens.
    pub async fn open(to: SocketAddr) -> Connection {
        Self::try_open(to).await.unwrap_or_else(|e| panic!("no connection to {to}: {e}"))
    }

    /// Connects.
    ///
    /// Errors: nobody listens.
    pub async fn try_open(to: SocketAddr) -> std::io::Result<Connection> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(Connection::over(stream))
    }

    /// A connection on a stream that is open already.
    pub fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Connection {
        Connection { stream: Box::new(stream), received: BytesMut::new(), owed: false, trailers: vec![] }
    }

    /// What followed the last chunked body.
    pub fn trailers(&self) -> &[String] {
        &self.trailers
    }

    /// Sends these bytes. That the other side has closed shows in what is read, not here.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    /// Says that nothing more will be sent.
    pub async fn finish(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Reads one answer to a request with this method; interim answers (1xx) are skipped.
    ///
    /// Errors: it is not whole, or not HTTP/1.1.
    pub async fn answer(&mut self, method: &str) -> Result<Answer, Broken> {
        loop {
            let (status, headers) = self.head().await?;
            if (100..200).contains(&status) && status != 101 {
                continue;
            }
            let mut answer = Answer { status, headers, body: Bytes::new() };
            answer.body = self.body(&answer, method).await?;
            return Ok(answer);
        }
    }

    /// Reads the head of an answer, interim or not: its status and fields.
    ///
    /// Errors: it is not whole, or not HTTP/1.1.
    pub async fn head(&mut self) -> Result<(u16, Vec<(String, String)>), Broken> {
        let end = loop {
            if let Some(end) = find(&self.received, b"\r\n\r\n") {
                break end;
            }
            if !self.more().await {
                return Err(if self.received.is_empty() { Broken::Closed } else { Broken::Truncated(None, Bytes::new()) });
            }
        };
        let head = self.received.split_to(end + 4);
        let text = String::from_utf8_lossy(&head[..end]).into_owned();
        let mut lines = text.split("\r\n");
        let status = status_line(lines.next().unwrap_or_default())?;
        let mut headers = Vec::new();
        for line in lines {
            let Some((name, value)) = line.split_once(':') else { return Err(malformed(line)) };
            let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
            if name.is_empty() || !name.bytes().all(token) || value.bytes().any(|b| b < b' ' && b != b'\t') {
                return Err(malformed(line));
            }
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok((status, headers))
    }

    async fn body(&mut self, answer: &Answer, method: &str) -> Result<Bytes, Broken> {
        let (lengths, codings) = (answer.all("content-length"), answer.all("transfer-encoding"));
        if lengths.len() + codings.len() > 1 {
            return Err(malformed(&format!("{lengths:?} and {codings:?} frame one body")));
        }
        if matches!(answer.status, 101 | 204 | 304) && (!codings.is_empty() || (answer.status != 304 && !lengths.is_empty())) {
            return Err(malformed(&format!("status {} with a body's framing", answer.status)));
        }
        if method == "HEAD" || matches!(answer.status, 101 | 204 | 304) {
            return Ok(Bytes::new());
        }
        if let Some(coding) = codings.first() {
            return if *coding == "chunked" { self.chunks(answer.status).await } else { Err(malformed(coding)) };
        }
        let Some(length) = lengths.first() else {
            while self.more().await {}
            return Ok(self.received.split().freeze());
        };
        let length: usize = length.parse().map_err(|_| malformed(length))?;
        self.exactly(length).await.map_err(|rest| Broken::Truncated(Some(answer.status), rest))
    }

    async fn chunks(&mut self, status: u16) -> Result<Bytes, Broken> {
        let mut body = BytesMut::new();
        loop {
            match self.chunk().await {
                Ok(Some(piece)) => body.extend_from_slice(&piece),
                Ok(None) => return Ok(body.freeze()),
                Err(Broken::Truncated(_, rest)) => {
                    body.extend_from_slice(&rest);
                    return Err(Broken::Truncated(Some(status), body.freeze()));
                }
                Err(other) => return Err(other),
            }
        }
    }

    /// Reads one chunk of a chunked body, as soon as its data is there; `None` after the last.
    ///
    /// Errors: it is not whole, or malformed.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Broken> {
        let cut = |rest: Bytes| Broken::Truncated(None, rest);
        if std::mem::take(&mut self.owed) {
            match self.exactly(2).await {
                Ok(end) if &end[..] == b"\r\n" => {}
                Ok(_) => return Err(malformed("a chunk without its line end")),
                Err(_) => return Err(cut(Bytes::new())),
            }
        }
        let Some(line) = self.line().await else { return Err(cut(Bytes::new())) };
        if line.is_empty() || line.len() > 16 {
            return Err(malformed(&line));
        }
        let size = usize::from_str_radix(&line, 16).map_err(|_| malformed(&line))?;
        if size > 0 {
            let piece = self.exactly(size).await.map_err(cut)?;
            self.owed = true;
            return Ok(Some(piece));
        }
        self.trailers.clear();
        loop {
            match self.line().await {
                Some(end) if end.is_empty() => return Ok(None),
                Some(field) if field.contains(':') => self.trailers.push(field),
                Some(other) => return Err(malformed(&other)),
                None => return Err(cut(Bytes::new())),
            }
        }
    }

    /// Reads so many bytes.
    ///
    /// Errors: the connection ends before; what there was.
    pub async fn exactly(&mut self, count: usize) -> Result<Bytes, Bytes> {
        while self.received.len() < count {
            if !self.more().await {
                return Err(self.received.split().freeze());
            }
        }
        Ok(self.received.split_to(count).freeze())
    }

    async fn line(&mut self) -> Option<String> {
        let end = loop {
            if let Some(end) = find(&self.received, b"\r\n") {
                break end;
            }
            if !self.more().await {
                return None;
            }
        };
        let line = self.received.split_to(end + 2);
        Some(String::from_utf8_lossy(&line[..end]).into_owned())
    }

    /// Whether the other side closes, without another byte.
    pub async fn is_closed(&mut self) -> bool {
        self.received.is_empty() && !self.more().await
    }

    /// Reads once; `false` at the end of the connection, however it came.
    async fn more(&mut self) -> bool {
        matches!(crate::guarded("reading an answer", self.stream.read_buf(&mut self.received)).await, Ok(n) if n > 0)
    }
}

fn malformed(what: &str) -> Broken {
    Broken::Malformed(what.to_owned())
}

fn status_line(line: &str) -> Result<u16, Broken> {
    let rest = line.strip_prefix("HTTP/1.1 ").ok_or_else(|| malformed(line))?;
    let digits = rest.get(..3).filter(|_| rest.len() == 3 || rest.as_bytes()[3] == b' ').ok_or_else(|| malformed(line))?;
    digits.parse().ok().filter(|s| (100..=599).contains(s)).ok_or_else(|| malformed(line))
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|w| w == what)
}
