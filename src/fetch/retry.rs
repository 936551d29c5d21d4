//! Source around a source: what is temporary is tried again, within the deadline.
