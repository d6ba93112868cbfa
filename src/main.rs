//! The `longshore` binary: see the library's documentation for the map of the crate.

use std::process::ExitCode;

fn main() -> ExitCode {
    longshore::cli::run()
}
