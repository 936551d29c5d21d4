//! `layoutfs verify`: every blob that is there, against its digest.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::Serialize;

use super::args;
use super::context::{Context, print_json};
use super::units::size;
use crate::fetch::image::Image;
use crate::fetch::layout_dir::{blob_path, is_present, present_blobs};
use crate::fetch::{Error, ErrorKind, Result};
use crate::layout::Digest;
use crate::layout::codec::{Decoded, Decoder};
use crate::layout::digest::Hasher;
use crate::layout::tree::Layer;

/// One read of a blob.
const READ_BYTES: usize = 1 << 20;

/// What was found out about one digest.
#[derive(Serialize)]
struct Finding {
    digest: String,
    /// `ok`, `missing`, or what is wrong.
    result: String,
    bytes: u64,
}

pub fn run(context: &Context, args: &args::Verify) -> Result<()> {
    let directory = context.layout_directory(&args.image)?;
    let mut findings = Vec::new();
    let mut damaged = 0;
    for (digest, path) in present_blobs(&directory)? {
        if !path.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
            damaged += 1;
            let result = "damaged: not a regular file".to_owned();
            findings.push(Finding { digest: digest.to_string(), result, bytes: 0 });
            continue;
        }
        let (actual, bytes) = hash(&path, digest.hasher())?;
        let is_right = actual == digest;
        damaged += usize::from(!is_right);
        let result = match is_right {
            true => "ok".to_owned(),
            false => format!("damaged: its bytes have the digest {actual}"),
        };
        findings.push(Finding { digest: digest.to_string(), result, bytes });
    }
    // A damaged manifest says nothing about its layers.
    if damaged == 0 {
        let image = context.open_offline(&args.image)?.image;
        damaged += verify_image(&directory, &image, args.deep, &mut findings)?;
    }
    report(context, &findings, damaged)
}

/// What the image's own documents add: blobs that are missing, and DiffIDs.
fn verify_image(
    directory: &Path,
    image: &Image,
    deep: bool,
    findings: &mut Vec<Finding>,
) -> Result<usize> {
    let mut damaged = 0;
    for layer in image.layers()? {
        if !is_present(directory, &layer.blob) {
            let digest = layer.blob.digest.to_string();
            let is_there = blob_path(directory, &layer.blob.digest).exists();
            damaged += usize::from(is_there);
            let result = match is_there {
                true => format!("damaged: expected {} bytes", layer.blob.size),
                false => "missing".to_owned(),
            };
            findings.push(Finding { digest, result, bytes: 0 });
        } else if deep {
            let finding = verify_diff_id(directory, &layer)?;
            damaged += usize::from(finding.result != "ok");
            findings.push(finding);
        }
    }
    Ok(damaged)
}

fn verify_diff_id(directory: &Path, layer: &Layer) -> Result<Finding> {
    let mut file = open(&blob_path(directory, &layer.blob.digest))?;
    let mut hasher = layer.diff_id.hasher();
    let mut bytes = 0;
    let mut take = |decoded: Decoded<'_>| {
        if let Decoded::Bytes(piece) = decoded {
            hasher.update(piece);
            bytes += piece.len() as u64;
        }
        Ok::<(), crate::layout::Error>(())
    };
    let decoded = (|| -> Result<()> {
        let mut decoder = Decoder::new();
        let mut piece = vec![0; READ_BYTES];
        loop {
            let read = file.read(&mut piece).map_err(|e| Error::local("cannot read a blob", &e))?;
            if read == 0 {
                break;
            }
            decoder.push(&piece[..read], &mut take)?;
        }
        decoder.finish(&mut take)?;
        Ok(())
    })();
    let digest = format!("{} (DiffID of {})", layer.diff_id, layer.blob.digest);
    let result = match decoded {
        Err(error) if error.kind == ErrorKind::Local => return Err(error),
        Err(error) => format!("damaged: {error}"),
        Ok(()) => {
            let actual = hasher.finish();
            match actual == layer.diff_id {
                true => "ok".to_owned(),
                false => format!("damaged: the layer has the DiffID {actual}"),
            }
        }
    };
    Ok(Finding { digest, result, bytes })
}

fn report(context: &Context, findings: &[Finding], damaged: usize) -> Result<()> {
    if context.options.json {
        print_json(&findings)?;
    } else {
        for finding in findings {
            out!("{:>10}  {}  {}", size(finding.bytes), finding.digest, finding.result);
        }
    }
    if damaged == 0 {
        return Ok(());
    }
    let first = findings.iter().find(|f| f.result.starts_with("damaged"));
    let which = first.map(|f| format!("{}: {}", f.digest, f.result)).unwrap_or_default();
    let message =
        format!("{damaged} damaged, first {which}; `layoutfs hydrate` replaces what is damaged");
    Err(Error::new(ErrorKind::DigestMismatch, message))
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| Error::local(format!("cannot open {}", path.display()), &e))
}

fn hash(path: &Path, mut hasher: Hasher) -> Result<(Digest, u64)> {
    let mut file = open(path)?;
    let mut piece = vec![0; READ_BYTES];
    let mut bytes = 0;
    loop {
        let read = file
            .read(&mut piece)
            .map_err(|e| Error::local(format!("cannot read {}", path.display()), &e))?;
        if read == 0 {
            return Ok((hasher.finish(), bytes));
        }
        hasher.update(&piece[..read]);
        bytes += read as u64;
    }
}
