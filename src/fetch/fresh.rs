//! A layer as its first pass has decoded it, for as long as the kernel has memory for it.
//!
//! Who mounts an image for the first time mostly reads it next, and decoding all of it a second time
//! would take longer than the reading. So what a pass decodes goes into a file without a name, and
//! is there for some seconds: mostly fewer than the kernel waits before it writes such a file to the
//! disk. Should it do so earlier, or the pass take longer, and the memory be given to somebody else,
//! the bytes count as gone: they are never read from the disk (which nothing would prove), and are
//! decoded again.

use std::fs::File;
use std::io::{IoSliceMut, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::{ReadWriteFlags, preadv2};

use super::cache::Cache;
use super::memory;
use super::proved::Place;
use super::room::Allowance;
use crate::layout::range::ByteRange;

/// The most of all layers of one store together.
const BYTES_MAX: u64 = 1 << 30;

/// Of the memory that is available, and of the room on the disk, so much: the kernel begins to write
/// to the disk when a tenth of the memory waits to be written, and sets room for it aside at once.
const PART: u64 = 16;

/// How long it is there after the pass, and until the mount looks next. The kernel writes to the disk
/// what is 30 seconds old.
const KEPT_FOR: Duration = Duration::from_secs(20);

/// How much all fresh layers of a store may still take.
#[derive(Debug, Clone)]
pub struct Room(Arc<AtomicU64>);

impl Room {
    /// For one store over `cache`.
    pub fn of(cache: &Cache) -> Self {
        let disk = rustix::fs::statvfs(cache.root());
        let disk = disk.map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        let memory = memory::available_bytes().unwrap_or(0);
        let bytes = BYTES_MAX.min(memory / PART).min(disk / PART);
        Room(Arc::new(AtomicU64::new(bytes)))
    }
}

/// Taken of the room; goes back when it is dropped.
#[derive(Debug)]
struct Taken {
    room: Room,
    bytes: u64,
}

impl Taken {
    fn grow(&mut self, bytes: u64) -> bool {
        let take = |left: u64| left.checked_sub(bytes);
        let is_taken = self.room.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok();
        self.bytes += u64::from(is_taken) * bytes;
        is_taken
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.room.0.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

/// While the pass is under way: nothing of it is proved.
#[derive(Debug)]
pub struct Writing {
    file: File,
    taken: Taken,
    allowance: Allowance,
    len: u64,
    /// There was no room for the rest.
    is_full: bool,
}

impl Writing {
    /// For a layer whose blob has `stored_bytes`. `None`: this file system or this kernel cannot
    /// tell what is in memory.
    pub fn begin(cache: &Cache, room: Room, stored_bytes: u64) -> Option<Self> {
        // Under a limit the room on the disk is for what lasts.
        if cache.has_limit() {
            return None;
        }
        let file = cache.create_decoded().ok()?.into_file();
        read_resident(&file, &mut [0; 1], 0)?;
        let taken = Taken { room, bytes: 0 };
        let allowance = cache.allow_decoded(stored_bytes);
        Some(Writing { file, taken, allowance, len: 0, is_full: false })
    }

    /// Appends what comes next of the layer, if there is room.
    pub fn write(&mut self, bytes: &[u8]) {
        let len = bytes.len() as u64;
        let has_room = !self.is_full && self.allowance.grow(len) && self.taken.grow(len);
        // Whatever is wrong with the disk: it can be decoded again.
        self.is_full = !has_room || self.file.write_all(bytes).is_err();
        self.len += if self.is_full { 0 } else { len };
    }

    /// All of it came, and was proved to be what its digests say.
    pub fn proved(self) -> Fresh {
        let file = Mutex::new(Some(self.file));
        let until = Instant::now() + KEPT_FOR;
        Fresh { file, len: self.len, until, _taken: self.taken, _allowance: self.allowance }
    }
}

/// A decoded layer, or its beginning.
#[derive(Debug)]
pub struct Fresh {
    /// Held while it is read: after a read that found something missing nobody reads, so that nobody
    /// finds what the kernel may have begun to read from the disk.
    file: Mutex<Option<File>>,
    len: u64,
    until: Instant,
    _taken: Taken,
    _allowance: Allowance,
}

impl Fresh {
    /// Copies `tar` to `out`, which has its length, if it is still here.
    pub fn read(&self, tar: ByteRange, out: &mut Place<'_>) -> Option<()> {
        if tar.end > self.len {
            return None;
        }
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = out.len();
        let read = read_resident(file.as_ref()?, out.vouch(), tar.start)?;
        if read == wanted {
            return Some(());
        }
        *file = None;
        None
    }

    /// It has been there for long enough.
    pub fn is_over(&self) -> bool {
        Instant::now() > self.until
    }
}

/// How many bytes at `at` are in memory and now in `out`; `None`: it cannot be told.
fn read_resident(file: &File, out: &mut [u8], at: u64) -> Option<usize> {
    loop {
        match preadv2(file, &mut [IoSliceMut::new(out)], at, ReadWriteFlags::NOWAIT) {
            Ok(read) => return Some(read),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Some(0),
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::proved::Filling;

    fn room(bytes: u64) -> Room {
        Room(Arc::new(AtomicU64::new(bytes)))
    }

    fn begun(limit: Option<u64>, room: &Room) -> (tempfile::TempDir, Option<Writing>) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let cache = Cache::open(dir.path(), limit).expect("cache");
        let writing = Writing::begin(&cache, room.clone(), 1000);
        (dir, writing)
    }

    fn read(fresh: &Fresh, tar: std::ops::Range<u64>) -> Option<Vec<u8>> {
        let len = (tar.end - tar.start) as usize;
        let mut out = Filling::zeroed(len);
        fresh.read(ByteRange::new(tar.start, tar.end), &mut out.place(0..len))?;
        Some(out.finish().to_vec())
    }

    #[test]
    fn what_was_written_is_read_as_far_as_there_was_room() {
        let room = room(6);
        let (_dir, writing) = begun(None, &room);
        let Some(mut writing) = writing else { panic!("no reading from memory here") };
        [&b"abc"[..], b"def", b"ghi", b"j"].iter().for_each(|bytes| writing.write(bytes));
        assert_eq!(room.0.load(Ordering::Relaxed), 0);
        let fresh = writing.proved();
        assert_eq!(read(&fresh, 1..5).as_deref(), Some(&b"bcde"[..]));
        // What follows a gap is not taken for what was in it.
        assert_eq!(read(&fresh, 6..7), None);
        assert_eq!(read(&fresh, 5..7), None);
        assert_eq!(read(&fresh, 0..6).as_deref(), Some(&b"abcdef"[..]), "that costs it nothing");
        assert!(!fresh.is_over());
        drop(fresh);
        assert_eq!(room.0.load(Ordering::Relaxed), 6);
    }

    #[test]
    fn what_the_kernel_has_dropped_is_gone_and_is_not_read_from_the_disk() {
        let (_dir, writing) = begun(None, &room(1 << 20));
        let Some(mut writing) = writing else { panic!("no reading from memory here") };
        writing.write(&[7; 100_000]);
        let fresh = writing.proved();
        assert_eq!(read(&fresh, 50_000..50_001), Some(vec![7]));
        {
            let file = fresh.file.lock().expect("lock");
            let file = file.as_ref().expect("it is there");
            file.sync_all().expect("sync");
            let all = std::num::NonZeroU64::new(100_000);
            rustix::fs::fadvise(file, 0, all, rustix::fs::Advice::DontNeed).expect("fadvise");
        }
        assert_eq!(read(&fresh, 50_000..50_001), None);
        // The kernel may have it again by now: it was asked for.
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(read(&fresh, 50_000..50_001), None);
        assert_eq!(read(&fresh, 0..1), None);
    }

    #[test]
    fn under_a_limit_of_the_cache_nothing_is_written() {
        let (_dir, writing) = begun(Some(1 << 30), &room(1 << 20));
        assert!(writing.is_none());
    }
}
