//! What is wrong with the bytes, and where in them. Never an I/O error.

/// A `Result` whose error says what is malformed or unsupported.
pub type Result<T> = std::result::Result<T, Error>;

/// Malformed or unsupported input. Messages are lower case, without a full stop, and do not name
/// the layer or the file: whoever knows those adds them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a digest of an algorithm that we can check (image-spec `descriptor.md`, "Digests").
    #[error("invalid digest {0:?}: expected sha256:<64 hex> or sha512:<128 hex>, lower case")]
    InvalidDigest(String),

    /// Bytes do not have the digest that they were asked for by.
    #[error("digest mismatch: expected {expected}, got {actual}")]
    DigestMismatch {
        /// The digest that the descriptor promises.
        expected: String,
        /// The digest of the bytes at hand.
        actual: String,
    },

    /// Bytes do not have the size that their descriptor promises.
    #[error("size mismatch: expected {expected} bytes, got {actual}")]
    SizeMismatch {
        /// Bytes promised.
        expected: u64,
        /// Bytes at hand.
        actual: u64,
    },

    /// A tar header, or what follows it, that cannot be an archive member.
    #[error("tar entry at offset {offset}: {reason}")]
    Tar {
        /// Position of the 512-byte tar header in the uncompressed layer.
        offset: u64,
        /// What is wrong: lower case, with expected and got where there are two values.
        reason: String,
    },

    /// A compressed stream that does not decode.
    #[error("compressed data at offset {offset}: {reason}")]
    Codec {
        /// Position in the blob.
        offset: u64,
        /// What is wrong.
        reason: String,
    },

    /// An OCI document (index, manifest, config) that is not what it should be.
    #[error("{document}: {reason}")]
    Document {
        /// Which document: `index.json`, `manifest sha256:...`.
        document: String,
        /// What is wrong.
        reason: String,
    },

    /// An entry that cannot be applied. This one names its layer: only merging knows it.
    #[error("layer {layer}: entry at offset {offset}: {reason}")]
    Changeset {
        /// Short digest of the layer as stored.
        layer: String,
        /// Position of the entry's tar header in the uncompressed layer.
        offset: u64,
        /// What is wrong.
        reason: String,
    },

    /// A saved index that is damaged or of another version. Never fatal: it is built again.
    #[error("saved index: {0}")]
    SavedIndex(String),

    /// A table of contents of somebody else's that cannot be used. Not fatal: the layer is read
    /// from its beginning instead.
    #[error("{format} table of contents: {reason}")]
    ForeignIndex {
        /// The format, as people call it.
        format: &'static str,
        /// What is wrong.
        reason: String,
    },

    /// A named limit was exceeded.
    #[error("{what} exceeds the limit of {limit}")]
    Limit {
        /// What grew too large.
        what: String,
        /// The limit, in the unit that `what` names.
        limit: u64,
    },
}

impl Error {
    /// A tar error at `offset` (bytes into the uncompressed layer).
    pub fn tar(offset: u64, reason: impl Into<String>) -> Self {
        Error::Tar { offset, reason: reason.into() }
    }

    /// A decoding error at `offset` (bytes into the blob).
    pub fn codec(offset: u64, reason: impl Into<String>) -> Self {
        Error::Codec { offset, reason: reason.into() }
    }

    /// A malformed OCI document. Both texts are made [`readable`]: they quote what is in it.
    pub fn document(document: impl AsRef<str>, reason: impl AsRef<str>) -> Self {
        let (document, reason) = (readable(document.as_ref()), readable(reason.as_ref()));
        Error::Document { document, reason }
    }
}

/// Longest text from outside in a message: a list of twenty images fits, and a document of some
/// megabytes that is one word does not fill logs.
const READABLE_CHARS_MAX: usize = 2000;

/// Text from outside for people: control characters, with which it could speak to a terminal, are
/// escaped, and it is not longer than anybody reads.
pub fn readable(text: &str) -> String {
    let mut shown = String::new();
    for (number, c) in text.chars().enumerate() {
        match c {
            _ if number == READABLE_CHARS_MAX => return shown + "...",
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_document_says_cannot_fill_a_log_or_speak_to_a_terminal() {
        let error = Error::document("config", format!("\u{1b}[31m{}", "x".repeat(1 << 20)));
        let message = error.to_string();
        assert!(message.starts_with("config: \\u{1b}[31mxxx"), "{}", &message[..40]);
        assert!(message.len() < 2 * READABLE_CHARS_MAX, "{}", message.len());
        assert_eq!(readable("caf\u{e9} \"12\", 13"), "caf\u{e9} \"12\", 13");
    }
}
