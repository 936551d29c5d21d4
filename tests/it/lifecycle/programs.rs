//! The lifecycle's programs: built or found once, and said which kind they are.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use crate::support::mount::run;

/// The first time, Go builds them, and may have to fetch itself.
const BUILD_LIMIT: Duration = Duration::from_secs(900);

/// A directory with `lifecycle`, `launcher` and a link for each phase.
pub struct Programs {
    pub dir: PathBuf,
}

impl Programs {
    /// Those of this machine.
    #[track_caller]
    pub fn shared() -> &'static Self {
        // One failure is enough: it is not tried again for each test.
        static SHARED: OnceLock<Result<Programs, String>> = OnceLock::new();
        match SHARED.get_or_init(Self::find) {
            Ok(programs) => programs,
            Err(outcome) => panic!("there is no lifecycle to test with:\n{outcome}"),
        }
    }

    fn find() -> Result<Self, String> {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut script = Command::new(sources.join("tests/lifecycle/build.sh"));
        script.arg(Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("fixtures"));
        let outcome = run(&mut script, BUILD_LIMIT);
        if !outcome.status.success() {
            return Err(outcome.to_string());
        }
        let dir = PathBuf::from(outcome.stdout.trim_end());
        let kind = std::fs::read_to_string(dir.join("KIND")).unwrap();
        // Not by `eprintln!`, which is shown for tests that fail only: it counts for the others.
        let line = format!("lifecycle: {}\n", kind.trim_end());
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        Ok(Programs { dir })
    }
}
