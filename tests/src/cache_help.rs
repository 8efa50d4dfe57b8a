//! What the cache's end-to-end tests share: an origin that does exactly what a test says, signals to a running Weir, Redis
//! behind sentinels and in a cluster, and clients that never stop asking.

use crate::{Answer, Ask, Connection, Door, RedisServer, Weir, eventually};
use std::{
    collections::HashMap,
    net::SocketAddr,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};
use weir_store::testing::free_port;

/// A request as the origin got it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// How many requests for this path there were, this one included.
    pub count: usize,
}

impl Seen {
    /// The first value of a field.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The path.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }
}

/// Where an answer waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Before anything is sent.
    BeforeHead,
    /// After the head.
    AfterHead,
    /// After so many bytes of the body.
    Body(usize),
}

/// A gate that answers wait at, closed until it is opened.
#[derive(Clone)]
pub struct Gate(watch::Sender<bool>);

impl Gate {
    /// A closed one.
    pub fn closed() -> Gate {
        Gate(watch::Sender::new(false))
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    async fn pass(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}

/// An answer of the origin.
#[derive(Clone)]
pub struct Told {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    interim: Vec<u8>,
    wait: Option<(Point, Gate)>,
    cut: Option<usize>,
    chunked: bool,
}

impl Told {
    /// An answer with this status and body, and no field but `Content-Length` (and `Date`).
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Told {
        Told { status, headers: vec![], body: body.into(), interim: vec![], wait: None, cut: None, chunked: false }
    }

    /// A whole HTML page that says this, as `text/html`.
    pub fn page(text: &str) -> Told {
        Told::new(200, format!("<!DOCTYPE html><html><head><title>t</title></head><body>{text}</body></html>")).with("content-type", "text/html; charset=utf-8")
    }

    /// A page of about this many bytes.
    pub fn large_page(text: &str, size: usize) -> Told {
        Told::page(&format!("{text}<p>{}</p>", "weir ".repeat(size / 5)))
    }

    /// Adds a field.
    pub fn with(mut self, name: &str, value: &str) -> Told {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Says this interim answer before anything else.
    pub fn after(mut self, status: u16, fields: &[(&str, &str)]) -> Told {
        let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        self.interim.extend(format!("HTTP/1.1 {status} Interim\r\n{lines}\r\n").bytes());
        self
    }

    /// Waits there until the gate is opened.
    pub fn waits(mut self, at: Point, gate: &Gate) -> Told {
        self.wait = Some((at, gate.clone()));
        self
    }

    /// Closes the connection after so many bytes of the body, as an origin that is killed does.
    pub fn cut_after(mut self, bytes: usize) -> Told {
        self.cut = Some(bytes);
        self
    }

    /// Sends the body in chunks, without `Content-Length`.
    pub fn chunked(mut self) -> Told {
        self.chunked = true;
        self
    }

    /// Sends it; `false` if the connection can not be used again.
    async fn send(&self, stream: &mut TcpStream, head_only: bool) -> std::io::Result<bool> {
        let pass = async |point: Point| {
            if let Some((at, gate)) = &self.wait
                && *at == point
            {
                gate.pass().await;
            }
        };
        if !self.interim.is_empty() {
            stream.write_all(&self.interim).await?;
        }
        pass(Point::BeforeHead).await;
        let mut head = format!("HTTP/1.1 {} Status\r\n", self.status);
        if self.headers.iter().all(|(n, _)| n != "date") {
            head += &format!("date: {}\r\n", http_date());
        }
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        let bodiless = matches!(self.status, 204 | 304);
        if self.chunked {
            head += "transfer-encoding: chunked\r\n";
        } else if !bodiless {
            head += &format!("content-length: {}\r\n", self.body.len());
        }
        head += "\r\n";
        if !head_only && !bodiless && !self.chunked && self.wait.is_none() && self.cut.is_none() {
            // In one go: whoever reads it has the body with its head.
            stream.write_all(&[head.as_bytes(), &self.body].concat()).await?;
            return Ok(true);
        }
        stream.write_all(head.as_bytes()).await?;
        if head_only || bodiless {
            return Ok(true);
        }
        pass(Point::AfterHead).await;
        let end = self.cut.unwrap_or(self.body.len()).min(self.body.len());
        let mut begin = 0;
        if let Some((Point::Body(at), gate)) = &self.wait {
            begin = (*at).min(end);
            self.piece(stream, &self.body[..begin]).await?;
            gate.pass().await;
        }
        self.piece(stream, &self.body[begin..end]).await?;
        if self.cut.is_some() {
            return Ok(false);
        }
        if self.chunked {
            stream.write_all(b"0\r\n\r\n").await?;
        }
        Ok(true)
    }

    async fn piece(&self, stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
        if self.chunked && !bytes.is_empty() {
            stream.write_all(format!("{:x}\r\n", bytes.len()).as_bytes()).await?;
            stream.write_all(bytes).await?;
            return stream.write_all(b"\r\n").await;
        }
        stream.write_all(bytes).await
    }
}

/// The time of day as HTTP spells it (RFC 9110 section 5.6.7).
fn http_date() -> String {
    let now = std::time::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs();
    let (days, time) = (now / 86_400, now % 86_400);
    let leap = |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let (mut year, mut day) = (1970, days);
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][(days % 7) as usize];
    let month = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"][month];
    format!("{weekday}, {:02} {month} {year} {:02}:{:02}:{:02} GMT", day + 1, time / 3600, time / 60 % 60, time % 60)
}

type Says = dyn Fn(&Seen) -> Told + Send + Sync;

/// An origin that answers by a function of the request, and remembers what it was asked.
pub struct Origin {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    says: Arc<Mutex<Arc<Says>>>,
    task: JoinHandle<()>,
}

impl Origin {
    /// Starts one on a free port.
    pub async fn start(says: impl Fn(&Seen) -> Told + Send + Sync + 'static) -> Origin {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), says).await
    }

    /// Starts one on an address of this machine.
    pub async fn start_at(at: SocketAddr, says: impl Fn(&Seen) -> Told + Send + Sync + 'static) -> Origin {
        let listener = TcpListener::bind(at).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let says: Arc<Mutex<Arc<Says>>> = Arc::new(Mutex::new(Arc::new(says)));
        let (all, how) = (seen.clone(), says.clone());
        let task = tokio::spawn(async move {
            let counts: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
            while let Ok((stream, _)) = listener.accept().await {
                let (all, how, counts) = (all.clone(), how.clone(), counts.clone());
                tokio::spawn(async move {
                    let _ = serve(stream, &all, &how, &counts).await;
                });
            }
        });
        Origin { address, seen, says, task }
    }

    /// Answers otherwise from now on.
    pub fn now_says(&self, says: impl Fn(&Seen) -> Told + Send + Sync + 'static) {
        *self.says.lock().expect("not poisoned") = Arc::new(says);
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it was asked for this path.
    pub fn asked(&self, path: &str) -> Vec<Seen> {
        self.seen.lock().expect("not poisoned").iter().filter(|s| s.path() == path).cloned().collect()
    }

    /// How often it was asked for this path.
    pub fn hits(&self, path: &str) -> usize {
        self.asked(path).len()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, all: &Mutex<Vec<Seen>>, how: &Mutex<Arc<Says>>, counts: &Mutex<HashMap<String, usize>>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut received = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = received.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
        };
        let head: Vec<u8> = received.drain(..end).collect();
        let mut seen = parse(&String::from_utf8_lossy(&head));
        let length = seen.header("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
        while received.len() < length {
            if stream.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
        }
        received.drain(..length);
        {
            let mut counts = counts.lock().expect("not poisoned");
            let count = counts.entry(seen.path().to_owned()).or_default();
            *count += 1;
            seen.count = *count;
        }
        let says = how.lock().expect("not poisoned").clone();
        let told = says(&seen);
        let head_only = seen.method == "HEAD";
        all.lock().expect("not poisoned").push(seen);
        if !told.send(&mut stream, head_only).await? {
            return Ok(());
        }
    }
}

fn parse(head: &str) -> Seen {
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let mut next = || first.next().unwrap_or_default().to_owned();
    let (method, target) = (next(), next());
    let headers = lines.filter_map(|l| l.split_once(':')).map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned())).collect();
    Seen { method, target, headers, count: 0 }
}

/// The id of a running Weir's process, which is found by its configuration's path.
pub fn process(weir: &Weir) -> u32 {
    let file = weir.file().to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.split(|b| *b == 0).any(|argument| argument == file.as_bytes()) {
            found.push(id);
        }
    }
    let [id] = found[..] else { panic!("processes with {file}: {found:?}") };
    id
}

