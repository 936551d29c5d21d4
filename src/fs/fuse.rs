//! The FUSE shell: decodes, calls `ops`, replies. Decides nothing about content.
//!
//! What each reply's flags and lifetimes are is explained in `mount.rs`. Local answers are given on
//! the event thread; what must wait moves its reply to a task, so a slow registry blocks nobody
//! else. A panic in a handler drops the reply, which answers EIO, and the mount lives.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use fuser::{
    AccessFlags, Errno, FileHandle, Filesystem, Generation, INodeNo, KernelConfig, LockOwner,
    Notifier, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use futures_util::FutureExt as _;
use tokio::runtime::Handle;

use super::attr::{attr, file_type, ino, node_id};
use super::complaints::Complaints;
use super::counters::{Counters, Message};
use super::errno;
use super::mount::{Serving, TTL, request_capabilities};
use super::open_files::OpenFiles;
use super::opens::Opens;
use super::ops::View;
use super::passthrough::Passthrough;
use super::pending::Pending;
use super::policy::Pin;
use super::poll::Poll;
use super::push::Pusher;
use crate::fetch::ErrorKind;
use crate::layout::tree::{KindRef, NodeId, Tree};

/// The statfs unit; only shown.
const STATFS_UNIT_BYTES: u32 = 4096;

/// Longest name, as on every Linux filesystem.
const NAME_BYTES_MAX: u32 = 255;

/// What FUSE calls.
pub struct Shell {
    /// The view, once it is built.
    pub view: Arc<Pending>,
    /// Counts every message.
    pub counters: Arc<Counters>,
    /// Where reads that must wait go.
    pub runtime: Handle,
    /// Set once the session runs.
    pub notifier: Arc<OnceLock<Notifier>>,
    /// Where failed reads are told.
    pub complaints: Arc<Complaints>,
    /// Files that are read before they are proved.
    pub open_files: Arc<OpenFiles>,
    /// Blobs that the kernel reads by itself.
    pub passthrough: Arc<Passthrough>,
    /// Sends files before they are asked for.
    pub pusher: Arc<Pusher>,
    /// How it is served.
    pub serving: Serving,
    /// Asks for messages without sleeping.
    pub poll: Arc<Poll>,
    /// Set when the session has ended.
    pub ended: Arc<AtomicBool>,
}

/// A reply that can be refused.
trait Refuse: Send + 'static {
    fn refuse(self, errno: Errno);
}

macro_rules! refuse_by_error {
    ($($reply:ty),*) => {$(
        impl Refuse for $reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        }
    )*};
}

refuse_by_error!(
    ReplyEntry,
    ReplyAttr,
    ReplyData,
    ReplyOpen,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyStatfs,
    ReplyXattr
);

impl Shell {
    /// Answers from the view: at once when it is built, else from a task that waits for it.
    fn with_view<R: Refuse>(
        &self,
        message: Message,
        reply: R,
        serve: impl FnOnce(&Arc<View>, R) + Send + 'static,
    ) {
        let _turn = self.poll.turn();
        self.counters.count(message);
        if let Some(view) = self.view.get() {
            return guarded(catch_unwind(AssertUnwindSafe(|| serve(view, reply))));
        }
        let pending = self.view.clone();
        self.runtime.spawn(async move {
            match pending.wait().await {
                Ok(view) => guarded(catch_unwind(AssertUnwindSafe(|| serve(&view, reply)))),
                Err(kind) => reply.refuse(errno::of_read(kind)),
            }
        });
    }
}

/// A panic is logged; the reply of its handler, dropped on the way, has answered EIO.
fn guarded(handled: std::thread::Result<()>) {
    if handled.is_err() {
        tracing::error!("a handler panicked; the request was answered with EIO");
    }
}

