//! References: registry, repository, tag or digest; and their paths in a layout directory.
