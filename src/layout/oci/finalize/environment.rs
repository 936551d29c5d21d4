//! The environment of an application image on an extended base: what the application set, over what
//! the extension set.

use std::collections::{BTreeMap, BTreeSet};

/// The variable that both may have put something in front of.
const PATH: &str = "PATH";

/// The variables of `extended`, in their order, with what `exported` has other than `base`: in place,
/// or behind. Of several entries with one name the first counts, as for the lifecycle. An entry
/// without `=` is a name without a value.
///
/// Merging what came out once more changes nothing.
pub fn merge(base: &[String], extended: &[String], exported: &[String]) -> Vec<String> {
    let (base, own) = (by_name(base), by_name(extended));
    let mut merged = extended.to_vec();
    let mut behind = Vec::new();
    let firsts = by_name(exported);
    for (position, entry) in exported.iter().enumerate() {
        let name = name(entry);
        let is_first = firsts.get(name).is_some_and(|(first, _)| *first == position);
        let below = base.get(name).map(|(_, entry)| *entry);
        if !is_first || below == Some(entry) {
            continue;
        }
        let extension = own.get(name).map(|(_, entry)| *entry);
        let entry = match entry.strip_prefix("PATH=") {
            Some(path) => {
                format!("{PATH}={}", merge_path(value(below), value(extension), path))
            }
            None => entry.clone(),
        };
        match own.get(name) {
            Some((at, _)) => merged[*at] = entry,
            None => behind.push(entry),
        }
    }
    merged.extend(behind);
    merged
}

/// Names of the variables that differ, sorted.
pub fn changed(before: &[String], after: &[String]) -> Vec<String> {
    let (before, after) = (by_name(before), by_name(after));
    let entry = |map: &BTreeMap<&str, (usize, &str)>, name: &str| {
        map.get(name).map(|(_, entry)| (*entry).to_owned())
    };
    let names: BTreeSet<&str> = before.keys().chain(after.keys()).copied().collect();
    let differs = |name: &&str| entry(&before, name) != entry(&after, name);
    names.into_iter().filter(differs).map(str::to_owned).collect()
}

/// Each name's first entry, and its position.
fn by_name(entries: &[String]) -> BTreeMap<&str, (usize, &str)> {
    let mut map = BTreeMap::new();
    for (position, entry) in entries.iter().enumerate() {
        map.entry(name(entry)).or_insert((position, entry.as_str()));
    }
    map
}

fn name(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(name, _)| name)
}

/// A variable that is not set is an empty one to the lifecycle.
fn value(entry: Option<&str>) -> &str {
    entry.and_then(|entry| entry.split_once('=')).map_or("", |(_, value)| value)
}

