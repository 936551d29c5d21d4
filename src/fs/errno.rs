//! Every error that a reader can meet, and its errno. Nothing else names one for content.

use fuser::Errno;

use crate::fetch::ErrorKind;

/// The errno that a read of content fails with; SEMANTICS.md has the table. `ENOSPC` never: a full
/// cache is our trouble, not the reader's.
pub fn of_read(kind: ErrorKind) -> Errno {
    match kind {
        ErrorKind::DeadlinePassed => Errno::ETIMEDOUT,
        ErrorKind::Authentication
        | ErrorKind::NotFound
        | ErrorKind::Network
        | ErrorKind::DigestMismatch
        | ErrorKind::Protocol
        | ErrorKind::Invalid
        | ErrorKind::Offline
        | ErrorKind::CannotMount
        | ErrorKind::Busy
        | ErrorKind::Usage
        | ErrorKind::Local => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passed_deadline_is_etimedout_and_all_else_is_eio() {
        assert_eq!(of_read(ErrorKind::DeadlinePassed).code(), Errno::ETIMEDOUT.code());
        for kind in [
            ErrorKind::Authentication,
            ErrorKind::NotFound,
            ErrorKind::Network,
            ErrorKind::DigestMismatch,
            ErrorKind::Protocol,
            ErrorKind::Invalid,
            ErrorKind::Offline,
            ErrorKind::Local,
        ] {
            assert_eq!(of_read(kind).code(), Errno::EIO.code(), "{kind:?}");
        }
    }
}
