//! Random layers: tars, compressed by random writers, entered at small distances.

use std::fmt;
use std::io::Write as _;

use flate2::{Compress, Crc, FlushCompress};
use layoutfs::layout::Digest;
use layoutfs::layout::codec::{Decoded, Decoder, Start};
use layoutfs::layout::entry::{Chunk, EntryKind};
use layoutfs::layout::error::Error;
use layoutfs::layout::index::scan::ScannedLayer;
use layoutfs::layout::index::spans::SpanBuilder;
use layoutfs::layout::index::{Codec, LayerIndex, Proof, SEGMENT_BYTES, Span};
use layoutfs::layout::plan::{Slice, plan_read};
use layoutfs::layout::range::ByteRange;
use layoutfs::layout::tar::TarParser;
use proptest::prelude::*;

use crate::support::layer::{LayerBuilder, generated};

/// A layer, and what is true of it.
#[derive(Clone)]
pub struct Sample {
    pub blob: Vec<u8>,
    pub tar: Vec<u8>,
    pub index: LayerIndex,
    pub files: Vec<File>,
    writer: Writer,
}

/// A file of a layer.
#[derive(Clone)]
pub struct File {
    pub content: Vec<u8>,
    chunks: Vec<Chunk>,
}

/// Who compresses a tar, and how.
#[derive(Debug, Clone, Copy)]
pub enum Writer {
    Plain,
    /// As many bytes of tar a member (all of them: one member), and a block.
    Gzip {
        level: u32,
        member_bytes: usize,
        block_bytes: usize,
    },
    /// As many bytes of tar a frame; between them there may be skippable ones.
    Zstd {
        level: i32,
        frame_bytes: usize,
        skippable: bool,
    },
}

/// A read: of which file (`None`: of the tar), from where, how many bytes. All of them proportions.
#[derive(Debug, Clone, Copy)]
pub struct Read {
    file: Option<prop::sample::Index>,
    start: prop::sample::Index,
    bytes: usize,
}

impl fmt::Debug for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spans: Vec<_> = self.index.spans.iter().map(|s| (s.blob, s.tar, s.codec)).collect();
        let files: Vec<_> = self.files.iter().map(|file| &file.chunks).collect();
        write!(f, "{:?}, spans {spans:?}, files {files:?}", self.writer)
    }
}

fn any_writer() -> impl Strategy<Value = Writer> {
    let many = || prop_oneof![2 => Just(usize::MAX), 3 => 300usize..20_000];
    let gzip = (0u32..=9, many(), many()).prop_map(|(level, member_bytes, block_bytes)| {
        Writer::Gzip { level, member_bytes, block_bytes }
    });
    let zstd = (prop_oneof![-5i32..=9, Just(19)], many(), any::<bool>())
        .prop_map(|(level, frame_bytes, skippable)| Writer::Zstd { level, frame_bytes, skippable });
    prop_oneof![1 => Just(Writer::Plain), 5 => gzip, 3 => zstd]
}

/// Content that compresses well, badly, or not at all.
fn any_content() -> impl Strategy<Value = Vec<u8>> {
    let bytes = prop_oneof![40 => 0usize..12_000, 1 => 100_000usize..250_000];
    (bytes, 0u64..1000, 0..3).prop_map(|(bytes, seed, kind)| {
        let random = generated(&seed.to_string(), bytes);
        match kind {
            0 => random.to_vec(),
            1 => random.iter().map(|byte| b'a' + byte % 5).collect(),
            _ => vec![seed as u8; bytes],
        }
    })
}

prop_compose! {
    /// A layer with seek points about `spacing` bytes apart. Some spans are of several segments.
    pub fn any_sample()(
        contents in prop::collection::vec(any_content(), 1..12),
        writer in any_writer(),
        spacing in prop_oneof![4 => 600u64..9000, 1 => Just(1u64 << 20)],
        chunk_bytes in prop_oneof![2 => Just(u64::MAX), 1 => 200u64..5000],
    ) -> Sample {
        let mut sample = sample(&contents, writer, spacing);
        sample.index.spans = sample.index.spans.iter().flat_map(|s| chunks_of(s, &sample.tar, chunk_bytes)).collect();
        sample
    }
}

