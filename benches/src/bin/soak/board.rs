//! What the processes of a run tell each other: a few numbers in a file, which outlives whoever is
//! killed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Numbers on the board. A generation is odd while what it is about is going on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Word {
    /// Generation of the daemon; odd: it is down, or being ended.
    Run,
    /// Generation of what hosts of the churned namespace may notice as errors.
    Churn,
    /// Generation of what hosts may notice in any way, as by events.
    Notice,
    /// Not 0: all hosts are to leave.
    Pause,
    /// Not 0: the run is over.
    Stop,
}

/// How many there are.
const WORDS: u64 = 5;

/// The board.
#[derive(Debug)]
pub(crate) struct Board(File);

/// What was under way at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) run: u64,
    pub(crate) churn: u64,
    pub(crate) notice: u64,
}

impl Board {
    /// A new one, all zero.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        file.set_len(WORDS * 8)?;
        Ok(Self(file))
    }

    /// The one that another process has made.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// # Panics
    ///
    /// The file cannot be read: there is nothing left to do then.
    pub(crate) fn get(&self, word: Word) -> u64 {
        let mut bytes = [0; 8];
        self.0
            .read_exact_at(&mut bytes, word as u64 * 8)
            .expect("the board can be read");
        u64::from_le_bytes(bytes)
    }

    /// # Panics
    ///
    /// As [`Board::get`].
    pub(crate) fn set(&self, word: Word, value: u64) {
        self.0
            .write_all_at(&value.to_le_bytes(), word as u64 * 8)
            .expect("the board can be written");
    }

    /// Begins or ends what a generation is about.
    pub(crate) fn turn(&self, word: Word) {
        self.set(word, self.get(word) + 1);
    }

    pub(crate) fn is_set(&self, word: Word) -> bool {
        self.get(word) != 0
    }

    pub(crate) fn moment(&self) -> Moment {
        Moment {
            run: self.get(Word::Run),
            churn: self.get(Word::Churn),
            notice: self.get(Word::Notice),
        }
    }
}

impl Moment {
    /// Whether the daemon has been up since `earlier`.
    pub(crate) const fn same_run(self, earlier: Self) -> bool {
        self.run == earlier.run && self.run.is_multiple_of(2)
    }

    /// Whether nothing has been going on since `earlier` that hosts of the churned namespace may
    /// notice as errors.
    pub(crate) const fn is_undisturbed_since(self, earlier: Self) -> bool {
        self.same_run(earlier) && self.churn == earlier.churn && self.churn.is_multiple_of(2)
    }

    /// Whether nothing has been going on since `earlier` that a host may notice in any way.
    pub(crate) const fn is_calm_since(self, earlier: Self) -> bool {
        self.is_undisturbed_since(earlier)
            && self.notice == earlier.notice
            && self.notice.is_multiple_of(2)
    }
}
