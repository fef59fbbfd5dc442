//! A real browser, without a screen, told what to do by the DevTools protocol over two pipes: no port of it
//! is open to anybody.

use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write, pipe};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::User;
use crate::command::Background;
use crate::user::world_readable_dir;

/// The program, of Debian's package of the same name.
pub(crate) const PROGRAM: &str = "chromium-headless-shell";

/// Past this an answer will not come.
const LIMIT: Duration = Duration::from_secs(30);

/// The protocol's pipes are the descriptors 3 and 4.
const PIPED: &str = "exec 3<&0 4>&1 </dev/null >/dev/null; exec \"$@\"";

/// A page that the browser asked for, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Where.
    pub url: String,
    /// The status code of the answer.
    pub status: u64,
}

/// A browser with one page. It ends when the value is dropped, and its files go.
#[derive(Debug)]
pub struct Browser {
    to: PipeWriter,
    from: Receiver<Value>,
    session: String,
    calls: u64,
    events: Vec<Value>,
    _process: Background,
    _files: tempfile::TempDir,
}

impl Browser {
    /// A browser of this user's, in his host's network, with an empty page.
    #[track_caller]
    pub fn start(user: &User) -> Self {
        let files = world_readable_dir();
        let owner = (Some(user.uid()), None);
        std::os::unix::fs::chown(files.path(), owner.0, owner.1).expect("chown");
        let (its_input, to) = pipe().expect("making a pipe");
        let (output, its_output) = pipe().expect("making a pipe");
        let mut command = user.command("sh");
        command.args(["-c", PIPED, "sh", PROGRAM, "--remote-debugging-pipe", "--disable-gpu"]);
        // Its own calls home would only fail here.
        command.args(["--no-first-run", "--disable-background-networking", "--lang=en"]);
        command.args(["--disable-dev-shm-usage", "--hide-scrollbars"]);
        command.arg(format!("--user-data-dir={}", files.path().display()));
        command.stdin(Stdio::from(its_input)).stdout(Stdio::from(its_output)).stderr(Stdio::null());
        let process = Background::start(&mut command);
        // Its ends are its own alone: then its death ends the pipes.
        drop(command);
        let (sender, from) = channel();
        thread::spawn(move || messages(output).try_for_each(|message| sender.send(message)));
        let (session, calls, events) = (String::new(), 0, Vec::new());
        let mut browser =
            Self { to, from, session, calls, events, _process: process, _files: files };
        let page = browser.call("Target.createTarget", &json!({"url": "about:blank"}));
        let id = page["targetId"].as_str().expect("a page has an id");
        let attached =
            browser.call("Target.attachToTarget", &json!({"targetId": id, "flatten": true}));
        browser.session = attached["sessionId"].as_str().expect("a session has an id").to_owned();
        for domain in ["Page", "Runtime", "Log", "Network", "Accessibility"] {
            browser.call(&format!("{domain}.enable"), &json!({}));
        }
        browser
    }

    /// Opens an address and waits until it is there. The error of one that could not be had.
    #[track_caller]
    pub fn open(&mut self, url: &str) -> Option<String> {
        self.events.retain(|event| event["method"] != "Page.loadEventFired");
        let went = self.call("Page.navigate", &json!({"url": url}));
        if let Some(error) = went["errorText"].as_str() {
            return Some(error.to_owned());
        }
        self.awaits("Page.loadEventFired");
        None
    }

    /// What a script is worth in the page, once it is there; a panic with what it threw.
    #[track_caller]
    pub fn value(&mut self, script: &str) -> Value {
        self.attempt(script).unwrap_or_else(|thrown| panic!("{thrown}\n{script}"))
    }

    /// What a script is worth in the page, or what it threw.
    ///
    /// # Errors
    /// The script threw this.
    #[track_caller]
    pub fn attempt(&mut self, script: &str) -> Result<Value, String> {
        let asked = json!({"expression": script, "returnByValue": true, "awaitPromise": true});
        let mut said = self.call("Runtime.evaluate", &asked);
        match said.get("exceptionDetails") {
            Some(thrown) => Err(thrown["exception"]["description"].to_string()),
            None => Ok(said["result"]["value"].take()),
        }
    }

