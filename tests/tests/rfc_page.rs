//! `docs/rfc9111.md` names a test for everything that it says: each is there, and none that is named after an RFC is missing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The Rust files and tables of these crates, by their names.
fn sources() -> BTreeMap<String, Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut folders: Vec<PathBuf> = ["cache", "tests", "proxy", "store", "plugins"].iter().map(|name| root.join(name)).collect();
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match path.extension().and_then(|end| end.to_str()) {
                _ if path.is_dir() => folders.push(path),
                Some("rs" | "txt") => found.entry(name).or_default().push(fs::read_to_string(&path).expect("text")),
                _ => {}
            }
        }
    }
    found
}

fn page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/rfc9111.md")).expect("the page")
}

/// What stands between backticks in the last column of the page's tables.
fn named(page: &str) -> Vec<&str> {
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| what"));
    let cells = rows.map(|row| row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

fn functions(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.trim_start().trim_start_matches("async ").strip_prefix("fn ")?.split('(').next())
}

#[test]
fn every_test_that_the_page_names_exists() {
    let (sources, page) = (sources(), page());
    let named = named(&page);
    assert!(named.len() > 100, "the page is read: {}", named.len());
    for name in named {
        let texts = |file: &str| sources.get(file).unwrap_or_else(|| panic!("`{name}`: there is no file {file}"));
        if let Some((file, test)) = name.split_once("::") {
            assert!(texts(file).iter().any(|text| functions(text).any(|function| function == test)), "`{name}`: {file} has no such test");
        } else {
            let (file, title) = name.split_once(" § ").unwrap_or_else(|| panic!("`{name}` is neither a test nor a part of a table"));
            let titles: Vec<&str> = texts(file).iter().flat_map(|text| text.lines()).filter_map(|line| line.strip_prefix("## ")).collect();
            let parts = titles.iter().flat_map(|line| line.split([':', ';', ','])).map(str::trim);
            assert!(parts.into_iter().any(|part| part == title), "`{name}`: {file} has the parts {titles:?}");
        }
    }
}

#[test]
fn every_row_of_the_page_names_a_test() {
    for row in page().lines().filter(|line| line.starts_with("| ") && !line.starts_with("| what")) {
        assert!(!named(row).is_empty(), "no test: {row}");
        assert_eq!(row.matches(" | ").count(), 4, "five columns: {row}");
    }
}

#[test]
fn every_test_that_is_named_after_an_rfc_of_caching_stands_on_the_page() {
    let (sources, page) = (sources(), page());
    let there: BTreeSet<&str> = named(&page).into_iter().collect();
    for (file, texts) in &sources {
        for function in texts.iter().flat_map(|text| functions(text)) {
            if ["rfc9111_", "rfc9211_", "rfc9213_", "rfc5861_", "rfc9110_"].iter().any(|begin| function.starts_with(begin)) {
                assert!(there.contains(format!("{file}::{function}").as_str()), "{file}::{function} is missing");
            }
        }
    }
}
