//! Real Redis servers for tests: started from `redis-server` on the `PATH`, on a free port of 127.0.0.1, with their files in a temporary folder.
//! Everything here panics with the reason when it fails: a test without its server has failed.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take to answer. Far more than it needs, also on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running Redis; dropping it kills it.
pub struct RedisServer {
    child: Option<Child>,
    port: u16,
    folder: tempfile::TempDir,
    arguments: Vec<String>,
    /// The configuration file of a sentinel, which it must be able to write.
    sentinel: Option<String>,
}

/// Polls until `probe` gives something. Fails after 20 s, which no working store comes near to.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut probe: impl FnMut() -> F) -> T {
    for _ in 0..2000 {
        if let Some(value) = probe().await {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never came to pass: {what}");
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

impl RedisServer {
    /// Starts a server that keeps nothing on disk, and waits until it answers.
    pub fn start() -> RedisServer {
        Self::start_with(&[])
    }

    /// The same with more arguments for `redis-server`, such as `["--requirepass", "secret"]`.
    pub fn start_with(arguments: &[&str]) -> RedisServer {
        // Another process may take the port between our look and the server's bind: then the server ends, and we try the next.
        for _ in 0..10 {
            if let Some(server) = Self::try_start(free_port(), arguments) {
                return server;
            }
        }
        panic!("redis-server did not start on any of ten ports");
    }

    /// The same on a port of the caller's choice; `None` when the server ends at once, as it does if the port is taken.
    pub fn try_start(port: u16, arguments: &[&str]) -> Option<RedisServer> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        let mut server = RedisServer { child: None, port, folder, arguments, sentinel: None };
        server.spawn().then_some(server)
    }

    /// Starts a sentinel instead, with these lines in its configuration file.
    pub fn start_sentinel(lines: &str) -> RedisServer {
        for _ in 0..10 {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let mut server = RedisServer { child: None, port: free_port(), folder, arguments: Vec::new(), sentinel: Some(lines.to_owned()) };
            if server.spawn() {
                return server;
            }
        }
        panic!("no sentinel started on any of ten ports");
    }

    /// Where it listens: `redis://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The port it listens on, the same after a restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its working folder; gone with the server.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Kills it without warning, as a crash would. Does nothing if it does not run.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Kills it if it still runs, and starts it anew on the same port, empty.
    pub fn restart(&mut self) {
        self.kill();
        assert!(self.spawn(), "redis-server did not come back on port {}", self.port);
    }

    /// Stops the process without closing its connections: calls get no answer at all.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    /// Lets a paused process go on.
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    /// Sends one command in Redis' inline form (no spaces within arguments) and gives the first bytes of the raw answer.
    ///
    /// Errors: no connection, or no answer within 20 s.
    pub fn command(&self, line: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("{line}\r\n").as_bytes())?;
        let mut answer = vec![0; 65536];
        let length = stream.read(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    }

    fn signal(&self, signal: &str) {
        let child = self.child.as_ref().expect("the server runs");
        let done = Command::new("kill").arg(signal).arg(child.id().to_string()).status().expect("the command kill");
        assert!(done.success(), "kill {signal} failed");
    }

    /// `false` if it ended at once.
    fn spawn(&mut self) -> bool {
        let mut command = Command::new("redis-server");
        if let Some(lines) = &self.sentinel {
            let file = self.folder.path().join("sentinel.conf");
            // After a restart it goes on with what it wrote there itself.
            if !file.exists() {
                std::fs::write(&file, lines).expect("the sentinel's configuration can be written");
            }
            command.arg(file).arg("--sentinel");
        } else {
            command.args(["--save", "", "--appendonly", "no"]);
        }
        command.arg("--port").arg(self.port.to_string()).arg("--bind").arg("127.0.0.1").arg("--dir").arg(self.folder.path());
        command.args(["--daemonize", "no", "--loglevel", "warning"]).args(&self.arguments);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) => panic!("redis-server can not be started ({error}): install it, on Debian with `apt-get install -y redis-server`"),
        };
        let child = self.child.insert(child);
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if child.try_wait().expect("the state of the server").is_some() {
                self.child = None;
                return false;
            }
            // PONG, or a refusal for want of a password: it answers in any case.
            let answers = TcpStream::connect(("127.0.0.1", self.port)).and_then(|mut s| {
                s.set_read_timeout(Some(PATIENCE))?;
                s.write_all(b"PING\r\n")?;
                let mut first = [0; 1];
                s.read_exact(&mut first)
            });
            if answers.is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("redis-server on port {} runs but does not answer", self.port);
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}
