//! The documents name tests, files and interop steps: all of them exist.
//!
//! Checked in backticks of the documents below: `file::name`, a test function of a file (or folder)
//! of that name, with as much of its path before it as makes it unambiguous; `interop part: title`,
//! the beginning of a step's title; and everything that looks like a path of this repository.

use std::fs;
use std::path::{Path, PathBuf};

const DOCUMENTS: [&str; 10] = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/conformance.md",
    "docs/embedding.md",
    "docs/fuzzing.md",
    "docs/operations.md",
    "docs/reliability.md",
    "docs/testing.md",
    "docs/threat-model.md",
    "docs/torture.md",
];
/// Where tests are.
const SOURCES: [&str; 6] = [
    "nvmf-proto",
    "nvmf-target",
    "nvmf-host",
    "nvmfd",
    "fuzz",
    "benches",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            // Not what a build has left.
            if !path.join("CACHEDIR.TAG").exists() {
                files(&path, extension, found);
            }
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

/// What stands between single backticks, outside of code blocks.
fn quoted(text: &str) -> Vec<&str> {
    let mut in_block = false;
    let mut quoted = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if !in_block {
            quoted.extend(line.split('`').skip(1).step_by(2));
        }
    }
    quoted
}

/// The source files with their path as `path/of/module`, without `/mod`, and their text.
fn sources() -> Vec<(String, String)> {
    let mut paths = Vec::new();
    for folder in SOURCES {
        files(&root().join(folder), "rs", &mut paths);
    }
    let module = |path: &Path| {
        let path = path.strip_prefix(root()).unwrap().with_extension("");
        let path = path.to_str().unwrap();
        path.strip_suffix("/mod").unwrap_or(path).to_owned()
    };
    paths
        .iter()
        .map(|path| (module(path), fs::read_to_string(path).unwrap()))
        .collect()
}

fn interop_steps() -> String {
    let mut paths = Vec::new();
    files(&root().join("interop/suite"), "sh", &mut paths);
    paths
        .iter()
        .map(|path| fs::read_to_string(path).unwrap())
        .collect()
}

/// `file::name`, if it is meant to be a test: not a path of types, nor of the log's modules.
fn as_test(word: &str) -> Option<(&str, &str)> {
    let (file, name) = word.split_once("::")?;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_/".contains(c);
    let names = word.replace("::", "/").chars().all(plain) && !name.contains("::");
    (names && !file.starts_with("nvmf_")).then_some((file, name))
}

fn as_path(word: &str) -> Option<&str> {
    let path = word.strip_prefix("../").unwrap_or(word);
    let first = path.split('/').next().unwrap();
    let known = SOURCES.contains(&first) || ["docs", "interop", ".ci"].contains(&first);
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    (known && path.contains('/') && path.chars().all(plain)).then_some(path)
}

#[test]
fn what_the_documents_name_exists() {
    let (sources, steps) = (sources(), interop_steps());
    let mut wrong = Vec::new();
    let mut tests = 0;
    for document in DOCUMENTS {
        let text = fs::read_to_string(root().join(document)).unwrap();
        for word in quoted(&text) {
            let ok = if let Some((file, name)) = as_test(word) {
                tests += 1;
                let function = [format!("fn {name}("), format!("fn {name}<")];
                let is_there = |(path, text): &(String, String)| {
                    (path.ends_with(&format!("/{file}"))
                        || path.ends_with(&format!("/{file}/tests")))
                        && text.contains("#[test]")
                        && function.iter().any(|f| text.contains(f))
                };
                sources.iter().any(is_there)
            } else if let Some(step) = word.strip_prefix("interop ") {
                steps.contains(&format!("step \"{step}"))
            } else if let Some(path) = as_path(word) {
                root().join(path).exists()
            } else {
                true
            };
            if !ok {
                wrong.push(format!("{document}: `{word}`"));
            }
        }
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap();
            let here = root().join(document);
            if !target.is_empty()
                && !target.contains(':')
                && !here.parent().unwrap().join(target).exists()
            {
                wrong.push(format!("{document}: link to {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "not there:\n{}", wrong.join("\n"));
    assert!(tests > 100, "the documents cite only {tests} tests");
}
