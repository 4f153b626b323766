//! Reservations that outlive a daemon that is killed while it keeps them.

use super::ledger::Rng;
use super::{from_env, writer::end_of_target};
use crate::common::*;
use nvmf_host::nvmf_proto::wire::reservation::{
    ChangePtpl, RegisterAction, RegisterCommand, RegisterData,
};
use nvmf_host::{Error, IoQueue};
use rustix::process::Signal;
use tempfile::TempDir;

/// The host that registers, under a new key each time.
const HOST: [u8; 16] = [7; 16];

fn register(queue: &mut IoQueue, key: u64) -> Result<(), Error> {
    let command = RegisterCommand {
        action: RegisterAction::REPLACE,
        iekey: true,
        cptpl: ChangePtpl::SET,
    };
    let data = RegisterData {
        crkey: 0,
        nrkey: key,
    };
    let status = queue.reservation_register(1, &command, &data)?;
    assert!(status.is_success(), "{status}");
    Ok(())
}

/// The key that is registered, 0 if none is.
fn registered(queue: &mut IoQueue) -> u64 {
    let report = queue.reservation_report(1, 4).unwrap();
    report.registrants.first().map_or(0, |host| host.rkey)
}

#[test]
fn a_key_that_was_acknowledged_is_registered() {
    let seed = from_env("CRASH_SEED", u64::from(std::process::id()));
    eprintln!("CRASH_SEED={seed}");
    let mut rng = Rng(seed);
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let state = dir.path().to_str().unwrap();
    let arguments = ["-n", NQN, "--state-dir", state, "ramdisk:1m"];
    let mut key = 0;
    for _ in 0..from_env("CRASH_ROUNDS", 8) {
        let daemon = Daemon::start(&arguments);
        let mut controller = daemon.connect(|options| options.host_id = HOST);
        let mut queue = io_queue(&mut controller);
        let found = registered(&mut queue);
        // The last that was acknowledged, or the one that was under way.
        assert!(found == key || found == key + 1, "{found} instead of {key}");
        key = found;
        for _ in 0..rng.below(20) {
            key += 1;
            register(&mut queue, key).unwrap();
        }
        // Killed at any moment of the next.
        let pid = rustix::process::Pid::from_child(&daemon.child);
        let spin = rng.below(200_000);
        let killer = std::thread::spawn(move || {
            (0..spin).for_each(|_| std::hint::spin_loop());
            rustix::process::kill_process(pid, Signal::KILL).unwrap();
        });
        loop {
            match register(&mut queue, key + 1) {
                Ok(()) => key += 1,
                Err(error) => {
                    end_of_target(&error);
                    break;
                }
            }
        }
        killer.join().unwrap();
    }
}
