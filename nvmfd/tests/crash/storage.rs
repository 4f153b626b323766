//! What a daemon serves, and what stays when it is gone.

use std::fmt;
use std::process::Command;
use tempfile::NamedTempFile;

/// A file, or a loop device over one, which is detached when dropped.
pub(super) struct Storage {
    file: NamedTempFile,
    node: Option<String>,
}

impl Storage {
    /// A file of zeroes. Not in the temporary folder, which may be in memory and without direct I/O.
    pub(super) fn file(bytes: u64) -> Self {
        let file = NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        file.as_file().set_len(bytes).unwrap();
        Self { file, node: None }
    }

    /// A block device of zeroes; `None` without the privilege or the tool.
    pub(super) fn device(bytes: u64, block_size: u64) -> Option<Self> {
        let mut storage = Self::file(bytes);
        let output = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", &block_size.to_string()])
            .arg(storage.file.path())
            .output()
            .ok()?;
        let node = String::from_utf8(output.stdout).ok()?;
        storage.node = output.status.success().then(|| node.trim().to_owned());
        storage.node.is_some().then_some(storage)
    }

    /// How often the kernel has flushed the device's cache (Documentation/block/stat.rst); `None`
    /// if it is a file.
    pub(super) fn flushes(&self) -> Option<u64> {
        let name = self.node.as_ref()?.strip_prefix("/dev/")?;
        let text = std::fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
        let count = text.split_whitespace().nth(15);
        Some(count.unwrap().parse().unwrap())
    }

    pub(super) fn path(&self) -> &str {
        match &self.node {
            Some(node) => node,
            None => self.file.path().to_str().unwrap(),
        }
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.node.is_some() {
            "block device"
        } else {
            "file"
        })
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if let Some(node) = &self.node {
            let _ = Command::new("losetup").args(["--detach", node]).status();
        }
    }
}