/// Sends a signal (`-STOP`, `-CONT`) to a running Weir.
pub fn signal(weir: &Weir, which: &str) {
    let done = Command::new("kill").arg(which).arg(process(weir).to_string()).status().expect("the command kill");
    assert!(done.success(), "kill {which} failed");
}

/// Resident memory of a running Weir, bytes.
pub fn resident(weir: &Weir) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", process(weir))).expect("the state of the process");
    let kilobytes = text.lines().find_map(|l| l.strip_prefix("VmRSS:")).and_then(|l| l.trim().strip_suffix(" kB")).and_then(|n| n.trim().parse::<u64>().ok());
    kilobytes.expect("VmRSS") * 1024
}

/// Asks until the page is a hit; the answer. Panics if it never is.
pub async fn until_hit(door: Door, target: &str) -> Answer {
    eventually(&format!("{target} is a hit"), async || Some(door.get(target).send().await).filter(|a| a.status == 200 && a.verdict() == "HIT")).await
}

/// Asks until the body is another than this; the answer.
pub async fn until_other(door: Door, target: &str, than: &Answer) -> Answer {
    eventually(&format!("{target} is another page"), async || Some(door.get(target).send().await.expect(200)).filter(|a| a.body != than.body)).await
}

/// A master with a replica behind three sentinels that hold it for dead after one second of silence.
pub struct Trio {
    /// The master at first.
    pub master: RedisServer,
    /// Its replica, which takes over.
    pub replica: RedisServer,
    /// Those who decide.
    pub sentinels: Vec<RedisServer>,
    /// For `store:`.
    pub url: String,
}

