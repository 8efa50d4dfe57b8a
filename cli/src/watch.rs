//! Files that change: the configuration is read again by itself.

use crate::control::Running;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// How often the files are looked at. Looking works on every file system, also where a folder is mounted into a container and replaced
/// as a whole, which notifications miss.
const EVERY: Duration = Duration::from_millis(500);

/// What tells one state of a file from another; `None`: it is not there.
type Stamp = Option<(SystemTime, u64, u64)>;

/// The files that the configuration was read from, as they were then.
#[derive(Default)]
pub struct Watched(Mutex<HashMap<PathBuf, Stamp>>);

impl Watched {
    /// A reading begins: the known files are remembered as they are now, so that a change during the reading is not missed.
    pub fn begin(&self) {
        for (path, stamp) in self.0.lock().iter_mut() {
            *stamp = stamp_of(path);
        }
    }

    /// These files were read.
    pub fn read(&self, files: &[PathBuf]) {
        let mut known = self.0.lock();
        known.retain(|path, _| files.contains(path));
        for path in files {
            known.entry(path.clone()).or_insert_with(|| stamp_of(path));
        }
    }

    /// How they are now, if that is not as they were read.
    fn changed(&self) -> Option<Vec<Stamp>> {
        let known = self.0.lock();
        let mut differs = false;
        let now = known.iter().map(|(path, stamp)| {
            let now = stamp_of(path);
            differs |= now != *stamp;
            now
        });
        let now: Vec<Stamp> = now.collect();
        differs.then_some(now)
    }
}

fn stamp_of(path: &PathBuf) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    let data = std::fs::metadata(path).ok()?;
    Some((data.modified().ok()?, data.len(), data.ino()))
}

/// Reloads when a file has changed and then stayed the same for one look: editors and copies write in pieces.
pub async fn run(running: Arc<Running>) {
    let mut before = None;
    loop {
        tokio::time::sleep(EVERY).await;
        let now = running.watched.changed();
        if now.is_some() && now == before {
            let running = running.clone();
            // What is wrong was told; the files count as read either way.
            let _ = tokio::task::spawn_blocking(move || running.reload_now("a file changed")).await;
            before = None;
        } else {
            before = now;
        }
    }
}
