//! Whatever the bytes, the loader answers with diagnostics and never with a panic; what it prints it reads back.

mod common;

use common::{Register, options};
use proptest::prelude::*;
use std::time::Duration;
use weir_config::{Millis, Node, Size, load_bytes, load_str};

/// Pieces that real and broken configs are made of.
fn piece() -> impl Strategy<Value = String> {
    let words = [
        "gateway:", "edge:", "services:", "routes:", "plugins:", "pages:", "store:", "name:", "url:", "paths:", "config:", "- ", "  ", "\n", "\n  ", "\n    ", ": ", "{", "}", "[", "]", ",", "&a ", "*a", "<<: ", "!!str ",
        "!x ", "|", ">", "|-\n", "\"", "'", "#", "${", "${PORT}", "${A:-b}", "}", "{vault://env/WORD}", "---\n", "...\n", "%YAML 1.2\n", "? ", "~", "null", "true", "1e3", "0x1F", "60s", "http://h:1/", "~/a(b", "/a/*",
        "_format_version: \"3.0\"\n", "\t", "\r\n", "\u{feff}", "ä", "\0", "secret: ", "consumers:", "upstreams:", "targets:", "warm_up:", "origin:", "listen:", "0.0.0.0:8000",
    ];
    prop_oneof![4 => proptest::sample::select(words.to_vec()).prop_map(String::from), 1 => "\\PC{0,6}", 1 => "[a-z_]{1,8}: "]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let loaded = load_bytes("x.yaml", &bytes, &Register, &options());
        prop_assert!(loaded.document.is_some() || loaded.diagnostics.has_errors());
        let _ = loaded.diagnostics.to_string();
    }

    #[test]
    fn pieces_of_yaml_never_panic(pieces in proptest::collection::vec(piece(), 0..40)) {
        let text = pieces.concat();
        let loaded = load_str("x.yaml", &text, &Register, &options());
        prop_assert!(loaded.document.is_some() || loaded.diagnostics.has_errors());
        for diagnostic in loaded.diagnostics.iter() {
            // Every place is one that the file has.
            if let Some(source) = &diagnostic.span.source {
                prop_assert!(source.line(diagnostic.span.line).is_some(), "{diagnostic:?}");
            }
            let _ = diagnostic.to_string();
        }
    }

    #[test]
    fn changed_examples_never_panic(at in 0usize..4000, cut in 0usize..40, insert in piece()) {
        let text = include_str!("../examples/demo.yaml");
        let chars: Vec<char> = text.chars().collect();
        let at = at.min(chars.len());
        let end = (at + cut).min(chars.len());
        let changed: String = chars[..at].iter().copied().chain(insert.chars()).chain(chars[end..].iter().copied()).collect();
        let loaded = load_str("x.yaml", &changed, &Register, &options());
        prop_assert!(loaded.document.is_some() || loaded.diagnostics.has_errors());
        let _ = loaded.diagnostics.to_string();
    }

    #[test]
    fn durations_round_trip(millis in 0u64..3_000_000_000_000) {
        let time = Millis(Duration::from_millis(millis));
        prop_assert_eq!(Millis::parse(&time.to_string()), Ok(time));
    }

    #[test]
    fn sizes_round_trip(size in 0u64..(1 << 50), shift in 0u32..5) {
        let size = Size(size >> (shift * 10) << (shift * 10));
        prop_assert_eq!(Size::parse(&size.to_string()), Ok(size));
    }

    #[test]
    fn durations_and_sizes_take_any_text(text in "\\PC{0,20}") {
        let _ = (Millis::parse(&text), Size::parse(&text));
    }

    #[test]
    fn json_is_yaml(value in json()) {
        let text = serde_json::to_string_pretty(&value).unwrap();
        let node = Node::parse(&text);
        prop_assert!(node.is_ok(), "{text}: {node:?}");
        prop_assert_eq!(node.unwrap().to_json(), value);
    }
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        "[a-zA-Z0-9 :#{}\\[\\],&*!|>'\"%@~./\\\\-]{0,12}".prop_map(serde_json::Value::from),
    ];
    leaf.prop_recursive(4, 30, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(serde_json::Value::from),
            proptest::collection::btree_map("[a-z :#-]{0,8}", inner, 0..5).prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

#[test]
fn bombs_are_refused() {
    let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let before = format!("*a{},", level - 1).repeat(10);
        laughs.push_str(&format!("a{level}: &a{level} [{before}]\n"));
    }
    let deep = "[".repeat(100_000);
    let deep_block: String = (0..300).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    let merges = format!("a: &a {{k: &b [{}]}}\nb:\n  - <<: *a\n", "*b, ");
    for (text, code) in [(laughs, "too-large"), (deep, "too-deep"), (deep_block, "too-deep"), (merges, "yaml")] {
        let loaded = load_str("x.yaml", &text, &Register, &options());
        assert!(loaded.diagnostics.iter().any(|d| d.code == code), "{code}: {}", loaded.diagnostics);
    }
}
