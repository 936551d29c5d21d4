//! What a script's words tell of commands that notice mount points. A guess, on the safe side: a
//! shell is not parsed here.

use std::collections::BTreeSet;

use super::Finding;

/// What removes or renames a directory itself: of a mount point, that is refused.
const REMOVE_OR_RENAME: [&str; 3] = ["rm", "rmdir", "mv"];

/// Options of `find`, `du`, `rm`, `tar` and others that stop at mount points.
const ONE_FILESYSTEM: [&str; 3] = ["-xdev", "-mount", "--one-file-system"];

/// What `text` does that is otherwise when `shadowed` are mount points.
pub(super) fn findings(text: &str, shadowed: &BTreeSet<String>) -> Vec<Finding> {
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || ";|&(){}<>\"'`\\".contains(c)).collect();
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    let mut found = Vec::new();
    if let Some(command) = words.iter().find(|word| REMOVE_OR_RENAME.contains(&program(word))) {
        let tops: BTreeSet<&String> =
            words.iter().filter_map(|word| top_directory(word, shadowed)).collect();
        found.extend(tops.into_iter().map(|top| {
            let reason = format!("RUN {command} with /{top}, which cannot be removed or renamed");
            Finding::differs(reason, Some(top.clone()))
        }));
    }
    if let Some(option) = words.iter().find(|word| ONE_FILESYSTEM.contains(word)) {
        found.push(Finding::differs(format!("RUN with {option}, which stops at mounts"), None));
    }
    for (at, word) in words.iter().enumerate() {
        let options = || words[at + 1..].iter().take_while(|word| word.starts_with('-'));
        let reason = match program(word) {
            "ln" if !has_option(options(), 's', "--symbolic") => "RUN ln: a hard link",
            "cp" if has_option(options(), 'l', "--link") => "RUN cp -l: hard links",
            _ => continue,
        };
        let reason = format!("{reason} cannot lead from one top-level directory to another");
        found.push(Finding::differs(reason, None));
    }
    found
}

/// `rm` of `/bin/rm`.
fn program(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

/// The word is the path of a shadowed directory itself.
fn top_directory<'s>(word: &str, shadowed: &'s BTreeSet<String>) -> Option<&'s String> {
    shadowed.get(word.strip_prefix('/')?.trim_end_matches('/'))
}

fn has_option<'w>(mut options: impl Iterator<Item = &'w &'w str>, short: char, long: &str) -> bool {
    options.any(|word| match word.strip_prefix("--") {
        Some(_) => *word == long,
        None => word.contains(short),
    })
}
