//! Platforms: what an image runs on, and which image of an index to take.

use std::fmt;
use std::str::FromStr;

use super::Descriptor;
use crate::layout::error::{Error, Result};

/// Operating system, architecture and variant, normalised: Go's names, and no variant where it is
/// the one that everybody has (`arm64/v8`, `amd64/v1`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    /// As Go's `GOOS`.
    pub os: String,
    /// As Go's `GOARCH`.
    pub architecture: String,
    /// `v7`, as image-spec `image-index.md`, "Platform Variants", has them.
    pub variant: Option<String>,
}

impl Platform {
    /// Normalises the three names.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let lower = architecture.to_ascii_lowercase();
        let (architecture, implied) = match lower.as_str() {
            "x86_64" | "x86-64" => ("amd64", None),
            "aarch64" => ("arm64", None),
            "i386" | "i486" | "i586" | "i686" => ("386", None),
            "armhf" | "armv7l" => ("arm", Some("v7")),
            "armel" | "armv6l" => ("arm", Some("v6")),
            other => (other, None),
        };
        let variant = variant.filter(|v| !v.is_empty()).or(implied).map(|v| {
            let v = v.to_ascii_lowercase();
            if v.starts_with(|c: char| c.is_ascii_digit()) { format!("v{v}") } else { v }
        });
        let variant = match (architecture, variant.as_deref()) {
            ("arm64", Some("v8" | "v8.0")) | ("amd64", Some("v1")) => None,
            ("arm", None) => Some("v7".to_owned()),
            _ => variant,
        };
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        Platform { os, architecture: architecture.to_owned(), variant }
    }

    /// Linux on the architecture that this program was built for.
    pub fn host() -> Self {
        Platform::new("linux", std::env::consts::ARCH, None)
    }

    /// `unknown/unknown`: what buildkit gives to attestations.
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }

    /// How well `offered` runs on `self`: 0 is exact, more is older; `None`: not at all.
    fn rank(&self, offered: &Platform) -> Option<usize> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        if self.variant == offered.variant {
            return Some(0);
        }
        let (wanted, offered) = (self.variant.as_deref(), offered.variant.as_deref());
        let number = |v: Option<&str>| v?.strip_prefix('v')?.parse::<usize>().ok();
        match self.architecture.as_str() {
            "arm" => number(wanted)?.checked_sub(number(offered)?),
            "amd64" => number(wanted)?.checked_sub(number(offered.or(Some("v1")))?),
            // Every 64-bit ARM runs what v8 runs.
            "arm64" => offered.is_none().then_some(1),
            // Nothing was asked for, so any variant is an answer.
            _ => wanted.is_none().then_some(1),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let usable = |p: &&str| {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
            !p.is_empty() && p.bytes().all(allowed)
        };
        match parts.as_slice() {
            [os, architecture, variant @ ..] if variant.len() <= 1 && parts.iter().all(usable) => {
                Ok(Platform::new(os, architecture, variant.first().copied()))
            }
            _ => {
                let name = format!("platform {text:?}");
                Err(Error::document(name, "expected OS/ARCH[/VARIANT], such as linux/arm64/v8"))
            }
        }
    }
}

/// The image of an index that runs on `wanted`: the exact variant, else the newest older one of
/// the same architecture. Attestations are never taken. An index whose only image names no
/// platform means that image.
///
/// # Errors
/// [`Error::Document`] that lists what there is.
pub fn choose_platform<'a>(
    descriptors: &'a [Descriptor],
    wanted: &Platform,
) -> Result<&'a Descriptor> {
    choose_among(descriptors.iter(), wanted)
}

pub(super) fn choose_among<'a>(
    descriptors: impl Iterator<Item = &'a Descriptor>,
    wanted: &Platform,
) -> Result<&'a Descriptor> {
    let images: Vec<&Descriptor> = descriptors.filter(|d| !d.is_attestation()).collect();
    let ranked = images.iter().filter_map(|d| Some((wanted.rank(d.platform.as_ref()?)?, *d)));
    if let Some((_, best)) = ranked.min_by_key(|(rank, _)| *rank) {
        return Ok(best);
    }
    if let [only] = images.as_slice()
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let mut there: Vec<String> = images
        .iter()
        .map(|d| d.platform.as_ref().map_or("(no platform)".to_owned(), Platform::to_string))
        .collect();
    there.sort();
    there.dedup();
    let there = if there.is_empty() { "nothing".to_owned() } else { there.join(", ") };
    let reason = format!("no image for {wanted}: there is {there} (choose with --platform)");
    Err(Error::document("image index", reason))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::layout::digest::{Blob, Digest};

    fn offered(platforms: &[&str]) -> Vec<Descriptor> {
        let make = |name: &&str| {
            let blob = Blob { digest: Digest::sha256_of(name.as_bytes()), size: 1 };
            let platform = (!name.is_empty()).then(|| name.parse().unwrap());
            Descriptor { platform, ..Descriptor::new(super::super::OCI_MANIFEST, blob) }
        };
        platforms.iter().map(make).collect()
    }

    fn choice(there: &[&str], wanted: &str) -> Option<String> {
        let there = offered(there);
        let chosen = choose_platform(&there, &wanted.parse().unwrap()).ok()?;
        Some(chosen.platform.as_ref().map_or(String::new(), Platform::to_string))
    }

    #[test]
    fn names_are_normalised() {
        for (given, expected) in [
            ("linux/x86_64", "linux/amd64"),
            ("Linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
        ] {
            assert_eq!(given.parse::<Platform>().unwrap().to_string(), expected);
        }
        for bad in ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/amd64/", "linux/am d"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_newest_variant_that_still_runs_is_chosen() {
        let arm = ["linux/arm/v5", "linux/arm/v6", "linux/arm64", "linux/arm/v8"];
        for (there, wanted, expected) in [
            (&arm[..], "linux/arm", Some("linux/arm/v6")),
            (&arm[..], "linux/arm/v6", Some("linux/arm/v6")),
            (&arm[..], "linux/arm/v8", Some("linux/arm/v8")),
            (&arm[..3], "linux/arm64/v9", Some("linux/arm64")),
            (&arm[..2], "linux/arm64", None),
            (&["linux/amd64", "linux/amd64/v2"], "linux/amd64/v3", Some("linux/amd64/v2")),
            (&["linux/amd64/v2"], "linux/amd64", None),
            (&["linux/arm/v7"], "linux/arm/v6", None),
            (&["linux/riscv64/rva23"], "linux/riscv64", Some("linux/riscv64/rva23")),
            (&["unknown/unknown", ""], "linux/amd64", Some("")),
            (&["", ""], "linux/amd64", None),
        ] {
            assert_eq!(choice(there, wanted).as_deref(), expected, "{wanted} of {there:?}");
        }
    }

    #[test]
    fn a_missing_platform_is_answered_with_what_there_is() {
        let there = offered(&["linux/s390x", "linux/arm/v6", "unknown/unknown"]);
        let error = choose_platform(&there, &"linux/amd64".parse().unwrap()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "image index: no image for linux/amd64: there is linux/arm/v6, linux/s390x \
             (choose with --platform)"
        );
    }
}
