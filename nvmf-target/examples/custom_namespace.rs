//! A custom namespace, served over NVMe/TCP: `cargo run --release --example custom_namespace`,
//! then on a Linux host `nvme connect -t tcp -a 127.0.0.1 -s 4420 -n nqn.2026-11.org.example:disk`.

use nvmf_target::ns::{BlockDevice, Inline, NsError, NsInfo};
use nvmf_target::{SubsystemConfig, Target, TargetConfig};
use std::sync::RwLock;

/// A disk in a vector: 64 MiB in blocks of 512 bytes.
struct VecDisk(RwLock<Vec<u8>>);

impl BlockDevice for VecDisk {
    fn info(&self) -> NsInfo {
        NsInfo::new(512, (64 << 20) / 512)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), NsError> {
        let (at, disk) = (offset as usize, self.0.read().unwrap());
        buf.copy_from_slice(&disk[at..at + buf.len()]);
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8], _fua: bool) -> Result<(), NsError> {
        let (at, mut disk) = (offset as usize, self.0.write().unwrap());
        disk[at..at + buf.len()].copy_from_slice(buf);
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (nqn, disk) = (
        "nqn.2026-11.org.example:disk",
        VecDisk(RwLock::new(vec![0; 64 << 20])),
    );
    let target = Target::new(TargetConfig::default())?;
    target.add_subsystem(SubsystemConfig::new(nqn))?;
    target.add_namespace(nqn, 1, Inline::new(disk))?;
    println!(
        "serving {nqn} on {}",
        target.listen("0.0.0.0:4420".parse()?)?
    );
    loop {
        std::thread::park();
    }
}
