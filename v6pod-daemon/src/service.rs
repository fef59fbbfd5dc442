//! What the service manager (systemd) gives the daemon and wants of it.
//!
//! Guarantees: without a service manager everything here does nothing; the watchdog is fed only by
//! the work that requests need, never by a bare timer.

use sd_notify::NotifyState;

use crate::attachments::Attachments;

/// How many times per watchdog period the daemon is looked at.
const PER_PERIOD: u32 = 3;

/// Says that requests are answered from now on.
pub fn ready() {
    tell(NotifyState::Ready);
}

/// Says that the daemon is about to end.
pub fn stopping() {
    tell(NotifyState::Stopping);
}

/// Feeds the watchdog, if there is one, each time that the daemon has shown to work: a kernel
/// worker, the kernel and the book. A daemon in which one of them hangs is killed and started
/// again, which harms no attachment.
pub async fn feed_watchdog(attachments: Attachments) {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval(period / PER_PERIOD);
    // After a long beat the next one is not to follow at once, many times over.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match attachments.pulse().await {
            Ok(()) => tell(NotifyState::Watchdog),
            Err(error) => tracing::error!(%error, "the watchdog is not fed"),
        }
    }
}

fn tell(state: NotifyState<'_>) {
    // A service manager that cannot be reached stops waiting by itself.
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}
