//! Why answers are not kept: one token each, the same in header, metric and log.

/// What the cache itself says. Plugins add their own by [`NotForCache`](crate::NotForCache).
pub const REASONS: [&str; 21] = [
    "authorization",
    "content-type",
    "encoded",
    "error-stream",
    "expired",
    "incomplete",
    "location",
    "must-understand",
    "no-cache",
    "no-freshness",
    "no-s-maxage",
    "no-store",
    "nonce",
    "origin-error",
    "partial",
    "postponed",
    "private",
    "set-cookie",
    "status",
    "too-large",
    "vary",
];

/// In place of a reason, while the body that decides is still on its way: whether the answer is kept shows at its end.
pub const UNDECIDED: &str = "streaming";

/// The reason that these bytes spell; `None`: it is not one of the cache's own.
pub(crate) fn known(text: &[u8]) -> Option<&'static str> {
    REASONS.iter().find(|reason| reason.as_bytes() == text).copied()
}