    /// Has the page look as on a screen of this many pixels, in a light or a dark room.
    #[track_caller]
    pub fn look(&mut self, width: u32, height: u32, scheme: &str) {
        let screen = json!({"width": width, "height": height, "deviceScaleFactor": 1,
            "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", &screen);
        let scheme = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", &json!({"features": scheme}));
    }

    /// A picture of what is seen, as PNG.
    #[track_caller]
    pub fn picture(&mut self) -> Vec<u8> {
        let picture = self.call("Page.captureScreenshot", &json!({"format": "png"}));
        from_base64(picture["data"].as_str().expect("a picture"))
    }

    /// How many nodes with this role a screen reader is told of.
    #[track_caller]
    pub fn with_role(&mut self, role: &str) -> usize {
        let tree = self.call("Accessibility.getFullAXTree", &json!({}));
        let nodes = tree["nodes"].as_array().expect("nodes");
        nodes.iter().filter(|n| n["ignored"] == false && n["role"]["value"] == role).count()
    }

    /// What was asked for since this was last called, and answered.
    #[track_caller]
    pub fn asked(&mut self) -> Vec<Asked> {
        self.take("Network.responseReceived")
            .iter()
            .map(|event| {
                let response = &event["params"]["response"];
                let url = response["url"].as_str().unwrap_or_default().to_owned();
                Asked { url, status: response["status"].as_u64().unwrap_or_default() }
            })
            .collect()
    }

    /// What the page complained of since this was last called: what its policy forbids, what its script threw or
    /// wrote, and dialogs that it opened.
    #[track_caller]
    pub fn complaints(&mut self) -> Vec<String> {
        let kinds = [
            "Log.entryAdded",
            "Runtime.exceptionThrown",
            "Runtime.consoleAPICalled",
            "Page.javascriptDialogOpening",
        ];
        kinds.iter().flat_map(|kind| self.take(kind)).map(|event| event.to_string()).collect()
    }

    /// All events of this kind so far, once.
    #[track_caller]
    fn take(&mut self, method: &str) -> Vec<Value> {
        // What was on its way has come when this is answered.
        self.call("Runtime.evaluate", &json!({"expression": "1"}));
        self.events.extract_if(.., |event| event["method"] == method).collect()
    }

    #[track_caller]
    fn call(&mut self, method: &str, params: &Value) -> Value {
        self.calls += 1;
        let id = self.calls;
        let mut asked = json!({"id": id, "method": method, "params": params});
        if !self.session.is_empty() {
            asked["sessionId"] = json!(self.session);
        }
        let mut bytes = asked.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).expect("the browser runs");
        let mut answer = self.until(method, |message| message["id"] == id);
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].take()
    }

    #[track_caller]
    fn awaits(&mut self, method: &str) {
        if !self.events.iter().any(|event| event["method"] == method) {
            let event = self.until(method, |message| message["method"] == method);
            self.events.push(event);
        }
    }

    /// The next message that is this; those before it are kept.
    #[track_caller]
    fn until(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.from.recv_timeout(left) {
                Ok(message) if is_it(&message) => return message,
                Ok(message) => self.events.push(message),
                Err(RecvTimeoutError::Timeout) => panic!("not within {LIMIT:?}: {what}"),
                Err(RecvTimeoutError::Disconnected) => panic!("the browser has ended: {what}"),
            }
        }
    }
}

/// Each ends with a zero byte.
fn messages(output: PipeReader) -> impl Iterator<Item = Value> {
    let all = BufReader::new(output).split(0).map_while(Result::ok);
    all.filter_map(|bytes| serde_json::from_slice(&bytes).ok())
}

/// RFC 4648, section 4; what is none of its digits is passed over.
fn from_base64(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let digits: Vec<_> = text.bytes().filter_map(digit).map(u32::from).collect();
    let group = |digits: &[u32]| {
        let bits = digits.iter().fold(0, |bits, digit| bits << 6 | digit);
        let bits = bits << (6 * (4 - digits.len()));
        bits.to_be_bytes()[1..digits.len()].to_vec()
    };
    digits.chunks(4).flat_map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let shown =
            [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg==", "foob")];
        assert_eq!(
            shown.map(|(text, _)| from_base64(text)),
            shown.map(|(_, is)| is.as_bytes().to_vec())
        );
    }
}
