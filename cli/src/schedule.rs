//! When warm-up rounds take place, and that only one instance does each.

use chrono::Utc;
use croner::Cron;
use std::{str::FromStr, sync::Arc, time::Duration};
use weir_config::WarmUp;
use weir_proxy::{live::Weir, warm::{self, Warmed}};
use weir_store::Store;

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
        let recently = matches!(weir.environment.store.blobs.get(DONE).await, Ok(Some(_)));
        if !recently && let Some(report) = round_if_free(&weir, &config).await {
            let failed = report.iter().filter(|w| !w.is_ok()).count();
            tracing::info!(targets = report.len(), failed, "warm-up round done");
            let _ = weir.environment.store.blobs.put(DONE, "1".into(), pause.mul_f64(0.8), None).await;
        }
        wait = next(&config);
    }
}

/// Time until the next round.
fn next(config: &WarmUp) -> Duration {
    if let Some(every) = config.every {
        return every.get().max(Duration::from_secs(1));
    }
    let now = Utc::now();
    config
        .cron
        .as_deref()
        .and_then(|text| Cron::from_str(text).ok())
        .and_then(|cron| cron.find_next_occurrence(&now, false).ok())
        .and_then(|at| (at - now).to_std().ok())
        .unwrap_or(Duration::from_secs(60))
}

/// One round, unless another instance is at it. With the store away, each instance warms for itself.
pub async fn round_if_free(weir: &Arc<Weir>, config: &WarmUp) -> Option<Vec<Warmed>> {
    let store = &weir.environment.store;
    match store.locks.acquire(LOCK, LEASE).await {
        Ok(None) => None,
        Ok(Some(lease)) => {
            let renewing = tokio::spawn(keep(store.clone(), lease.clone()));
            let report = warm::round(weir, config).await;
            renewing.abort();
            let _ = store.locks.release(&lease).await;
            Some(report)
        }
        Err(_) => Some(warm::round(weir, config).await),
    }
}

async fn keep(store: Store, lease: weir_store::Lease) {
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
            concurrency: 1,
            timeout: weir_config::Millis::secs(1),
        };
        assert_eq!(next(&config(Some(270), None)), Duration::from_secs(270));
        let wait = next(&config(None, Some("*/5 * * * *")));
        assert!(wait <= Duration::from_secs(300), "{wait:?}");
    }
}
