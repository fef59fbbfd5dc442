//! v6podd: gives each rootless podman container a routable IPv6 address.
#![forbid(unsafe_code)]

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;
use v6pod_daemon::api::{Inherited, Listeners, router};
use v6pod_daemon::attachments::{self, StartError};
use v6pod_daemon::closer::Closer;
use v6pod_daemon::config::{CommandLine, Config};
use v6pod_daemon::core::Links;
use v6pod_daemon::dns;
use v6pod_daemon::kernel::{descriptors, privileges};
use v6pod_daemon::report::chain;
use v6pod_daemon::service;

/// EX_CONFIG of sysexits.h: starting again will not help, and the unit does not.
const BAD_CONFIGURATION: u8 = 78;

/// With fewer descriptors than that a few tenants could use them up: connections alone may be 2,048.
const DESCRIPTORS: u64 = 4096;

/// Enough for 5,000 attachments, of which each takes two: its lease's connection and its holder's
/// pidfd.
const MANY_DESCRIPTORS: u64 = 16_384;

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let cli = CommandLine::parse();
    let config = match cli.options.load() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("v6podd: {}", chain(&error));
            if !cli.check
                && let Ok(inherited) = Inherited::take()
            {
                inherited.turn_away();
            }
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    if cli.check {
        eprintln!("v6podd: the configuration is sound");
        return ExitCode::SUCCESS;
    }
    log_to_stderr();
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", chain(&*error));
            let lasts = error.downcast_ref::<StartError>().is_some_and(StartError::lasts);
            if lasts { ExitCode::from(BAD_CONFIGURATION) } else { ExitCode::FAILURE }
        }
    }
}

/// Logs go to standard error: systemd's journal, or a terminal. `V6POD_LOG=debug` says more.
fn log_to_stderr() {
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::Level::INFO.into())
        .with_env_var("V6POD_LOG")
        .from_env_lossy();
    let terminal = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(terminal);
    // journald stamps the time itself.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().init();
    } else {
        log.init();
    }
}

fn run(config: Config) -> Result<(), Failure> {
    // Before anything else is opened.
    let mut inherited = Inherited::take()?;
    // Before the right to a port below 1024 is given up.
    let (config, sockets) = resolver(config, &mut inherited);
    // Before there are threads: capabilities are each thread's own.
    privileges::keep_only_needed()?;
    match descriptors::raise_limit()? {
        few if few < DESCRIPTORS => {
            let least =
                format!("{few} descriptors are too few; set LimitNOFILE={MANY_DESCRIPTORS}");
            return Err(least.into());
        }
        few if few < MANY_DESCRIPTORS => tracing::warn!(
            "the limit of {few} descriptors is enough for {} attachments; LimitNOFILE=65536 is for all",
            (few - DESCRIPTORS / 2) / 2
        ),
        _ => {}
    }
    let closer = Closer::start()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(serve(config, inherited, sockets, closer));
    // A thread that hangs in a hostile file's read must not keep the daemon from stopping.
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

/// The sockets that questions for names come by, and the configuration that can be had with or without.
fn resolver(config: Config, inherited: &mut Inherited) -> (Config, Option<dns::Sockets>) {
    if config.dns.is_none() {
        return (config, None);
    }
    let address = Links::of(&config.instance).resolver;
    let sockets = match inherited.dns_at(address) {
        Some((udp, tcp)) => dns::Sockets::given(udp, tcp),
        None => dns::Sockets::open(address),
    };
    match sockets {
        Ok(sockets) => (config, Some(sockets)),
        Err(error) => {
            tracing::warn!(
                "nobody is answered by DNS, and containers keep their own resolvers: cannot listen at \
                 port 53 of {address}: {error}; v6podd-dns.socket does, if no other program has port \
                 53 of all addresses"
            );
            (Config { dns: None, ..config }, None)
        }
    }
}

async fn serve(
    config: Config,
    inherited: Inherited,
    sockets: Option<dns::Sockets>,
    closer: Closer,
) -> Result<(), Failure> {
    for off in config.switched_off() {
        tracing::warn!("off: {}: {}", off.feature, off.meaning);
    }
    // Signals first: one that comes during the start must not kill half-way.
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let attachments = attachments::start(config.clone(), closer).await.inspect_err(|error| {
        // What passes is worth the wait: the next start serves who waits now.
        if error.lasts() {
            inherited.turn_away();
        }
    })?;
    if let (Some(sockets), Some(settings)) = (sockets, attachments.dns_settings()) {
        dns::serve(sockets, settings?, attachments.clone())?;
    }
    let listeners = Listeners::open(&config, inherited).await?;
    let status = attachments.status();
    tracing::info!(
        prefix = %status.prefix.prefix, bridge = %status.bridge,
        attachments = status.counts.attachments,
        "v6podd {} serves at {}", status.version, config.socket().display()
    );
    service::ready();
    tokio::spawn(service::feed_watchdog(attachments.clone()));

    let (stop, stopped) = watch::channel(false);
    let served = listeners.serve(router(attachments.clone()), attachments, stopped);
    tokio::pin!(served);
    tokio::select! {
        () = &mut served => return Err("the listeners have ended".into()),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    service::stopping();
    tracing::info!("stopping; what serves stays in place");
    let _ = stop.send(true);
    served.await;
    Ok(())
}
