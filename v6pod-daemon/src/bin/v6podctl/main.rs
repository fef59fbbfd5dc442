//! v6podctl: what an operator, and a user who wants to know his containers' addresses, types.
//!
//! An ordinary user is shown his own attachments; root on the unix socket is shown all.
#![forbid(unsafe_code)]

mod doctor;
mod explain;
mod look;
mod manuals;
mod resolved;
mod table;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use look::Look;
use manuals::CompletingShell;
use serde::Serialize;
use v6pod_daemon::client::{Client, ClientError};
use v6pod_daemon::config::{CommandLine, Options};
use v6pod_daemon::purge;
use v6pod_daemon::report::chain;
use v6pod_proto::explain::Explanation;
use v6pod_proto::wishes::{NameWish, Opening, OpeningList};
use v6pod_proto::{
    Attachment, AttachmentList, Capacity, Change, DEFAULT_SOCKET, PrefixOffer, PrefixView, Status,
};

/// Shows the containers' addresses and names that v6podd has given, renames them, and opens and closes their ports.
#[derive(Debug, Parser)]
#[command(name = "v6podctl", version)]
struct Cli {
    /// v6podd's socket.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET, env = "V6POD_SOCKET", global = true)]
    socket: PathBuf,
    /// Print JSON, for programs.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List attachments: name, address, owner, container.
    Ls,
    /// Show one attachment.
    Show {
        /// Its name, its address, or the beginning of its or its container's id.
        reference: String,
    },
    /// Open ports of a running container, as long as its attachment lasts.
    ///
    /// What the container asked for by annotations and published ports does not come back when the daemon
    /// restarts: from here on it is open what you say.
    #[command(after_help = OPEN_HELP)]
    Open(Ports),
    /// Close ports of a running container. The flows that came in by them end, and no others.
    ///
    /// A part of a range can be closed. What is open to a prefix is closed for the whole of it, or not at
    /// all.
    #[command(after_help = CLOSE_HELP)]
    Close(Ports),
    /// Have a running container registered by another name, as long as its attachment lasts.
    Rename {
        /// Its name, its address, or the beginning of its or its attachment's id.
        reference: String,
        /// 1 to 63 lower-case letters, digits and '-', the latter neither first nor last.
        #[arg(value_parser = wished_name)]
        name: NameWish,
    },
    /// Say what becomes of a flow, which rule decides, and who opened it.
    #[command(after_help = explain::HELP)]
    Explain(explain::Words),
    /// Tell what happens, as it happens: addresses and names given, lost, put back, and why not given.
    ///
    /// Until it is interrupted, or the daemon stops. An ordinary user is told of his own containers.
    Watch,
    /// Say what is wrong on this host, and the command that mends it.
    #[command(after_help = doctor::HELP)]
    Doctor,
    /// Show what the daemon does and does not do.
    Status,
    /// Show how many more attachments fit, and what ends first.
    Capacity,
    /// Show the prefix, or say what it is to be.
    #[command(subcommand)]
    Prefix(Prefix),
    /// Tell systemd-resolved who answers for the names of containers; v6podd.service does that at each start.
    Resolved,
    /// Print what a shell has to read to complete v6podctl's words.
    #[command(after_help = COMPLETIONS_HELP)]
    Completions {
        /// The shell.
        shell: CompletingShell,
    },
    /// Write the man pages into a folder, for a package.
    #[command(hide = true)]
    Man {
        /// The folder.
        folder: PathBuf,
    },
    /// Take away all that v6podd has made: ports, routes, the bridge, names, records. Running
    /// containers lose their address. The daemon must be stopped.
    Purge(Options),
}

const COMPLETIONS_HELP: &str = "Packages and `make install` bring them. Otherwise:
  bash   v6podctl completions bash >~/.local/share/bash-completion/completions/v6podctl
  zsh    v6podctl completions zsh >FOLDER/_v6podctl       a folder of $fpath
  fish   v6podctl completions fish >~/.config/fish/completions/v6podctl.fish";

