//! Which contents each sector of a device may have: the model of its data.
//!
//! Every write that may have reached a sector is a version of it. A read may return a version if
//! no other write that had been acknowledged before the read began came entirely after it. That is
//! all that NVMe promises of commands that overlap in time, and for commands that do not it leaves
//! exactly the last acknowledged write.

use crate::content::{self, BAD, SECTOR, Tag};

const NEVER: u64 = u64::MAX;
/// Versions of a sector at which it is tidied.
const MANY: usize = 6;
/// Writes behind it stand for marks being forgotten: what was beneath them is there again.
const FORGETTING: u32 = u32::MAX >> 1;

/// One write's content of one sector.
#[derive(Clone, Copy, Debug)]
struct Version {
    tag: Tag,
    write: u32,
    start: u64,
    /// From here on it cannot take effect any more.
    end: u64,
    /// Writes that begin later come after it.
    before: u64,
    /// Reads that begin later do not see it.
    dead: u64,
    /// It has taken effect, as its host was told or a read has shown.
    sure: bool,
}

#[derive(Clone, Debug)]
struct Sector {
    /// When the zeroes of the beginning were overwritten.
    blank_until: u64,
    versions: Vec<Version>,
    /// What was there when it was marked, and is still there behind the mark.
    beneath: Vec<Tag>,
}

/// What a write puts where it goes.
#[derive(Clone, Debug)]
pub enum Content {
    /// Its own tag.
    Data,
    Zeroes,
    /// The mark of Write Uncorrectable.
    Mark,
    /// For each sector the one that it is copied from.
    CopyOf(Vec<u64>),
}

/// A write that is not known to have ended.
#[derive(Clone, Debug)]
struct Open {
    write: u32,
    start: u64,
    sectors: Vec<u64>,
    content: Content,
}

/// The contents that a device may have.
#[derive(Debug)]
pub struct Versions {
    sectors: Vec<Sector>,
    open: Vec<Open>,
    /// No command that is under way began before.
    pub oldest: u64,
    /// When marks may have been forgotten last.
    forgotten: u64,
    /// The last of the writes that stand for that.
    forgetting: u32,
}

impl Versions {
    /// A device of zeroes.
    pub fn new(sectors: u64) -> Self {
        let blank = Sector {
            blank_until: NEVER,
            versions: Vec::new(),
            beneath: Vec::new(),
        };
        Self {
            sectors: vec![blank; sectors as usize],
            open: Vec::new(),
            oldest: 0,
            forgotten: 0,
            forgetting: FORGETTING,
        }
    }

    /// A write is on its way to the target.
    pub fn begin(&mut self, write: u32, start: u64, sectors: Vec<u64>, content: Content) {
        for (index, &sector) in sectors.iter().enumerate() {
            match &content {
                Content::Data => self.add(sector, content::tag(write, sector), write, start),
                Content::Zeroes => self.add(sector, 0, write, start),
                Content::Mark => self.add(sector, BAD, write, start),
                Content::CopyOf(from) => {
                    let may = self.possible(from[index], start);
                    for tag in may.into_iter().filter(|tag| *tag != BAD) {
                        self.add(sector, tag, write, start);
                    }
                }
            }
        }
        self.open.push(Open {
            write,
            start,
            sectors,
            content,
        });
    }

    fn add(&mut self, sector: u64, tag: Tag, write: u32, start: u64) {
        let Some(entry) = self.sectors.get_mut(sector as usize) else {
            return;
        };
        let known = |v: &Version| v.write == write && v.tag == tag;
        if entry.versions.iter().any(known) {
            return;
        }
        if entry.versions.len() >= MANY {
            let oldest = self.oldest;
            entry
                .versions
                .retain(|v| v.dead == NEVER || v.dead > oldest);
        }
        entry.versions.push(Version {
            tag,
            write,
            start,
            end: NEVER,
            before: NEVER,
            dead: NEVER,
            sure: false,
        });
        if tag == BAD {
            return;
        }
        // What is being copied from here may be this.
        let copies: Vec<_> = self
            .open
            .iter()
            .filter_map(|open| match &open.content {
                Content::CopyOf(from) if open.write != write => {
                    let at = from.iter().position(|&from| from == sector)?;
                    Some((open.sectors[at], open.write, open.start))
                }
                _ => None,
            })
            .collect();
        for (to, write, start) in copies {
            self.add(to, tag, write, start);
        }
    }

    fn close(&mut self, write: u32) -> Option<Open> {
        let at = self.open.iter().position(|open| open.write == write)?;
        Some(self.open.swap_remove(at))
    }

    /// The write was acknowledged: what was there before is gone. `hint`: or not.
    pub fn acknowledge(&mut self, write: u32, now: u64, hint: bool) {
        let Some(open) = self.close(write) else {
            return;
        };
        let hint = hint || (matches!(open.content, Content::Mark) && open.start < self.forgotten);
        for sector in open.sectors {
            let Some(entry) = self.sectors.get_mut(sector as usize) else {
                continue;
            };
            entry.end(write, now);
            if !hint {
                entry.confirm(write);
                entry.bury(write, open.start, now);
            }
        }
    }

    /// The write failed or was lost, and cannot take effect any more. It may have, everywhere or
    /// somewhere.
    pub fn fail(&mut self, write: u32, now: u64) {
        let Some(open) = self.close(write) else {
            return;
        };
        for sector in open.sectors {
            if let Some(entry) = self.sectors.get_mut(sector as usize) {
                entry.end(write, now);
            }
        }
    }

    /// The write was refused: nothing of it may ever be seen.
    pub fn refuse(&mut self, write: u32) {
        let Some(open) = self.close(write) else {
            return;
        };
        for sector in open.sectors {
            if let Some(entry) = self.sectors.get_mut(sector as usize) {
                entry.versions.retain(|v| v.write != write);
            }
        }
    }

