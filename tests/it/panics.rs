//! A bug of ours fails the one read that meets it: with EIO, a line in the log, and a mount that
//! lives on.

use std::fs;
use std::io::Write;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use layoutfs::fetch::cache::Cache;
use layoutfs::fetch::store::{Config, Store};
use layoutfs::fetch::{Body, BoxFuture, Deadline, Error, ErrorKind, Result, Source};
use layoutfs::fs::complaints::Complaints;
use layoutfs::fs::fuse::Shell;
use layoutfs::fs::mount::{Mounted, Serving};
use layoutfs::fs::ops::View;
use layoutfs::fs::passthrough::Passthrough;
use layoutfs::fs::pending::Pending;
use layoutfs::fs::policy::Policy;
use layoutfs::fs::poll::Poll;
use layoutfs::layout::entry::{Attributes, Chunk};
use layoutfs::layout::range::ByteRange;
use layoutfs::layout::tree::{Builder, Content, NodeId, NodeKind, Tree};
use layoutfs::layout::{Blob, Digest};

/// A source with a bug.
struct Panicking;

impl Source for Panicking {
    fn read<'a>(&'a self, _: &'a Blob, _: ByteRange, _: Deadline) -> BoxFuture<'a, Result<Body>> {
        panic!("a source with a bug");
    }

    fn name(&self) -> String {
        "panicking".into()
    }
}

/// Where log lines of this process go.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// `right` is right; `torn` refers to a layer that the tree does not have, which panics on the event
/// thread; `lost` asks the source.
fn tree() -> Tree {
    let mut builder = Builder::new(Vec::new());
    let mut add = |name: &str, content| {
        let kind = NodeKind::Regular { size: 6, content };
        let attributes = Attributes { mode: 0o644, ..Attributes::default() };
        let node = builder.add(kind, attributes, None).expect("few nodes");
        builder.link(NodeId::ROOT, name.as_bytes(), node);
    };
    add("right", Content::Inline(Arc::from(&b"right\n"[..])));
    let chunks = [Chunk { file_offset: 0, tar: ByteRange::new(0, 6) }];
    add("torn", Content::Chunks { layer: 7, chunks: chunks.into() });
    add("lost", Content::Blob(Blob { digest: Digest::sha256_of(b"lost\n!"), size: 6 }.into()));
    builder.finish()
}

#[test]
fn a_panic_is_eio_and_a_line_in_the_log_and_the_mount_lives() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    tracing::subscriber::set_global_default(subscriber).expect("no other test logs");
    let directory = tempfile::tempdir().expect("a directory");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    let store = Store::new(Config {
        cache: Cache::open(&directory.path().join("cache"), None).expect("a cache"),
        layout_dir: None,
        source: Some(Arc::new(Panicking)),
        no_source: Error::new(ErrorKind::Offline, "unused"),
        stall: Duration::from_secs(5),
        spans_bytes_max: 1 << 20,
        keeps_fresh: true,
        own_indexes_only: false,
    });
    let pending = Pending::default();
    pending.set(View::new(tree(), Vec::new(), Arc::new(store), Policy::Strict).expect("a view"));
    let shell = Shell {
        view: Arc::new(pending),
        counters: Arc::default(),
        runtime: runtime.handle().clone(),
        notifier: Arc::default(),
        open_files: Arc::default(),
        passthrough: Arc::new(Passthrough::new(false)),
        pusher: Arc::default(),
        serving: Serving::default(),
        poll: Arc::new(Poll::new(1)),
        complaints: Arc::new(Complaints::new("an image")),
        ended: Arc::<AtomicBool>::default(),
    };
    let mnt = directory.path().join("mnt");
    fs::create_dir(&mnt).expect("a directory");
    let mounted = Mounted::start(shell, &mnt).expect("mounted");
    let outcome = std::panic::catch_unwind(|| {
        for _ in 0..3 {
            for name in ["torn", "lost"] {
                let error = fs::read(mnt.join(name)).expect_err("a bug");
                assert_eq!(error.raw_os_error(), Some(5), "{name}: EIO: {error}");
            }
            assert_eq!(fs::read(mnt.join("right")).expect("the mount lives"), b"right\n");
        }
        let said = String::from_utf8_lossy(&lines.0.lock().unwrap()).into_owned();
        assert!(said.contains("a handler panicked"), "{said}");
        assert!(said.contains("/lost"), "{said}");
    });
    mounted.unmount();
    assert!(outcome.is_ok());
    // Reads that panicked hold nothing that the end waits for.
    runtime.shutdown_timeout(Duration::from_secs(5));
}
