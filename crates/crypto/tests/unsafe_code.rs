//! `unsafe` stays in the vector backends of the mask PRG, each small enough to be read at one sitting.

use std::fs;
use std::path::Path;

fn allowing(folder: &Path, found: &mut Vec<(String, usize)>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            allowing(&entry.path(), found);
        } else {
            let text = fs::read_to_string(entry.path()).unwrap();
            if text.contains("allow(unsafe_code)") {
                found.push((entry.file_name().into_string().unwrap(), text.lines().count()));
            }
        }
    }
}

#[test]
fn only_the_vector_backends_allow_unsafe_code_and_each_is_under_150_lines() {
    let mut found = Vec::new();
    allowing(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found.sort();
    assert_eq!(found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["avx2.rs", "avx512.rs", "neon.rs"]);
    assert!(found.iter().all(|(_, lines)| *lines < 150), "{found:?}");
}
