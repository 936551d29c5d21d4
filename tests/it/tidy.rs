//! The project's shape, checked: layering, budgets, words, places. `ARCHITECTURE.md` says why.
//!
//! The rules are functions from a [`Project`] (paths and texts) to findings, so that each rule is
//! shown here to fail on a bad source that exists only in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Lines of a source file, and of a function from `fn` to its closing brace. More does not fit
/// into one head.
const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;

/// Who may import whom. `cli` is the top and may import all.
const LAYERS: [(&str, &[&str]); 3] =
    [("layout", &["layout"]), ("fetch", &["layout", "fetch"]), ("fs", &["layout", "fetch", "fs"])];

/// What only some places may name: the rest of the project must not care.
const CONFINED: [(&str, &[&str], &str); 6] = [
    ("fuser::", &["src/fs/"], "only src/fs/ may name FUSE"),
    (
        "reqwest::",
        &["src/fetch/http", "src/fetch/registry", "src/fetch/auth/"],
        "only src/fetch/{http,registry,auth} may name HTTP",
    ),
    ("Errno::E", ERRNO_PLACES, "only src/fs/errno.rs decides errnos"),
    ("libc::E", ERRNO_PLACES, "only src/fs/errno.rs decides errnos"),
    ("vouch(", PROVERS, "only what checks whole files may vouch for their bytes"),
    ("Streamed(", &["src/fs/policy.rs"], "only the policy serves bytes that are not proved"),
];

/// Who makes proved bytes without checking their digest there and then: of files that were checked.
const PROVERS: &[&str] =
    &["src/fetch/proved.rs", "src/fetch/decoded.rs", "src/fetch/fresh.rs", "src/fetch/arrival.rs"];

/// Who gives errnos to readers. Those that the kernel gives to us are `rustix::io::Errno`, written
/// in full, and may be read anywhere.
const ERRNO_PLACES: &[&str] = &["src/fs/errno.rs", "src/fs/fuse.rs"];
const KERNEL_ERRNO: &str = "rustix::io::Errno::";

/// What stands at the top of the repository.
const TOP: &str = "Cargo.toml Cargo.lock src tests bench docs fuzz Makefile README.md \
    ARCHITECTURE.md SEMANTICS.md LICENSE deny.toml clippy.toml rustfmt.toml rust-toolchain.toml \
    .gitignore .gitattributes .editorconfig .ci .cargo";
const TOP_OF_SRC: &str = "lib.rs main.rs cli layout fetch fs";

/// Words that say nothing, in names of files and types; and those that say nothing at the end.
const EMPTY_WORDS: [&str; 9] =
    ["manager", "handler", "util", "utils", "helper", "helpers", "common", "block", "download"];
const EMPTY_SUFFIXES: [&str; 2] = ["data", "info"];

/// Signs of work that was not finished.
const UNFINISHED: [&str; 4] = ["todo!(", "unimplemented!(", "#[ignore", "dbg!("];

/// Makes `layout` pure, together with `clippy.toml`.
const PURITY: &str = "#![deny(clippy::disallowed_types, clippy::disallowed_methods)]";

/// Text files by path from the repository's top, and the names of what is tracked there.
#[derive(Default)]
struct Project {
    files: BTreeMap<String, String>,
    top: BTreeSet<String>,
}

