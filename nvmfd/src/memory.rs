//! Gives memory back to the system after many hosts have gone.
//!
//! glibc keeps what is freed, unless it happens to lie at the end of a heap: after a storm of ten
//! thousand connections a daemon without any would go on holding hundreds of MiB.

use nvmf_target::Target;
use std::io;
use std::time::Duration;

/// How often it is looked whether many have gone.
const EVERY: Duration = Duration::from_secs(5);
/// What fewer connections have taken is not worth it.
const MANY: u64 = 128;

/// Starts the thread that looks after it, which lasts as long as the process.
pub(crate) fn start(target: &Target) -> io::Result<()> {
    let target = target.clone();
    let look = move || {
        let mut gone = Gone::default();
        loop {
            std::thread::sleep(EVERY);
            let connections = target.stats().connections as u64;
            if gone.are_many(target.accepted(), connections) {
                trim();
            }
        }
    };
    let thread = std::thread::Builder::new().name("nvmfd-memory".to_owned());
    thread.spawn(look).map(drop)
}

/// Connections that had come and gone when memory was last given back.
#[derive(Debug, Default)]
struct Gone(u64);

impl Gone {
    /// Whether many have gone since then, and more than there are: of `accepted` in all
    /// `connections` are there.
    const fn are_many(&mut self, accepted: u64, connections: u64) -> bool {
        let gone = accepted.saturating_sub(connections);
        let since = gone.saturating_sub(self.0);
        let many = since >= MANY && since >= connections;
        if many {
            self.0 = gone;
        }
        many
    }
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: malloc_trim has no preconditions; it takes the allocator's own locks.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators see to it themselves.
#[cfg(not(target_env = "gnu"))]
const fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_have_gone_when_it_is_more_than_there_are() {
        let mut gone = Gone::default();
        // The connections that were accepted so far, and those that are there.
        let looks = [
            (127, 0, false),
            (128, 0, true),
            (1128, 1000, false),
            (1255, 1000, false),
            (2127, 1000, false),
            (2128, 1000, true),
            (2128, 900, false),
            (2128, 0, true),
            (2128, 0, false),
        ];
        for (accepted, connections, many) in looks {
            assert_eq!(gone.are_many(accepted, connections), many, "{accepted}");
        }
    }
}
