//! One OCI document's bytes to what it refers to: indexes, manifests, configurations; platform choice.
