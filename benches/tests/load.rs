//! The load generator against a target in this process.

use nvmf_benches::load::{Error, Load, LoadOptions};
use nvmf_benches::report::{Report, Window};
use nvmf_target::ns::{BlockDevice, Inline, NsError, NsInfo, RamDisk};
use nvmf_target::{SubsystemConfig, Target, TargetConfig};
use std::time::Duration;

const NQN: &str = "nqn.2026-11.org.example:load";
const BYTES: u64 = 4 << 20;

/// Keeps 8 I/Os of 4 KiB outstanding on each of three connections in two threads.
fn load(device: impl BlockDevice) -> Result<Report, Error> {
    let target = Target::new(TargetConfig::default())?;
    target.add_subsystem(SubsystemConfig::new(NQN))?;
    target.add_namespace(NQN, 1, Inline::new(device))?;
    let address = target.listen("127.0.0.1:0".parse()?)?;
    let window = Window {
        warm_up: Duration::ZERO,
        measured: Duration::from_millis(100),
        pid: Some(std::process::id()),
    };
    let mut load = Load::connect(LoadOptions {
        subsystem: Some(NQN.to_owned()),
        read_percent: 50,
        depth: 8,
        connections: 3,
        threads: 2,
        fill: true,
        verify: true,
        data_digest: true,
        ..LoadOptions::new(address, window)
    })?;
    let report = load.run()?;
    load.disconnect()?;
    Ok(report)
}

#[test]
fn what_was_written_is_read() {
    let report = load(RamDisk::new(BYTES, 4096).unwrap()).unwrap();
    assert_eq!(report.bytes, report.latency.count() * 4096);
}

/// Loses the last byte of every block.
struct Forgetful(RamDisk);

impl BlockDevice for Forgetful {
    fn info(&self) -> NsInfo {
        self.0.info()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), NsError> {
        self.0.read_at(offset, buf)?;
        for block in buf.chunks_mut(4096) {
            block[4095] = 0xee;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8], fua: bool) -> Result<(), NsError> {
        self.0.write_at(offset, buf, fua)
    }
}

#[test]
fn what_was_not_written_is_told() {
    let disk = Forgetful(RamDisk::new(BYTES, 4096).unwrap());
    let error = load(disk).unwrap_err().to_string();
    assert!(error.starts_with("wrong data: read at LBA"), "{error}");
    assert!(error.contains("byte 4088 of 4096"), "{error}");
}
