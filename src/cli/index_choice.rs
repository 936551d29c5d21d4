//! `--index`: whose indexes of layers are believed, and what is said of those that are not.

use std::str::FromStr;
use std::time::Duration;

use super::args::Options;
use super::context::{Context, OpenImage};
use super::sources;
use crate::fetch::how::How;
use crate::fetch::shared_index::{self, Fetched};
use crate::fetch::{Deadline, Error, ErrorKind, Result, tables};
use crate::layout::Digest;
use crate::layout::index::LayerIndex;
use crate::layout::reference::Reference;
use crate::layout::soci::manifest::index_of;
use crate::layout::tree::Layer;

/// How long may be spent on a hint: enough for a registry far away, and a token.
const HINT_WITHIN: Duration = Duration::from_secs(2);

/// Artifacts that are named in one sentence.
const NAMED_MAX: usize = 8;

/// What `--index` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IndexChoice {
    /// Say that there are some; use none.
    Auto,
    /// Ask nothing.
    Off,
    /// The artifact of this digest is trusted.
    Trusted {
        /// Its manifest.
        artifact: Digest,
        /// Where it is; `None`: where the image is.
        place: Option<Box<Reference>>,
    },
}

impl FromStr for IndexChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => return Ok(IndexChoice::Auto),
            "off" => return Ok(IndexChoice::Off),
            _ => {}
        }
        if let Ok(artifact) = text.parse() {
            return Ok(IndexChoice::Trusted { artifact, place: None });
        }
        let reference: Option<Reference> = text.parse().ok();
        match reference.as_ref().and_then(Reference::digest) {
            Some(artifact) => Ok(IndexChoice::Trusted { artifact, place: reference.map(Box::new) }),
            None => Err("expected auto, off, sha256:… or REGISTRY/REPO@sha256:…".to_owned()),
        }
    }
}

/// What [`bring`] did.
#[derive(Debug)]
pub struct Brought {
    /// Indexes that were fetched and saved.
    pub saved: usize,
    /// Layers that have none still: the artifact lacks them.
    pub lacking: usize,
    /// Why the cache cannot keep what was fetched.
    pub trouble: Option<Error>,
}

/// With `--index DIGEST`, brings the indexes that the cache lacks, before layers are read. Without a
/// layer that lacks one, and with `--offline`, nothing is asked.
///
/// # Errors
/// The artifact cannot be had, is not of this image, or holds an index that is not of its layer.
pub fn bring_missing(context: &Context, open: &OpenImage) -> Result<()> {
    let IndexChoice::Trusted { .. } = context.options.index else { return Ok(()) };
    let layers = open.image.layers()?;
    if context.options.offline || shared_index::unknown(&open.store, &layers).is_empty() {
        return Ok(());
    }
    if let Some(trouble) = bring(context, open, &layers)?.trouble {
        // Nobody's error: the layer is read whole, as without an index.
        open.store.cache().tell_trouble(&trouble);
    }
    Ok(())
}

/// Brings what the artifact that `--index` names has of the indexes that the cache lacks. None is
/// saved before all are checked. Indexes that are here stay.
///
/// # Errors
/// As [`bring_missing`].
pub fn bring(context: &Context, open: &OpenImage, layers: &[Layer]) -> Result<Brought> {
    let IndexChoice::Trusted { artifact, place } = &context.options.index else {
        return Err(Error::new(ErrorKind::Usage, "--index does not name an artifact"));
    };
    let cache = open.store.cache();
    let missing = shared_index::unknown(&open.store, layers);
    let places = match place {
        Some(place) => vec![(**place).clone()],
        None => places(context, open)?,
    };
    let image = open.image.descriptor.blob.digest;
    let deadline = Deadline::after(context.options.deadline);
    let found = first_that_has(context, &places, async |registry| {
        let found = shared_index::artifact(registry, artifact, &image, deadline.renewed()).await?;
        let all = shared_index::fetch(registry, &found, &missing, deadline.renewed()).await?;
        // SOCI has no words for some layers, and says so or does not.
        let may_refuse = |error: &Error| found.is_soci() && error.kind == ErrorKind::Invalid;
        let is_fatal = |error: &&Error| !may_refuse(error);
        match all.iter().filter_map(|one| one.index.as_ref().err()).find(is_fatal) {
            Some(error) => Err(error.clone()),
            None => Ok(all),
        }
    });
    let fetched = found.map_err(|e| e.context(format!("--index {artifact}")))?;
    let indexes = usable(&fetched);
    let lacking = missing.len() - indexes.len();
    let saved: Result<()> = indexes
        .iter()
        .try_for_each(|(layer, index)| cache.save_named_index(&layer.blob.digest, artifact, index));
    let (saved, trouble) = match saved {
        Ok(()) => (indexes.len(), None),
        Err(trouble) => (0, Some(trouble)),
    };
    context.say(format_args!(
        "artifact {artifact}: indexes that are believed from now on: {saved}; layers without one: \
         {lacking}"
    ));
    Ok(Brought { saved, lacking, trouble })
}

