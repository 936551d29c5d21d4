//! layoutfs between the phases of the buildpacks lifecycle, which is not patched: run images are
//! extended and applications exported to an image layout, and no daemon has any of it.
//!
//! Needs what the tests of `real` need, and the lifecycle's programs (`tests/lifecycle/build.sh`).
//! `smoke` takes seconds: `make test` runs it before everything else.

mod application;
mod apt;
mod build;
mod counts;
mod dockerfiles;
mod extensions;
mod fixture;
mod flow;
mod images;
mod phases;
mod programs;
mod refusals;
mod smoke;