    /// Nobody serves the device, or nobody has for a while: its marks may be forgotten.
    pub fn forget_marks(&mut self, now: u64) {
        self.forgotten = now;
        self.forgetting += 1;
        for entry in &mut self.sectors {
            if !entry.is_marked() {
                continue;
            }
            let is_back = |v: &&Version| v.write > FORGETTING && v.dead == NEVER;
            let back = entry.versions.iter().filter(is_back).map(|v| v.tag);
            let back: Vec<Tag> = back.collect();
            for &tag in entry.beneath.iter().filter(|tag| !back.contains(tag)) {
                entry.versions.push(Version {
                    tag,
                    write: self.forgetting,
                    start: now,
                    end: now,
                    before: now,
                    dead: NEVER,
                    sure: false,
                });
            }
        }
    }

    /// Whether a read that began at `start` may have found a sector marked.
    pub fn may_be_marked(&self, sector: u64, start: u64) -> bool {
        self.may_hold(sector, BAD, start)
    }

    /// Whether it may have found it without a mark.
    pub fn may_be_unmarked(&self, sector: u64, start: u64) -> bool {
        self.possible(sector, start).iter().any(|tag| *tag != BAD)
    }

    /// What a read that began at `start` may return, or the mark that it may meet.
    pub fn possible(&self, sector: u64, start: u64) -> Vec<Tag> {
        let Some(entry) = self.sectors.get(sector as usize) else {
            return Vec::new();
        };
        let blank = (entry.blank_until > start).then_some(0);
        let live = entry.versions.iter().filter(|v| v.dead > start);
        blank.into_iter().chain(live.map(|v| v.tag)).collect()
    }

    /// A read that began at `start` has returned this; an error says what is wrong.
    pub fn check(&mut self, first: u64, data: &[u8], start: u64, now: u64) -> Result<(), String> {
        for (sector, bytes) in (first..).zip(data.chunks_exact(SECTOR)) {
            let found = content::read(bytes);
            let Some(tag) = found.filter(|&tag| self.may_hold(sector, tag, start)) else {
                let may: Vec<_> = self
                    .possible(sector, start)
                    .into_iter()
                    .map(|tag| content::show(Some(tag)))
                    .collect();
                return Err(format!(
                    "sector {sector} holds {}; it may hold {}",
                    content::show(found),
                    may.join(", ")
                ));
            };
            self.observe(sector, tag, start, now);
        }
        Ok(())
    }

    /// Whether a read that began at `start` may return this.
    pub fn may_hold(&self, sector: u64, tag: Tag, start: u64) -> bool {
        let Some(entry) = self.sectors.get(sector as usize) else {
            return false;
        };
        let blank = tag == 0 && entry.blank_until > start;
        blank
            || entry
                .versions
                .iter()
                .any(|v| v.tag == tag && v.dead > start)
    }

    /// What was read is there: if only one write can have put it there, that one has taken effect
    /// here, and what came before it is gone.
    fn observe(&mut self, sector: u64, tag: Tag, start: u64, now: u64) {
        let entry = &mut self.sectors[sector as usize];
        let live = |v: &&Version| v.tag == tag && v.dead > start;
        let mut by = entry.versions.iter().filter(live);
        let blank = tag == 0 && entry.blank_until > start;
        if let (Some(&version), None, false) = (by.next(), by.next(), blank) {
            // A copy has put one thing here, not the others that it might have.
            entry
                .versions
                .retain(|v| v.write != version.write || v.tag == tag);
            entry.end(version.write, now);
            entry.confirm(version.write);
            entry.bury(version.write, version.start, now);
        }
    }

    /// A fused pair, which is acknowledged, has found `tag` and put its own data there. As nothing
    /// came between, every write that began after `tag` was there came after the pair, too.
    pub fn replaced(&mut self, sector: u64, tag: Tag, write: u32, now: u64) {
        let Some(entry) = self.sectors.get_mut(sector as usize) else {
            return;
        };
        let mut found = entry.versions.iter().filter(|v| v.tag == tag);
        let (Some(there), None) = (found.next().map(|v| v.end), found.next()) else {
            return;
        };
        let later = |v: &Version| v.write != write && v.sure && v.start > there;
        let over = entry.versions.iter().any(later);
        for version in entry.versions.iter_mut().filter(|v| v.write == write) {
            version.before = version.before.min(there);
            if over {
                version.dead = version.dead.min(now);
            }
        }
    }
}

impl Sector {
    fn end(&mut self, write: u32, now: u64) {
        for version in &mut self.versions {
            if version.write == write {
                version.end = version.end.min(now);
                version.before = version.before.min(now);
            }
        }
    }

    fn confirm(&mut self, write: u32) {
        for version in &mut self.versions {
            version.sure |= version.write == write;
        }
    }

    /// Everything that came before `start`, when `write` began, is overwritten by now.
    fn bury(&mut self, write: u32, start: u64, now: u64) {
        let marks = |v: &Version| v.write == write && v.tag == BAD;
        let marks = self.versions.iter().any(marks);
        if marks && self.blank_until == NEVER {
            self.beneath.push(0);
        }
        self.blank_until = self.blank_until.min(now);
        for version in &mut self.versions {
            if version.before < start && version.write != write {
                if marks && version.dead == NEVER && version.tag != BAD {
                    self.beneath.push(version.tag);
                }
                version.dead = version.dead.min(now);
            }
        }
        if !self.is_marked() {
            self.beneath.clear();
        }
    }

    /// Whether it may be marked.
    fn is_marked(&self) -> bool {
        let mark = |v: &Version| v.tag == BAD && v.dead == NEVER;
        self.versions.iter().any(mark)
    }
}
