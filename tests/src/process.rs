//! Weir as a child process.

use crate::{Answer, Config, Connection, Door, GUARD, eventually};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Instant,
};
use tempfile::TempDir;

/// Lines of standard error that a failed test shows.
const SHOWN: usize = 80;

/// A running Weir; dropping it kills it. When the test fails, its last words are shown.
pub struct Weir {
    name: String,
    child: Option<Child>,
    folder: TempDir,
    said: Arc<Mutex<Vec<String>>>,
    doors: Doors,
}

#[derive(Debug, Clone, Copy)]
struct Doors {
    edge: Option<SocketAddr>,
    gateway: Option<SocketAddr>,
    admin: SocketAddr,
}

/// How a short run of the program ended.
#[derive(Debug)]
pub struct Outcome {
    /// The exit status; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// The program, with these arguments. Its environment is the test's, without Weir's own variables.
pub fn weir_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).stdin(Stdio::null());
    for name in ["WEIR_LOG", "WEIR_STORE", "BUILD_ID", "GUEST_KEY", "JWT_SECRET", "WARMUP_TOKEN", "ADMIN_TOKEN"] {
        command.env_remove(name);
    }
    command
}

impl Outcome {
    /// Runs the program to its end, which must come by itself.
    pub fn of(arguments: &[&str]) -> Outcome {
        let mut child = weir_command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("weir starts");
        let (mut out, mut err) = (child.stdout.take().expect("a pipe"), child.stderr.take().expect("a pipe"));
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = err.read_to_string(&mut text);
            text
        });
        let id = child.id();
        let (done, over) = std::sync::mpsc::channel::<()>();
        std::thread::spawn(move || {
            if over.recv_timeout(GUARD) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                signal(id, "-KILL");
            }
        });
        let mut text = String::new();
        let _ = out.read_to_string(&mut text);
        let status = child.wait().expect("an end");
        drop(done);
        Outcome { code: status.code(), out: text, err: reader.join().expect("standard error") }
    }
}

/// `WEIR_BIN`, or `weir` beside the folder of the test's own executable (`target/<profile>/deps`).
fn binary() -> PathBuf {
    let path = match std::env::var_os("WEIR_BIN") {
        Some(path) => PathBuf::from(path),
        None => {
            let own = std::env::current_exe().expect("the test's own path");
            own.ancestors().nth(2).expect("target/<profile>/deps/<test>").join("weir")
        }
    };
    assert!(path.is_file(), "{} is not there: build it with `cargo build -p weir`, or name it in WEIR_BIN", path.display());
    path
}

impl Weir {
    /// Starts Weir with this configuration on free ports, and waits until it is ready.
    pub async fn start(config: &Config) -> Weir {
        Self::start_as("weir", config).await
    }

    /// The same under a name, to tell several apart when a test fails.
    pub async fn start_as(name: &str, config: &Config) -> Weir {
        // Between our look for free ports and Weir's bind another process may take one: then the next ones.
        let mut last = String::new();
        for _ in 0..8 {
            let ports = free_ports();
            let doors = Doors {
                edge: config.0.get("edge").map(|_| local(ports[0])),
                gateway: config.0.get("gateway").map(|_| local(ports[1])),
                admin: local(ports[2]),
            };
            let folder = tempfile::tempdir().expect("a temporary folder");
            let mut weir = Weir { name: name.into(), child: None, folder, said: Arc::default(), doors };
            weir.write(config);
            match weir.launch().await {
                Ok(()) => return weir,
                Err(ended) => last = format!("{ended}\n{}", weir.said()),
            }
            if !last.contains("can not listen") && !last.contains("in use") {
                break;
            }
        }
        panic!("{name} did not start: {last}");
    }

    /// Writes the configuration anew, with the addresses that this process has. It counts after [`Weir::hang_up`] or a restart.
    pub fn write(&self, config: &Config) {
        let mut config = config.clone();
        for (at, door) in [("/edge/listen", self.doors.edge), ("/gateway/listen", self.doors.gateway)] {
            let Some(door) = door else { continue };
            // Further addresses of the test's own stay.
            let more = config.0.pointer(at).and_then(Value::as_array).cloned().unwrap_or_default();
            let all: Vec<Value> = std::iter::once(json!(door.to_string())).chain(more).collect();
            config = config.set(at, all);
        }
        config = config.set("/admin/listen", self.doors.admin.to_string());
        // Tests start several programs on few cores: two threads each are enough.
        if config.0.pointer("/server/threads").is_none() {
            config = config.set("/server/threads", json!(2));
        }
        self.write_text(&format!("{:#}\n", config.0));
    }

    /// Writes this text as the configuration.
    pub fn write_text(&self, text: &str) {
        std::fs::write(self.file(), text).expect("the configuration can be written");
    }

