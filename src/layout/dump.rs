//! A tree as text, one line a path; and back.
