//! Answers OPEN: how the content of a file is going to be read, which then holds for that handle.
//!
//! A blob that is whole and proved is read by the kernel itself where it may be; one that is not
//! proved yet past the page cache, so that what was wrong cannot be read from there later; all else
//! through the page cache, by READ messages.

use std::fs::File;
use std::sync::Arc;

use fuser::{FileHandle, FopenFlags, OpenFlags, ReplyOpen};
use tokio::runtime::Handle;

use super::counters::Counters;
use super::errno;
use super::open_files::OpenFiles;
use super::ops::View;
use super::passthrough::{Held, Passthrough};
use crate::fetch::whole_file::{Known, WholeFile};
use crate::layout::tree::NodeId;

/// What an open needs to be answered.
#[derive(Clone)]
pub struct Opens {
    /// Where an answer that must wait goes.
    pub runtime: Handle,
    /// Counts those that are read past us.
    pub counters: Arc<Counters>,
    /// Files that are read before they are proved.
    pub pinned: Arc<OpenFiles>,
    /// Blobs that the kernel reads by itself.
    pub passthrough: Arc<Passthrough>,
}

impl Opens {
    /// Answers an open of `id`: at once, unless its blob is here and has to be proved first. A
    /// first read would wait for that as well.
    pub fn answer(self, view: &Arc<View>, id: NodeId, flags: OpenFlags, reply: ReplyOpen) {
        if !view.is_blob(id) || !self.passthrough.is_wanted() {
            return self.ordinary(view, id, reply);
        }
        let known = match self.passthrough.held(id) {
            Held::Ordinary => Known::Not,
            // Those who have it open may close it before this open is counted.
            Held::Passed(file) if file.is_unchanged() => {
                return self.decide(view, id, flags, Some(file), reply);
            }
            Held::Passed(file) => return self.prove_again(view, id, flags, file, reply),
            // Alignment is the reader's business then, and ours has none.
            Held::No if is_direct(flags) || !self.passthrough.may_ask() => Known::Not,
            Held::No => view.whole_file_now(id),
        };
        match known {
            Known::Not => self.decide(view, id, flags, None, reply),
            Known::Whole(file) => self.decide(view, id, flags, Some(Arc::new(file)), reply),
            Known::Unproved => {
                let (view, runtime) = (view.clone(), self.runtime.clone());
                runtime.spawn(async move {
                    let file = view.whole_file(id).await.map(Arc::new);
                    self.decide(&view, id, flags, file, reply);
                });
            }
        }
    }

    /// As those read who have the blob open; else past us, if there is a `file`.
    fn decide(
        &self,
        view: &View,
        id: NodeId,
        flags: OpenFlags,
        file: Option<Arc<WholeFile>>,
        reply: ReplyOpen,
    ) {
        let register = |file: &File| reply.open_backing(file);
        let Some(passed) = self.passthrough.open(id, file, register) else {
            return self.ordinary(view, id, reply);
        };
        // Reads that go past the page cache need no alignment here: those are still answered by us.
        let mode = match is_direct(flags) {
            true => FopenFlags::FOPEN_DIRECT_IO,
            false => {
                self.counters.count_passed();
                view.note_passed(id);
                FopenFlags::empty()
            }
        };
        reply.opened_passthrough(FileHandle(0), mode, &passed.backing);
    }

    /// Somebody wrote to the file of a blob that others are reading past us. A newcomer cannot be
    /// given another one, and gets this one only if its bytes are right.
    fn prove_again(
        self,
        view: &Arc<View>,
        id: NodeId,
        flags: OpenFlags,
        file: Arc<WholeFile>,
        reply: ReplyOpen,
    ) {
        let view = view.clone();
        let runtime = self.runtime.clone();
        runtime.spawn_blocking(move || match file.prove() {
            Ok(()) => self.decide(&view, id, flags, Some(file), reply),
            Err(error) => {
                let digest = file.blob().digest;
                tracing::error!(
                    %digest, %error,
                    "the file of a blob was changed while it is open; it can be opened again when \
                     all who have it open have closed it"
                );
                self.counters.count_error();
                reply.error(errno::of_read(error.kind));
            }
        });
    }

    fn ordinary(&self, view: &View, id: NodeId, reply: ReplyOpen) {
        match view.pin(id) {
            Some(pin) => reply.opened(self.pinned.add(pin), FopenFlags::FOPEN_DIRECT_IO),
            None => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
        }
    }
}

/// `O_DIRECT`.
fn is_direct(flags: OpenFlags) -> bool {
    let direct = rustix::fs::OFlags::DIRECT.bits();
    u32::try_from(flags.0).is_ok_and(|flags| flags & direct != 0)
}