const OPEN_HELP: &str = "Examples:
  v6podctl open web tcp/80 tcp/443        to everybody
  v6podctl open db tcp/5432@2001:db8::/32 to a prefix alone
  v6podctl open sip udp/10000-10500       a range; a container has room for 1024 ports

Processes of root and of the container's owner on this host reach every port in any case.";

const CLOSE_HELP: &str = "Examples:
  v6podctl close web tcp/80
  v6podctl close web tcp/1-65535 udp/1-65535    everything";

#[derive(Debug, Subcommand)]
enum Prefix {
    /// Show the prefix, where it comes from, and what changes.
    Show,
    /// Say what prefix is delegated to this host; running containers follow it.
    ///
    /// It counts when it has held for the settling time (renumber.settle). One that is shorter than 80 bits is
    /// cut by the same rule each time: the configuration's `subnet`, or its last /80.
    Set {
        /// Such as 2001:db8:1:2::/64.
        prefix: String,
        /// For how many seconds it is good. 0 takes it back; the last good one stays in force.
        #[arg(long, value_name = "SECONDS")]
        valid: Option<u64>,
        /// One word for who says so.
        #[arg(long, value_name = "WORD", default_value = "operator")]
        source: String,
    },
}

#[derive(Debug, Args)]
struct Ports {
    /// The container's name, its address, or the beginning of its or its attachment's id.
    reference: String,
    /// Such as tcp/80, udp/5000-5010, or for some alone tcp/5432@2001:db8::/32.
    #[arg(required = true, value_name = "PORTS", value_parser = opening)]
    ports: Vec<Opening>,
}

fn opening(text: &str) -> Result<Opening, String> {
    text.parse().map_err(|right: &str| right.to_owned())
}

fn wished_name(text: &str) -> Result<NameWish, String> {
    text.parse().map_err(|right: &str| right.to_owned())
}

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(Failure::from).and_then(|runtime| runtime.block_on(run(&cli)));
    match done {
        Ok(text) => print(&text),
        Err(error) => {
            eprintln!("v6podctl: {}", chain(&*error));
            let ill = error.downcast_ref::<doctor::Ill>();
            ill.map_or(ExitCode::FAILURE, |ill| ill.status())
        }
    }
}

