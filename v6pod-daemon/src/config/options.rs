//! Where the configuration is, as the programs' command lines say.

use std::path::PathBuf;

use clap::{Args, Parser};

use super::{Config, ConfigError};

/// The command line of v6podd. It is here for v6podctl, which makes its man page.
#[derive(Debug, Parser)]
#[command(name = "v6podd", version)]
#[command(
    about = "Gives each rootless podman container a routable IPv6 address, a default route and a name"
)]
pub struct CommandLine {
    /// Where things are.
    #[command(flatten)]
    pub options: Options,
    /// Check the configuration, say what is wrong with it, and end.
    #[arg(long)]
    pub check: bool,
}

/// The options that v6podd and v6podctl share.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The configuration; /etc/v6pod/v6pod.toml if it is there, else the defaults.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where volatile state goes, instead of /run/INSTANCE.
    #[arg(long, value_name = "DIR", hide = true)]
    run_dir: Option<PathBuf>,
    /// Where lasting state goes, instead of /var/lib/INSTANCE.
    #[arg(long, value_name = "DIR", hide = true)]
    state_dir: Option<PathBuf>,
    /// Where the host's resolvers are named, instead of /etc/resolv.conf.
    #[arg(long, value_name = "FILE", hide = true)]
    resolv_conf: Option<PathBuf>,
}

impl Options {
    /// Reads the configuration that the options name.
    pub fn load(self) -> Result<Config, ConfigError> {
        let config = Config::load(self.config.as_deref())?;
        let Self { run_dir, state_dir, resolv_conf, .. } = self;
        Ok(Config { run_dir, state_dir, resolv_conf, ..config })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        CommandLine::command().debug_assert();
    }
}
