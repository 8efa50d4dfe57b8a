//! "Did you mean": the nearest valid word.

/// The word of `among` that `word` most likely stands for, if any is near enough.
pub fn nearest<'a>(word: &str, among: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = normal(word);
    let mut best: Option<(usize, &str)> = None;
    for candidate in among {
        let other = normal(candidate);
        if candidate == word {
            continue;
        }
        let distance = if other == plain { 0 } else { strsim::damerau_levenshtein(&plain, &other) };
        // One slip in three letters is a typo; more is another word.
        let allowed = (plain.chars().count().max(other.chars().count()) / 3).clamp(1, 4);
        // "redis-host" for "host": contained whole, and not by accident of one or two letters.
        let contained = plain.len() >= 4 && other.len() >= 4 && (other.contains(&plain) || plain.contains(&other));
        let score = if distance <= allowed && distance < plain.chars().count().max(1) {
            distance
        } else if contained {
            10 + other.len().abs_diff(plain.len())
        } else {
            continue;
        };
        if best.is_none_or(|(known, _)| score < known) {
            best = Some((score, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// A mapping with more unknown keys than this is of another kind altogether: they get no hints, which cost time.
pub(crate) const MOST_HINTS: usize = 50;

/// ``did you mean `x`?`` for the nearest word.
pub fn did_you_mean<'a>(word: &str, among: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(word, among).map(|found| format!("did you mean `{found}`?"))
}

/// `` `a`, `b` or `c` ``; at most `limit` words, then "…".
pub fn listed<'a>(words: impl IntoIterator<Item = &'a str>, limit: usize) -> String {
    let all: Vec<String> = words.into_iter().map(|word| format!("`{word}`")).collect();
    if all.len() > limit {
        return format!("{}, …", all[..limit].join(", "));
    }
    match all.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        [head @ .., last] => format!("{} or {last}", head.join(", ")),
    }
}

fn normal(word: &str) -> String {
    word.chars().filter(|c| !matches!(c, '-' | '_' | ' ' | '.')).flat_map(char::to_lowercase).take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typos_find_their_word_and_strangers_do_not() {
        let words = ["ttl", "path", "cache", "stale_while_revalidate", "rate-limiting", "host"];
        assert_eq!(nearest("tttl", words), Some("ttl"));
        assert_eq!(nearest("rate-limitng", words), Some("rate-limiting"));
        assert_eq!(nearest("staleWhileRevalidate", words), Some("stale_while_revalidate"));
        assert_eq!(nearest("redis_host", words), Some("host"));
        assert_eq!(nearest("banana", words), None);
        assert_eq!(nearest("", words), None);
    }

    #[test]
    fn lists_read_as_a_sentence() {
        assert_eq!(listed(["a", "b", "c"], 9), "`a`, `b` or `c`");
        assert_eq!(listed(["a"], 9), "`a`");
        assert_eq!(listed(["a", "b", "c"], 2), "`a`, `b`, …");
    }
}
