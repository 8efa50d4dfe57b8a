//! `file-log`: an entry for each request, appended to a file.

use crate::{
    Configured, Live,
    logging::{
        self, CustomField,
        queue::{Limits, Queue, Sink},
    },
    wrong,
};
use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use weir_config::{Diagnostic, Node};
use weir_gateway::{BuildEnv, Phases, Plugin, RequestContext};

/// Appends a line of JSON for each request to a file, in the form of `http-log`. Lines are written by a task of their own; up to 10000 wait, and the
/// oldest are dropped beyond it. A missing file is made; its folder must be there. A line that can not be written is tried again for a minute.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The file. `/dev/stdout` works too.
    #[schemars(length(min = 1))]
    pub path: String,
    /// Open the file anew for each batch of lines, so that a tool can rotate it by renaming.
    #[serde(default)]
    pub reopen: bool,
    /// Fields of the entry (`a.b` for nested ones) that get a constant or, with `return nil`, are left out. See `http-log`.
    #[serde(default)]
    pub custom_fields_by_lua: BTreeMap<String, String>,
}

impl Configured for Config {
    const NAME: &'static str = "file-log";
    const PRIORITY: i32 = 9;
    const EXAMPLE: &'static str = "path: /tmp/weir-requests.log
reopen: true
";

    type Ready = Ready;

    fn ready(self, at: &Node) -> Result<Ready, Vec<Diagnostic>> {
        if self.path.contains('\0') || self.path.ends_with('/') {
            return Err(vec![wrong(at, "path", "this is not the path of a file")]);
        }
        let custom = logging::custom_fields(at, &self.custom_fields_by_lua)?;
        Ok(Ready { path: self.path.into(), reopen: self.reopen, custom })
    }

    fn build(ready: Ready, env: &BuildEnv<'_>, _: &Live) -> Arc<dyn Plugin> {
        let sink = FileSink { path: ready.path, reopen: ready.reopen, file: None };
        Arc::new(FileLog { custom: ready.custom, queue: Queue::new(Config::NAME, LINES, &env.environment.metrics, sink) })
    }
}

/// Lines that are there are written together, without waiting for more.
const LINES: Limits = Limits {
    batch: 1000,
    delay: Duration::ZERO,
    entries: 10_000,
    bytes: usize::MAX,
    first_retry: Duration::from_secs(1),
    longest_retry: Duration::from_secs(10),
    retry_time: Duration::from_secs(60),
};

/// The configuration, checked.
pub struct Ready {
    path: PathBuf,
    reopen: bool,
    custom: Vec<CustomField>,
}

struct FileLog {
    custom: Vec<CustomField>,
    queue: Queue,
}

impl Plugin for FileLog {
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

struct FileSink {
    path: PathBuf,
    reopen: bool,
    file: Option<File>,
}

#[async_trait]
impl Sink for FileSink {
    async fn send(&mut self, batch: &[String]) -> Result<(), String> {
        let mut lines = batch.join("\n");
        lines.push('\n');
        let file = self.file.take().filter(|_| !self.reopen);
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || append(&path, file, lines.as_bytes())).await;
        match written {
            Ok(Ok(file)) => {
                self.file = Some(file);
                Ok(())
            }
            Ok(Err(error)) => Err(format!("{}: {error}", self.path.display())),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Writes in one call, so that lines of several processes do not mix.
fn append(path: &Path, file: Option<File>, lines: &[u8]) -> std::io::Result<File> {
    let mut file = match file {
        Some(file) => file,
        None => OpenOptions::new().append(true).create(true).open(path)?,
    };
    file.write_all(lines)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use crate::testing::{Rig, errors, get};

    /// Runs requests and waits until their lines are written.
    async fn logged(rig: &Rig, paths: &[&str], before: u64) {
        for path in paths {
            rig.run(get(path)).await;
        }
        while rig.outcome("file-log", "sent") < before + paths.len() as u64 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    fn lines(path: &std::path::Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.ends_with('\n'));
        text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["request"]["uri"].as_str().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn a_line_for_each_request_after_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        std::fs::write(&path, "{\"request\":{\"uri\":\"/before\"}}\n").unwrap();
        let rig = Rig::new(&[("file-log", &format!("path: '{}'", path.display()))]);
        logged(&rig, &["/1", "/2"], 0).await;
        assert_eq!(lines(&path), ["/before", "/1", "/2"]);
    }

    #[tokio::test]
    async fn a_renamed_file_is_left_only_with_reopen() {
        for (reopen, old, new) in [(true, 1, Some(1)), (false, 2, None)] {
            let folder = tempfile::tempdir().unwrap();
            let (path, moved) = (folder.path().join("a.log"), folder.path().join("a.log.1"));
            let rig = Rig::new(&[("file-log", &format!("{{path: '{}', reopen: {reopen}}}", path.display()))]);
            logged(&rig, &["/1"], 0).await;
            std::fs::rename(&path, &moved).unwrap();
            logged(&rig, &["/2"], 1).await;
            assert_eq!((lines(&moved).len(), path.exists().then(|| lines(&path).len())), (old, new), "reopen: {reopen}");
        }
    }

    #[tokio::test]
    async fn constant_fields() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        let rig = Rig::new(&[("file-log", &format!("{{path: '{}', custom_fields_by_lua: {{env: return 'test', service: return nil}}}}", path.display()))]);
        logged(&rig, &["/1"], 0).await;
        let line: serde_json::Value = serde_json::from_str(std::fs::read_to_string(&path).unwrap().trim()).unwrap();
        assert_eq!((line["env"].as_str(), line.get("service")), (Some("test"), None));
    }

    #[test]
    fn mistakes() {
        for (config, message) in [("{}", "path"), ("path: ''", "path"), ("path: /tmp/", "not the path of a file"), ("{path: /tmp/x, custom_fields_by_lua: {a: x()}}", "Lua is not run here")] {
            let found = errors("file-log", config);
            assert!(found.iter().any(|e| e.to_string().contains(message)), "{config}: {found:?}");
        }
    }
}
