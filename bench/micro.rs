//! The steps of `steps.rs` one by one, with spread and throughput: `cargo bench --bench micro [-- FILTER]`.
//!
//! For whoever changes one of them, on one machine; the budgets are measured by `decode.rs`.

mod steps;

use std::sync::LazyLock;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use steps::{Result, Sample};

static SAMPLE: LazyLock<Sample> =
    LazyLock::new(|| Sample::synthetic().expect("a layer of our own making"));

fn main() {
    divan::main();
}

/// One step over the whole sample; a step that fails ends the benchmark.
fn time(bencher: Bencher<'_, '_>, step: impl Fn(&Sample) -> Result<()> + Sync) {
    let sample = &*SAMPLE;
    bencher.bench(|| step(sample).expect("a step over a layer of our own making"));
}

/// By decoded bytes.
fn tar_bytes() -> BytesCount {
    BytesCount::of_slice(&SAMPLE.tar)
}

#[divan::bench(sample_count = 20)]
fn inflate(bencher: Bencher<'_, '_>) {
    time(bencher.counter(tar_bytes()), steps::inflate);
}

#[divan::bench(sample_count = 20, args = [false, true])]
fn inflating_thread(bencher: Bencher<'_, '_>, has_seek_points: bool) {
    time(bencher.counter(tar_bytes()), |sample| steps::inflating_thread(sample, has_seek_points));
}

#[divan::bench(sample_count = 20)]
fn pass_without_seek_points(bencher: Bencher<'_, '_>) {
    time(bencher.counter(tar_bytes()), steps::without_points);
}

#[divan::bench(sample_count = 20)]
fn pass_with_seek_points(bencher: Bencher<'_, '_>) {
    time(bencher.counter(tar_bytes()), steps::with_points);
}

#[divan::bench]
fn tar_scan(bencher: Bencher<'_, '_>) {
    time(bencher.counter(tar_bytes()), steps::scan);
}

#[divan::bench]
fn merge(bencher: Bencher<'_, '_>) {
    time(bencher.counter(ItemsCount::new(SAMPLE.index.entries.len())), steps::merge_one);
}

#[divan::bench]
fn plan(bencher: Bencher<'_, '_>) {
    time(bencher.counter(ItemsCount::new(steps::PLANS)), steps::plan);
}

#[divan::bench]
fn index_encode(bencher: Bencher<'_, '_>) {
    time(bencher.counter(BytesCount::of_slice(&SAMPLE.encoded)), steps::encode);
}

#[divan::bench]
fn index_open(bencher: Bencher<'_, '_>) {
    time(bencher.counter(BytesCount::of_slice(&SAMPLE.encoded)), steps::open);
}

#[divan::bench(sample_count = 20)]
fn random_spans(bencher: Bencher<'_, '_>) {
    time(bencher.counter(ItemsCount::new(steps::PLACES)), steps::random_spans);
}
