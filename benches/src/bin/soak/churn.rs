//! What an operator does to a daemon at work, by its control channel.

use crate::board::Word;
use crate::daemon::Daemon;
use crate::random::Random;
use crate::run::{Run, lock};
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// NSIDs of RAM disks that come and go.
const PASSING: std::ops::RangeInclusive<u32> = 20..=29;
/// The file of the churned namespace grows up to this.
const SIZE_MAX: u64 = 256 << 20;
/// And by this.
const SIZE_STEP: u64 = 1 << 20;

/// The churned namespace. Its hosts are on no list.
#[derive(Clone, Debug)]
pub(crate) struct Churned {
    pub(crate) nsid: u32,
    pub(crate) file: PathBuf,
    /// NQN of one of its hosts.
    pub(crate) host: String,
}

/// What an operator may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Replace,
    AnaState,
    ReadOnly,
    Hide,
    Forbid,
    Resize,
    Passing,
    Port,
    Referral,
}

const DEEDS: [Deed; 9] = [
    Deed::Replace,
    Deed::AnaState,
    Deed::ReadOnly,
    Deed::Hide,
    Deed::Forbid,
    Deed::Resize,
    Deed::Passing,
    Deed::Port,
    Deed::Referral,
];

impl Deed {
    const fn name(self) -> &'static str {
        match self {
            Self::Replace => "namespace removed and added again",
            Self::AnaState => "ANA state there and back",
            Self::ReadOnly => "namespace read-only and writable again",
            Self::Hide => "namespace hidden and shown again",
            Self::Forbid => "hosts forbidden and allowed again",
            Self::Resize => "namespace grown",
            Self::Passing => "RAM disk added or removed",
            Self::Port => "port closed and opened again",
            Self::Referral => "referral made and taken back",
        }
    }

    /// Whether hosts of the churned namespace see errors.
    const fn disturbs(self) -> bool {
        !matches!(self, Self::Resize | Self::Passing | Self::Referral)
    }
}

/// All deeds by name, to see whether each was done.
pub(crate) fn all() -> impl Iterator<Item = &'static str> {
    DEEDS.iter().map(|deed| deed.name())
}

/// Does one thing and takes it back.
pub(crate) fn disturb(
    run: &Run,
    daemon: &mut Daemon,
    churned: &Churned,
    random: &mut Random,
) -> Result<(), String> {
    // What has not been done yet comes first.
    let fresh = DEEDS.iter().find(|deed| run.counted(deed.name()) == 0);
    let deed = *fresh.unwrap_or_else(|| &DEEDS[random.index(DEEDS.len())]);
    run.board.turn(Word::Notice);
    if deed.disturbs() {
        run.board.turn(Word::Churn);
    }
    let done = carry_out(run, daemon, churned, random, deed);
    // Behind the answer hosts may not yet have heard of it.
    run.sleep(Duration::from_millis(100));
    if deed.disturbs() {
        run.board.turn(Word::Churn);
    }
    run.board.turn(Word::Notice);
    if done.is_ok() {
        run.count(deed.name(), 1);
    }
    done
}

fn carry_out(
    run: &Run,
    daemon: &mut Daemon,
    churned: &Churned,
    random: &mut Random,
    deed: Deed,
) -> Result<(), String> {
    let nsid = churned.nsid;
    match deed {
        Deed::Replace => replace(run, daemon, churned, random)?,
        Deed::AnaState => {
            let states = ["non-optimized", "inaccessible", "persistent-loss", "change"];
            let state = states[random.index(states.len())];
            let at = if random.percent(50) {
                "all".to_owned()
            } else {
                run.place.churned.to_string()
            };
            let back = format!("ana {at} 2 optimized");
            there_and_back(run, daemon, random, &format!("ana {at} 2 {state}"), &[back])?;
        }
        Deed::ReadOnly => {
            let back = format!("read-only {nsid} off");
            there_and_back(
                run,
                daemon,
                random,
                &format!("read-only {nsid} on"),
                &[back],
            )?;
        }
        Deed::Hide => {
            let who = ["none", &churned.host][random.index(2)];
            let back = format!("visible {nsid} all");
            there_and_back(
                run,
                daemon,
                random,
                &format!("visible {nsid} {who}"),
                &[back],
            )?;
        }
        Deed::Forbid => {
            there_and_back(run, daemon, random, "forbid any", &["allow any".to_owned()])?;
        }
        Deed::Port => {
            let port = run.place.churned;
            let back = format!("listen {port}");
            there_and_back(run, daemon, random, &format!("unlisten {port}"), &[back])?;
        }
        Deed::Referral => {
            let back = "unrefer 127.0.0.1:8009".to_owned();
            there_and_back(run, daemon, random, "refer 127.0.0.1:8009", &[back])?;
        }
        Deed::Resize => grow(daemon, churned)?,
        Deed::Passing => {
            let passing = PASSING.start() + u32::try_from(random.below(10)).unwrap_or(0);
            if lock(&run.namespaces).remove(&passing) {
                daemon.tell(&format!("remove {passing}"))?;
            } else {
                daemon.tell(&format!("add {passing} ramdisk:1m"))?;
                lock(&run.namespaces).insert(passing);
            }
        }
    }
    Ok(())
}

fn replace(
    run: &Run,
    daemon: &mut Daemon,
    churned: &Churned,
    random: &mut Random,
) -> Result<(), String> {
    let (nsid, file) = (churned.nsid, churned.file.display());
    let answer = daemon.tell(&format!("remove {nsid}"))?;
    if answer.ends_with("still busy") {
        run.count("files still busy five seconds after their removal", 1);
    }
    run.sleep(Duration::from_millis(random.within(0, 2000)));
    add_again(run, daemon, &format!("add {nsid} {file}"))?;
    daemon.tell(&format!("group {nsid} 2"))?;
    Ok(())
}

fn grow(daemon: &mut Daemon, churned: &Churned) -> Result<(), String> {
    let grown = File::options().write(true).open(&churned.file);
    let grown = grown.and_then(|file| {
        let size = (file.metadata()?.len() + SIZE_STEP).min(SIZE_MAX);
        file.set_len(size)
    });
    grown.map_err(|err| format!("{}: {err}", churned.file.display()))?;
    daemon.tell(&format!("resize {}", churned.nsid))?;
    Ok(())
}

/// A disk that is slow lets go of a file late.
fn add_again(run: &Run, daemon: &mut Daemon, line: &str) -> Result<(), String> {
    let deadline = Instant::now() + run.slow * 3;
    loop {
        match daemon.tell(line) {
            Err(why) if Instant::now() > deadline || !why.contains("is in use") => return Err(why),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
            Ok(_) => return Ok(()),
        }
    }
}

fn there_and_back(
    run: &Run,
    daemon: &mut Daemon,
    random: &mut Random,
    there: &str,
    back: &[String],
) -> Result<(), String> {
    daemon.tell(there)?;
    run.sleep(Duration::from_millis(random.within(0, 2000)));
    for line in back {
        daemon.tell(line)?;
    }
    Ok(())
}
