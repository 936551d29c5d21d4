//! Names as archives have them to paths as entries have them.

/// Longest component of a path: Linux's NAME_MAX. No filesystem could have shown more.
pub const NAME_BYTES_MAX: usize = 255;

/// Longest path or link target: Linux's PATH_MAX without its NUL. Tools that unpack cannot create
/// more by name.
pub const PATH_BYTES_MAX: usize = 4095;

/// A whiteout's name is this in front of the name that it removes.
const WHITEOUT_PREFIX: &[u8] = b".wh.";

/// A cleaned path, as [`Entry::path`](crate::layout::entry::Entry::path) has it: leading slashes,
/// `.` components and doubled slashes mean nothing. `..` removes the component before it, as the
/// tools do that clean names lexically.
///
/// # Errors
/// The reason, when the name would leave the root, has a NUL, or exceeds [`NAME_BYTES_MAX`]
/// (whiteouts: of the name that they remove) or [`PATH_BYTES_MAX`].
pub fn clean_path(name: &[u8]) -> Result<Vec<u8>, String> {
    let mut path = Vec::with_capacity(name.len());
    for component in name.split(|b| *b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                if path.is_empty() {
                    return Err(format!("name {} leaves the root", quoted(name)));
                }
                path.truncate(path.iter().rposition(|b| *b == b'/').unwrap_or(0));
            }
            _ => {
                check_component(component)?;
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(component);
            }
        }
    }
    if path.len() > PATH_BYTES_MAX {
        return Err(format!(
            "a path of {} bytes: at most {PATH_BYTES_MAX} are supported",
            path.len()
        ));
    }
    Ok(path)
}

fn check_component(component: &[u8]) -> Result<(), String> {
    let named = component.strip_prefix(WHITEOUT_PREFIX).unwrap_or(component);
    if named.len() > NAME_BYTES_MAX {
        return Err(format!(
            "a name of {} bytes, {}: at most {NAME_BYTES_MAX} are supported",
            named.len(),
            quoted(named)
        ));
    }
    if component.contains(&0) {
        return Err(format!("name {} has a NUL", quoted(component)));
    }
    Ok(())
}

/// A name for a message: quoted, escaped, and not longer than people read.
pub(crate) fn quoted(name: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 100;
    match name.get(..SHOWN_BYTES_MAX) {
        Some(start) => format!("\"{}...\"", start.escape_ascii()),
        None => format!("\"{}\"", name.escape_ascii()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_and_dots_that_mean_nothing_are_removed() {
        for (name, path) in [
            ("a/b", "a/b"),
            ("/a/b/", "a/b"),
            ("./a//./b", "a/b"),
            ("././", ""),
            ("", ""),
            ("/", ""),
            ("a/../b", "b"),
            ("a/b/../../c", "c"),
            ("a/b/..", "a"),
            ("..a/b..", "..a/b.."),
        ] {
            assert_eq!(clean_path(name.as_bytes()), Ok(path.as_bytes().to_vec()), "{name}");
        }
    }

    #[test]
    fn a_name_that_leaves_the_root_is_refused() {
        for name in ["..", "../a", "/..", "a/../..", "a/../../a", "./.."] {
            assert!(clean_path(name.as_bytes()).is_err(), "{name}");
        }
    }

    #[test]
    fn messages_quote_names_and_cut_long_ones() {
        assert_eq!(quoted(b"a\n\xff"), "\"a\\n\\xff\"");
        assert_eq!(quoted(&[b'a'; 150]), format!("\"{}...\"", "a".repeat(100)));
    }

    #[test]
    fn names_are_bytes_but_have_no_nul() {
        assert_eq!(clean_path(b"\xff/\n \xfe"), Ok(b"\xff/\n \xfe".to_vec()));
        assert!(clean_path(b"a\0b").is_err());
    }

    #[test]
    fn names_end_where_linux_ends_them_and_whiteouts_four_bytes_later() {
        let name = "n".repeat(NAME_BYTES_MAX);
        assert!(clean_path(format!("a/{name}").as_bytes()).is_ok());
        assert!(clean_path(format!("a/{name}n").as_bytes()).is_err());
        assert!(clean_path(format!("a/.wh.{name}").as_bytes()).is_ok());
        assert!(clean_path(format!("a/.wh.{name}n").as_bytes()).is_err());
        let path = "d/".repeat(PATH_BYTES_MAX / 2) + "f";
        assert_eq!(clean_path(path.as_bytes()).map(|p| p.len()), Ok(PATH_BYTES_MAX));
        assert!(clean_path(format!("{path}f").as_bytes()).is_err());
    }
}
