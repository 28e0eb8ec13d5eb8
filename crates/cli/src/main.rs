//! `bulkhead`: the operator's command line. All of it is in the library, so that tests reach it.

fn main() -> std::process::ExitCode {
    bulkhead_cli::main()
}
