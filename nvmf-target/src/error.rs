//! What can go wrong on this side of the wire.

use std::io;

/// An error of the target itself: configuration, or the operating system.
///
/// What a peer does wrong never becomes one of these; see [`nvmf_proto::tcp::Violation`] and
/// [`nvmf_proto::wire::Status`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value that cannot be accepted; the text names it and what would be.
    #[error("{0}")]
    Config(String),
    /// Something of that name or number is not there.
    #[error("{0}")]
    NotFound(String),
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted, on what.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// One of several changes is refused, so that none was made.
    #[error("change {index}, {what}: {source}")]
    Change {
        /// Which one: its index.
        index: usize,
        /// What it was to do.
        what: String,
        /// Why it is refused.
        source: Box<Self>,
    },
    /// The target has been shut down.
    #[error("the target is shut down")]
    ShutDown,
}

impl Error {
    /// A configuration error with its text.
    #[must_use]
    pub const fn config(text: String) -> Self {
        Self::Config(text)
    }

    /// An I/O error with what was attempted.
    pub fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            what: what.into(),
            source: source.into(),
        }
    }
}
