//! The program: everything is in the library's `cli`.

fn main() {
    layoutfs::cli::main()
}
