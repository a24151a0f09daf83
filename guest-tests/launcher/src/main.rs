//! The command behind `scripts/run-qemu.sh`.
//!
//! Exit codes: those of `vnic judge` where a run is judged, QEMU's where it is not; 2 bad usage or it could not be run; 3 a
//! kernel or QEMU that is not to be had; 130 a signal.

#![expect(clippy::print_stderr, clippy::print_stdout, reason = "a program for people")]

use std::process::ExitCode;

use guest_launcher::{Failure, Options, prepare, run};

fn main() -> ExitCode {
    let options = match Options::read(std::env::args_os().skip(1)) {
        Ok(options) => options,
        Err(error) if error.use_stderr() => {
            // One sentence of clap's several.
            let text = error.to_string();
            let sentence =
                text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
            eprintln!("run-qemu.sh: {} (try run-qemu.sh --help)", sentence.trim_start_matches("error: "));
            return ExitCode::from(2);
        }
        Err(help) => {
            // A reader who closed the pipe has had enough of it.
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    let done = prepare(&options).and_then(|machine| {
        if options.print_command {
            println!("{}", machine.command().join("\n"));
            return Ok(0);
        }
        run(&options, &machine)
    });
    match done {
        Ok(code) => ExitCode::from(code),
        Err(Failure::NotToBeHad(_)) => ExitCode::from(3),
        Err(Failure::Interrupted) => ExitCode::from(130),
        Err(failure) => {
            eprintln!("run-qemu.sh: {failure}");
            ExitCode::from(2)
        }
    }
}
