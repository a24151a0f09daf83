//! The kernel command line, as far as PID 1 reads it: `vnic.run=`, `vnic.modules=`, `vnic.net=`, `vnic.tracing=`, and whether
//! the kernel is to use an IOMMU.

use std::fmt;
use std::fs;

use anyhow::{Context, Result};

/// What to do once the guest is up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Task {
    /// Serve the host over the virtio-serial port.
    Agent,
    /// A shell on the serial console.
    #[default]
    Shell,
    /// This, by the shell.
    Command(String),
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Task::Agent => f.write_str("the agent"),
            Task::Shell => f.write_str("the shell"),
            Task::Command(command) => write!(f, "`{command}`"),
        }
    }
}

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommandLine {
    /// `vnic.run=agent|shell|"command"`; in a command, `%22` is a quote, as in URLs.
    pub(super) task: Task,
    /// `vnic.modules=base,…`: groups of the image's modules, loaded in this order. By default `base`, and behind an IOMMU
    /// (`intel_iommu=on`) `vfio` as well: programs may want a device of their own.
    pub(super) modules: Vec<String>,
    /// `vnic.net=off` leaves the NIC alone.
    pub(super) network: bool,
    /// `vnic.tracing=off` takes tracefs away, as on a kernel without it.
    pub(super) tracing: bool,
}

impl Default for CommandLine {
    fn default() -> CommandLine {
        CommandLine { task: Task::Shell, modules: vec!["base".to_owned()], network: true, tracing: true }
    }
}

impl CommandLine {
    pub(super) fn read() -> Result<CommandLine> {
        Ok(CommandLine::parse(&fs::read_to_string("/proc/cmdline").context("/proc/cmdline")?))
    }

    fn parse(line: &str) -> CommandLine {
        let mut parsed = CommandLine::default();
        if words(line).iter().any(|word| word == "intel_iommu=on") {
            parsed.modules.push("vfio".to_owned());
        }
        for word in words(line) {
            match word.split_once('=') {
                Some(("vnic.run", "agent")) => parsed.task = Task::Agent,
                Some(("vnic.run", "shell")) => parsed.task = Task::Shell,
                Some(("vnic.run", command)) => parsed.task = Task::Command(decoded(command)),
                Some(("vnic.modules", groups)) => {
                    parsed.modules = groups.split(',').filter(|group| !group.is_empty()).map(str::to_owned).collect();
                }
                Some(("vnic.net", state)) => parsed.network = state != "off",
                Some(("vnic.tracing", state)) => parsed.tracing = state != "off",
                _ => {}
            }
        }
        parsed
    }
}

/// With each `%` and its two hexadecimal digits made the character they stand for.
fn decoded(text: &str) -> String {
    let mut pieces = text.split('%');
    let mut decoded = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let code = piece.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(u8::is_ascii);
        match code {
            Some(code) => {
                decoded.push(char::from(code));
                decoded.push_str(&piece[2..]);
            }
            None => {
                decoded.push('%');
                decoded.push_str(piece);
            }
        }
    }
    decoded
}

/// Splits at spaces outside double quotes, and drops the quotes, as the kernel does.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.trim().chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => words.push(String::new()),
            c => {
                if let Some(word) = words.last_mut() {
                    word.push(c);
                }
            }
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_our_words_it_is_a_shell_with_network() {
        assert_eq!(CommandLine::parse("console=ttyS0 quiet panic=-1\n"), CommandLine::default());
    }

    #[test]
    fn a_quoted_command_keeps_its_spaces() {
        for line in [r#"quiet vnic.run="ping -c 1 10.0.2.2" x=y"#, r#"quiet "vnic.run=ping -c 1 10.0.2.2" x=y"#] {
            assert_eq!(CommandLine::parse(line).task, Task::Command("ping -c 1 10.0.2.2".to_owned()), "{line}");
        }
    }

    #[test]
    fn a_command_may_hold_quotes_and_lines() {
        for (encoded, command) in [
            ("echo %22a  b%22%0aecho 5%25", "echo \"a  b\"\necho 5%"),
            ("date +%s", "date +%s"),
            ("%", "%"),
            ("%é1 %ff", "%é1 %ff"),
        ] {
            let line = format!("quiet \"vnic.run={encoded}\" panic=-1");
            assert_eq!(CommandLine::parse(&line).task, Task::Command(command.to_owned()));
        }
    }

    #[test]
    fn behind_an_iommu_devices_can_be_given_to_programs() {
        assert_eq!(CommandLine::parse("quiet intel_iommu=on").modules, ["base", "vfio"]);
        assert_eq!(CommandLine::parse("vnic.modules= intel_iommu=on").modules, Vec::<String>::new());
    }

    #[test]
    fn modules_and_network_are_as_said() {
        let parsed = CommandLine::parse("vnic.modules=base,vfio vnic.net=off vnic.run=agent vnic.tracing=off");
        let modules = vec!["base".to_owned(), "vfio".to_owned()];
        assert_eq!(parsed, CommandLine { task: Task::Agent, modules, network: false, tracing: false });
    }
}
