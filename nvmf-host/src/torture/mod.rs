//! A catalogue of hosts that break the rules, to be played against any NVMe/TCP target.
//!
//! Each case gets to where it begins as a good host would, tells its lie, and notes what the target
//! answers; what the specifications demand is part of the case. After each case a fresh connection
//! does I/O whose data is verified, while the connections of the case are still there: a hostile
//! host may cost itself everything and others nothing.
//!
//! Nothing is written unless [`Options::scratch`] names blocks that may be; then a case that gets a
//! write past the target is noticed by the data. No case sends a command that a target could take
//! for a format, a sanitize, a change of firmware, of namespaces or of reservations. The program
//! `nvmf-torture` is this module with a command line.
//!
//! ```no_run
//! use nvmf_host::torture::{Options, Torture, Verdict};
//!
//! # fn main() -> Result<(), nvmf_host::Error> {
//! let mut options = Options::new(([127, 0, 0, 1], 4420).into());
//! options.only = Some("icreq".to_owned());
//! for outcome in Torture::begin(&options)? {
//!     println!("{} {}: {}", outcome.verdict, outcome.case.name, outcome.answer);
//!     assert_ne!(outcome.verdict, Verdict::Harmed);
//! }
//! # Ok(())
//! # }
//! ```

mod answer;
mod catalogue;
mod scene;
mod upkeep;

pub use answer::Verdict;

use crate::error::Error;
use answer::{Want, judge};
use catalogue::Case;
use nvmf_proto::wire::nqn::Nqn;
use scene::{Facts, Scene, Setback};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;
use upkeep::Upkeep;

/// Blocks that [`Options::scratch`] has at least.
pub const SCRATCH_MIN: u64 = 64;

/// What to play against whom.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Where the target listens.
    pub address: SocketAddr,
    /// NQN of the subsystem; by default the first that the discovery service at the address names.
    pub subsystem: Option<Nqn>,
    /// NQN of this host, for targets that want a certain one; by default a random one.
    pub host: Option<Nqn>,
    /// The namespace; by default the first active one.
    pub nsid: Option<u32>,
    /// Logical blocks that may be overwritten, [`SCRATCH_MIN`] or more; by default none, and cases
    /// that write are skipped.
    pub scratch: Option<Range<u64>>,
    /// Only cases in whose name this text is.
    pub only: Option<String>,
    /// Only cases that are about this scenario of docs/reliability.md.
    pub scenario: Option<u8>,
    /// Also cases that wait for deadlines of the target, minutes in all.
    pub slow: bool,
    /// How long an answer may take before it counts as silence; default 2 s.
    pub patience: Duration,
}

impl Options {
    /// Everything by default, for a target at an address.
    #[must_use]
    pub const fn new(address: SocketAddr) -> Self {
        Self {
            address,
            subsystem: None,
            host: None,
            nsid: None,
            scratch: None,
            only: None,
            scenario: None,
            slow: false,
            patience: Duration::from_secs(2),
        }
    }

    fn wants(&self, case: &Case) -> bool {
        let named = |text: &String| case.name.contains(text.as_str());
        let about = |scenario| case.scenarios.contains(&scenario);
        (self.slow || !case.is_slow())
            && self.only.as_ref().is_none_or(named)
            && self.scenario.is_none_or(about)
    }
}

/// A case in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseInfo {
    /// Place in the catalogue, from 1. It is the same whatever cases are chosen.
    pub number: usize,
    /// Group and name, of lower case letters, digits, `-` and one `/`.
    pub name: &'static str,
    /// What is sent.
    pub sends: &'static str,
    /// What the specifications demand, or what can be lived with.
    pub demands: String,
    /// Document and topic that demand it.
    pub source: &'static str,
    /// Numbers of the scenarios in docs/reliability.md that it is about.
    pub scenarios: &'static [u8],
}

