//! Plans as values: what to decode, what to fetch, what to copy.
