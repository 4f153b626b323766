//! The bodies of the fuzz targets, as functions of the input.
//!
//! `fuzz_targets/` makes a libFuzzer program of each and `tests/replay.rs` a plain test, which runs
//! the corpus and mutations of it without any tool. `smoke.sh` runs what a machine has tools for.
//!
//! * [`rx`]: a host's byte stream and a list of cuts, into the target's machine.
//! * [`ops`]: calls to the target's machine in any order, with PDUs that are mostly right.
//! * [`host_rx`]: a target's byte stream and a list of cuts, into the host's machine.
//! * [`connect`]: Connect, commands before their time, and the discovery log.
//! * [`config`]: what an embedder configures.
//! * [`target`]: commands of every kind against a whole target, judged by the host.
//! * [`wire`]: what is decoded, encoded and decoded again is the same.

pub mod config;
pub mod connect;
pub mod device;
pub mod host_rx;
pub mod list;
pub mod ops;
pub mod play;
pub mod rig;
pub mod rx;
pub mod target;
pub mod wire;

/// Runs one input of the target of this name; `false` if there is none.
///
/// # Panics
///
/// On a finding.
pub fn run(target: &str, data: &[u8]) -> bool {
    match target {
        "rx" => rx::run(data),
        "ops" => ops::run_bytes(data),
        "host_rx" => host_rx::run(data),
        "target" => target::run_bytes(data),
        "config" => config::run_bytes(data),
        "connect" => connect::run_bytes(data),
        "wire" => wire::run(data),
        _ => return false,
    }
    true
}
