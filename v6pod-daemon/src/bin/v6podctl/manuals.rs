//! Completions for shells, and man pages, both made of the definition of the command line itself: they cannot say
//! anything else than `--help` does.

use std::io;
use std::path::Path;

use clap::{Command, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;

/// A shell that completes words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompletingShell {
    /// bash, by bash-completion.
    Bash,
    /// zsh.
    Zsh,
    /// fish.
    Fish,
}

/// What this shell has to read to complete the words of that command line.
pub(crate) fn completions(shell: CompletingShell, mut command: Command) -> String {
    let shell = match shell {
        CompletingShell::Bash => Shell::Bash,
        CompletingShell::Zsh => Shell::Zsh,
        CompletingShell::Fish => Shell::Fish,
    };
    let name = command.get_name().to_owned();
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// Writes the man pages of v6podctl, one for each of its subcommands, and that of v6podd into a folder.
///
/// # Errors
/// What the system says of writing them.
pub(crate) fn write(folder: &Path, v6podctl: Command, v6podd: Command) -> io::Result<()> {
    clap_mangen::generate_to(v6podctl, folder)?;
    // Of a daemon: section 8, as hier(7) has it.
    let page = Man::new(v6podd).section("8");
    let mut text = Vec::new();
    page.render(&mut text)?;
    std::fs::write(folder.join(page.get_filename()), text)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use v6pod_daemon::config::CommandLine;

    use super::*;
    use crate::Cli;

    fn shown() -> Vec<String> {
        let all = Cli::command();
        let shown = all.get_subcommands().filter(|command| !command.is_hide_set());
        shown.map(|command| command.get_name().to_owned()).collect()
    }

    #[test]
    fn every_shell_completes_every_command() {
        for shell in CompletingShell::value_variants() {
            let text = completions(*shell, Cli::command());
            for name in shown() {
                assert!(text.contains(&name), "{shell:?}: {name}");
            }
            assert!(text.contains("json") && text.contains("v6podctl"), "{shell:?}");
        }
    }

    #[test]
    fn every_command_has_its_page() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), Cli::command(), CommandLine::command()).unwrap();
        let page = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        for name in shown() {
            assert!(page(&format!("v6podctl-{name}.1")).contains("SYNOPSIS"), "{name}");
        }
        assert!(page("v6podctl.1").contains("v6podctl\\-watch(1)"));
        // Examples are in it, and what is hidden is not.
        assert!(page("v6podctl-open.1").contains("tcp/443"));
        let daemon = page("v6podd.8");
        assert!(daemon.contains("config") && !daemon.contains("run\\-dir"), "{daemon}");
    }
}