prop_compose! {
    pub fn any_read()(
        file in prop::option::weighted(0.7, any::<prop::sample::Index>()),
        start in any::<prop::sample::Index>(),
        bytes in prop_oneof![1usize..200, 1usize..9000, 1usize..60_000],
    ) -> Read {
        Read { file, start, bytes }
    }
}

impl Read {
    /// What it should give, and from where that is to be copied.
    pub fn of<'a>(&self, sample: &'a Sample) -> (&'a [u8], Vec<Slice>) {
        let whole = match self.file {
            None => &sample.tar,
            Some(at) => &at.get(&sample.files).content,
        };
        let start = self.start.index(whole.len() + 1);
        let end = whole.len().min(start + self.bytes);
        let range = ByteRange::new(start as u64, end as u64);
        let slices = match self.file {
            Some(at) => plan_read(&at.get(&sample.files).chunks, whole.len() as u64, range),
            None if range.is_empty() => Vec::new(),
            None => vec![Slice { buffer: ByteRange::at(0, range.len()), tar: Some(range) }],
        };
        (&whole[start..end], slices)
    }
}

impl Sample {
    /// Random content in spans of some 4,000 bytes.
    pub fn of_members() -> Self {
        let writer = Writer::Gzip { level: 6, member_bytes: 4000, block_bytes: usize::MAX };
        sample(&[generated("members", 20_000).to_vec()], writer, 3000)
    }

    /// One span of seven segments.
    pub fn of_segments() -> Self {
        let whole = usize::MAX;
        let writer = Writer::Gzip { level: 6, member_bytes: whole, block_bytes: whole };
        let sample = sample(&[generated("parts", 400_000).to_vec()], writer, 1 << 20);
        let [span] = &sample.index.spans[..] else { panic!("{:?}", sample.index.spans) };
        assert_eq!(span.blob.len().div_ceil(SEGMENT_BYTES), 7);
        sample
    }
}

fn sample(contents: &[Vec<u8>], writer: Writer, spacing: u64) -> Sample {
    let mut builder = LayerBuilder::new().dir("d", 0o755);
    for (number, content) in contents.iter().enumerate() {
        builder = builder.file(&format!("d/{number}"), 0o644, content.clone());
    }
    let tar = builder.tar();
    let blob = writer.compress(&tar);
    let index = index_of(&blob, &tar, spacing);
    let chunks = |entry: &EntryKind| match entry {
        EntryKind::Regular { chunks, .. } => Some(chunks.clone()),
        _ => None,
    };
    let chunks = index.entries.iter().filter_map(|entry| chunks(&entry.kind));
    let files: Vec<File> =
        chunks.zip(contents).map(|(chunks, c)| File { content: c.clone(), chunks }).collect();
    assert_eq!(files.len(), contents.len());
    Sample { blob, tar, index, files, writer }
}

/// The span as a table of contents has it that lists several chunks of one member: all of them are in
/// the same bytes of the blob, and what they decode to proves them.
fn chunks_of(span: &Span, tar: &[u8], chunk_bytes: u64) -> Vec<Span> {
    if chunk_bytes >= span.tar.len() || span.codec == Codec::Stored {
        return vec![span.clone()];
    }
    let starts = (span.tar.start..span.tar.end).step_by(chunk_bytes as usize);
    let chunk = |start| {
        let range = ByteRange::new(start, span.tar.end.min(start + chunk_bytes));
        let proof = Proof::Decoded(sha256(&tar[range.start as usize..range.end as usize]));
        Span { tar: range, skip: start - span.tar.start, proof, ..span.clone() }
    };
    starts.map(chunk).collect()
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    match Digest::sha256_of(bytes) {
        Digest::Sha256(sha256) => sha256,
        other => panic!("{other}"),
    }
}