impl Project {
    fn here() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut project = Project { top: tracked_at_top(root), ..Project::default() };
        for folder in ["src", "tests", "bench", "fuzz"] {
            project.read(root, &root.join(folder));
        }
        let map = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
        project.files.insert("ARCHITECTURE.md".into(), map);
        project
    }

    fn read(&mut self, root: &Path, folder: &Path) {
        let Ok(entries) = std::fs::read_dir(folder) else { return };
        for entry in entries.map(Result::unwrap) {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                if entry.file_name() != "target" {
                    self.read(root, &path);
                }
            } else if path.extension().is_some_and(|e| e == "rs" || e == "sh") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                self.files.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }

    /// Rust files whose path starts with `folder`.
    fn rust<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.files
            .iter()
            .filter(move |(path, _)| path.starts_with(folder) && path.ends_with(".rs"))
            .map(|(path, text)| (path.as_str(), text.as_str()))
    }

    fn text(&self, path: &str) -> &str {
        self.files.get(path).map_or("", String::as_str)
    }

    fn findings(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (path, text) in self.rust("") {
            found.extend(long(path, text));
            found.extend(unfinished(path, text));
            found.extend(empty_words(path, text));
        }
        for (path, text) in self.rust("src/") {
            found.extend(layering(path, text));
            found.extend(confined(path, text));
            found.extend(habits(path, text));
        }
        found.extend(self.forgotten());
        found.extend(self.misplaced());
        found.extend(self.unmapped());
        found
    }

    /// Every module is declared by its parent: an undeclared one is never compiled, nor tested.
    fn forgotten(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (path, _) in self.rust("src/").chain(self.rust("tests/it/")) {
            let (folder, file) = path.rsplit_once('/').unwrap();
            let (folder, module) = match file.strip_suffix(".rs").unwrap() {
                "lib" | "main" if !folder.contains('/') || folder == "tests/it" => continue,
                "mod" => folder.rsplit_once('/').unwrap(),
                module => (folder, module),
            };
            let declared = ["lib.rs", "main.rs", "mod.rs"]
                .map(|parent| self.text(&format!("{folder}/{parent}")))
                .into_iter()
                .chain([self.text(&format!("{folder}.rs"))])
                .any(|parent| code(parent).any(|(_, line)| declares(line, module)));
            if !declared {
                found.push(format!("{path}:1: no `mod {module};` in {folder}/"));
            }
        }
        found
    }

    fn misplaced(&self) -> Vec<String> {
        let mut found: Vec<_> = self
            .top
            .iter()
            .filter(|name| !TOP.split_whitespace().any(|allowed| allowed == *name))
            .map(|name| format!("{name}: does not belong at the top level"))
            .collect();
        for path in self.files.keys().filter_map(|path| path.strip_prefix("src/")) {
            let first = path.split('/').next().unwrap_or(path);
            if !TOP_OF_SRC.split_whitespace().any(|allowed| allowed == first) {
                found.push(format!("src/{path}: src/ holds only {TOP_OF_SRC}"));
            }
        }
        if !self.text("src/layout/mod.rs").lines().any(|line| line == PURITY) {
            found.push(format!("src/layout/mod.rs:1: expected `{PURITY}`"));
        }
        found
    }

    /// The map in ARCHITECTURE.md names every source file but unit tests, and none that is gone.
    /// A line of it starts with the path from `src/`.
    fn unmapped(&self) -> Vec<String> {
        let map: BTreeSet<String> = self
            .text("ARCHITECTURE.md")
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .filter(|word| word.ends_with(".rs"))
            .map(|word| format!("src/{word}"))
            .collect();
        let real = self.rust("src/").map(|(path, _)| path.to_owned());
        let real: BTreeSet<String> = real.filter(|path| !is_test(path)).collect();
        let missing = real.difference(&map).map(|path| format!("{path}: not in ARCHITECTURE.md"));
        let gone =
            map.difference(&real).map(|path| format!("ARCHITECTURE.md: no such file {path}"));
        missing.chain(gone).collect()
    }
}

/// Names at the top that git tracks; without git, those that are neither hidden nor build output.
fn tracked_at_top(root: &Path) -> BTreeSet<String> {
    let git = std::process::Command::new("git").arg("ls-files").current_dir(root).output();
    let tracked = git.ok().filter(|out| out.status.success()).map(|out| out.stdout);
    if let Some(list) = tracked.filter(|list| !list.is_empty()) {
        let list = String::from_utf8_lossy(&list);
        return list.lines().filter_map(|line| line.split('/').next()).map(str::to_owned).collect();
    }
    let names = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name());
    let names = names.map(|name| name.to_str().unwrap().to_owned());
    names.filter(|name| !name.starts_with('.') && name != "target").collect()
}

/// Numbered lines that are not comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(i, line)| (i + 1, line)).filter(|(_, line)| {
        let line = line.trim_start();
        !line.starts_with("//")
    })
}

/// A file of `src/` that holds only unit tests.
fn is_test(path: &str) -> bool {
    path.ends_with("tests.rs") || path.contains("/tests/")
}

