//! Source around a source: remembers every call.
