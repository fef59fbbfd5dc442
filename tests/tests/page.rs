//! Issue 8, line 4: the status page, in a real browser.
//!
//! ```text
//!   host ── v6podd ── 127.0.0.1:6781 ── GET / ── the browser of v6t1
//!                └── v6t0 ── 195 namespaces of v6t1, called by hostile names
//!                       └──── 5 of v6t2, whom v6t1 does not see
//! ```
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::time::Duration;
use std::{env, fs, path::PathBuf};

use serde_json::{Value, json};
use v6pod_proto::{Activate, Attachment};
use v6pod_tests::{
    Browser, Config, Daemon, HostNs, OwnedNs, PATIENCE, User, eventually, random_container_id,
    require,
};

const PAGE: &str = "http://localhost:6781/";

/// How many the one who looks has, and how many another has.
const OWN: usize = 195;
const OTHERS: usize = 5;

/// What containers are called, and how the page shows it.
const HOSTILE: [(&str, &str); 14] = [
    ("<script>window.hostile=1</script>", "<script>window.hostile=1</script>"),
    ("</script><script>hostile=1</script>", "</script><script>hostile=1</script>"),
    ("<img src=x onerror=window.hostile=1>", "<img src=x onerror=window.hostile=1>"),
    ("\"><svg onload=window.hostile=1>", "\"><svg onload=window.hostile=1>"),
    ("' onmouseover='window.hostile=1", "' onmouseover='window.hostile=1"),
    ("</span></td></table><h1>ours", "</span></td></table><h1>ours"),
    ("<style>*{display:none}</style>", "<style>*{display:none}</style>"),
    ("<base href=//evil.example>", "<base href=//evil.example>"),
    ("&lt;&#60;&amp;", "&lt;&#60;&amp;"),
    ("${window.hostile=1}{{1+1}}", "${window.hostile=1}{{1+1}}"),
    ("__proto__", "__proto__"),
    ("a\u{202e}gnp.exe\u{2066}", "a\\u{202e}gnp.exe\\u{2066}"),
    ("one\ntwo\u{1b}[31m\u{0}\u{2028}", "one\\u{a}two\\u{1b}[31m\\u{0}\\u{2028}"),
    ("שלום", "שלום"),
];

/// A machine's usual names, for the rest.
const USUAL: [&str; 8] =
    ["web", "db", "cache", "queue worker", "Grafana", "mail_out", "build-runner", "сайт"];

/// What they ask to have open, one after the other.
const OPEN: [&str; 5] =
    ["tcp/80", "tcp/443,udp/443", "", "tcp/5432@2001:db8::/32", "udp/5000-5010"];

/// A namespace of this user's, attached under this name.
#[track_caller]
fn attached(daemon: &Daemon, user: &User, name: &str, ingress: &str) -> (OwnedNs, Attachment) {
    let namespace = OwnedNs::new(user);
    let mut request =
        Activate { name: Some(name.to_owned()), ..Activate::new(random_container_id()) };
    if !ingress.is_empty() {
        request.annotations.insert("v6pod.ingress".to_owned(), ingress.to_owned());
    }
    let network = namespace.network();
    let (made, _) = daemon.as_user(user.uid()).activate(&request, network.as_fd());
    (namespace, made.unwrap_or_else(|refused| panic!("{name:?}: {refused}")))
}

/// The names and addresses that the page shows, row by row.
const ROWS: &str = "[...document.querySelectorAll('#rows tr')].filter(row => !row.hidden)
    .map(row => [...row.cells].map(cell => cell.textContent))";

#[track_caller]
fn rows(browser: &mut Browser) -> Vec<Vec<String>> {
    serde_json::from_value(browser.value(ROWS)).expect("rows of texts")
}

#[track_caller]
fn shows(browser: &mut Browser, count: usize) -> Vec<Vec<String>> {
    eventually(PATIENCE, &format!("the page shows {count} attachments"), || {
        let rows = rows(browser);
        (rows.len() == count).then_some(rows)
    })
}

/// Writes words into the field that shows only some.
#[track_caller]
fn filter(browser: &mut Browser, words: &str) {
    browser.value(&format!(
        "document.getElementById('filter').value = '{words}'; \
         document.getElementById('filter').dispatchEvent(new Event('input')); 0"
    ));
}

/// The texts that do not stand out from what is behind them (WCAG 2.2, 1.4.3: a contrast of 4.5), and those
/// that stick out of the page.
const UNREADABLE: &str = r"(() => {
    const numbers = (color) => color.match(/[\d.]+/g).map(Number);
    const light = (color) => {
        const [r, g, b] = numbers(color).map((c) => c / 255)
            .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (e) => {
        const color = getComputedStyle(e).backgroundColor;
        return numbers(color)[3] === 0 ? ground(e.parentElement) : color;
    };
    const cut = (e) => e && (getComputedStyle(e).clipPath !== 'none' || cut(e.parentElement));
    const own = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    const seen = [...document.body.querySelectorAll('*')].filter((e) => own(e) && e.checkVisibility()
        && !cut(e) && !e.closest('script, noscript'));
    const bad = [];
    for (const e of seen) {
        const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort().reverse();
        if ((a + 0.05) / (b + 0.05) < 4.5) bad.push(`${e.textContent}: contrast`);
        if (e.getBoundingClientRect().right > innerWidth + 1) bad.push(`${e.textContent}: too wide`);
    }
    return { seen: seen.length, bad, wide: document.documentElement.scrollWidth > innerWidth };
})()";