/// Brings the zTOCs that the image's manifest leads to, of layers of which nothing else is known. What
/// is wrong with one is told, and its layer read as without it.
pub fn bring_ztocs(context: &Context, open: &OpenImage, layers: &[Layer]) {
    let Options { index, offline, .. } = &context.options;
    if *offline || *index == IndexChoice::Off {
        return;
    }
    if let Err(error) = index_of(&open.image.manifest) {
        tracing::warn!("the SOCI index that the manifest names is not used: {error}");
    }
    let wanting = tables::want_ztocs(&open.store, layers);
    let Some(index) = wanting.first().and_then(|layer| layer.soci_index) else { return };
    let fetched = places(context, open).and_then(|places| {
        let (image, deadline) =
            (open.image.descriptor.blob.digest, Deadline::after(context.options.deadline));
        first_that_has(context, &places, async |registry| {
            let found =
                shared_index::artifact(registry, &index, &image, deadline.renewed()).await?;
            if !found.is_soci_v2() {
                let message = "it is not a SOCI index of version 2";
                return Err(Error::new(ErrorKind::Invalid, message));
            }
            shared_index::fetch(registry, &found, &wanting, deadline.renewed()).await
        })
    });
    match fetched {
        Ok(fetched) => {
            for (layer, index) in usable(&fetched) {
                if let Err(trouble) = tables::save_soci(&open.store, layer, index) {
                    open.store.cache().tell_trouble(&trouble);
                }
            }
        }
        Err(error) => {
            tracing::warn!("the SOCI index {index} that the manifest names is not used: {error}");
        }
    }
}

/// The indexes that can be used; of the others the log has why not.
fn usable(fetched: &[Fetched]) -> Vec<(&Layer, &LayerIndex)> {
    let mut usable = Vec::new();
    for Fetched { layer, index } in fetched {
        match index {
            Ok(index) => usable.push((layer, index)),
            Err(error) => {
                let digest = layer.blob.digest.short();
                tracing::warn!("layer {digest}: its SOCI zTOC is not used: {error}");
            }
        }
    }
    usable
}

/// With `--index auto`, says what the first source has, if a layer is to be fetched whole for want of
/// an index. It is a hint: whatever goes wrong is for the log.
pub fn hint(context: &Context, open: &OpenImage, hows: &[How]) {
    let wanted = context.options.index == IndexChoice::Auto && !context.options.quiet;
    if !wanted || context.options.offline || !hows.contains(&How::OnePass) {
        return;
    }
    let Ok(places) = context.sources(&open.image.selected) else { return };
    let Some(place) = places.first() else { return };
    let image = open.image.descriptor.blob.digest;
    let asked = context.registries().and_then(|registries| {
        let registry = registries.repository(place);
        let listed = shared_index::listed(&registry, &image, Deadline::after(HINT_WITHIN));
        let listed = async { tokio::time::timeout(HINT_WITHIN, listed).await };
        context.runtime.block_on(listed).unwrap_or_else(|_| Ok(Vec::new()))
    });
    match asked {
        Ok(found) if found.is_empty() => {}
        Ok(found) => {
            let digests: Vec<Digest> = found.iter().map(|one| one.blob.digest).collect();
            context.say(format_args!(
                "{} has an index of this image: {} to trust whoever pushed it and be lazy at once",
                sources::repository(place),
                options(&digests)
            ));
        }
        Err(error) => tracing::debug!(%error, "no hint about indexes"),
    }
}

