//! One test binary: each module a subject. `tidy` checks that no file is forgotten here.
#![allow(clippy::unwrap_used)]

mod auth;
mod cache;
mod commands;
mod commit;
mod commit_model;
mod crashes;
mod damage;
mod extend;
mod faults_matrix;
mod finalize;
mod formats;
mod hydrate_app;
mod image_works;
mod layouts;
mod lifecycle;
mod listing_works;
mod merge_model;
mod mounts;
mod panics;
mod proofs;
mod push;
mod real;
mod referrers;
mod registry;
mod requests;
mod rootless;
mod secrets;
mod soak;
mod source_suite;
mod sources;
mod support;
mod support_works;
mod tables;
mod tidy;
mod tls;
