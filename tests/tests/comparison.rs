//! The comparison's smoke mode: the harness of `bench/` still starts Weir, loads it, checks its answers and reports.

use serde_json::Value;
use std::{path::Path, process::Command};

#[test]
fn the_comparison_measures_weir_and_reports_it() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
    let weir = weir_tests::weir_command(&[]).get_program().to_owned();
    let out = Command::new("python3").arg(top.join("bench/compare")).arg("--smoke").arg("--weir").arg(weir).output().expect("python3 starts");
    let (table, words) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{table}{words}");

    let folder = top.join("target/bench/smoke");
    let result: Value = serde_json::from_slice(&std::fs::read(folder.join("results.json")).expect("results.json")).expect("JSON");
    let rows = result["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 3, "{result:#}");
    for row in rows {
        let title = row["title"].as_str().expect("a title");
        assert!(table.contains(title), "the table lacks {title}: {table}");
        let products = row["products"].as_array().expect("products");
        let weir = products.iter().find(|product| product["name"] == "weir").unwrap_or_else(|| panic!("Weir is not in {title}"));
        assert!(weir["rounds"][0]["cpu"].as_f64().expect("CPU time") > 0.0, "{title}: no CPU time was seen: {weir:#}");
    }
    let stampede = rows.iter().find(|row| row["name"] == "stampede").expect("the stampede");
    assert_eq!(stampede["products"][0]["rounds"][0]["fetches"], 1, "one fetch for all who wait");
    assert!(std::fs::read_to_string(folder.join("chart.svg")).expect("chart.svg").contains("</svg>"));
}