/// The lines before the unit tests; none of a file that holds only tests.
fn product<'a>(path: &str, text: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
    let lines: Vec<&str> = text.lines().collect();
    let opens_tests = |(i, line): (usize, &&str)| {
        let next = lines[i..].iter().find(|line| !line.starts_with("#["));
        *line == "#[cfg(test)]" && next.is_some_and(|line| line.starts_with("mod "))
    };
    let tests_at = lines.iter().enumerate().position(opens_tests).unwrap_or(lines.len());
    let end = if is_test(path) { 0 } else { tests_at };
    code(text).take_while(move |(n, _)| *n <= end)
}

/// The line without visibility and modifiers: `fn read()` of `pub(crate) async fn read()`.
fn item(line: &str) -> &str {
    let mut rest = line.trim_start();
    loop {
        let word = rest.split(' ').next().unwrap_or(rest);
        if !(word.starts_with("pub") || ["async", "const", "unsafe"].contains(&word)) {
            return rest;
        }
        rest = rest[word.len()..].trim_start();
    }
}

fn declares(line: &str, module: &str) -> bool {
    item(line).strip_prefix("mod ").is_some_and(|rest| {
        rest.strip_prefix(module).is_some_and(|end| end == ";" || end.starts_with(" {"))
    })
}

fn long(path: &str, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    if lines.len() > FILE_LINES_MAX {
        found.push(format!("{path}: {} lines (at most {FILE_LINES_MAX})", lines.len()));
    }
    for (i, line) in lines.iter().enumerate() {
        if !item(line).starts_with("fn ") {
            continue;
        }
        let head = lines[i..].iter().find(|line| line.ends_with(['{', '}', ';']));
        if head.is_none_or(|head| !head.ends_with('{')) {
            continue;
        }
        let indent = &line[..line.len() - line.trim_start().len()];
        let closing = format!("{indent}}}");
        let length = lines[i..].iter().position(|line| *line == closing).map_or(0, |n| n + 1);
        if length > FUNCTION_LINES_MAX {
            let limit = format!("(at most {FUNCTION_LINES_MAX})");
            found.push(format!("{path}:{}: a function of {length} lines {limit}", i + 1));
        }
    }
    found
}

fn unfinished(path: &str, text: &str) -> Vec<String> {
    // This file names the signs in order to look for them.
    if path == "tests/it/tidy.rs" {
        return Vec::new();
    }
    let signs = |line: &&str| UNFINISHED.iter().find(|sign| line.contains(**sign)).copied();
    code(text)
        .filter_map(|(n, line)| signs(&line).map(|sign| format!("{path}:{n}: unfinished: {sign}")))
        .collect()
}

fn empty_words(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |place: String, words: &[String]| {
        let suffix = words.last().filter(|w| EMPTY_SUFFIXES.contains(&w.as_str()));
        let word = words.iter().find(|w| EMPTY_WORDS.contains(&w.as_str())).or(suffix);
        found.extend(word.map(|w| format!("{place}: `{w}` in a name says nothing")));
    };
    let stem = path.rsplit('/').next().unwrap_or(path).trim_end_matches(".rs");
    check(path.to_owned(), &stem.split('_').map(str::to_owned).collect::<Vec<_>>());
    for (n, line) in code(text) {
        let Some((kind, rest)) = item(line).split_once(' ') else { continue };
        if ["struct", "enum", "trait", "type"].contains(&kind) {
            let name = rest.split(|c: char| !c.is_alphanumeric()).next().unwrap_or(rest);
            check(format!("{path}:{n}"), &camel_words(name));
        }
    }
    found
}

/// `LayerIndex` gives `layer`, `index`.
fn camel_words(name: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for c in name.chars() {
        match words.last_mut() {
            Some(word) if !c.is_uppercase() => word.push(c),
            _ => words.push(c.to_lowercase().collect()),
        }
    }
    words
}