/// What a pass finds, with starts at another distance than its own.
fn index_of(blob: &[u8], tar: &[u8], spacing: u64) -> LayerIndex {
    let (mut decoder, mut spans) = (Decoder::with_starts(spacing), SpanBuilder::default());
    let (mut parser, mut entries) = (TarParser::new(), Vec::new());
    let mut starts: Vec<Start> = Vec::new();
    let mut decoded = Vec::new();
    let mut sink = |piece: Decoded<'_>| {
        match piece {
            Decoded::Start(start) => starts.push(start),
            Decoded::Bytes(bytes) => decoded.extend_from_slice(bytes),
        }
        Ok::<(), Error>(())
    };
    decoder.push(blob, &mut sink).expect("it was compressed just now");
    let codec = decoder.finish(&mut sink).expect("it is whole");
    assert!(decoded == tar, "another tar");
    parser.push(&decoded, &mut entries).expect("a tar");
    parser.finish().expect("it is whole");
    spans.push(blob, starts);
    let (tar_size, blob_size) = (tar.len() as u64, blob.len() as u64);
    let layer = ScannedLayer { entries, codec, tar_size, blob_size };
    layer.into_index(Digest::sha256_of(tar), spans)
}

impl Writer {
    fn compress(self, tar: &[u8]) -> Vec<u8> {
        match self {
            Writer::Plain => tar.to_vec(),
            Writer::Gzip { level, member_bytes, block_bytes } => {
                tar.chunks(member_bytes).flat_map(|part| gzip(part, level, block_bytes)).collect()
            }
            Writer::Zstd { level, frame_bytes, skippable } => {
                let frame = |part| {
                    let behind =
                        if skippable { &b"\x5e\x2a\x4d\x18\x03\0\0\0toc"[..] } else { b"" };
                    [&zstd::encode_all(part, level).expect("memory is writable"), behind].concat()
                };
                tar.chunks(frame_bytes).flat_map(frame).collect()
            }
        }
    }
}

/// A member whose blocks end, somewhere inside of a byte, after `block_bytes` of content.
fn gzip(content: &[u8], level: u32, block_bytes: usize) -> Vec<u8> {
    let mut member = b"\x1f\x8b\x08\0\0\0\0\0\0\xff".to_vec();
    let mut deflate = Compress::new(flate2::Compression::new(level), false);
    let mut rest = content;
    loop {
        let (block, behind) = rest.split_at(rest.len().min(block_bytes));
        rest = behind;
        let flush = if rest.is_empty() { FlushCompress::Finish } else { FlushCompress::Partial };
        member.reserve(block.len() * 2 + 1000);
        let before = deflate.total_in();
        deflate.compress_vec(block, &mut member, flush).expect("there is room");
        assert_eq!(deflate.total_in() - before, block.len() as u64);
        if rest.is_empty() {
            break;
        }
    }
    let mut crc = Crc::new();
    crc.update(content);
    member.write_all(&crc.sum().to_le_bytes()).expect("memory is writable");
    member.write_all(&(content.len() as u32).to_le_bytes()).expect("memory is writable");
    member
}

#[test]
fn samples_are_entered_in_their_middle_and_inside_of_bytes() {
    let content: Vec<u8> = generated("text", 40_000).iter().map(|byte| b'a' + byte % 7).collect();
    let whole = usize::MAX;
    for (writer, least) in [
        (Writer::Plain, 20),
        (Writer::Gzip { level: 6, member_bytes: whole, block_bytes: 500 }, 10),
        (Writer::Gzip { level: 1, member_bytes: 2000, block_bytes: whole }, 10),
        (Writer::Zstd { level: 3, frame_bytes: 2000, skippable: true }, 10),
    ] {
        let sample = sample(std::slice::from_ref(&content), writer, 2000);
        let spans = &sample.index.spans;
        assert!(spans.len() >= least, "{writer:?}: {} spans", spans.len());
        let shared = spans.windows(2).filter(|pair| pair[0].blob.end > pair[1].blob.start).count();
        let is_one_member = matches!(writer, Writer::Gzip { member_bytes: usize::MAX, .. });
        assert_eq!(shared > 5, is_one_member, "{writer:?}: {shared} bytes of two spans");
    }
}
