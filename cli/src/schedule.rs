//! When warm-up rounds take place, and that only one instance does each.

use chrono::Utc;
use croner::parser::{CronParser, Seconds};
use std::{sync::Arc, time::Duration};
use weir_config::WarmUp;
use weir_proxy::{live::Weir, warm::{self, Progress, Warmed}};
use weir_store::{Lease, Store};

/// The lock that one round holds.
const LOCK: &str = "warm-up";
/// Says that a round was done lately, so that instances with clocks out of step do not do it one after another.
const DONE: &str = "warm-up:done";
/// A holder that is silent this long has died.
const LEASE: Duration = Duration::from_secs(15);

/// Does rounds for as long as the program runs. The configuration is asked anew before each.
pub async fn run(weir: Arc<Weir>) {
    // The first round as soon as the doors are open: a fresh cache is when warming is worth most.
    let mut wait = Duration::from_millis(500);
    loop {
        tokio::time::sleep(wait).await;
        let config = weir.live.load().document.warm_up.clone();
        let Some(config) = config else {
            wait = Duration::from_secs(5);
            continue;
        };
        let pause = next(&config);
        if let Some(lease) = begin(&weir).await {
            // Looked at only with the lock in hand: another instance may have finished its round a moment ago.
            if matches!(weir.environment.store.blobs.get(DONE).await, Ok(Some(_))) {
                end(&weir, lease).await;
            } else {
                let report = round(&weir, &config, lease, pause.mul_f64(0.8), |_| ()).await;
                let failed = report.iter().filter(|w| !w.is_ok()).count();
                tracing::info!(targets = report.len(), failed, "warm-up round done");
            }
        }
        wait = next(&config);
    }
}

/// Time until the next round.
pub fn next(config: &WarmUp) -> Duration {
    if let Some(every) = config.every {
        return every.get().max(Duration::from_secs(1));
    }
    let now = Utc::now();
    config
        .cron
        .as_deref()
        .and_then(|text| CronParser::builder().seconds(Seconds::Optional).build().parse(text).ok())
        .and_then(|cron| cron.find_next_occurrence(&now, false).ok())
        .and_then(|at| (at - now).to_std().ok())
        .unwrap_or(Duration::from_secs(60))
}

/// The right to do a round; with the store away each instance has it for itself. `None`: another instance is at it.
pub async fn begin(weir: &Weir) -> Option<Option<Lease>> {
    match weir.environment.store.locks.acquire(LOCK, LEASE).await {
        Ok(Some(lease)) => Some(Some(lease)),
        Ok(None) => None,
        Err(_) => Some(None),
    }
}

/// Gives the right back.
async fn end(weir: &Weir, lease: Option<Lease>) {
    if let Some(lease) = lease {
        let _ = weir.environment.store.locks.release(&lease).await;
    }
}

/// One round. For `quiet` after it no instance does another by itself.
pub async fn round(weir: &Arc<Weir>, config: &WarmUp, lease: Option<Lease>, quiet: Duration, progress: impl Fn(Progress)) -> Vec<Warmed> {
    let store = &weir.environment.store;
    let renewing = lease.clone().map(|lease| tokio::spawn(keep(store.clone(), lease)));
    let report = warm::round(weir, config, progress).await;
    let _ = store.blobs.put(DONE, "1".into(), quiet, None).await;
    if let Some(renewing) = renewing {
        renewing.abort();
    }
    end(weir, lease).await;
    report
}

async fn keep(store: Store, lease: Lease) {
    loop {
        tokio::time::sleep(LEASE / 3).await;
        if matches!(store.locks.renew(&lease, LEASE).await, Ok(false)) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cron_and_interval_give_the_next_time() {
        let config = |every: Option<u64>, cron: Option<&str>| WarmUp {
            every: every.map(weir_config::Millis::secs),
            cron: cron.map(String::from),
            token: None,
            urls: vec![],
            sitemaps: vec![],
            top: 0,
            rate: 0,
            concurrency: 1,
            timeout: weir_config::Millis::secs(1),
        };
        assert_eq!(next(&config(Some(270), None)), Duration::from_secs(270));
        let wait = next(&config(None, Some("*/5 * * * *")));
        assert!(wait <= Duration::from_secs(300), "{wait:?}");
        assert!(next(&config(None, Some("*/10 * * * * *"))) <= Duration::from_secs(10));
    }
}
