//! How things look to a person: name and address first.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use v6pod_proto::{
    Attachment, Capacity, CheckStatus, NameState, NameStatus, Obstacle, Opened, Passed, PrefixView,
    State, Status, Uid, Unopened,
};

use super::look::{self, Ink, Look};

/// Seconds since the epoch.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}

/// `v6podctl ls`
pub(crate) fn list(attachments: &[Attachment], now: u64, look: Look) -> String {
    let head = ["NAME", "ADDRESS", "OWNER", "CONTAINER", "STATE", "AGE", "OPEN"].map(str::to_owned);
    let rows = attachments.iter().map(|a| {
        [
            label(a),
            a.address.to_string(),
            look.who(a.owner),
            a.container.short().to_owned(),
            state(a.state).to_owned(),
            age(a.since, now),
            brief(&a.openings),
        ]
    });
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    painted(&rows, look, |row, column| match (row.checked_sub(1), column) {
        (None, _) => Ink::Quiet,
        (Some(_), 0) => Ink::Bold,
        (Some(i), 4) => attachments.get(i).map_or(Ink::Plain, |a| look::of_state(a.state)),
        _ => Ink::Plain,
    })
}

/// `v6podctl show`
pub(crate) fn one(a: &Attachment, now: u64, look: Look) -> String {
    let mut rows = vec![
        ["name".to_owned(), label(a)],
        ["address".to_owned(), format!("{}/{}", a.address, a.prefix_length)],
        ["gateway".to_owned(), a.gateway.to_string()],
        ["owner".to_owned(), owner(a.owner, look)],
        ["container".to_owned(), container(a)],
        ["engine's name".to_owned(), a.name.clone().unwrap_or_else(|| "-".to_owned())],
    ];
    let subnets = a.subnets.iter().map(|net| ["subnet".to_owned(), net.clone()]);
    rows.extend(subnets);
    rows.extend(a.names.iter().map(|name| ["registered".to_owned(), registered(name)]));
    rows.extend(a.members.iter().map(|member| {
        let name = member.name.as_deref().unwrap_or("-");
        ["member".to_owned(), format!("{name} ({})", member.container.short())]
    }));
    rows.extend(a.checks.iter().map(|check| ["check".to_owned(), checked(check)]));
    rows.extend(a.found.image.iter().map(|image| ["image".to_owned(), image.clone()]));
    let wishes = a.wishes.annotations().into_iter();
    rows.extend(wishes.map(|(name, value)| ["asks for".to_owned(), format!("{name}={value}")]));
    let found = a.found.each().into_iter();
    rows.extend(found.map(|(source, name, value)| {
        ["asks for".to_owned(), format!("{name}={value} ({source})")]
    }));
    rows.extend(openings(a));
    rows.push(["egress".to_owned(), format!("{} ({})", a.egress.rule, a.egress.by)]);
    rows.extend(a.found.ignored.iter().map(|line| ["ignored".to_owned(), line.clone()]));
    rows.extend([
        ["interface".to_owned(), format!("{} ({})", a.interface, a.mac)],
        ["port".to_owned(), a.port.to_string()],
    ]);
    rows.extend(a.network.iter().map(|name| ["network".to_owned(), format!("{name} (CNI)")]));
    rows.extend(a.traffic.iter().flat_map(|t| {
        [["received".to_owned(), passed(&t.received)], ["sent".to_owned(), passed(&t.sent)]]
    }));
    rows.extend([
        ["state".to_owned(), state(a.state).to_owned()],
        ["lease".to_owned(), if a.lease { "held" } else { "none" }.to_owned()],
        ["age".to_owned(), age(a.since, now)],
        ["id".to_owned(), a.id.to_string()],
    ]);
    painted(&rows, look, |row, column| match (rows.get(row).map(|row| row[0].as_str()), column) {
        (_, 0) => Ink::Quiet,
        (Some("name" | "address" | "subnet"), _) => Ink::Bold,
        (Some("open"), _) => Ink::Good,
        (Some("not open" | "ignored"), _) => Ink::Warn,
        (Some("state"), _) => look::of_state(a.state),
        _ => Ink::Plain,
    })
}

/// The account, if it is told, and the uid in any case.
fn owner(uid: Uid, look: Look) -> String {
    let (who, uid) = (look.who(uid), uid.to_string());
    if who == uid { uid } else { format!("{who} ({uid})") }
}

