//! Limits that can never be reached, because a shorter period's limit stops a caller before.

use crate::{Configured, rate_limiting, response_ratelimiting};
use weir_config::{Diagnostic, Node};

/// Periods with their seconds; the longest that a month and a year can have.
const PERIODS: [(&str, u64); 6] = [("second", 1), ("minute", 60), ("hour", 3600), ("day", 86_400), ("month", 31 * 86_400), ("year", 366 * 86_400)];

/// Warns of such limits in the configuration of a plugin that has some.
pub(crate) fn of_plugin(name: &str, config: &Node) -> Vec<Diagnostic> {
    match name {
        // A bucket lets a burst pass beside.
        rate_limiting::Config::NAME if config.get("burst").is_none() => warnings(config),
        response_ratelimiting::Config::NAME => config.get("limits").map_or(&[][..], Node::entries).iter().flat_map(|(_, limits)| warnings(limits)).collect(),
        _ => vec![],
    }
}

/// Warns of each limit of `limits` (`{second: …, minute: …}`) that another one makes superfluous.
fn warnings(limits: &Node) -> Vec<Diagnostic> {
    let limit = |name: &str| limits.get(name).and_then(Node::text).and_then(|text| text.parse::<u64>().ok());
    let mut found = Vec::new();
    for (at, (long, seconds)) in PERIODS.iter().enumerate().skip(1) {
        let Some(allowed) = limit(long) else { continue };
        let shorter = PERIODS[..at].iter().rev().filter_map(|(short, length)| Some((short, limit(short)?.saturating_mul(seconds.div_ceil(*length)))));
        if let Some((short, most)) = shorter.min_by_key(|(_, most)| *most).filter(|(_, most)| *most <= allowed) {
            let span = limits.get(long).unwrap_or(limits).span();
            let message = format!("the limit of the {long} is never reached: that of the {short} lets at most {most} pass in it");
            found.push(Diagnostic::warning("limit", span, message).hint(format!("write less than {most}, or leave it out")));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_limits_that_a_shorter_one_covers_are_named() {
        for (limits, wanted) in [
            ("{second: 5, minute: 299}", ""),
            ("{second: 5, minute: 300}", "the limit of the minute is never reached: that of the second lets at most 300 pass in it"),
            ("{minute: 10, hour: 601}", "the limit of the hour is never reached: that of the minute lets at most 600 pass in it"),
            ("{second: 1, hour: 100, day: 3000}", "the limit of the day is never reached: that of the hour lets at most 2400 pass in it"),
            ("{day: 10, month: 310}", "the limit of the month is never reached: that of the day lets at most 310 pass in it"),
            ("{day: 10, month: 309}", ""),
            ("{second: 0x, minute: 5}", ""),
            ("{year: 5}", ""),
            ("{second: 18446744073709551615, minute: 5}", ""),
        ] {
            let found = warnings(&Node::parse(limits).unwrap());
            assert_eq!(found.iter().map(|d| d.message.as_str()).collect::<Vec<_>>().join("; "), wanted, "{limits}");
        }
    }
}
