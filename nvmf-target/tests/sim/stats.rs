//! How often which command ended how: shows what the seeds reach (`SIM_STATS=1`).

use nvmf_target::Status;
use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, PoisonError};

static COUNTS: Mutex<BTreeMap<(&'static str, u16), u64>> = Mutex::new(BTreeMap::new());
static WANTED: LazyLock<bool> = LazyLock::new(|| std::env::var_os("SIM_STATS").is_some());

pub fn count(name: &'static str, status: Status) {
    if *WANTED {
        let mut counts = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((name, status.bits() & 0x7ff)).or_default() += 1;
    }
}

pub fn print() {
    let counts = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    for ((name, status), count) in counts.iter() {
        println!("{count:>9} {name}: {}", Status::from_bits(*status).name());
    }
}
