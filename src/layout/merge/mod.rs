//! Applies changesets in order: layer entries to the rootfs `Tree`.
