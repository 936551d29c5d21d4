//! Exit codes: a stable interface for scripts (README has the table).

use std::process::ExitCode;

use crate::fetch::{Error, ErrorKind};

/// The exit code that an error ends the program with.
pub fn code(error: &Error) -> ExitCode {
    ExitCode::from(number(error.kind))
}

/// 0 is success, 1 anything that has no number of its own.
pub fn number(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Usage => 2,
        ErrorKind::Invalid => 3,
        ErrorKind::Authentication => 4,
        ErrorKind::NotFound => 5,
        ErrorKind::Network | ErrorKind::DeadlinePassed | ErrorKind::Protocol => 6,
        ErrorKind::DigestMismatch => 7,
        ErrorKind::CannotMount => 8,
        ErrorKind::Busy => 9,
        ErrorKind::Offline => 10,
        ErrorKind::Local => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_contract() {
        for (kind, expected) in [
            (ErrorKind::Local, 1),
            (ErrorKind::Usage, 2),
            (ErrorKind::Invalid, 3),
            (ErrorKind::Authentication, 4),
            (ErrorKind::NotFound, 5),
            (ErrorKind::Network, 6),
            (ErrorKind::DigestMismatch, 7),
            (ErrorKind::CannotMount, 8),
            (ErrorKind::Busy, 9),
            (ErrorKind::Offline, 10),
        ] {
            assert_eq!(number(kind), expected, "{kind:?}");
        }
    }
}