/// What a container's name would do if it became markup.
const INJECT: &str = "(() => { const e = document.createElement('div');
    e.innerHTML = '<img src=\"data:,\" onerror=\"window.hostile=1\">'; document.body.append(e); })()";

#[track_caller]
fn is_readable_everywhere(browser: &mut Browser) {
    for (width, height) in [(1280, 900), (800, 600), (360, 740)] {
        for scheme in ["light", "dark"] {
            browser.look(width, height, scheme);
            let found = browser.value(UNREADABLE);
            let place = format!("{width} x {height}, {scheme}");
            assert!(found["seen"].as_u64() > Some(1000), "{place}: {found}");
            assert_eq!((&found["bad"], &found["wide"]), (&json!([]), &json!(false)), "{place}");
            // Whatever it looks like, it is a table, also for who does not see it.
            let count = |browser: &mut Browser, role| browser.with_role(role);
            assert_eq!(count(browser, "columnheader"), 9 + 3, "{place}");
            assert!(count(browser, "rowheader") >= OWN, "{place}");
        }
    }
    browser.look(1280, 900, "light");
}

/// Pictures for the documentation, where `V6POD_SCREENSHOTS` says.
#[track_caller]
fn draw(browser: &mut Browser) {
    let Some(folder) = env::var_os("V6POD_SCREENSHOTS").map(PathBuf::from) else { return };
    filter(browser, "web");
    let all = [
        (1280, 860, "light", "status-page.png"),
        (1280, 860, "dark", "status-page-dark.png"),
        (390, 844, "light", "status-page-phone.png"),
    ];
    for (width, height, scheme, name) in all {
        browser.look(width, height, scheme);
        if width < 600 {
            browser.value("document.getElementById('list-head').scrollIntoView()");
        }
        fs::write(folder.join(name), browser.picture()).expect("writing a picture");
    }
    filter(browser, "");
    browser.look(1280, 900, "light");
}

#[test]
fn the_page_shows_two_hundred_attachments_and_plays_none_of_their_names() {
    let _machine = require!(Root, Browser);
    let host = HostNs::new();
    let mut daemon = Daemon::configured(&host, &Config::default());
    let [me, other] = [1, 2].map(|number| User::account(number, &host));
    let long = "x".repeat(255);
    let mut called: Vec<String> = HOSTILE.iter().map(|(name, _)| (*name).to_owned()).collect();
    called.push(long.clone());
    called.extend((called.len()..OWN).map(|i| match USUAL[i % USUAL.len()] {
        usual if i < 30 => usual.to_owned(),
        usual => format!("{usual}-{i}"),
    }));
    let attach = |(name, ports): (&String, &&str)| attached(&daemon, &me, name, ports);
    let mine: Vec<_> = called.iter().zip(OPEN.iter().cycle()).map(attach).collect();
    let others: Vec<_> =
        (0..OTHERS).map(|i| attached(&daemon, &other, &format!("secret-{i}"), "")).collect();

    let mut browser = Browser::start(&me);
    browser.look(1280, 900, "light");
    assert_eq!(browser.open(PAGE), None);
    let shown = shows(&mut browser, OWN);

    // Each is there with its address, and the name that its owner gave it, as text.
    for ((_, made), name) in mine.iter().zip(&called) {
        let known = HOSTILE.iter().find(|(hostile, _)| hostile == name);
        let text = known.map_or(name.as_str(), |(_, shown)| shown);
        let row = shown.iter().find(|row| row[1] == made.address.to_string());
        let row = row.unwrap_or_else(|| panic!("{name:?} is not shown"));
        assert!(row[0].contains(text), "{name:?}: {row:?}");
    }
    let text = browser.value("document.body.innerText").to_string();
    for (_, made) in &others {
        assert!(!text.contains(&made.address.to_string()) && !text.contains("secret-"), "{text}");
    }
    assert!(text.contains(&format!("Your attachments: {OWN}")), "{text}");
    // The host's numbers are everybody's.
    let counts = browser.value("document.getElementById('counts').textContent");
    assert_eq!(counts, (OWN + OTHERS).to_string());
    assert!(text.contains(&format!("Half of {} activations", OWN + OTHERS)), "{text}");

    is_readable_everywhere(&mut browser);
    draw(&mut browser);

    // Nothing ran, nothing became markup, nothing was asked of anybody else, nothing was complained of.
    assert_eq!(browser.value("typeof window.hostile"), "undefined");
    let odd = "[...document.querySelectorAll('#rows *')].map(e => e.tagName)
        .filter(name => !['TR', 'TH', 'TD', 'SPAN'].includes(name)).concat([document.scripts.length])";
    assert_eq!(browser.value(odd), json!([1]));
    assert_eq!(browser.complaints(), Vec::<String>::new());
    let asked = browser.asked();
    let strange: Vec<_> = asked
        .iter()
        .filter(|a| a.status != 200 || !(a.url.starts_with(PAGE) || a.url.starts_with("data:")))
        .collect();
    assert!(strange.is_empty() && asked.len() >= 5, "{strange:?} of {asked:?}");

    // It lives: one more, one less, others hidden by words, the daemon away and back.
    let (more, made) = attached(&daemon, &me, "latecomer", "");
    let address = made.address.to_string();
    assert!(shows(&mut browser, OWN + 1).iter().any(|row| row[1] == address));
    filter(&mut browser, "LATEC");
    assert_eq!(shows(&mut browser, 1)[0][1], address);
    drop(more);
    shows(&mut browser, 0);
    filter(&mut browser, "");
    shows(&mut browser, OWN);
    let state = |browser: &mut Browser| {
        let state = browser.value("document.getElementById('state').textContent");
        state.as_str().unwrap_or_default().to_owned()
    };
    daemon.stop();
    eventually(PATIENCE, "the page says that nobody answers", || {
        state(&mut browser).starts_with("v6podd does not answer; this is from").then_some(())
    });
    assert_eq!(rows(&mut browser).len(), OWN);
    daemon.restart();
    eventually(PATIENCE, "the page says that somebody answers", || {
        state(&mut browser).starts_with("as of").then_some(())
    });
    shows(&mut browser, OWN);
}