impl CaseInfo {
    fn new(number: usize, case: &Case) -> Self {
        let list = |wants: &[Want]| {
            let words: Vec<_> = wants.iter().map(ToString::to_string).collect();
            words.join(", or ")
        };
        let mut demands = match case.rule {
            "" => list(case.conforms),
            rule => rule.to_owned(),
        };
        if !case.tolerates.is_empty() {
            demands += &format!("; tolerable: {}", list(case.tolerates));
        }
        Self {
            number,
            name: case.name,
            sends: case.sends,
            demands,
            source: case.source,
            scenarios: case.scenarios,
        }
    }
}

/// All cases of the catalogue, the slow ones included, in their order.
#[must_use]
pub fn cases() -> Vec<CaseInfo> {
    catalogue::all()
        .enumerate()
        .map(|(at, case)| CaseInfo::new(at + 1, case))
        .collect()
}

/// What became of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The case.
    pub case: CaseInfo,
    /// What the target answered, or why it was not asked.
    pub answer: String,
    /// What that is worth.
    pub verdict: Verdict,
}

/// A run of the catalogue: an iterator over its outcomes, each of which is played when it is asked
/// for. Dropping it early is safe. It ends early if the target is gone.
#[derive(Debug)]
pub struct Torture {
    facts: Facts,
    upkeep: Upkeep,
    left: std::vec::IntoIter<(usize, &'static Case)>,
    is_gone: bool,
}

impl Torture {
    /// Finds out what there is to know of the target, and whether it serves at all.
    ///
    /// # Errors
    ///
    /// The target does not do what is asked of it by a good host, or the options do not fit it.
    pub fn begin(options: &Options) -> Result<Self, Error> {
        let (facts, upkeep) = upkeep::begin(options)?;
        let chosen: Vec<_> = catalogue::all()
            .enumerate()
            .filter(|(_, case)| options.wants(case))
            .collect();
        Ok(Self {
            facts,
            upkeep,
            left: chosen.into_iter(),
            is_gone: false,
        })
    }

    fn play(&mut self, number: usize, case: &'static Case) -> Outcome {
        let outcome = |answer, verdict| Outcome {
            case: CaseInfo::new(number, case),
            answer,
            verdict,
        };
        if case.writes() && !self.facts.may_write {
            return outcome("needs blocks to write".to_owned(), Verdict::Skipped);
        }
        if case.writes() && u64::from(self.facts.owed_blocks()) > SCRATCH_MIN {
            return outcome("in-capsule data is too large".to_owned(), Verdict::Skipped);
        }
        let mut scene = Scene::set(&self.facts, case.at);
        let played = match &mut scene {
            Ok(scene) => case.play(scene),
            Err(setback) => Err(setback.clone()),
        };
        let mut overwrites = case.overwrites();
        let (answer, verdict) = match played {
            Ok(answer) => {
                // That it was believed is bad enough; that it was carried out then is no surprise.
                overwrites |= case.writes() && Want::Success.is_met(&answer);
                let verdict = judge(&answer, case.conforms, case.tolerates);
                (answer.to_string(), verdict)
            }
            Err(Setback::NotOffered(what)) => (format!("no {what}"), Verdict::Skipped),
            Err(Setback::Failed(why)) => (format!("not tried: {why}"), Verdict::Violates),
        };
        match self.upkeep.verified_io(overwrites) {
            Ok(()) => outcome(answer, verdict),
            Err(why) => {
                // Once more without the case's connections: a target that is only held up is not
                // gone.
                drop(scene);
                self.is_gone = self.upkeep.verified_io(true).is_err();
                outcome(format!("{answer}; then: {why}"), Verdict::Harmed)
            }
        }
    }
}

impl Iterator for Torture {
    type Item = Outcome;

    fn next(&mut self) -> Option<Outcome> {
        if self.is_gone {
            return None;
        }
        let (at, case) = self.left.next()?;
        Some(self.play(at + 1, case))
    }
}
