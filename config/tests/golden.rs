//! Golden files: `golden/NAME.yaml` is loaded, `golden/NAME.out` is what must be said. `UPDATE_GOLDEN=1` writes the latter.

mod common;

use common::{Register, options};
use std::path::Path;
use weir_config::{Severity, load_file};

#[test]
fn every_golden_file_gets_its_diagnostics() {
    // Names in the output are relative to this folder, and so are files that the configs name.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    std::env::set_current_dir(&folder).unwrap();
    let mut names: Vec<String> = std::fs::read_dir(".").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).filter(|name| name.ends_with(".yaml")).collect();
    names.sort();
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let (mut failed, mut total, mut codes) = (Vec::new(), 0, std::collections::BTreeSet::new());
    for name in names {
        let loaded = load_file(&name, &Register, &options());
        let errors = loaded.diagnostics.count(Severity::Error);
        assert_eq!(loaded.document.is_none(), errors > 0, "{name}");
        total += loaded.diagnostics.len();
        codes.extend(loaded.diagnostics.iter().map(|d| d.code));
        let got = format!("{}\n", loaded.diagnostics);
        let out = name.replace(".yaml", ".out");
        if got.contains("hunter2") {
            failed.push(format!("--- {name} shows a secret\n{got}"));
            continue;
        }
        if update {
            std::fs::write(&out, &got).unwrap();
        }
        if std::fs::read_to_string(&out).unwrap_or_default() != got {
            failed.push(format!("--- {name}\n{got}"));
        }
    }
    assert!(failed.is_empty(), "{} differ:\n{}", failed.len(), failed.join("\n"));
    println!("{total} diagnostics of {} kinds", codes.len());
    assert!(total >= 60, "only {total} diagnostics are pinned");
}
