//! How names stand, for `/metrics`.

use super::Dns;
use prometheus::{IntGaugeVec, Opts, Registry};

/// Filled from the [`Dns`] when somebody looks.
pub(crate) struct DnsMetrics {
    lookups: IntGaugeVec,
    addresses: IntGaugeVec,
    changes: IntGaugeVec,
    failing: IntGaugeVec,
}

impl DnsMetrics {
    pub(crate) fn new(registry: &Registry) -> DnsMetrics {
        let gauges = |name: &str, help: &str, labels: &[&str]| crate::metrics::register(registry, IntGaugeVec::new(Opts::new(name, help), labels));
        DnsMetrics {
            lookups: gauges("weir_dns_lookups", "Look-ups of names since the start: found, missing (no such name, or no addresses) or failed (no answer).", &["result"]),
            addresses: gauges("weir_dns_addresses", "Addresses of a name that are in use.", &["name"]),
            changes: gauges("weir_dns_changes", "Times that the addresses of a name changed.", &["name"]),
            failing: gauges("weir_dns_failing", "1 while the last look-up of a name gave nothing, so that its addresses are old.", &["name"]),
        }
    }

    pub(crate) fn update(&self, dns: &Dns) {
        let lookups = dns.lookups();
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        for (result, count) in [("found", lookups.found), ("missing", lookups.missing), ("failed", lookups.failed)] {
            self.lookups.with_label_values(&[result]).set(number(count));
        }
        // Names that no configuration has any more are not shown.
        for gauge in [&self.addresses, &self.changes, &self.failing] {
            gauge.reset();
        }
        for (name, view) in dns.view() {
            self.addresses.with_label_values(&[&name]).set(view.addresses.len() as i64);
            self.changes.with_label_values(&[&name]).set(number(view.changes));
            self.failing.with_label_values(&[&name]).set(i64::from(view.failure.is_some()));
        }
    }
}
