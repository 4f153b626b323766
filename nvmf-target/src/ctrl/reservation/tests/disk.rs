//! A file system that loses what was not synced when the power goes, in every way that it may.

use crate::ctrl::lock;
use crate::ctrl::reservation::store::Files;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Names of files, and what the files hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tree {
    names: BTreeMap<PathBuf, usize>,
    files: Vec<Vec<u8>>,
}

/// What was done, of which some may be lost.
#[derive(Clone, Debug)]
enum Step {
    /// A file got a name and contents.
    Write(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    /// What the file holds is safe.
    SyncFile(usize),
    /// The names are safe.
    SyncDir,
}

impl Tree {
    fn take(&mut self, step: &Step) {
        match step {
            Step::Write(path, file) => {
                self.names.insert(path.clone(), *file);
            }
            Step::Rename(from, to) => {
                if let Some(file) = self.names.remove(from) {
                    self.names.insert(to.clone(), file);
                }
            }
            Step::Remove(path) => {
                self.names.remove(path);
            }
            Step::SyncFile(_) | Step::SyncDir => {}
        }
    }
}

/// How a step fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nothing has happened.
    Refused,
    /// It has happened all the same.
    Done,
}

#[derive(Clone, Debug, Default)]
struct Inner {
    /// What is safe whatever happens.
    safe: Tree,
    /// What is there while there is power.
    now: Tree,
    steps: Vec<Step>,
    /// Steps to go before one fails.
    fails: Option<(usize, Failure)>,
    /// Says that it has synced, and has not.
    lies: bool,
    read_only: bool,
}

/// A disk with one directory on it. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk(Arc<Mutex<Inner>>);

impl Disk {
    /// One that holds this, and nothing else is under way.
    pub(super) fn of(tree: Tree) -> Self {
        let inner = Inner {
            safe: tree.clone(),
            now: tree,
            ..Inner::default()
        };
        Self(Arc::new(Mutex::new(inner)))
    }

    pub(super) fn be_read_only(&self) {
        lock(&self.0).read_only = true;
    }

    pub(super) fn lie(&self) {
        lock(&self.0).lies = true;
    }

    /// After so many steps, one fails.
    pub(super) fn fail(&self, steps: usize, how: Failure) {
        lock(&self.0).fails = Some((steps, how));
    }

    /// Whether the failure that was asked for is still to come.
    pub(super) fn is_to_fail(&self) -> bool {
        lock(&self.0).fails.is_some()
    }

    pub(super) fn steps(&self) -> usize {
        lock(&self.0).steps.len()
    }

    /// Everything that may be found if the power was lost after so many steps.
    pub(super) fn after_cut(&self, steps: usize) -> Vec<Tree> {
        let inner = lock(&self.0);
        let mut safe = inner.safe.clone();
        safe.files = inner.now.files.clone();
        let (mut names, mut contents) = (Vec::new(), BTreeSet::new());
        for step in &inner.steps[..steps] {
            match step {
                Step::SyncDir => names.drain(..).for_each(|step| safe.take(step)),
                Step::SyncFile(file) => {
                    contents.remove(file);
                }
                Step::Write(_, file) => {
                    contents.insert(*file);
                    names.push(step);
                }
                Step::Rename(..) | Step::Remove(_) => names.push(step),
            }
        }
        let mut found = Vec::new();
        for which in 0..1_u32 << names.len() {
            let mut tree = safe.clone();
            for (bit, step) in names.iter().enumerate() {
                if which >> bit & 1 == 1 {
                    tree.take(step);
                }
            }
            let named: BTreeSet<usize> = tree.names.values().copied().collect();
            let mut trees = vec![tree];
            for &file in contents.intersection(&named) {
                trees = trees.iter().flat_map(|tree| torn(tree, file)).collect();
            }
            found.extend(trees);
        }
        found
    }

    fn step(&self, step: Step) -> io::Result<()> {
        let mut inner = lock(&self.0);
        let failure = match &mut inner.fails {
            Some((0, how)) => Some(*how),
            Some((left, _)) => {
                *left -= 1;
                None
            }
            None => None,
        };
        if failure.is_some() {
            inner.fails = None;
        }
        let is_sync = matches!(step, Step::SyncFile(_) | Step::SyncDir);
        if failure != Some(Failure::Refused) && !(is_sync && inner.lies) {
            inner.now.take(&step);
            inner.steps.push(step);
        }
        match failure {
            Some(_) => Err(io::ErrorKind::Other.into()),
            None => Ok(()),
        }
    }

    fn file(&self, path: &Path) -> io::Result<usize> {
        let found = lock(&self.0).now.names.get(path).copied();
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// The tree with every part of a file, and with zeroes for the rest of it.
fn torn(tree: &Tree, file: usize) -> Vec<Tree> {
    let len = tree.files[file].len();
    let mut trees = vec![tree.clone()];
    for cut in 0..len {
        let (mut short, mut zeroed) = (tree.clone(), tree.clone());
        short.files[file].truncate(cut);
        zeroed.files[file][cut..].fill(0);
        trees.extend([short, zeroed]);
    }
    trees
}

impl Files for Disk {
    fn make_dir(&self, _: &Path) -> io::Result<bool> {
        Ok(false)
    }

    fn is_writable(&self, _: &Path) -> io::Result<()> {
        match lock(&self.0).read_only {
            true => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            false => Ok(()),
        }
    }

    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        let file = self.file(path).ok();
        Ok(file.map(|file| lock(&self.0).now.files[file].clone()))
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let file = {
            let files = &mut lock(&self.0).now.files;
            files.push(bytes.to_vec());
            files.len() - 1
        };
        self.step(Step::Write(path.to_owned(), file))
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        match self.file(path) {
            Ok(file) => self.step(Step::SyncFile(file)),
            Err(_) => self.step(Step::SyncDir),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.file(from)?;
        self.step(Step::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.file(path)?;
        self.step(Step::Remove(path.to_owned()))
    }

    fn exists(&self, path: &Path) -> bool {
        self.file(path).is_ok()
    }
}