fn layering(path: &str, text: &str) -> Vec<String> {
    let own = path.split('/').nth(1).unwrap_or_default();
    let Some((_, allowed)) = LAYERS.iter().find(|(layer, _)| *layer == own) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (n, line) in code(text) {
        for rest in line.split("crate::").skip(1) {
            let other = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next();
            let other = other.filter(|name| !name.is_empty()).unwrap_or("{…}");
            if !allowed.contains(&other) {
                found.push(format!("{path}:{n}: `{own}` may not import `{other}`"));
            }
        }
    }
    found
}

fn confined(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (name, places, rule) in CONFINED {
        if places.iter().any(|place| path.starts_with(place)) {
            continue;
        }
        let names = |line: &str| line.replace(KERNEL_ERRNO, "").contains(name);
        let lines = product(path, text).filter(|(_, line)| names(line));
        found.extend(lines.map(|(n, _)| format!("{path}:{n}: `{name}`: {rule}")));
    }
    found
}

/// `fs` is our module, so `std::fs` keeps its full name; and a failure is an error, not a panic.
fn habits(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (n, line) in product(path, text) {
        let bare = ["use std::fs;", "use std::fs as", "use std::{fs", "use std::fs::{self"];
        if bare.iter().any(|import| item(line).starts_with(import)) {
            found.push(format!("{path}:{n}: write `std::fs::` in full, `fs` is our own module"));
        }
        if line.contains(".unwrap()") {
            found.push(format!("{path}:{n}: `unwrap` outside tests"));
        }
    }
    found
}

#[test]
fn the_project_is_tidy() {
    let found = Project::here().findings();
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

/// The findings of a project that is clean but for one file.
fn findings_with(path: &str, text: &str) -> Vec<String> {
    let mut project = Project::default();
    let modules = "pub mod layout;\npub mod fetch;\npub mod fs;\nmod cli;\n";
    let pure = format!("{PURITY}\nmod tar;\n");
    let mut map = String::new();
    let sources = [
        ("src/lib.rs", modules),
        ("src/layout/mod.rs", &pure),
        ("src/layout/tar.rs", ""),
        ("src/fetch/mod.rs", "mod store;\n"),
        ("src/fetch/store.rs", ""),
        ("src/fs/mod.rs", "mod ops;\n"),
        ("src/fs/ops.rs", ""),
        ("tests/it/main.rs", "mod tidy;\n"),
        ("tests/it/tidy.rs", ""),
    ];
    for (path, text) in sources.into_iter().chain([(path, text)]) {
        project.files.insert(path.into(), text.into());
    }
    for (path, _) in project.rust("src/") {
        map += &format!("{}  words\n", path.trim_start_matches("src/"));
    }
    project.files.entry("ARCHITECTURE.md".into()).or_insert(map);
    project.top = TOP.split_whitespace().map(str::to_owned).collect();
    project.findings()
}

#[test]
fn a_clean_project_has_no_findings() {
    assert_eq!(findings_with("src/layout/tar.rs", "//! Reads tar.\n"), [""; 0]);
}

#[test]
fn each_rule_fails_on_a_bad_source() {
    let cases = [
        (
            "src/layout/tar.rs",
            "//! Tar.\nuse crate::fetch::Source;\n",
            "src/layout/tar.rs:2: `layout` may not import `fetch`",
        ),
        (
            "src/fetch/store.rs",
            "use crate::{fs, layout};\n",
            "src/fetch/store.rs:1: `fetch` may not import `{…}`",
        ),
        ("src/fs/ops.rs", "use crate::cli::Flags;", "src/fs/ops.rs:1: `fs` may not import `cli`"),
        (
            "src/fetch/store.rs",
            "use fuser::FileType;",
            "src/fetch/store.rs:1: `fuser::`: only src/fs/ may name FUSE",
        ),
        (
            "src/fs/ops.rs",
            "fn f() { reqwest::get() }",
            "src/fs/ops.rs:1: `reqwest::`: only src/fetch/{http,registry,auth} may name HTTP",
        ),
        (
            "src/fs/ops.rs",
            "let e = Errno::EIO;",
            "src/fs/ops.rs:1: `Errno::E`: only src/fs/errno.rs decides errnos",
        ),
        (
            "src/fs/ops.rs",
            "use std::fs;",
            "src/fs/ops.rs:1: write `std::fs::` in full, `fs` is our own module",
        ),
        ("src/fs/ops.rs", "let x = y.unwrap();", "src/fs/ops.rs:1: `unwrap` outside tests"),
        ("src/fs/ops.rs", "fn f() { todo!() }", "src/fs/ops.rs:1: unfinished: todo!("),
        (
            "src/fs/ops.rs",
            "pub(crate) struct MountManager;",
            "src/fs/ops.rs:1: `manager` in a name says nothing",
        ),
        ("src/fs/ops.rs", "enum FileInfo {}", "src/fs/ops.rs:1: `info` in a name says nothing"),
        ("tests/it/lost.rs", "", "tests/it/lost.rs:1: no `mod lost;` in tests/it/"),
        (
            "src/layout/mod.rs",
            "mod tar;\n",
            "src/layout/mod.rs:1: expected `#![deny(clippy::disallowed_types, \
             clippy::disallowed_methods)]`",
        ),
    ];
    for (path, text, expected) in cases {
        assert_eq!(findings_with(path, text), [expected], "for {text:?} in {path}");
    }
}

#[test]
fn misplaced_and_unmapped_files_are_found() {
    let found = findings_with("src/tools/utils.rs", "");
    assert!(found.contains(&"src/tools/utils.rs: `utils` in a name says nothing".into()));
    assert!(found.iter().any(|f| f.starts_with("src/tools/utils.rs: src/ holds only")));
    let found = findings_with("ARCHITECTURE.md", "layout/mod.rs  words\nlayout/gone.rs  words\n");
    assert!(found.contains(&"src/fs/ops.rs: not in ARCHITECTURE.md".into()));
    assert!(found.contains(&"ARCHITECTURE.md: no such file src/layout/gone.rs".into()));
    let mut project = Project::default();
    project.top.insert("notes.txt".into());
    let expected = "notes.txt: does not belong at the top level";
    assert!(project.findings().contains(&expected.into()));
}

#[test]
fn bytes_that_nobody_checked_are_found_on_their_way_into_a_reply() {
    let vouched = "let bytes = Proved::vouch(bytes);\n";
    let found = confined("src/fetch/store.rs", vouched);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("may vouch"), "{found:?}");
    assert_eq!(confined("src/fetch/decoded.rs", vouched), [""; 0]);
    let streamed = "Served::Streamed(Streamed(bytes))\n";
    assert_eq!(confined("src/fs/ops.rs", streamed).len(), 1);
    assert_eq!(confined("src/fs/policy.rs", streamed), [""; 0]);
}