/// What `exported` has in front of `base`, in front of `extended`; `exported` as it is where that was
/// done already, or where it does not end with `base`.
fn merge_path(base: &str, extended: &str, exported: &str) -> String {
    let list = |path| -> Vec<&str> { str::split(path, ':').collect() };
    let (base, extended, exported) = (list(base), list(extended), list(exported));
    let is_base = exported.ends_with(&base);
    // Where one is the end of the other, the longer says which it was.
    let is_done = exported.ends_with(&extended) && !(is_base && base.len() > extended.len());
    if is_done || !is_base {
        return exported.join(":");
    }
    let mut prefix = &exported[..exported.len() - base.len()];
    // The extension took the first directories of the base away: the same once more in front of
    // them said nothing, and would look like the base the next time.
    if let Some(removed) = base.strip_suffix(&extended[..]).filter(|r| !r.is_empty()) {
        while let Some(rest) = prefix.strip_suffix(removed) {
            prefix = rest;
        }
    }
    [prefix, &extended].concat().join(":")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn merged(base: &[&str], extended: &[&str], exported: &[&str]) -> Vec<String> {
        let own = |list: &[&str]| -> Vec<String> { list.iter().map(|s| (*s).to_owned()).collect() };
        let once = merge(&own(base), &own(extended), &own(exported));
        assert_eq!(merge(&own(base), &own(extended), &once), once, "a second time");
        once
    }

    #[test]
    fn an_untouched_environment_becomes_the_extended_one() {
        let base = ["PATH=/bin", "A=1"];
        let extended = ["A=2", "PATH=/x:/bin", "EXT=e"];
        assert_eq!(merged(&base, &extended, &base), extended);
        assert_eq!(merged(&[], &[], &[]), [""; 0]);
    }

    #[test]
    fn what_the_application_set_is_kept_in_place_or_behind() {
        let base = ["PATH=/bin", "A=1", "B=1", "GONE=1"];
        let extended = ["PATH=/bin", "A=2", "B=2", "EXT=e"];
        let exported = ["PATH=/cnb/process:/bin", "A=1", "B=3", "GONE=1", "Z=z", "CNB_APP_DIR=/w"];
        let expected = ["PATH=/cnb/process:/bin", "A=2", "B=3", "EXT=e", "Z=z", "CNB_APP_DIR=/w"];
        assert_eq!(merged(&base, &extended, &exported), expected);
    }

    #[test]
    fn malformed_and_repeated_entries_have_one_meaning() {
        let base = ["X", "=odd", "D=1", "D=2", "Y"];
        let extended = ["X", "=odd", "D=1", "D=2", "Y=now"];
        let exported = ["X=set", "=other", "D=3", "D=2", "Y", "NEW", "NEW=2"];
        let expected = ["X=set", "=other", "D=3", "D=2", "Y=now", "NEW"];
        assert_eq!(merged(&base, &extended, &exported), expected);
    }

    /// (base, extended, exported) to what comes out; `-` is a variable that is not set.
    #[test]
    fn the_applications_directories_stay_in_front_of_the_extensions_path() {
        for (base, extended, exported, expected) in [
            ("/bin", "/bin", "/cnb:/bin", "/cnb:/bin"),
            ("/bin", "/x:/bin", "/cnb:/bin", "/cnb:/x:/bin"),
            ("/bin", "/bin:/x", "/cnb:/bin", "/cnb:/bin:/x"),
            ("/bin", "/else", "/cnb:/bin", "/cnb:/else"),
            ("/a:/b", "/b", "/cnb:/a:/b", "/cnb:/b"),
            ("/a:/b", "/b", "/cnb:/a:/a:/b", "/cnb:/b"),
            // Not at a colon.
            ("/bin", "/x:/bin", "/cnb/bin", "/cnb/bin"),
            // As the lifecycle writes it where the base has none.
            ("-", "/x:/bin", "/cnb/process:/cnb/lifecycle:", "/cnb/process:/cnb/lifecycle:/x:/bin"),
            ("/bin", "-", "/cnb:/bin", "/cnb:"),
            ("/bin", "", "/cnb:/bin", "/cnb:"),
            ("/bin", "/x", "/own", "/own"),
            ("/bin", "/x:/bin", "-", "/x:/bin"),
            ("-", "-", "/own", "/own"),
        ] {
            let entry = |path: &str| match path {
                "-" => vec![],
                path => vec![format!("PATH={path}")],
            };
            let [base, extended, exported, expected] =
                [base, extended, exported, expected].map(entry);
            let once = merge(&base, &extended, &exported);
            assert_eq!(once, expected, "{base:?} {extended:?} {exported:?}");
            assert_eq!(merge(&base, &extended, &once), once);
        }
    }

    #[test]
    fn many_entries_take_no_time_to_speak_of() {
        let entries: Vec<String> = (0..300_000).map(|n| format!("A{n}=")).collect();
        assert_eq!(merge(&[], &entries, &entries), entries);
    }

    fn environment() -> impl Strategy<Value = Vec<String>> {
        let path = "PATH=(a|b|c|)(:(a|b|c|)){0,5}";
        let entry = prop_oneof![2 => path, 3 => "[A-C]=[12]?", 1 => "[A-C=]?"];
        prop::collection::vec(entry, 0..6)
    }

    proptest! {
        #[test]
        fn a_second_merge_changes_nothing(
            base in environment(), extended in environment(), exported in environment(),
        ) {
            let once = merge(&base, &extended, &exported);
            prop_assert_eq!(&merge(&base, &extended, &once), &once);
            // What the application set is what it gets, but for PATH.
            let (base, once) = (by_name(&base), by_name(&once));
            for (name, (_, entry)) in by_name(&exported) {
                if name != PATH && base.get(name).map(|(_, e)| *e) != Some(entry) {
                    prop_assert_eq!(once[name].1, entry);
                }
            }
        }

        #[test]
        fn an_exporter_that_sees_the_extension_gives_the_same(
            base in environment(), extended in environment(), set in environment(),
        ) {
            // What the lifecycle does to the environment that it starts from.
            let export = |from: &[String]| {
                let mut all = from.to_vec();
                let mut put = |entry: String| {
                    match all.iter().position(|e| name(e) == name(&entry)) {
                        Some(at) => all[at] = entry,
                        None => all.push(entry),
                    }
                };
                let path = value(by_name(from).get(PATH).map(|(_, e)| *e)).to_owned();
                set.iter().filter(|e| name(e) != PATH).for_each(|e| put(e.clone()));
                put(format!("PATH=/cnb/process:/cnb/lifecycle:{path}"));
                all
            };
            let set_to_what_base_has = set.iter().any(|e| base.contains(e));
            prop_assume!(!set_to_what_base_has);
            let merged = merge(&base, &extended, &export(&base));
            let (merged, expected) = (merged, export(&extended));
            let (merged, expected) = (by_name(&merged), by_name(&expected));
            let entries = |map: &BTreeMap<&str, (usize, &str)>| -> Vec<String> {
                map.values().map(|(_, entry)| (*entry).to_owned()).collect()
            };
            prop_assert_eq!(entries(&merged), entries(&expected));
        }
    }
}
