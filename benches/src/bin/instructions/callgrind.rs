//! Running a case under valgrind and reading what callgrind has counted.

use crate::player::Case;
use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Stdio};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Batches before anything counts: every list, slot and buffer has been used by then.
const WARM_UP: u64 = 20;
/// I/Os that count, at least.
const IOS: u64 = 640;

/// Instructions per I/O.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cost {
    /// In the C library's copying and filling of memory: a few per 128 bytes.
    pub(crate) copying: f64,
    /// In everything else.
    pub(crate) rest: f64,
}

/// What a case costs.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    pub(crate) cost: Cost,
    /// By function, the dearest first.
    pub(crate) functions: Vec<(String, f64)>,
}

/// The version of valgrind.
pub(crate) fn version() -> Result<String, Error> {
    let output = Command::new("valgrind").arg("--version").output();
    let output = output.map_err(|error| format!("cannot run valgrind: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Counts one case.
///
/// Callgrind hands out a profile whenever `player::mark` is called, and begins anew: the second
/// one holds what lies between the calls. It does not collect inside of `player::off_the_record`,
/// and the only other thread that is awake meanwhile is none.
pub(crate) fn count(case: &Case, folder: &Path) -> Result<Counts, Error> {
    let out = folder.join(case.name);
    let batches = IOS.div_ceil(case.depth.into());
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--dump-before=*player::mark*"])
        .args([
            "--toggle-collect=*player::off_the_record*",
            "--collect-atstart=yes",
        ])
        .args([
            "--dump-instr=no",
            "--collect-jumps=no",
            "--compress-strings=no",
        ])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .args(["play", case.name])
        .args([WARM_UP.to_string(), batches.to_string()])
        // Or large copies are one instruction that counts once per byte, on some processors.
        .env(
            "GLIBC_TUNABLES",
            "glibc.cpu.x86_rep_movsb_threshold=1073741824",
        )
        .stdout(Stdio::null())
        .output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("{} under valgrind: {text}", case.name).into());
    }
    let profile = std::fs::read_to_string(out.with_extension("2"))?;
    let ios = (batches * u64::from(case.depth)) as f64;
    Ok(per_io(&profile, ios))
}

fn per_io(profile: &str, ios: f64) -> Counts {
    let mut functions: Vec<(String, f64)> = costs(profile)
        .into_iter()
        .map(|(name, cost)| (name.to_owned(), cost as f64 / ios))
        .collect();
    functions.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let copies =
        |name: &str| name.contains("memcpy") || name.contains("memmove") || name.contains("memset");
    let sum = |of: &dyn Fn(&str) -> bool| {
        let chosen = functions.iter().filter(|(name, _)| of(name));
        chosen.map(|(_, cost)| cost).sum()
    };
    Counts {
        cost: Cost {
            copying: sum(&copies),
            rest: sum(&|name| !copies(name)),
        },
        functions,
    }
}

/// Instructions by function: the lines of a profile in callgrind's format that are a position and a
/// cost, but for those behind `calls=`, which tell once more what the called function has cost.
fn costs(profile: &str) -> HashMap<&str, u64> {
    let mut costs = HashMap::new();
    let (mut function, mut is_call) = ("", false);
    for line in profile.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            function = name;
        } else if line.starts_with("calls=") {
            is_call = true;
        } else if line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c)) {
            let cost = line
                .split(' ')
                .nth(1)
                .and_then(|cost| cost.parse::<u64>().ok());
            if !std::mem::take(&mut is_call) {
                *costs.entry(function).or_insert(0) += cost.unwrap_or(0);
            }
        }
    }
    costs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_added_up() {
        let profile = "events: Ir\nfn=f\n10 5\n+2 7\ncfn=memcpy\ncalls=3 0\n+1 300\n* 1\nfn=memcpy\n0 300\nfn=f\n3 7\n";
        let counts = per_io(profile, 10.0);
        assert_eq!(
            counts.functions,
            [("memcpy".to_owned(), 30.0), ("f".to_owned(), 2.0)]
        );
        let (copying, rest) = (30.0, 2.0);
        assert_eq!(counts.cost, Cost { copying, rest });
    }
}
