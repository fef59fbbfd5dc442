//! `v6podctl explain`: which rule decides about a flow.

use std::net::Ipv6Addr;

use clap::Args;
use v6pod_daemon::client::ClientError;
use v6pod_proto::Uid;
use v6pod_proto::explain::{Element, End, Explanation, Kernel, Kind, Verdict};

use super::table::{columns, printable};

/// What stands behind the help of `v6podctl explain`.
pub(crate) const HELP: &str = "Examples:
  v6podctl explain outside web tcp/80
  v6podctl explain 2001:db8::5 db tcp/5432
  v6podctl explain host web tcp/8080 --uid 1002   a process of that user's on this host
  v6podctl explain web db tcp/5432                from container to container
  v6podctl explain web outside reply              an answer to what the outside began
  v6podctl explain web db udp/53 --as 2001:db8::5 with an address that is not its own

One end has to be a container of yours; of others' you are told what you would be told of an address
outside. What decides is looked up in the kernel; if that has something else, this says so and fails.";

/// The words of `v6podctl explain`.
#[derive(Debug, Args)]
pub(crate) struct Words {
    /// Who sends: host, outside, an address, or a container's name or the beginning of its id.
    #[arg(value_name = "SRC")]
    source: String,
    /// To whom: the same.
    #[arg(value_name = "DST")]
    destination: String,
    /// Such as tcp/80 or udp/53; echo; reply, which is a packet of a flow that DST began; packet-too-big,
    /// destination-unreachable, time-exceeded, parameter-problem.
    #[arg(value_name = "PROTO/PORT", value_parser = kind)]
    flow: Kind,
    /// Whose process sends, where SRC is host; yours unless said.
    #[arg(long, value_name = "N", value_parser = uid)]
    uid: Option<Uid>,
    /// With which address it sends, where SRC is a container; its own unless said.
    #[arg(long = "as", value_name = "ADDRESS")]
    sends_as: Option<Ipv6Addr>,
}

fn kind(text: &str) -> Result<Kind, String> {
    text.parse().map_err(|right: &str| right.to_owned())
}

fn uid(text: &str) -> Result<Uid, String> {
    let number: Option<u32> = text.parse().ok();
    number.and_then(Uid::new).ok_or_else(|| "write a user's number".to_owned())
}

impl Words {
    /// The resource that answers.
    pub(crate) fn resource(&self) -> String {
        let Self { source, destination, flow, uid, sends_as } = self;
        let mut text = format!(
            "/api/explain?source={}&destination={}&flow={}",
            super::escaped(source),
            super::escaped(destination),
            super::escaped(&flow.to_string())
        );
        if let Some(uid) = uid {
            text.push_str(&format!("&uid={uid}"));
        }
        if let Some(address) = sends_as {
            text.push_str(&format!("&sends_as={address}"));
        }
        text
    }

    /// What went wrong.
    pub(crate) fn failure(&self, error: ClientError) -> Box<dyn std::error::Error> {
        let Self { source, destination, .. } = self;
        match error {
            ClientError::Refused(problem) if problem.status == 404 => format!(
                "neither {source:?} nor {destination:?} is a container of yours, or one is nothing at all"
            )
            .into(),
            other => other.into(),
        }
    }
}

/// The answer: the verdict, the rules that the packet met, what the kernel has.
pub(crate) fn text(e: &Explanation) -> String {
    let verdict = match e.verdict {
        Verdict::Passes => "passes",
        Verdict::Dropped => "is dropped",
        Verdict::Unreachable => "is unreachable",
        Verdict::Leaves => "leaves this host",
        Verdict::NotOurs => "is not v6pod's business",
    };
    let (from, to) = (end(&e.source), end(&e.destination));
    let mut rows = vec![["HOOK", "RULE", "WHY"].map(str::to_owned)];
    rows.extend(e.chain.iter().map(|met| {
        let hook = if met.hook.is_empty() { "-" } else { &met.hook };
        [hook.to_owned(), word(&met.rule), met.why.clone()]
    }));
    rows.extend(kernel(&e.kernel));
    let loud = if e.kernel.agrees { "" } else { ", but THE KERNEL DISAGREES" };
    let first = printable(&format!("{} from {from} to {to} {verdict}{loud}", e.flow));
    format!("{first}\n{}", columns(&rows))
}

/// What is wrong if the kernel does something else.
pub(crate) const DISAGREES: &str = "the kernel does not do what is said here: somebody has changed v6podd's \
     tables; it puts them back within a minute";