/// What the sources list for the image, the first that has any.
///
/// # Errors
/// [`ErrorKind::NotFound`] where none has one, and what requests fail with.
pub fn listed(context: &Context, open: &OpenImage) -> Result<Vec<Digest>> {
    let image = open.image.descriptor.blob.digest;
    let deadline = Deadline::after(context.options.deadline);
    let places = places(context, open)?;
    first_that_has(context, &places, async |registry| {
        let found = shared_index::listed(registry, &image, deadline.renewed()).await?;
        match found.is_empty() {
            true => {
                let message =
                    format!("no index of image {image} (`layoutfs index push` makes one)");
                Err(Error::new(ErrorKind::NotFound, message))
            }
            false => Ok(found.iter().map(|one| one.blob.digest).collect()),
        }
    })
}

/// `--index sha256:…, or …`: what a user may type.
pub fn options(artifacts: &[Digest]) -> String {
    let named: Vec<String> = artifacts.iter().take(NAMED_MAX).map(Digest::to_string).collect();
    let more = match artifacts.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(", or {more} others"),
    };
    format!("--index {}{more}", named.join(", or "))
}

/// Where the image may be, to be asked now.
fn places(context: &Context, open: &OpenImage) -> Result<Vec<Reference>> {
    let places = context.sources(&open.image.selected)?;
    if places.is_empty() {
        let message = "the layout does not say where it came from: use --source REGISTRY/REPO";
        return Err(Error::new(ErrorKind::NotFound, message));
    }
    Ok(places)
}

/// What the first of `places` answers; the next is asked whatever is wrong with one. If all fail, the
/// error is the first that says more than that nothing is there.
fn first_that_has<T>(
    context: &Context,
    places: &[Reference],
    ask: impl AsyncFn(&crate::fetch::registry::Registry) -> Result<T>,
) -> Result<T> {
    let registries = context.registries()?;
    context.runtime.block_on(async {
        let mut failed: Option<Error> = None;
        for place in places {
            match ask(&registries.repository(place)).await {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    let error = error.context(sources::repository(place));
                    tracing::debug!(%error, "asking the next source about an index");
                    let says_more = failed.as_ref().is_none_or(|f| f.kind == ErrorKind::NotFound);
                    if says_more && !(failed.is_some() && error.kind == ErrorKind::NotFound) {
                        failed = Some(error);
                    }
                }
            }
        }
        Err(failed.unwrap_or_else(|| Error::new(ErrorKind::NotFound, "there is nobody to ask")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_is_named_by_digest_alone_or_with_its_repository() {
        let digest = Digest::sha256_of(b"artifact");
        let trusted = |text: String| match text.parse() {
            Ok(IndexChoice::Trusted { artifact, place }) => {
                Some((artifact, place.map(|p| sources::repository(&p))))
            }
            _ => None,
        };
        assert_eq!("auto".parse(), Ok(IndexChoice::Auto));
        assert_eq!("off".parse(), Ok(IndexChoice::Off));
        assert_eq!(trusted(digest.to_string()), Some((digest, None)));
        let place = Some("r.example/a/b".to_owned());
        assert_eq!(trusted(format!("r.example/a/b@{digest}")), Some((digest, place.clone())));
        assert_eq!(trusted(format!("r.example/a/b:v1@{digest}")), Some((digest, place)));
        for text in ["", "on", "sha256:12", "r.example/a/b", "r.example/a/b:v1"] {
            assert!(text.parse::<IndexChoice>().is_err(), "{text}");
        }
    }

    #[test]
    fn many_artifacts_are_not_all_named() {
        let digests: Vec<_> = (0..10_u8).map(|n| Digest::sha256_of(&[n])).collect();
        assert_eq!(options(&digests[..1]), format!("--index {}", digests[0]));
        let both = format!("--index {}, or {}", digests[0], digests[1]);
        assert_eq!(options(&digests[..2]), both);
        assert!(options(&digests).ends_with(", or 2 others"));
    }
}
