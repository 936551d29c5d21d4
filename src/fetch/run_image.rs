//! The layout of the run image that the lifecycle's phases name, where it is on this machine.

use std::path::{Path, PathBuf};

use super::error::{Error, ErrorKind, Result};
use super::layout_dir::read_document;
use crate::layout::Digest;
use crate::layout::buildpacks::RunImage;
use crate::layout::oci::ImageIndex;

/// Most directories that a message lists.
const LISTED_MAX: usize = 4;

/// The layout directory of `run_image` below one of `layout_dirs`, the first that has it. The phases
/// see the layout directory at `mounted_at`.
///
/// # Errors
/// [`ErrorKind::NotFound`] that says where it should be and which command puts it there;
/// [`ErrorKind::Invalid`] when only another image of that name is there.
pub fn find(
    run_image: &RunImage,
    mounted_at: Option<&str>,
    layout_dirs: &[PathBuf],
) -> Result<PathBuf> {
    let wanted = run_image.digest();
    let mut looked_at = Vec::new();
    let mut others = Vec::new();
    for path in run_image.layout_paths(mounted_at) {
        for directory in layout_dirs.iter().map(|base| base.join(&path)) {
            let Some(bytes) = read_document(&directory.join("index.json"))? else {
                looked_at.push(directory);
                continue;
            };
            let index = ImageIndex::parse("index.json", &bytes)
                .map_err(|e| Error::from(e).context(directory.display()))?;
            let digests: Vec<Digest> = index.manifests.iter().map(|m| m.blob.digest).collect();
            if wanted.is_none_or(|digest| digests.contains(&digest)) {
                return Ok(directory);
            }
            others.push((directory, digests));
        }
    }
    let advice = advice(run_image, mounted_at, layout_dirs.first());
    if let (Some((directory, digests)), Some(wanted)) = (others.first(), wanted) {
        let got: Vec<String> = digests.iter().map(ToString::to_string).collect();
        let message = format!(
            "{}: expected the run image {wanted}, got {}; the tag has moved since it was analyzed: \
             {advice}, and analyze again",
            directory.display(),
            got.join(", ")
        );
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    let shown: Vec<String> =
        looked_at.iter().take(LISTED_MAX).map(|path| path.display().to_string()).collect();
    let more = if looked_at.len() > LISTED_MAX { ", ..." } else { "" };
    let message = format!(
        "no layout of the run image {} in {}{more}: {advice}",
        run_image.reference,
        if shown.is_empty() { "any place".to_owned() } else { shown.join(", ") }
    );
    Err(Error::new(ErrorKind::NotFound, message))
}

/// The command that makes the layout.
fn advice(run_image: &RunImage, mounted_at: Option<&str>, layout_dir: Option<&PathBuf>) -> String {
    let name = run_image.image_name(mounted_at).map(|name| name.to_string());
    let name = name.unwrap_or_else(|| "REFERENCE".to_owned());
    let directory = layout_dir.map_or(Path::new("DIR"), PathBuf::as_path);
    format!("make it with `layoutfs sparse {name} --layout-dir {}`", directory.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: &str = "reg.example/cnb/run/base";

    fn digest(text: &str) -> Digest {
        Digest::sha256_of(text.as_bytes())
    }

    /// A directory with a layout of one image, below it at [`PLACE`].
    fn layout_dir() -> tempfile::TempDir {
        let base = tempfile::tempdir().expect("a directory");
        let directory = base.path().join(PLACE);
        std::fs::create_dir_all(&directory).expect("made");
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","size":1,"digest":"{}"}}]}}"#,
            crate::layout::oci::OCI_MANIFEST,
            digest("a")
        );
        std::fs::write(directory.join("index.json"), index).expect("written");
        base
    }

    fn run_image(of: &str) -> RunImage {
        let image = format!("/layout-repo/{PLACE}");
        RunImage { reference: format!("{image}@{}", digest(of)), image, extend: true }
    }

    #[test]
    fn it_is_found_wherever_the_phases_saw_it() {
        let base = layout_dir();
        let dirs = [base.path().join("elsewhere"), base.path().to_owned()];
        for mounted_at in [Some("/layout-repo"), None] {
            let found = find(&run_image("a"), mounted_at, &dirs).expect("found");
            assert_eq!(found, base.path().join(PLACE));
        }
        let by_name = RunImage {
            reference: "reg.example/cnb/run:base".to_owned(),
            image: "reg.example/cnb/run:base".to_owned(),
            extend: true,
        };
        assert_eq!(find(&by_name, None, &dirs).expect("found"), base.path().join(PLACE));
    }

    #[test]
    fn what_is_missing_is_told_with_the_command_that_makes_it() {
        let base = tempfile::tempdir().expect("a directory");
        let dirs = [base.path().to_owned()];
        let error = find(&run_image("a"), Some("/layout-repo"), &dirs).expect_err("not there");
        assert_eq!(error.kind, ErrorKind::NotFound);
        let advice = format!(
            "layoutfs sparse reg.example/cnb/run:base --layout-dir {}",
            base.path().display()
        );
        assert!(error.message.contains(&advice), "{error}");
    }

    #[test]
    fn another_image_of_the_name_is_not_taken() {
        let base = layout_dir();
        let dirs = [base.path().to_owned()];
        let error = find(&run_image("b"), None, &dirs).expect_err("another");
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.message.contains(&digest("a").to_string()), "{error}");
        assert!(error.message.contains(&digest("b").to_string()), "{error}");
    }
}
