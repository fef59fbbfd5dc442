//! The administrator's file.

use std::time::Duration;

use v6pod_daemon::config::{Config, Mistake, PrefixSource};
use v6pod_daemon::core::Label;

/// What comes out is within the bounds that the rest of the daemon relies on; a mistake is in a line
/// that the file has.
pub fn v6pod_toml(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse(text) {
        Ok(config) => in_bounds(&config),
        Err(
            Mistake::Syntax { line, .. }
            | Mistake::UnknownKey { line, .. }
            | Mistake::Value { line, .. },
        ) => {
            let lines = 1 + text.bytes().filter(|&b| b == b'\n').count();
            assert!((1..=lines).contains(&line), "line {line} of {lines}");
        }
    }
}

fn in_bounds(config: &Config) {
    assert!(config.mtu.is_none_or(|mtu| (1280..=65535).contains(&mtu)));
    assert!((1..=8).contains(&config.instance.as_str().len()));
    assert!(config.quarantine <= Duration::from_secs(365 * 86400));
    assert!(config.tcp.iter().all(|address| address.ip().is_loopback()));
    assert!(config.reserved.iter().all(|name| name.parse::<Label>().is_ok()));
    assert!(config.run_dir.is_none() && config.state_dir.is_none());
    if let PrefixSource::Static(prefix) = config.prefix {
        assert!((16..=124).contains(&prefix.net().prefix_len()));
        assert!(prefix.contains(prefix.gateway()));
    }
}
