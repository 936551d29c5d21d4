//! GNU and PAX sparse files: maps to chunks.