async fn run(cli: &Cli) -> Result<String, Failure> {
    let client = Client::new(&cli.socket);
    match &cli.command {
        Command::Ls => {
            let list: AttachmentList = client.get("/api/attachments").await?;
            let look = Look::of_stdout();
            let text = |list: &AttachmentList| table::list(&list.attachments, table::now(), look);
            print(&cli.render(&list, text)?);
            cli.hint(look, look::after_list(&list.attachments));
            Ok(String::new())
        }
        Command::Show { reference } => {
            let found = client.get(&resource(reference)).await;
            let found: Attachment = found.map_err(|error| failure(error, reference))?;
            let look = Look::of_stdout();
            print(&cli.render(&found, |found| table::one(found, table::now(), look))?);
            cli.hint(look, look::after_one(&found));
            Ok(String::new())
        }
        Command::Open(ports) => {
            let open = Some(OpeningList(ports.ports.clone()));
            let opened = Change { open, ..Change::default() };
            let opened = change(&client, &ports.reference, &opened).await?;
            cli.render(&opened, table::open)
        }
        Command::Close(ports) => {
            let close = Some(OpeningList(ports.ports.clone()));
            let closed = Change { close, ..Change::default() };
            let closed = change(&client, &ports.reference, &closed).await?;
            cli.render(&closed, table::open)
        }
        Command::Rename { reference, name } => {
            let name = Some(name.clone());
            let renamed = change(&client, reference, &Change { name, ..Change::default() }).await?;
            let look = Look::of_stdout();
            cli.render(&renamed, |renamed| table::one(renamed, table::now(), look))
        }
        Command::Explain(words) => {
            let answer = client.get(&words.resource()).await;
            let answer: Explanation = answer.map_err(|error| words.failure(error))?;
            let text = cli.render(&answer, explain::text)?;
            if answer.kernel.agrees {
                return Ok(text);
            }
            print(&text);
            Err(explain::DISAGREES.into())
        }
        Command::Watch => {
            let watched = client.watch(|name, data| watch::tell(name, data, cli.json)).await?;
            if watched.is_break() { Ok(String::new()) } else { Err(watch::ENDED.into()) }
        }
        Command::Doctor => {
            let report = doctor::examine(&cli.socket).await;
            let text = cli.render(&report, doctor::for_people)?;
            let Some(ill) = doctor::Ill::of(&report) else { return Ok(text) };
            print(&text);
            Err(ill.into())
        }
        Command::Status => {
            let status: Status = client.get("/api/status").await?;
            cli.render(&status, table::status)
        }
        Command::Capacity => {
            let capacity: Capacity = client.get("/api/capacity").await?;
            cli.render(&capacity, table::capacity)
        }
        Command::Prefix(Prefix::Show) => {
            let prefix: PrefixView = client.get("/api/prefix").await?;
            cli.render(&prefix, table::prefix)
        }
        Command::Prefix(Prefix::Set { prefix, valid, source }) => {
            let (prefix, source) = (prefix.clone(), Some(source.clone()));
            let said = PrefixOffer { prefix, valid: *valid, source };
            let heard: PrefixView = client.put("/api/prefix", &said).await?;
            cli.render(&heard, table::prefix)
        }
        Command::Resolved => {
            let status: Status = client.get("/api/status").await?;
            resolved::tell(&status)
        }
        Command::Completions { shell } => Ok(manuals::completions(*shell, Cli::command())),
        Command::Man { folder } => {
            manuals::write(folder, Cli::command(), CommandLine::command())?;
            Ok(String::new())
        }
        Command::Purge(options) => {
            let removed = purge::purge(&options.clone().load()?).await?;
            let text = cli.render(&removed, ToString::to_string)?;
            let Some(left) = removed.registry else { return Ok(text) };
            print(&text);
            Err(left.into())
        }
    }
}

/// What went wrong about an attachment that was referred to.
fn failure(error: ClientError, reference: &str) -> Failure {
    match error {
        ClientError::Refused(problem) if problem.status == 404 => {
            format!("no attachment of yours is {reference:?}").into()
        }
        other => Failure::from(other),
    }
}

async fn change(client: &Client, reference: &str, change: &Change) -> Result<Attachment, Failure> {
    let changed = client.patch(&resource(reference), change).await;
    changed.map_err(|error| failure(error, reference))
}

impl Cli {
    fn render<T: Serialize>(
        &self,
        value: &T,
        human: impl FnOnce(&T) -> String,
    ) -> Result<String, Failure> {
        if self.json { Ok(serde_json::to_string_pretty(value)? + "\n") } else { Ok(human(value)) }
    }

    /// Who reads JSON wants no words beside it.
    fn hint(&self, look: Look, words: &str) {
        if !self.json {
            look.hint(words);
        }
    }
}

/// The path of an attachment, whatever the reference has in it.
fn resource(reference: &str) -> String {
    format!("/api/attachments/{}", escaped(reference))
}

/// What stays one part of a path or of a query.
fn escaped(reference: &str) -> String {
    let mut path = String::new();
    for byte in reference.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' => {
                path.push(char::from(byte));
            }
            _ => path.push_str(&format!("%{byte:02X}")),
        }
    }
    path
}

/// Prints to standard output. A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> ExitCode {
    use std::io::{ErrorKind, Write as _};
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprintln!("v6podctl: cannot print: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_reference_stays_one_part_of_the_path() {
        assert_eq!(resource("2001:db8::5"), "/api/attachments/2001:db8::5");
        assert_eq!(resource("../status?x"), "/api/attachments/..%2Fstatus%3Fx");
    }
}
