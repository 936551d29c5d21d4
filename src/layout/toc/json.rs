//! The JSON document of a table of contents, one element at a time.
//!
//! Elements become entries as they are read: a list of what JSON can say in three bytes would take
//! a hundred times the document's memory.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use super::chunks::Chunks;
use super::member::entry_of;
use crate::layout::entry::Entry;
use crate::layout::tar::{METADATA_BYTES_MAX, metadata_bytes};

/// The version of the format, of both.
const VERSION: u64 = 1;

/// One element: a member, or a further chunk of the file before it. Numbers that are negative, have
/// a fraction or do not fit are refused.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Element {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) size: u64,
    pub(super) modtime: String,
    pub(super) link_name: String,
    pub(super) mode: i64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) dev_major: u32,
    pub(super) dev_minor: u32,
    /// Values in base64.
    pub(super) xattrs: BTreeMap<String, String>,
    /// Of a file's whole content.
    pub(super) digest: String,
    /// Of a gzip member or zstd frame in the blob.
    pub(super) offset: u64,
    /// Where the last chunk ends in the blob, if it is said.
    pub(super) end_offset: u64,
    /// Decoded bytes of the member or frame in front of the chunk.
    pub(super) inner_offset: u64,
    /// Where in the file the chunk begins.
    pub(super) chunk_offset: u64,
    /// 0: up to the file's end.
    pub(super) chunk_size: u64,
    pub(super) chunk_digest: String,
    pub(super) chunk_type: String,
}

/// Reads the document: members to entries, whose chunks are still to be placed, and chunks.
pub(super) fn read(json: &[u8], chunks: &mut Chunks) -> Result<Vec<Entry>, String> {
    let mut reader = Reader { entries: Vec::new(), memory: 0, chunks };
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    Document(&mut reader).deserialize(&mut deserializer).map_err(|e| e.to_string())?;
    deserializer.end().map_err(|e| e.to_string())?;
    let Reader { entries, chunks, .. } = reader;
    chunks.end_file()?;
    Ok(entries)
}

struct Reader<'a> {
    entries: Vec<Entry>,
    /// About how much the entries take.
    memory: u64,
    chunks: &'a mut Chunks,
}

impl Reader<'_> {
    fn add(&mut self, element: Element) -> Result<(), String> {
        if self.memory.saturating_add(self.chunks.memory()) > METADATA_BYTES_MAX {
            return Err(format!("its entries take more than {METADATA_BYTES_MAX} bytes"));
        }
        if element.kind == "chunk" {
            return self.chunks.continue_file(&element);
        }
        self.chunks.end_file()?;
        let entry = entry_of(&element, self.entries.len() as u64)?;
        self.memory = self.memory.saturating_add(metadata_bytes(&entry));
        if element.kind == "reg" {
            self.chunks.begin_file(self.entries.len(), &element)?;
        }
        self.entries.push(entry);
        Ok(())
    }
}

/// The object at the top.
struct Document<'a, 'b>(&'a mut Reader<'b>);

impl<'de> DeserializeSeed<'de> for Document<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of contents")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut version, mut has_entries) = (None, false);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "version" if version.is_none() => version = Some(map.next_value::<u64>()?),
                "entries" if !has_entries => {
                    map.next_value_seed(Elements(self.0))?;
                    has_entries = true;
                }
                "version" | "entries" => return Err(A::Error::custom(format!("{key} twice"))),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        if version != Some(VERSION) || !has_entries {
            return Err(A::Error::custom(format!(
                "expected entries of version {VERSION}, got version {version:?}"
            )));
        }
        Ok(())
    }
}

/// The list in it.
struct Elements<'a, 'b>(&'a mut Reader<'b>);

impl<'de> DeserializeSeed<'de> for Elements<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Elements<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of members")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(element) = list.next_element()? {
            self.0.add(element).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}