#[test]
fn long_files_and_functions_are_found() {
    let body = |lines: usize| "        step();\n".repeat(lines);
    let source = |lines| format!("impl X {{\n    pub fn f(\n    ) {{\n{}    }}\n}}\n", body(lines));
    assert_eq!(findings_with("src/fs/ops.rs", &source(67)), [""; 0]);
    let found = findings_with("src/fs/ops.rs", &source(68));
    assert_eq!(found, ["src/fs/ops.rs:2: a function of 71 lines (at most 70)"]);
    let found = findings_with("src/fs/ops.rs", &"\n".repeat(501));
    assert_eq!(found, ["src/fs/ops.rs: 501 lines (at most 500)"]);
    let declared = format!("trait T {{\n    fn f(&self);\n{}}}\n", body(100));
    assert_eq!(findings_with("src/fs/ops.rs", &declared), [""; 0]);
}

#[test]
fn tests_and_comments_may_do_what_the_product_may_not() {
    let text =
        "// crate::fetch\nfn f() {}\n#[cfg(test)]\n#[allow(x)]\nmod tests {\n x.unwrap();\n}";
    assert_eq!(findings_with("src/layout/tar.rs", text), [""; 0]);
    let answer = "if e == rustix::io::Errno::EXIST {}\n";
    assert_eq!(findings_with("src/fetch/store.rs", answer), [""; 0]);
    let late = "#[cfg(test)]\nfn only_tests_use_it() {}\n\nfn f() { x.unwrap() }\n";
    assert_eq!(findings_with("src/fs/ops.rs", late), ["src/fs/ops.rs:4: `unwrap` outside tests"]);
}
