//! From a challenge to an Authorization header.