impl Trio {
    /// Starts all five, and waits until they know each other.
    pub async fn start() -> Trio {
        let master = RedisServer::start_with(&["--requirepass", "pw", "--masterauth", "pw"]);
        let of = format!("127.0.0.1 {}", master.port());
        let replica = RedisServer::start_with(&["--requirepass", "pw", "--masterauth", "pw", "--replicaof", &of]);
        let lines = format!(
            "sentinel monitor shop 127.0.0.1 {} 2\nsentinel auth-pass shop pw\nsentinel down-after-milliseconds shop 1000\nsentinel failover-timeout shop 5000\n",
            master.port()
        );
        let sentinels: Vec<RedisServer> = (0..3).map(|_| RedisServer::start_sentinel(&lines)).collect();
        let known = |s: &RedisServer| {
            let answer = s.command("SENTINEL MASTER shop").unwrap_or_default();
            let field = |name: &str| answer.split("\r\n").skip_while(|l| *l != name).nth(2).map(str::to_owned);
            field("num-slaves").as_deref() == Some("1") && field("num-other-sentinels").as_deref() == Some("2")
        };
        eventually("the sentinels know each other and the replica", async || sentinels.iter().all(known).then_some(())).await;
        let hosts: Vec<String> = sentinels.iter().map(|s| format!("127.0.0.1:{}", s.port())).collect();
        let url = format!("redis+sentinel://:pw@{}/shop", hosts.join(","));
        Trio { master, replica, sentinels, url }
    }

    /// Whether the sentinels agree that the replica is the master now.
    pub fn switched(&self) -> bool {
        let port = self.replica.port().to_string();
        self.sentinels.iter().all(|s| s.command("SENTINEL GET-MASTER-ADDR-BY-NAME shop").is_ok_and(|answer| answer.split("\r\n").any(|l| l == port)))
    }
}

/// A cluster of three masters.
pub struct Cluster {
    /// The masters.
    pub nodes: Vec<RedisServer>,
    /// For `store:`.
    pub url: String,
}

impl Cluster {
    /// Starts it, and waits until all nodes agree.
    pub async fn start() -> Cluster {
        let nodes: Vec<RedisServer> = (0..3).map(|_| node()).collect();
        let hosts: Vec<String> = nodes.iter().map(|n| format!("127.0.0.1:{}", n.port())).collect();
        let made = Command::new("redis-cli").args(["--cluster", "create"]).args(&hosts).args(["--cluster-replicas", "0", "--cluster-yes"]).output();
        let made = made.expect("redis-cli can be started (it comes with redis-server)");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        let agree = async || nodes.iter().all(|n| n.command("CLUSTER INFO").is_ok_and(|i| i.contains("cluster_state:ok"))).then_some(());
        eventually("all nodes agree", agree).await;
        let url = format!("redis+cluster://{}", hosts.join(","));
        Cluster { nodes, url }
    }
}

/// A node's port for the cluster's own talk is 10000 above, so the port must not be too high.
fn node() -> RedisServer {
    for _ in 0..200 {
        let port = free_port();
        if port < 50_000
            && let Some(node) = RedisServer::try_start(port, &["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"])
        {
            return node;
        }
    }
    panic!("no free port below 50000");
}

/// Clients who ask again and again, each on a connection of its own that it keeps.
pub struct Load {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    /// So many clients; `kind` makes each request from its running number.
    pub fn start(clients: usize, kind: impl Fn(u64) -> Ask + Send + Sync + 'static) -> Load {
        let (stop, asked, kind) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(kind));
        let client = || {
            let (stop, asked, kind) = (stop.clone(), asked.clone(), kind.clone());
            tokio::spawn(async move {
                let (mut wrong, mut connection) = (Vec::new(), None::<Connection>);
                while !stop.load(SeqCst) {
                    let ask = kind(asked.fetch_add(1, SeqCst));
                    let mut on = match connection.take() {
                        Some(on) => on,
                        None => ask.connect().await,
                    };
                    match ask.on(&mut on).await {
                        Ok(answer) if answer.status < 500 => connection = (answer.header("connection") != Some("close")).then_some(on),
                        Ok(answer) => wrong.push(format!("{} {}", answer.status, answer.text())),
                        Err(broken) => wrong.push(broken.to_string()),
                    }
                }
                wrong
            })
        };
        let clients = (0..clients).map(|_| client()).collect();
        Load { stop, asked, clients }
    }

    /// Lets so many more requests be asked.
    pub async fn more(&self, requests: u64) {
        let goal = self.asked.load(SeqCst) + requests;
        eventually("answers keep coming", async || (self.asked.load(SeqCst) >= goal).then_some(())).await;
    }

    /// Ends it; every answer that was a server error or not whole.
    pub async fn end(self) -> Vec<String> {
        self.stop.store(true, SeqCst);
        let mut wrong = Vec::new();
        for client in self.clients {
            wrong.extend(client.await.expect("a client"));
        }
        wrong
    }
}