fn kernel(kernel: &Kernel) -> Vec<[String; 3]> {
    let row = |word: &str, why: String| ["kernel", word, &why].map(str::to_owned);
    let named = |e: &Element| format!("{} {{ {} }}", e.set, e.element);
    let mut rows = Vec::new();
    if !kernel.rules {
        rows.push(row("DISAGREES", "not all rules that v6podd loaded are in force".to_owned()));
    }
    for wrong in kernel.elements.iter().filter(|e| e.wanted != e.there) {
        let why = if wrong.wanted { "is not there" } else { "is there" };
        rows.push(row("DISAGREES", format!("{} {why}", named(wrong))));
    }
    if rows.is_empty() {
        let there: Vec<_> = kernel.elements.iter().filter(|e| e.there).map(named).collect();
        let absent = kernel.elements.iter().filter(|e| !e.there).count();
        let mut words = vec!["all rules are in force".to_owned()];
        words.extend((!there.is_empty()).then(|| format!("has {}", there.join(", "))));
        let s = if absent == 1 { "" } else { "s" };
        let none = format!("has none of {absent} element{s} that would let it pass");
        words.extend((absent > 0).then_some(none));
        rows.push(row("agrees", words.join("; ")));
    }
    rows
}

fn end(end: &End) -> String {
    match end {
        End::Container { name, address, .. } => match name {
            Some(name) => format!("{name} ({address})"),
            None => address.to_string(),
        },
        End::Host { uid, address } => {
            let uid = uid.map(|uid| format!(" (uid {uid})")).unwrap_or_default();
            let by = address.map(|address| format!(" by {address}")).unwrap_or_default();
            format!("this host{uid}{by}")
        }
        End::Address { address } => address.to_string(),
        End::Outside => "anybody outside".to_owned(),
    }
}

/// A rule's word, as programs read it.
fn word(rule: &v6pod_proto::explain::Rule) -> String {
    let word = serde_json::to_value(rule).ok();
    word.as_ref().and_then(|word| word.as_str()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use v6pod_proto::explain::{Met, Rule};

    use super::*;

    fn explanation(there: bool) -> Explanation {
        let element = |there| Element {
            set: "open".to_owned(),
            element: "2001:db8::5 . tcp . 80".to_owned(),
            wanted: true,
            there,
        };
        let why = "tcp/80 of web is open to everybody (published port)".to_owned();
        Explanation {
            source: End::Outside,
            destination: End::Address { address: "2001:db8::5".parse().unwrap() },
            flow: "tcp/80".parse().unwrap(),
            verdict: Verdict::Passes,
            rule: Rule::Opening,
            why: why.clone(),
            opened: None,
            unopened: Vec::new(),
            chain: vec![Met { hook: "forward".to_owned(), rule: Rule::Opening, why }],
            kernel: Kernel { agrees: there, rules: true, elements: vec![element(there)] },
        }
    }

    #[test]
    fn the_verdict_comes_first_and_a_kernel_that_disagrees_is_loud() {
        let shown = text(&explanation(true));
        assert!(
            shown.starts_with("tcp/80 from anybody outside to 2001:db8::5 passes\n"),
            "{shown}"
        );
        assert!(shown.contains("has open { 2001:db8::5 . tcp . 80 }"), "{shown}");
        let shown = text(&explanation(false));
        assert!(shown.lines().next().is_some_and(|line| line.ends_with("DISAGREES")), "{shown}");
        assert!(
            shown.contains("DISAGREES  open { 2001:db8::5 . tcp . 80 } is not there"),
            "{shown}"
        );
    }

    #[test]
    fn a_container_does_not_speak_to_the_terminal_by_its_name() {
        let mut hostile = explanation(true);
        let name = "x\nechoed \u{1b}[2J".to_owned();
        hostile.chain[0].why = name.clone();
        hostile.source = End::Container {
            container: "0".repeat(64).parse().unwrap(),
            name: Some(name),
            owner: Uid::ROOT,
            address: "2001:db8::6".parse().unwrap(),
        };
        let shown = text(&hostile);
        assert_eq!(shown.lines().count(), 4, "{shown}");
        assert!(!shown.contains('\u{1b}'), "{shown}");
    }

    #[test]
    fn whatever_a_container_is_called_the_question_is_one() {
        let words = Words {
            source: "a b&uid=0".to_owned(),
            destination: "2001:db8::5".to_owned(),
            flow: "tcp/80".parse().unwrap(),
            uid: None,
            sends_as: Some("2001:db8::6".parse().unwrap()),
        };
        let expected = "/api/explain?source=a%20b%26uid%3D0&destination=2001:db8::5&flow=tcp%2F80\
                        &sends_as=2001:db8::6";
        assert_eq!(words.resource(), expected);
    }
}