    /// The configuration's file.
    pub fn file(&self) -> PathBuf {
        self.folder().join("weir.yaml")
    }

    /// The folder of the configuration.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    async fn launch(&mut self) -> Result<(), ExitStatus> {
        self.said.lock().expect("not poisoned").clear();
        let file = self.file();
        let out = std::fs::File::create(self.folder.path().join("stdout")).expect("a file for standard output");
        let mut child = weir_command(&["run", "-c", &file.to_string_lossy()]).stdout(out).stderr(Stdio::piped()).spawn().expect("weir starts");
        let err = child.stderr.take().expect("a pipe");
        let said = self.said.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(err).split(b'\n').map_while(Result::ok) {
                said.lock().expect("not poisoned").push(String::from_utf8_lossy(&line).into_owned());
            }
        });
        self.child = Some(child);
        let begun = Instant::now();
        loop {
            if let Some(ended) = self.child.as_mut().and_then(|c| c.try_wait().expect("the state of weir")) {
                self.child = None;
                // The last lines may still be on their way.
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                return Err(ended);
            }
            // The banner first: until then somebody else could be listening on the port.
            if self.said().contains("  admin ") && self.answers().await {
                return Ok(());
            }
            assert!(begun.elapsed() < GUARD, "{} is not ready: {}", self.name, self.said());
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    async fn answers(&self) -> bool {
        for door in [self.doors.edge, self.doors.gateway].into_iter().flatten() {
            if Connection::try_open(door).await.is_err() {
                return false;
            }
        }
        self.admin().get("/ready").attempt().await.is_ok_and(|a| a.status == 200)
    }

    /// The edge's door.
    #[track_caller]
    pub fn edge(&self) -> Door {
        Door(self.doors.edge.expect("an edge in the configuration"))
    }

    /// The gateway's door.
    #[track_caller]
    pub fn gateway(&self) -> Door {
        Door(self.doors.gateway.expect("a gateway in the configuration"))
    }

    /// The admin port.
    pub fn admin(&self) -> Door {
        Door(self.doors.admin)
    }

    /// What `/ready` says: `ready` or `degraded`.
    pub async fn readiness(&self) -> String {
        let answer: Answer = self.admin().get("/ready").send().await.expect(200);
        answer.json()["status"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits until `/ready` says this.
    pub async fn becomes(&self, state: &str) {
        eventually(&format!("{} says `{state}`", self.name), async || (self.readiness().await == state).then_some(())).await;
    }

    /// The sum of a metric's samples whose labels contain all of these pieces, like `route="home"`.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.admin().get("/metrics").send().await.expect(200).text();
        let sample = |line: &str| -> Option<f64> {
            let rest = line.strip_prefix(name).filter(|r| r.starts_with(['{', ' ']))?;
            let (given, value) = rest.rsplit_once(' ')?;
            labels.iter().all(|l| given.contains(l)).then(|| value.parse().ok())?
        };
        text.lines().filter_map(sample).sum()
    }

    /// The status call of the admin port.
    pub async fn status(&self) -> Value {
        self.admin().get("/status").send().await.expect(200).json()
    }

    /// What it has written to standard error since it was started.
    pub fn said(&self) -> String {
        self.said.lock().expect("not poisoned").join("\n")
    }

    /// What it has written to standard output since it was started: the access log, if there is one.
    pub fn access_log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("stdout")).unwrap_or_default()
    }

    /// Kills it without warning.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Kills it if it runs, and starts it anew on the same ports with the configuration as it is written now.
    pub async fn restart(&mut self) {
        self.kill();
        if let Err(ended) = self.launch().await {
            panic!("{} did not come back ({ended}): {}", self.name, self.said());
        }
    }

    /// SIGHUP.
    pub fn hang_up(&self) {
        signal(self.child.as_ref().expect("a running weir").id(), "-HUP");
    }

    /// SIGTERM, and the exit code.
    pub async fn terminate(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("a running weir");
        signal(child.id(), "-TERM");
        let status = eventually("weir ends after SIGTERM", async || child.try_wait().expect("the state of weir")).await;
        status.code()
    }
}

impl Drop for Weir {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let said = self.said.lock().map(|s| s.clone()).unwrap_or_default();
            eprintln!("--- {} said:\n{}\n---", self.name, said[said.len().saturating_sub(SHOWN)..].join("\n"));
        }
    }
}

fn signal(process: u32, which: &str) {
    let done = Command::new("kill").arg(which).arg(process.to_string()).status().expect("the command kill");
    assert!(done.success(), "kill {which} failed");
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Ports that were free a moment ago, all different.
fn free_ports() -> [u16; 3] {
    let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    listeners.map(|l| l.local_addr().expect("an address").port())
}
