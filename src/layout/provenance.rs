//! What one layer says about one path: for `inspect`. Names are taken literally; symbolic links in
//! the parents are not followed.

use super::entry::{Entry, EntryKind};
use super::index::LayerIndex;
use super::whiteout::{Name, classify};

/// What a layer does to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// It has an entry of this path: a new file, a new version, or new attributes of a directory.
    Sets(&'a Entry),
    /// A whiteout removes it, or a directory above it.
    Removes(&'a Entry),
    /// An opaque whiteout hides what lower layers have in a directory above it.
    Hides(&'a Entry),
}

/// Everything that the layer says about `path` (cleaned, as [`Entry::path`]), in tar order.
pub fn events<'a>(index: &'a LayerIndex, path: &[u8]) -> Vec<Event<'a>> {
    index.entries.iter().filter_map(|entry| event(entry, path)).collect()
}

fn event<'a>(entry: &'a Entry, path: &[u8]) -> Option<Event<'a>> {
    if entry.path == path {
        return Some(Event::Sets(entry));
    }
    let (parent, name) = match entry.path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&entry.path[..at], &entry.path[at + 1..]),
        None => (&b""[..], &entry.path[..]),
    };
    match classify(name) {
        Name::Whiteout(of) => {
            let removed = match parent {
                b"" => of.to_vec(),
                _ => [parent, of].join(&b'/'),
            };
            (removed == path || is_below(path, &removed)).then_some(Event::Removes(entry))
        }
        Name::Opaque => is_below(path, parent).then_some(Event::Hides(entry)),
        Name::Plain => {
            // A file where a directory was takes everything beneath it away.
            let replaces = !matches!(entry.kind, EntryKind::Directory | EntryKind::Symlink { .. });
            (replaces && is_below(path, &entry.path)).then_some(Event::Removes(entry))
        }
        Name::Reserved => None,
    }
}

/// `path` lies somewhere beneath `directory`; everything but the root lies beneath the root.
fn is_below(path: &[u8], directory: &[u8]) -> bool {
    match directory {
        b"" => !path.is_empty(),
        _ => path.strip_prefix(directory).is_some_and(|rest| rest.first() == Some(&b'/')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Digest;
    use crate::layout::dump;

    fn names(text: &str, path: &str) -> Vec<&'static str> {
        let entries = dump::parse(text).expect("entries");
        let index = LayerIndex::plain(Digest::sha256_of(b""), 0, entries, Vec::new());
        let name = |event: &Event<'_>| match event {
            Event::Sets(_) => "sets",
            Event::Removes(_) => "removes",
            Event::Hides(_) => "hides",
        };
        events(&index, path.as_bytes()).iter().map(name).collect()
    }

    #[test]
    fn entries_whiteouts_and_opaque_directories_concern_a_path() {
        let text = "/etc d 0755 0:0 0.0\n/etc/.wh.passwd f 0644 0:0 0.0 size=0\n\
                    /usr/.wh..wh..opq f 0644 0:0 0.0 size=0\n/bin f 0755 0:0 0.0 size=0\n";
        assert_eq!(names(text, "etc"), ["sets"]);
        assert_eq!(names(text, "etc/passwd"), ["removes"]);
        assert_eq!(names(text, "etc/passwd-"), Vec::<&str>::new());
        assert_eq!(names(text, "usr/bin/x"), ["hides"]);
        assert_eq!(names(text, "usr"), Vec::<&str>::new());
        assert_eq!(names(text, "bin/sh"), ["removes"]);
    }
}
