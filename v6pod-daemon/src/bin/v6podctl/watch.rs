//! `v6podctl watch`: one line for each event.

use std::ops::ControlFlow;

use v6pod_proto::Event;

use super::table::printable;

/// Why it ends by itself.
pub(crate) const ENDED: &str = "the daemon has stopped";

/// Prints one event. A reader that has seen enough (`| head`) ends it.
pub(crate) fn tell(name: &str, data: &str, json: bool) -> ControlFlow<()> {
    use std::io::Write as _;

    let line = match serde_json::from_str::<Event>(data) {
        _ if json && name != "missed" => data.to_owned(),
        Ok(event) => line(&event),
        Err(_) if name == "missed" && json => format!("{{\"event\":\"missed\",\"count\":{data}}}"),
        Err(_) => format!("{name:<10} {data}"),
    };
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}

/// What happened, to which name, at which address, whose it is, and why.
fn line(event: &Event) -> String {
    let name = event.name.as_deref().or_else(|| Some(event.container.as_ref()?.short()));
    let mut line = format!("{:<10}", event.event.as_str());
    line.extend(name.map(|name| format!("  {name}")));
    line.extend(event.address.map(|address| format!("  {address}")));
    line.extend(event.owner.map(|owner| format!("  uid {owner}")));
    line.extend(event.note.as_deref().map(|note| format!("  ({note})")));
    printable(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let event = |json: &str| line(&serde_json::from_str(json).unwrap());
        let text =
            r#"{"event":"registered","at":1,"owner":1000,"name":"web","address":"2001:db8::5"}"#;
        assert_eq!(event(text), "registered  web  2001:db8::5  uid 1000");
        let text = r#"{"event":"repaired","at":1,"note":"the firewall's rules"}"#;
        assert_eq!(event(text), "repaired    (the firewall's rules)");
        let text = r#"{"event":"attached","at":1,"name":"\u001b[2Jweb"}"#;
        assert_eq!(event(text), "attached    ?[2Jweb", "a name does not speak to the terminal");
    }
}
