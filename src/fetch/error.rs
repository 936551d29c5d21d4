//! What went wrong while bytes were on their way, and whether trying again can help.

use std::time::Duration;

/// A `Result` of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// The kinds that callers decide by: retry, exit code, errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Credentials are missing or refused (401, 403).
    Authentication,
    /// The source does not have it (404).
    NotFound,
    /// Temporary trouble on the way: connection, reset, cut body, 5xx, 429, 408.
    Network,
    /// No byte arrived until the deadline.
    DeadlinePassed,
    /// Bytes arrived and are not what their digest says.
    DigestMismatch,
    /// The peer does not speak the protocol: a wrong Content-Range, a redirect loop.
    Protocol,
    /// A reference, manifest, layout or index that cannot be used.
    Invalid,
    /// Not local, and `--offline` forbids asking.
    Offline,
    /// The kernel refuses the mount: no /dev/fuse, no privilege, no overlay.
    CannotMount,
    /// Somebody still uses it.
    Busy,
    /// The command line asks for something that cannot be meant.
    Usage,
    /// A local file could not be read or written.
    Local,
}

/// An error with the words that a user needs: what, where, expected and got.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What to decide by.
    pub kind: ErrorKind,
    /// One line, lower case, no full stop; never a credential.
    pub message: String,
    /// What the server asked us to wait (Retry-After).
    pub retry_after: Option<Duration>,
    /// Wrong bytes ([`ErrorKind::DigestMismatch`]) that another attempt has from elsewhere: these
    /// were a damaged file's, the rest of a broken stream, or of one source among several.
    pub may_differ: bool,
}

impl Error {
    /// An error of `kind` with a one-line message.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), retry_after: None, may_differ: false }
    }

    /// A local file's trouble: `doing` names the action and the path.
    pub fn local(doing: impl std::fmt::Display, error: &std::io::Error) -> Self {
        Error::new(ErrorKind::Local, format!("{doing}: {error}"))
    }

    /// The same error with words in front: `context: message`.
    pub fn context(mut self, context: impl std::fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// The source, or the way to it, is at fault, and nobody knows for how long.
    pub fn is_trouble(&self) -> bool {
        matches!(self.kind, ErrorKind::Network | ErrorKind::DeadlinePassed)
    }

    /// Trying again, the same or another source, can help.
    pub fn is_temporary(&self) -> bool {
        matches!(self.kind, ErrorKind::Network)
    }
}

impl From<crate::layout::Error> for Error {
    fn from(error: crate::layout::Error) -> Self {
        use crate::layout::Error as Layout;
        let kind = match error {
            Layout::DigestMismatch { .. } | Layout::SizeMismatch { .. } => {
                ErrorKind::DigestMismatch
            }
            _ => ErrorKind::Invalid,
        };
        Error::new(kind, error.to_string())
    }
}
