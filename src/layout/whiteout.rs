//! What a name in a changeset means: itself, or that a lower name is gone (image-spec `layer.md`,
//! "Whiteouts"). It does not apply them: [`merge`](super::merge) does.

/// What every whiteout name begins with.
const PREFIX: &[u8] = b".wh.";

/// The name of an opaque whiteout.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What the last component of a path in a changeset means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name<'a> {
    /// An entry like any other.
    Plain,
    /// Removes this name of the lower layers.
    Whiteout(&'a [u8]),
    /// Hides all lower children of its directory.
    Opaque,
    /// Neither, yet never shown: the housekeeping of aufs (`.wh..wh.plnk`), or malformed (`.wh.`).
    Reserved,
}

/// Judges one path component.
pub fn classify(name: &[u8]) -> Name<'_> {
    let Some(of) = name.strip_prefix(PREFIX) else { return Name::Plain };
    match of {
        _ if name == OPAQUE => Name::Opaque,
        b"" | b"." | b".." => Name::Reserved,
        _ if of.starts_with(PREFIX) || of.contains(&b'/') => Name::Reserved,
        _ => Name::Whiteout(of),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_whiteouts_opaque_or_reserved() {
        let cases: [(&[u8], Name<'_>); 14] = [
            (b"a", Name::Plain),
            (b".wh", Name::Plain),
            (b"a.wh.b", Name::Plain),
            (b".WH.a", Name::Plain),
            (b".wh.a", Name::Whiteout(b"a")),
            (b".wh..a", Name::Whiteout(b".a")),
            (b".wh..wh", Name::Whiteout(b".wh")),
            (b".wh.\xff", Name::Whiteout(b"\xff")),
            (b".wh..wh..opq", Name::Opaque),
            (b".wh..wh..opq2", Name::Reserved),
            (b".wh..wh.plnk", Name::Reserved),
            (b".wh.", Name::Reserved),
            (b".wh..", Name::Reserved),
            (b".wh...", Name::Reserved),
        ];
        for (name, meaning) in cases {
            assert_eq!(classify(name), meaning, "{}", name.escape_ascii());
        }
    }
}
