//! Exit codes: a stable interface for scripts (README has the table).

use crate::fetch::ErrorKind;

/// 0 is success, 1 anything that has no number of its own.
pub fn code(kind: ErrorKind) -> i32 {
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
            assert_eq!(code(kind), expected, "{kind:?}");
        }
    }
}