#[test]
fn attack_23_the_pages_policy_stops_a_script_that_a_name_became() {
    let _machine = require!(Root, Browser);
    let host = HostNs::new();
    let daemon = Daemon::start(&host);
    let me = User::account(1, &host);
    let mut browser = Browser::start(&me);
    let ran = |browser: &mut Browser| browser.value("window.hostile === 1") == json!(true);

    // The case bites: where there is no policy, it runs.
    browser.value(INJECT);
    eventually(PATIENCE, "the script runs", || ran(&mut browser).then_some(()));

    assert_eq!(browser.open(PAGE), None);
    let thrown = browser.attempt(INJECT).expect_err("markup was made of text");
    assert!(thrown.contains("TrustedHTML"), "{thrown}");
    // By nodes, which need no markup.
    let script = "(() => { const s = document.createElement('script'); \
        s.textContent = 'window.hostile = 1'; document.body.append(s); })()";
    assert!(browser.attempt(script).is_err(), "a script was made of text");
    let handler = "document.body.setAttribute('onclick', 'window.hostile = 1')";
    assert!(browser.attempt(handler).is_err(), "a handler was made of text");
    let style = "(() => { const s = document.createElement('style'); \
        s.textContent = 'body { display: none }'; document.head.append(s); })()";
    browser.value(style);
    let visible = browser.value("getComputedStyle(document.body).display");
    assert_eq!(visible, "block");
    // Nor does it tell anybody else.
    for to in ["http://127.0.0.1:1/", "https://evil.example/"] {
        let fetched = browser.attempt(&format!("fetch('{to}').then(() => 'told')"));
        assert!(fetched.is_err(), "{fetched:?}");
    }
    let complaints = browser.complaints().join("\n");
    assert!(complaints.contains("connect-src"), "{complaints}");
    std::thread::sleep(Duration::from_millis(200));
    assert!(!ran(&mut browser));
    drop(daemon);
}

#[test]
fn attack_23_another_page_of_the_same_browser_is_told_nothing() {
    let _machine = require!(Root, Browser);
    let host = HostNs::new();
    let daemon = Daemon::start(&host);
    let me = User::account(1, &host);
    let (_namespace, _made) = attached(&daemon, &me, "web", "");
    let mut browser = Browser::start(&me);
    // The empty page is nobody's, as the page of another site is.
    for path in ["", "api/attachments", "metrics"] {
        let url = format!("{PAGE}{path}");
        let read = browser.attempt(&format!("fetch('{url}').then(a => a.text())"));
        assert!(read.is_err(), "{read:?}");
        let sent = browser.value(&format!("fetch('{url}', {{mode: 'no-cors'}}).then(a => a.type)"));
        assert_eq!(sent, "opaque", "{path}");
    }
    let asked = browser.asked();
    // What may not be read is not even told to have been answered: these are those that were sent.
    assert!(asked.len() == 3 && asked.iter().all(|a| a.status == 403), "{asked:?}");
    // By a name that an attacker's DNS gives this host.
    assert_eq!(browser.open("http://[::ffff:127.0.0.1]:6781/"), None);
    let said: Value = browser.value("document.body.innerText");
    assert!(said.to_string().contains("forbidden"), "{said}");
}
