//! The command line: parses, runs, prints the error, and gives the exit code.

fn main() {}
