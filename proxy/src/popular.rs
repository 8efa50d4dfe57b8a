//! Which pages visitors ask for most: a sample, so that counting costs next to nothing.

use parking_lot::Mutex;
use std::collections::HashMap;

/// One request in this many is counted.
const SAMPLE: u32 = 8;
/// Pages kept; when there are more, all counts are halved and those that become nothing are forgotten.
const KEPT: usize = 8192;

/// Counts by host and target.
#[derive(Default)]
pub struct Popular(Mutex<HashMap<(String, String), u32>>);

impl Popular {
    /// A visitor asked for a cacheable page.
    pub fn asked(&self, host: &str, target: &str) {
        if fastrand::u32(..SAMPLE) == 0 {
            self.count(host, target);
        }
    }

    fn count(&self, host: &str, target: &str) {
        // A sample that finds the counts in use is no loss.
        let Some(mut counts) = self.0.try_lock() else { return };
        if counts.len() >= KEPT {
            counts.retain(|_, n| {
                *n /= 2;
                *n > 0
            });
            // Still full of pages that all matter: a newcomer has to wait.
            if counts.len() >= KEPT {
                return;
            }
        }
        *counts.entry((host.to_string(), target.to_string())).or_default() += 1;
    }

    /// The `n` pages asked for most, most first.
    pub fn most(&self, n: usize) -> Vec<(String, String)> {
        if n == 0 {
            return Vec::new();
        }
        let mut all: Vec<_> = self.0.lock().iter().map(|(page, n)| (*n, page.clone())).collect();
        all.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        all.into_iter().take(n).map(|(_, page)| page).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_asked_come_first_and_memory_is_bounded() {
        let popular = Popular::default();
        (0..5).for_each(|_| popular.count("h", "/often"));
        (0..2).for_each(|_| popular.count("h", "/seldom"));
        assert_eq!(popular.most(2), [("h".to_string(), "/often".to_string()), ("h".into(), "/seldom".into())]);
        for i in 0..3 * KEPT {
            popular.count("h", &format!("/{i}"));
            if i % 100 == 0 {
                popular.count("h", "/often");
            }
        }
        assert!(popular.0.lock().len() <= KEPT);
        assert_eq!(popular.most(1)[0].1, "/often");
    }
}