impl Filesystem for Shell {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        request_capabilities(config, self.serving);
        Ok(())
    }

    /// The session has ended. This thread never goes on: fuser would now unmount whatever is at the
    /// path of the mount, which may be another daemon's by now. It ends with the process.
    fn destroy(&mut self) {
        self.ended.store(true, Ordering::Release);
        loop {
            std::thread::park();
        }
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.as_bytes().to_owned();
        self.with_view(Message::Lookup, reply, move |view, reply| {
            let tree = view.tree();
            let found = node_id(parent).and_then(|parent| tree.lookup(parent, &name));
            match found.and_then(|id| Some((id, tree.node(id)?))) {
                Some((id, node)) => reply.entry(&TTL, &attr(id, node), Generation(0)),
                None => refuse_name(tree, reply),
            }
        });
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.with_view(Message::Getattr, reply, move |view, reply| {
            match node_id(ino).and_then(|id| Some((id, view.tree().node(id)?))) {
                Some((id, node)) => reply.attr(&TTL, &attr(id, node)),
                None => reply.error(Errno::ENOENT),
            }
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.with_view(Message::Readlink, reply, move |view, reply| {
            match node_id(ino).and_then(|id| view.tree().node(id)).map(|n| n.kind) {
                Some(KindRef::Symlink { target }) => reply.data(target),
                _ => reply.error(Errno::EINVAL),
            }
        });
    }

    /// Answered ENOSYS once, and never asked again, where all files are read the same way.
    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opens = Opens {
            runtime: self.runtime.clone(),
            counters: self.counters.clone(),
            pinned: self.open_files.clone(),
            passthrough: self.passthrough.clone(),
        };
        self.with_view(Message::Open, reply, move |view, reply| {
            if !view.has_unproved_reads() && !opens.passthrough.is_wanted() {
                return reply.error(Errno::ENOSYS);
            }
            match node_id(ino) {
                Some(id) => opens.answer(view, id, flags, reply),
                None => reply.error(Errno::ENOENT),
            }
        });
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.open_files.remove(fh);
        if let Some(changed) = node_id(ino).and_then(|id| self.passthrough.release(id)) {
            let digest = changed.blob().digest;
            tracing::warn!(%digest, "the file of a blob was written to while the kernel read it");
        }
        reply.ok();
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (runtime, counters) = (self.runtime.clone(), self.counters.clone());
        let (notifier, pin) = (self.notifier.clone(), self.open_files.get(fh));
        let (complaints, pusher) = (self.complaints.clone(), self.pusher.clone());
        self.with_view(Message::Read, reply, move |view, reply| {
            let Some(id) = node_id(ino) else { return reply.error(Errno::ENOENT) };
            if offset == 0 {
                pusher.read(view, id);
            }
            // A pinned file reads its own attempt, proved or not.
            let now = if pin.is_some() { None } else { view.read_now(id, offset, size) };
            match now {
                Some(Ok(bytes)) => {
                    counters.count_read(bytes.len());
                    reply.data(&bytes);
                }
                Some(Err(error)) => {
                    fail(view, &counters, &complaints, (id, Instant::now()), &error, reply)
                }
                None => {
                    let view = view.clone();
                    let read = Read { view, counters, complaints, notifier, pin, id, offset, size };
                    runtime.spawn(async move {
                        let run = AssertUnwindSafe(read.run(reply));
                        guarded(run.catch_unwind().await);
                    });
                }
            }
        });
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.counters.count(Message::Flush);
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.counters.count(Message::Opendir);
        reply.error(Errno::ENOSYS);
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.with_view(Message::Readdir, reply, move |view, mut reply| {
            let tree = view.tree();
            let Some(listing) = node_id(ino).and_then(|id| listing(tree, id, offset)) else {
                return reply.error(Errno::ENOTDIR);
            };
            for (next, name, child) in listing {
                let Some(node) = tree.node(child) else { continue };
                if reply.add(self::ino(child), next, file_type(node.kind), OsStr::from_bytes(name))
                {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let (pusher, counters) = (self.pusher.clone(), self.counters.clone());
        let (notifier, pushes) = (self.notifier.clone(), self.serving.may_push());
        self.with_view(Message::Readdirplus, reply, move |view, mut reply| {
            let (tree, directory) = (view.tree(), node_id(ino));
            let Some(listing) = directory.and_then(|id| listing(tree, id, offset)) else {
                return reply.error(Errno::ENOTDIR);
            };
            let mut is_end = true;
            for (next, name, child) in listing {
                let Some(node) = tree.node(child) else { continue };
                is_end = false;
                let (ino, attr) = (self::ino(child), attr(child, node));
                if reply.add(ino, next, OsStr::from_bytes(name), &TTL, &attr, Generation(0)) {
                    break;
                }
            }
            if let (true, Some(directory)) = (is_end && pushes, directory) {
                pusher.listed(view, directory, &notifier, &counters);
            }
            reply.ok();
        });
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.with_view(Message::Statfs, reply, move |view, reply| {
            let unit = u64::from(STATFS_UNIT_BYTES);
            let blocks = view.tree().content_bytes().div_ceil(unit);
            let files = view.tree().len() as u64;
            reply.statfs(blocks, 0, 0, files, 0, STATFS_UNIT_BYTES, NAME_BYTES_MAX, unit as u32);
        });
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.as_bytes().to_owned();
        self.with_view(Message::Getxattr, reply, move |view, reply| {
            let tree = view.tree();
            if !tree.has_xattrs() {
                return reply.error(Errno::ENOSYS);
            }
            let xattrs = node_id(ino).and_then(|id| tree.node(id)).map(|n| &n.attributes.xattrs);
            match xattrs.and_then(|x| x.iter().find(|(n, _)| *n == name)) {
                Some((_, value)) => reply_sized(reply, value, size),
                None => reply.error(Errno::ENODATA),
            }
        });
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.with_view(Message::Listxattr, reply, move |view, reply| {
            let tree = view.tree();
            if !tree.has_xattrs() {
                return reply.error(Errno::ENOSYS);
            }
            let mut names = Vec::new();
            if let Some(node) = node_id(ino).and_then(|id| tree.node(id)) {
                for (name, _) in &node.attributes.xattrs {
                    names.extend_from_slice(name);
                    names.push(0);
                }
            }
            reply_sized(reply, &names, size);
        });
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        self.counters.count(Message::Access);
        reply.error(Errno::ENOSYS);
    }
}

/// A read that has to wait.
struct Read {
    view: Arc<View>,
    counters: Arc<Counters>,
    complaints: Arc<Complaints>,
    notifier: Arc<OnceLock<Notifier>>,
    pin: Option<Arc<Pin>>,
    id: NodeId,
    offset: u64,
    size: u32,
}

impl Read {
    async fn run(self, reply: ReplyData) {
        let (began, deadline) = (Instant::now(), self.view.store().deadline());
        let pin = self.pin.as_deref();
        match self.view.read(self.id, self.offset, self.size, pin, deadline).await {
            Ok(served) => {
                self.counters.count_read(served.bytes().len());
                reply.data(served.bytes());
            }
            Err(error) => {
                let wrong = error.kind == ErrorKind::DigestMismatch;
                fail(&self.view, &self.counters, &self.complaints, (self.id, began), &error, reply);
                if wrong {
                    self.forget_pages();
                }
            }
        }
    }

    /// Wrong bytes that were served before the digest was known leave the kernel's cache. After the
    /// reply: the kernel holds the pages of the read until then.
    fn forget_pages(&self) {
        let (notifier, id) = (self.notifier.clone(), self.id);
        tokio::task::spawn_blocking(move || {
            let Some(notifier) = notifier.get() else { return };
            if let Err(error) = notifier.inval_inode(ino(id), 0, 0) {
                tracing::warn!(%error, inode = id.0, "cannot drop cached pages");
            }
        });
    }
}

/// One line that says which file and why, and the errno. `began`: when the read did.
fn fail(
    view: &View,
    counters: &Counters,
    complaints: &Complaints,
    (id, began): (NodeId, Instant),
    error: &crate::fetch::Error,
    reply: ReplyData,
) {
    counters.count_error();
    complaints.read_failed(view, id, error, began);
    reply.error(errno::of_read(error.kind));
}

/// A name that is not there is remembered as such; a tree never changes.
fn refuse_name(tree: &Tree, reply: ReplyEntry) {
    let Some(root) = tree.node(NodeId::ROOT) else { return reply.error(Errno::ENOENT) };
    let mut negative = attr(NodeId::ROOT, root);
    negative.ino = INodeNo(0);
    reply.entry(&TTL, &negative, Generation(0));
}

/// Size asked for: 0 means "how large", too little is ERANGE.
fn reply_sized(reply: ReplyXattr, value: &[u8], size: u32) {
    match (size, u32::try_from(value.len())) {
        (0, Ok(len)) => reply.size(len),
        (size, Ok(len)) if len <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

/// `.`, `..` and the children from position `offset` on, each with the position after it.
fn listing(
    tree: &Tree,
    id: NodeId,
    offset: u64,
) -> Option<impl Iterator<Item = (u64, &[u8], NodeId)>> {
    let children = tree.children(id)?;
    let parent = tree.node(id)?.parent;
    let dots: [(&[u8], NodeId); 2] = [(b".", id), (b"..", parent)];
    let all = dots.into_iter().chain(children);
    let skip = usize::try_from(offset).unwrap_or(usize::MAX);
    Some((1u64..).zip(all).skip(skip).map(|(next, (name, id))| (next, name, id)))
}