/// `v6podctl open` and `close`: what is open by now.
pub(crate) fn open(a: &Attachment) -> String {
    let rows: Vec<_> = openings(a).collect();
    if rows.is_empty() { "nothing is open\n".to_owned() } else { columns(&rows) }
}

/// What is open, in some words.
fn brief(openings: &[Opened]) -> String {
    const MOST: usize = 4;
    let mut words: Vec<_> = openings.iter().take(MOST).map(|o| o.opening.to_string()).collect();
    if openings.len() > MOST {
        words.push(format!("and {} more", openings.len() - MOST));
    }
    if words.is_empty() { "-".to_owned() } else { words.join(" ") }
}

/// What is open, and what was asked for and is not.
fn openings(a: &Attachment) -> impl Iterator<Item = [String; 2]> {
    let open = a.openings.iter().map(|Opened { opening, by }| format!("{opening} ({by})"));
    let open = open.map(|text| ["open".to_owned(), text]);
    let shut = a.unopened.iter().map(|Unopened { opening, by, why }| {
        ["not open".to_owned(), format!("{opening} ({by}): {why}")]
    });
    open.chain(shut)
}

/// `v6podctl status`
pub(crate) fn status(s: &Status) -> String {
    let registry = match (&s.registry.error, s.registry.healthy) {
        (Some(error), false) => format!("{}, not healthy: {error}", s.registry.kind),
        (None, false) => format!("{}, not healthy", s.registry.kind),
        (_, true) => s.registry.kind.clone(),
    };
    let counts = s.counts;
    let rows = vec![
        ["version".to_owned(), format!("{} (instance {})", s.version, s.instance)],
        ["up for".to_owned(), duration(s.uptime)],
        ["prefix".to_owned(), format!("{} ({})", s.prefix.prefix, s.prefix.source)],
        ["gateway".to_owned(), format!("{} on {}", s.gateway, s.bridge)],
        [
            "resolver".to_owned(),
            s.resolver.as_ref().map_or_else(|| "none".to_owned(), |r| r.address.to_string()),
        ],
        [
            "uplink".to_owned(),
            s.uplink.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string),
        ],
        ["mtu".to_owned(), s.mtu.to_string()],
        [
            "attachments".to_owned(),
            format!(
                "{}, {} with a lease, {} routed",
                counts.attachments, counts.leases, counts.routed
            ),
        ],
        ["since start".to_owned(), format!("{} made, {} released", counts.made, counts.released)],
        ["registry".to_owned(), format!("{registry}; {} pending", s.registry.pending)],
    ];
    let mut text = columns(&rows);
    for off in &s.off {
        let _ = writeln!(text, "off: {}: {}", off.feature, off.meaning);
    }
    for obstacle in &s.obstacles {
        let Obstacle { program, table, chain, hook, meaning, advice } = obstacle;
        let line = format!("in the way: {program}: {table} {chain} (hook {hook}): {meaning}");
        text += &format!("{}\n", printable(&line));
        if !advice.is_empty() {
            text += "  to have both, run as root:\n";
        }
        advice.iter().for_each(|command| text += &format!("    {}\n", printable(command)));
    }
    text
}

/// `v6podctl prefix show`, and `set`.
pub(crate) fn prefix(p: &PrefixView) -> String {
    let mut rows = vec![["prefix".to_owned(), format!("{} ({})", p.prefix, p.source)]];
    rows.extend(p.settling.iter().map(|to| ["settling".to_owned(), to.clone()]));
    rows.extend(p.former.iter().map(|former| ["still in use".to_owned(), former.clone()]));
    columns(&rows)
}

/// `v6podctl capacity`
pub(crate) fn capacity(c: &Capacity) -> String {
    let mut rows = vec![["LIMIT", "USED", "MAX"].map(str::to_owned)];
    rows.extend(c.limits.iter().map(|l| [l.name.clone(), l.used.to_string(), l.max.to_string()]));
    format!("room for {} more; {} ends first\n{}", c.more, c.first_limit, columns(&rows))
}

/// The label that others find it by, or the engine's name for it, or that there is none.
fn label(a: &Attachment) -> String {
    let borne = a.names.iter().find(|name| name.state != NameState::Refused);
    borne.map(|name| name.name.clone()).or_else(|| a.name.clone()).unwrap_or_else(|| "-".to_owned())
}

/// The container, once somebody has said which it is.
fn container(a: &Attachment) -> String {
    if a.container == a.id.stand_in() { "-".to_owned() } else { a.container.to_string() }
}

