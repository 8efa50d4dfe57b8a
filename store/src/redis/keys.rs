//! What the keys look like in Redis.
//!
//! `{prefix}{kind}:{{key}}`, for example `weir:blob:{html_cache:shop.example/}`: the key is wrapped in braces, a hash tag, so that all that
//! one script touches for it lies in one slot of a Cluster. A key with a tag of its own is left as it is, behind `=`
//! (`weir:count={alice}:second`): so the caller can put several counters into one slot. A key that starts with `}` (or is empty) would make an
//! empty tag, which is none, and so goes behind `-{_}`. The three signs keep the three forms apart.

use std::time::Duration;

/// The part of a key that a Cluster hashes: between the first `{` and the next `}`, if that is not empty.
fn has_tag(key: &str) -> bool {
    key.split_once('{').and_then(|(_, rest)| rest.find('}')).is_some_and(|end| end > 0)
}

/// The key in Redis of the caller's `key`. `kind` tells what is kept there: two kinds of one key share a slot.
pub(super) fn key(prefix: &str, kind: &str, key: &str) -> String {
    if has_tag(key) {
        [prefix, kind, "=", key].concat()
    } else if key.is_empty() || key.starts_with('}') {
        [prefix, kind, "-{_}", key].concat()
    } else {
        [prefix, kind, ":{", key, "}"].concat()
    }
}

/// A duration as Redis takes it: whole milliseconds, at least one (0 is an error there), at most ten years.
pub(super) fn millis(life: Duration) -> u64 {
    u64::try_from(life.as_millis()).unwrap_or(u64::MAX).clamp(1, 10 * 365 * 24 * 3600 * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use redis::cluster_routing::Slot;

    #[test]
    fn looks_as_described() {
        assert_eq!(key("weir:", "blob", "html_cache:shop.example/"), "weir:blob:{html_cache:shop.example/}");
        assert_eq!(key("weir:", "count", "{alice}:second"), "weir:count={alice}:second");
        assert_eq!(key("", "lock", "}x"), "lock-{_}}x");
    }

    proptest! {
        #[test]
        fn two_kinds_share_a_slot_and_two_keys_never_meet(a in "[a{}_=:-]{0,8}", b in "[a{}_=:-]{0,8}") {
            prop_assert!(Slot::for_key(key("p:", "blob", &a)) == Slot::for_key(key("p:", "fence", &a)));
            prop_assert_eq!(a == b, key("p:", "blob", &a) == key("p:", "blob", &b));
        }

        #[test]
        fn a_tag_of_the_caller_decides_the_slot(tag in "[a-z]{1,5}", x in "[a-z]{0,5}", y in "[a-z]{0,5}") {
            let tagged = |rest: &str| Slot::for_key(key("p:", "count", &format!("{{{tag}}}{rest}")));
            prop_assert!(tagged(&x) == tagged(&y));
        }
    }
}
