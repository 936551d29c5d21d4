//! What the lifecycle's phases left for the extender, read before anything is mounted.

use std::path::{Path, PathBuf};

use super::super::args;
use super::super::context::absolute;
use crate::fetch::layout_dir::read_document;
use crate::fetch::{Error, ErrorKind, Result};
use crate::layout::buildpacks::{Extension, PlatformApi, RunImage, history};
use crate::layout::layout_path::check_layout_path;

/// Where the phases see the layout directory when nobody says.
const LAYOUT_DIR: &str = "/layout-repo";

/// What analyzer, detector and restorer left.
pub struct Phases {
    /// The platform's API, which says where Dockerfiles are.
    pub api: PlatformApi,
    /// `<layers>`, absolute.
    pub layers: PathBuf,
    /// `<app>`, if there is one.
    pub app: Option<PathBuf>,
    /// The run image; `None` when there is nothing to extend.
    pub run_image: Option<RunImage>,
    /// In the order in which they are applied.
    pub dockerfiles: Vec<Dockerfile>,
}

/// A Dockerfile that an extension generated for the run image.
pub struct Dockerfile {
    /// The extension's id.
    pub extension: String,
    /// For messages: its path below `<generated>`.
    pub name: String,
    /// Its text.
    pub text: String,
    /// Its build context on this machine, if it has one.
    pub context: Option<PathBuf>,
}

impl Phases {
    /// Reads them.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for an environment that phases do not have, [`ErrorKind::NotFound`] for
    /// files that an earlier phase should have written, [`ErrorKind::Invalid`] for what they are
    /// not.
    pub fn read(args: &args::Extend) -> Result<Self> {
        let api = platform_api()?;
        let layers = absolute(&args.layers)?;
        let app = args.app.clone().or_else(|| variable("CNB_APP_DIR").map(PathBuf::from));
        let app = app.map(absolute).transpose()?;
        let analyzed = layers.join("analyzed.toml");
        let bytes = expected(&analyzed, "the analyzer writes it")?;
        let named = |e: crate::layout::Error, path: &Path| Error::from(e).context(path.display());
        let run_image = RunImage::parse_analyzed(&bytes).map_err(|e| named(e, &analyzed))?;
        let run_image = run_image.filter(|run_image| run_image.extend);
        let mut phases = Phases { api, layers, app, run_image, dockerfiles: Vec::new() };
        if phases.run_image.is_some() {
            let group = phases.layers.join("group.toml");
            let bytes = expected(&group, "the detector writes it")?;
            let extensions = Extension::parse_group(&bytes).map_err(|e| named(e, &group))?;
            for extension in &extensions {
                phases.dockerfiles.extend(phases.dockerfile(extension)?);
            }
        }
        Ok(phases)
    }

    /// The extension's Dockerfile, if it generated one for the run image.
    fn dockerfile(&self, extension: &Extension) -> Result<Option<Dockerfile>> {
        let generated = self.layers.join("generated");
        let name = extension.dockerfile(self.api);
        let path = generated.join(&name);
        let Some(bytes) = read_document(&path)? else { return Ok(None) };
        let text = String::from_utf8(bytes).map_err(|_| {
            Error::new(ErrorKind::Invalid, format!("{}: it is not UTF-8", path.display()))
        })?;
        let contexts = extension.contexts(self.api).into_iter().map(|path| generated.join(path));
        let own = contexts.into_iter().find(|path| path.is_dir());
        let context = own.or_else(|| self.app.clone());
        Ok(Some(Dockerfile { extension: extension.id.clone(), name, text, context }))
    }

    /// The history of a layer of which the extender's image says nothing.
    pub fn created_by(&self) -> String {
        let extensions: Vec<&str> = self.dockerfiles.iter().map(|d| d.extension.as_str()).collect();
        history("run.Dockerfile", &extensions.join(", "))
    }

    /// `<layers>/extended`.
    pub fn extended(&self) -> PathBuf {
        self.layers.join("extended")
    }
}

/// The layout of the run image in the layout directory.
///
/// # Errors
/// It is not there, it is another, or the phases after the extender could not name it.
pub fn find_layout(run_image: &RunImage, layout_dir: &Path) -> Result<PathBuf> {
    let mounted_at = variable("CNB_LAYOUT_DIR").unwrap_or_else(|| LAYOUT_DIR.to_owned());
    let layout_dir = absolute(layout_dir)?;
    let found = crate::fetch::run_image::find(run_image, Some(&mounted_at), &[layout_dir])?;
    let place = run_image.reference.rsplit_once('@').map_or(&*run_image.reference, |(p, _)| p);
    if place.starts_with('/') {
        check_layout_path(place.trim_start_matches('/')).map_err(Error::from)?;
    }
    if run_image.digest().is_none() {
        let message = format!(
            "analyzed.toml: the run image {} has no digest: run the restorer with -layout first, \
             which writes it",
            run_image.reference
        );
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    Ok(found)
}

/// An environment variable that is set and not empty.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn platform_api() -> Result<PlatformApi> {
    let usage = |message: String| Error::new(ErrorKind::Usage, message);
    let text = variable("CNB_PLATFORM_API").ok_or_else(|| {
        usage(
            "CNB_PLATFORM_API is not set: set it as for the lifecycle's phases, to 0.12 or later"
                .to_owned(),
        )
    })?;
    let api: PlatformApi = text.parse().map_err(|e| usage(format!("CNB_PLATFORM_API: {e}")))?;
    if api < PlatformApi::FIRST {
        let first = PlatformApi::FIRST;
        return Err(usage(format!(
            "CNB_PLATFORM_API={api}: run images can be extended since Platform API {first}"
        )));
    }
    if api > PlatformApi::LAST_KNOWN {
        tracing::warn!(%api, last_known = %PlatformApi::LAST_KNOWN, "a Platform API not tried yet");
    }
    Ok(api)
}

fn expected(path: &Path, by: &str) -> Result<Vec<u8>> {
    read_document(path)?
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no {}: {by}", path.display())))
}
