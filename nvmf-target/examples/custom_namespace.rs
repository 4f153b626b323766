//! A custom namespace over NVMe/TCP: `cargo run --release -p nvmf-target --example custom_namespace`,
//! then on a Linux host `nvme connect -t tcp -a 127.0.0.1 -s 4420 -n nqn.2026-11.org.example:disk`.
use nvmf_target::ns::{BlockDevice, Inline, NsError, NsInfo};
use nvmf_target::{SubsystemConfig, Target, TargetConfig};
use std::{collections::HashMap, error::Error, sync::RwLock};

/// A sparse disk of 64 MiB: the blocks that were written, by their number.
#[derive(Default)]
struct MapDisk(RwLock<HashMap<u64, [u8; 512]>>);

impl BlockDevice for MapDisk {
    fn info(&self) -> NsInfo {
        NsInfo::new(512, (64 << 20) / 512)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), NsError> {
        let disk = self.0.read().unwrap();
        for (lba, block) in (offset / 512..).zip(buf.chunks_exact_mut(512)) {
            block.copy_from_slice(disk.get(&lba).unwrap_or(&[0; 512]));
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8], _fua: bool) -> Result<(), NsError> {
        let blocks = (offset / 512..).zip(buf.chunks_exact(512));
        let blocks = blocks.map(|(lba, block)| (lba, block.try_into().unwrap()));
        self.0.write().unwrap().extend(blocks);
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let (nqn, address) = ("nqn.2026-11.org.example:disk", "0.0.0.0:4420".parse()?);
    let target = Target::new(TargetConfig::default())?;
    target.add_subsystem(SubsystemConfig::new(nqn))?;
    target.add_namespace(nqn, 1, Inline::new(MapDisk::default()))?;
    println!("serving {nqn} on {}", target.listen(address)?);
    target.wait();
    Ok(())
}
