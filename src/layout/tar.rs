//! Tar stream to entries: a push parser for ustar, PAX and GNU headers.