fn registered(name: &NameStatus) -> String {
    let state = match name.state {
        NameState::Registered => "registered",
        NameState::Pending => "pending",
        NameState::Refused => "refused",
    };
    let note = name.note.as_deref().map(|note| format!(": {note}")).unwrap_or_default();
    format!("{} ({state}{note})", name.name)
}

fn checked(check: &CheckStatus) -> String {
    let note = check.note.as_deref().map(|note| format!(": {note}")).unwrap_or_default();
    format!("{}{note}", check.check)
}

const fn state(state: State) -> &'static str {
    match state {
        State::Reserved => "reserved",
        State::Wired => "wired",
        State::Serving => "serving",
        State::Ending => "ending",
    }
}

fn passed(p: &Passed) -> String {
    let s = if p.packets == 1 { "" } else { "s" };
    let dropped = if p.dropped == 0 { String::new() } else { format!(", {} dropped", p.dropped) };
    format!("{} in {} packet{s}{dropped}", bytes(p.bytes), p.packets)
}

/// Four digits at most, and never more than there are: what is cut off is not rounded up.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let power = count.ilog2() / 10;
    let tenths = (u128::from(count) * 10) >> (10 * power);
    let unit = UNITS.get(power as usize - 1).copied().unwrap_or_default();
    if tenths < 1000 {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    } else {
        format!("{} {unit}", tenths / 10)
    }
}

fn age(since: u64, now: u64) -> String {
    duration(now.saturating_sub(since))
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// Left-aligned columns, two spaces apart, nothing behind the last.
pub(crate) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    painted(rows, Look::of_stdout(), |_, _| Ink::Plain)
}

/// The same, each cell in the ink of its row and column.
fn painted<const N: usize>(
    rows: &[[String; N]],
    look: Look,
    ink: impl Fn(usize, usize) -> Ink,
) -> String {
    let length = |cell: &str| printable(cell).chars().count();
    let width = |column: usize| rows.iter().map(|row| length(&row[column])).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let mut text = String::new();
    for (at, row) in rows.iter().enumerate() {
        let mut gap = 0;
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            let cell = printable(cell);
            if !cell.is_empty() {
                let _ = write!(text, "{:gap$}{}", "", look.ink(&cell, ink(at, column)));
                gap = 0;
            }
            gap += width - cell.chars().count() + 2;
        }
        text.push('\n');
    }
    text
}

/// A container's name comes from its owner: on a terminal, his control characters are not played, and none
/// of those that turn a line's direction round (Unicode Standard Annex 9).
pub(crate) fn printable(text: &str) -> String {
    let turns = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if c.is_control() || turns(c) { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_stands_in_them() {
        let rows = [["A", "LONG"], ["wider", "x"]].map(|row| row.map(str::to_owned));
        let text = columns(&rows);
        assert_eq!(text, "A      LONG\nwider  x\n");
        // Of characters, not of bytes; an empty cell keeps its place.
        let rows = [["ж", "", "x"], ["ab", "c", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(columns(&rows), "ж      x\nab  c\n");
    }

    #[test]
    fn colours_change_no_column() {
        let rows = [["A", "LONG"], ["wider", "x"]].map(|row| row.map(str::to_owned));
        let ink = |row, _| if row == 0 { Ink::Quiet } else { Ink::Good };
        let text = painted(&rows, Look::COLOUR, ink);
        let plain =
            text.replace("\u{1b}[2m", "").replace("\u{1b}[32m", "").replace("\u{1b}[0m", "");
        assert!(text != plain && plain == painted(&rows, Look::PIPE, ink), "{text:?}");
    }

    #[test]
    fn a_name_cannot_speak_to_the_terminal() {
        assert_eq!(printable("a\u{1b}[31mb\u{202e}c"), "a?[31mb?c");
    }

    #[test]
    fn bytes_are_short_and_exact_where_they_can_be() {
        let shown = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (102_399, "99.9 KiB"),
            (102_400, "100 KiB"),
            (1_048_575, "1023 KiB"),
            (1_048_576, "1.0 MiB"),
            (u64::MAX, "15.9 EiB"),
        ];
        assert_eq!(shown.map(|(count, _)| bytes(count)), shown.map(|(_, text)| text.to_owned()));
        let traffic = |packets, dropped| passed(&Passed { packets, bytes: 86, dropped });
        assert_eq!(
            [traffic(1, 0), traffic(2, 3)],
            ["86 B in 1 packet", "86 B in 2 packets, 3 dropped"]
        );
    }
}
