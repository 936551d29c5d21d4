//! The contract of [`Source`], which every source keeps: one suite, run against each.

use std::sync::Arc;
use std::time::Duration;

use layoutfs::fetch::auth::keychain::KeychainConfig;
use layoutfs::fetch::failover::Failover;
use layoutfs::fetch::local::Local;
use layoutfs::fetch::record::{Counters, Record};
use layoutfs::fetch::registry::Registries;
use layoutfs::fetch::retry::Retry;
use layoutfs::fetch::{Deadline, ErrorKind, Result, Source};
use layoutfs::layout::range::ByteRange;
use layoutfs::layout::{Blob, Digest};

use crate::support::layer::generated;
use crate::support::registry::Registry;

/// Longer than any test: a deadline that must not pass.
pub fn patient() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

/// The bytes of `range`, out of a body that may be wider.
pub async fn read(source: &dyn Source, blob: &Blob, range: ByteRange) -> Result<Vec<u8>> {
    let mut body = source.read(blob, range, patient()).await?;
    let delivered = body.range;
    let mut bytes = Vec::new();
    while let Some(chunk) = body.next().await? {
        assert!(!chunk.is_empty(), "a chunk holds bytes");
        bytes.extend_from_slice(&chunk);
    }
    assert_eq!(bytes.len() as u64, delivered.len(), "the body is as long as it says");
    assert!(delivered.contains(&range), "{delivered} holds {range}");
    let skip = (range.start - delivered.start) as usize;
    Ok(bytes[skip..skip + range.len() as usize].to_vec())
}

/// A registry client without credentials.
pub fn client_of(registry: &Registry, repository: &str) -> layoutfs::fetch::registry::Registry {
    let registries = Registries::new(&KeychainConfig::default(), false).unwrap();
    registries.repository(&registry.reference(repository, "latest").parse().unwrap())
}

async fn keeps_the_contract(source: Arc<dyn Source>, content: &[u8]) {
    let size = content.len() as u64;
    let blob = Blob { digest: Digest::sha256_of(content), size };
    assert!(!source.name().is_empty());
    for range in [
        ByteRange::new(0, size),
        ByteRange::new(0, 1),
        ByteRange::new(size - 1, size),
        ByteRange::new(1000, 400_000),
    ] {
        let bytes = read(&*source, &blob, range).await.unwrap();
        assert!(bytes == content[range.start as usize..range.end as usize], "{range}");
    }
    let reads = (0..8).map(|i| {
        let (source, content) = (Arc::clone(&source), content.to_vec());
        tokio::spawn(async move {
            let range = ByteRange::at(i * 50_000, 60_000);
            let bytes = read(&*source, &blob, range).await.unwrap();
            assert!(bytes == content[range.start as usize..range.end as usize], "{range}");
        })
    });
    for read in reads.collect::<Vec<_>>() {
        read.await.unwrap();
    }
    drop(source.read(&blob, ByteRange::new(0, size), patient()).await.unwrap());
    let missing = Blob { digest: Digest::sha256_of(b"missing"), size: 7 };
    let error = read(&*source, &missing, ByteRange::new(0, 7)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
    for range in [ByteRange::new(3, 3), ByteRange::new(0, size + 1)] {
        let error = read(&*source, &blob, range).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{range}: {error}");
    }
}

#[tokio::test]
async fn every_source_keeps_the_contract() {
    let content = generated("source suite", 1 << 20);
    let registry = Registry::start();
    let digest = registry.put_blob("a/b", content.clone());
    let layout = tempfile::tempdir().unwrap();
    let blobs = layout.path().join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join(digest.hex()), &content).unwrap();

    let counters = Arc::new(Counters::default());
    let local: Arc<dyn Source> = Arc::new(Local::new(layout.path()));
    let remote: Arc<dyn Source> = Arc::new(client_of(&registry, "a/b"));
    let empty: Arc<dyn Source> = Arc::new(Local::new(layout.path().join("nothing")));
    let sources: [Arc<dyn Source>; 5] = [
        Arc::clone(&local),
        Arc::clone(&remote),
        Arc::new(Retry::new(Arc::clone(&remote), Arc::clone(&counters))),
        Arc::new(Record::new(Arc::clone(&remote), Arc::clone(&counters))),
        Arc::new(Failover::new(vec![empty, remote, local])),
    ];
    for source in sources {
        keeps_the_contract(source, &content).await;
    }
    assert_eq!(counters.now().retries, 0);
}

#[tokio::test]
async fn a_layout_serves_regular_files_of_the_right_size_only() {
    let layout = tempfile::tempdir().unwrap();
    let blobs = layout.path().join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let source = Local::new(layout.path());
    let blob = |content: &[u8]| Blob { digest: Digest::sha256_of(content), size: 3 };

    let (link, short, fifo) = (blob(b"lnk"), blob(b"abc"), blob(b"ffo"));
    std::fs::write(layout.path().join("secret"), "lnk").unwrap();
    std::os::unix::fs::symlink(layout.path().join("secret"), source.path(&link.digest)).unwrap();
    std::fs::write(source.path(&short.digest), "ab").unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        source.path(&fifo.digest),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    for (blob, kind) in
        [(link, ErrorKind::Local), (short, ErrorKind::DigestMismatch), (fifo, ErrorKind::Local)]
    {
        let error = read(&source, &blob, ByteRange::new(0, 3)).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(!source.has(&blob));
    }
    std::fs::write(source.path(&short.digest), "abc").unwrap();
    assert!(source.has(&short));
}
