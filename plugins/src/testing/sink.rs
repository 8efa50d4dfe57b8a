//! A server that keeps what it was sent.

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
};

pub(crate) struct HttpSink {
    /// `http://127.0.0.1:port`.
    pub url: String,
    calls: UnboundedReceiver<Call>,
}

pub(crate) struct Call {
    pub method: String,
    pub target: String,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Call {
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v)
    }
}

impl HttpSink {
    /// A server that answers with these statuses, the last one for ever.
    pub async fn answering(statuses: &[u16]) -> HttpSink {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (to, calls) = unbounded_channel();
        let mut statuses = statuses.to_vec();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut stream = BufReader::new(stream);
                while let Some(call) = read(&mut stream).await {
                    let status = if statuses.len() > 1 { statuses.remove(0) } else { statuses[0] };
                    let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\nok");
                    if to.send(call).is_err() || stream.write_all(answer.as_bytes()).await.is_err() {
                        break;
                    }
                }
            }
        });
        HttpSink { url, calls }
    }

    pub async fn next(&mut self) -> Call {
        self.calls.recv().await.expect("the sink lives")
    }

    /// Waits until something that follows a call has happened.
    pub async fn settled(&self, happened: impl Fn() -> bool) {
        while !happened() {
            tokio::task::yield_now().await;
        }
    }
}

async fn read(stream: &mut BufReader<tokio::net::TcpStream>) -> Option<Call> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok().filter(|n| *n > 0)?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(n, _)| n == "content-length").and_then(|(_, v)| v.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Call { method, target, headers, body: String::from_utf8_lossy(&body).into_owned() })
}
